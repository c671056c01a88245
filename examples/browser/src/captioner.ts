/** A captioner in the browser, like `nic_hf.export.NICOnnxCaptioner` in Python, for one photo at a time. */

import { env, InferenceSession, Tensor } from "onnxruntime-web/wasm";
import loaderUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import { LSTMReader } from "./lstm";
import { type ModelFiles, type Progress, fetchModel, message } from "./model_files";
import { readPhoto } from "./photo";
import { PhotoPreprocessor } from "./preprocessing";
import { type FoundCaption, generate } from "./search";
import { type GenerationSettings, resolveSettings } from "./settings";
import { Tokenizer } from "./tokenizer";

const INT8_STATIC = "int8, static";
const MOST_THREADS = 4;

/** Facts about a loaded captioner. */
export interface Facts {
  precision: string;
  bytes: number;
  words: number;
  numBeams: number;
  threads: number;
}

export interface Caption {
  text: string;
  /** Geometric mean of the word probabilities, for beam search only. */
  probability?: number;
}

/** Milliseconds spent on each part of a caption. */
export interface Times {
  /** Decoding and resizing. */
  photo: number;
  /** The backbone. */
  encoder: number;
  /** The LSTM and the search. */
  search: number;
  total: number;
}

export interface Result {
  captions: Caption[];
  times: Times;
}

export class Captioner {
  private constructor(
    private readonly files: ModelFiles,
    private readonly preprocessor: PhotoPreprocessor,
    private readonly tokenizer: Tokenizer,
    private readonly encoder: InferenceSession,
    private readonly firstStep: InferenceSession,
    private readonly decoderStep: InferenceSession,
  ) {}

  /**
   * Load the captioner in a folder.
   *
   * @throws Error if there is none, or it uses something that is not supported.
   */
  static async load(folder: string, progress: Progress): Promise<Captioner> {
    const [files, wasm] = await fetchModel(folder, wasmUrl, progress);
    const preprocessor = new PhotoPreprocessor(files.imageProcessor);
    const tokenizer = new Tokenizer(files.tokenizer);
    resolveSettings(files.config, files.generationConfig);
    env.wasm.wasmBinary = wasm.buffer as ArrayBuffer;
    env.wasm.wasmPaths = { mjs: new URL(loaderUrl, import.meta.url).href };
    env.wasm.numThreads = threads();
    const sessions: InferenceSession[] = [];
    for (const [name, graph] of Object.entries(files.graphs)) {
      sessions.push(await open(name, graph, files.manifest.precision));
    }
    const [encoder, firstStep, decoderStep] = sessions;
    return new Captioner(files, preprocessor, tokenizer, encoder, firstStep, decoderStep);
  }

  get facts(): Facts {
    return {
      precision: this.files.manifest.precision,
      bytes: this.files.bytes,
      words: Number(this.files.config.vocab_size),
      numBeams: this.settings({}).num_beams,
      threads: threads(),
    };
  }

  /**
   * The best captions of a photo, one per beam, best first.
   *
   * @param given settings that override `generation_config.json`.
   */
  async caption(photo: Blob | ImageBitmap, given: Partial<GenerationSettings>): Promise<Result> {
    const settings = this.settings(given);
    const start = performance.now();
    const { data, height, width } = this.preprocessor.prepare(await readPhoto(photo));
    const expected = this.files.manifest.image_shape.join(" x ");
    if (`3 x ${height} x ${width}` !== expected) {
      throw new Error(`photos come out as 3 x ${height} x ${width}, and the graphs take ${expected}`);
    }
    const prepared = performance.now();
    const pixels = new Tensor("float32", data, [1, 3, height, width]);
    const { image_features } = await this.encoder.run({ pixel_values: pixels });
    const encoded = performance.now();
    const vocabSize = Number(this.files.config.vocab_size);
    const reader = await LSTMReader.start(this.firstStep, this.decoderStep, image_features as Tensor, vocabSize);
    const found = await generate(reader, settings);
    const end = performance.now();
    return {
      captions: found.map((caption) => this.describe(caption, settings)),
      times: { photo: prepared - start, encoder: encoded - prepared, search: end - encoded, total: end - start },
    };
  }

  private settings(given: Partial<GenerationSettings>): GenerationSettings {
    const settings = resolveSettings(this.files.config, this.files.generationConfig, given);
    return { ...settings, num_return_sequences: settings.num_beams };
  }

  private describe({ ids, score }: FoundCaption, { length_penalty }: GenerationSettings): Caption {
    const text = this.tokenizer.decode(ids);
    if (score === undefined) return { text };
    const words = ids.length - 1; // with <eos>
    return { text, probability: Math.exp((score * words ** length_penalty) / words) };
  }
}

/** Open a graph. */
async function open(name: string, graph: Uint8Array, precision: string): Promise<InferenceSession> {
  const session: Record<string, string> = { x64quantprecision: "1" };
  // Like `NICOnnxCaptioner`, convert weights stored in 8 bits to float32 once.
  if (precision !== INT8_STATIC) session.disable_quant_qdq = "1";
  try {
    return await InferenceSession.create(graph, { executionProviders: ["wasm"], extra: { session } });
  } catch (error) {
    throw new Error(`ONNX Runtime cannot run ${name} in this browser: ${message(error)}`);
  }
}

/** Browsers allow threads only if the host sends certain headers (see vite.config.ts). */
function threads(): number {
  return globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
}

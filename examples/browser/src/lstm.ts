/** The LSTM's two graphs in ONNX Runtime, and its state for several captions of one photo. */

import { type InferenceSession, Tensor } from "onnxruntime-web/wasm";
import type { Reader } from "./search";

const STATE = ["hidden_state", "cell_state"] as const;

type State = Record<(typeof STATE)[number], Float32Array>;

export class LSTMReader implements Reader {
  private captions = 1;

  private constructor(
    private readonly decoderStep: InferenceSession,
    readonly vocabSize: number,
    private readonly numLayers: number,
    private readonly hiddenSize: number,
    /** Each of shape `(num_layers, 1, captions, hidden_size)`. */
    private state: State,
    /** Regions for attention, independent of the number of captions. */
    private readonly regions: Record<string, Tensor>,
  ) {}

  /** The LSTM after reading the features of a photo. */
  static async start(
    firstStep: InferenceSession,
    decoderStep: InferenceSession,
    features: Tensor,
    vocabSize: number,
  ): Promise<LSTMReader> {
    const { hidden_state, cell_state, ...regions } = await firstStep.run({ [firstStep.inputNames[0]]: features });
    const [numLayers, , hiddenSize] = hidden_state.dims;
    const state = { hidden_state: await numbers(hidden_state), cell_state: await numbers(cell_state) };
    return new LSTMReader(decoderStep, vocabSize, numLayers, hiddenSize, state, regions as Record<string, Tensor>);
  }

  async read(words: readonly number[]): Promise<Float32Array> {
    const shape = [this.numLayers, 1, this.captions, this.hiddenSize];
    const outputs = await this.decoderStep.run({
      input_ids: new Tensor("int64", BigInt64Array.from(words, BigInt), [1, this.captions]),
      hidden_state: new Tensor("float32", this.state.hidden_state, shape),
      cell_state: new Tensor("float32", this.state.cell_state, shape),
      ...this.regions,
    });
    for (const name of STATE) this.state[name] = await numbers(outputs[`new_${name}`]);
    const logits = await numbers(outputs.logits);
    if (logits.length !== this.captions * this.vocabSize) {
      throw new Error(`config.json has ${this.vocabSize} words, the graph ${logits.length / this.captions}`);
    }
    return logits;
  }

  spread(captions: number): void {
    this.reorder(new Array<number>(captions).fill(0));
  }

  reorder(captions: readonly number[]): void {
    for (const name of STATE) {
      const [from, size] = [this.state[name], this.hiddenSize];
      const to = new Float32Array(this.numLayers * captions.length * size);
      for (let layer = 0, place = 0; layer < this.numLayers; layer++) {
        for (const caption of captions) {
          const start = (layer * this.captions + caption) * size;
          to.set(from.subarray(start, start + size), place);
          place += size;
        }
      }
      this.state[name] = to;
    }
    this.captions = captions.length;
  }
}

async function numbers(tensor: InferenceSession.OnnxValueMapType[string]): Promise<Float32Array> {
  return (await (tensor as Tensor).getData()) as Float32Array;
}

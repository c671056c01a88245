/** Fetch the files of a captioner that `nic export onnx` wrote, and check that they belong to one export. */

import type { TokenizerFile } from "./tokenizer";

export const GRAPHS = ["encoder.onnx", "first_step.onnx", "decoder_step.onnx"] as const;
const SETTINGS = ["config.json", "generation_config.json", "processor_config.json", "tokenizer.json"] as const;
const MANIFEST = "nic_onnx.json";
const FORMAT = 1;
// Users may edit this file: it does not depend on the weights, and the manifest has no digest of it.
const MAY_CHANGE = "generation_config.json";

export interface Manifest {
  format: number;
  precision: string;
  image_shape: number[];
  files: Record<string, string>;
}

export interface ModelFiles {
  manifest: Manifest;
  config: Record<string, unknown>;
  generationConfig: Record<string, unknown>;
  imageProcessor: Record<string, unknown>;
  tokenizer: TokenizerFile;
  graphs: Record<(typeof GRAPHS)[number], Uint8Array>;
  /** Size of all files. */
  bytes: number;
}

/** Called with the number of bytes received, and the total if the host sends it. */
export type Progress = (loaded: number, total?: number) => void;

/**
 * Fetch a captioner.
 *
 * @param folder URL of the folder, with a slash at the end.
 * @param more URL of another required file, included in the progress.
 * @throws Error if there is no captioner, files are missing, or they are from different exports.
 */
export async function fetchModel(folder: string, more: string, progress: Progress): Promise<[ModelFiles, Uint8Array]> {
  const manifest = await fetchManifest(folder);
  const names = [...SETTINGS, ...GRAPHS];
  const counts = names.map(() => ({ loaded: 0, total: 0 as number | undefined })).concat({ loaded: 0, total: 0 });
  const fetchOne = (url: string, place: number): Promise<Uint8Array> =>
    fetchBytes(url, (loaded, total) => {
      counts[place] = { loaded, total };
      const sum = counts.reduce((sum, count) => sum + count.loaded, 0);
      const isKnown = counts.every(({ total }) => total); // all have begun, and their hosts say how long they are
      progress(sum, isKnown ? counts.reduce((sum, { total }) => sum + (total ?? 0), 0) : undefined);
    });
  const [other, ...found] = await Promise.all([
    fetchOne(more, names.length),
    ...names.map(async (name, place) => {
      const bytes = await fetchOne(folder + name, place);
      await checkDigest(bytes, name, folder, manifest);
      return bytes;
    }),
  ]);
  const [config, generationConfig, processor, tokenizer] = SETTINGS.map((name, i) => parse(found[i], folder + name));
  const graphs = Object.fromEntries(GRAPHS.map((name, i) => [name, found[SETTINGS.length + i]]));
  const files = {
    manifest,
    config,
    generationConfig,
    imageProcessor: (processor.image_processor ?? {}) as Record<string, unknown>,
    tokenizer: tokenizer as unknown as TokenizerFile,
    graphs: graphs as ModelFiles["graphs"],
    bytes: found.reduce((sum, bytes) => sum + bytes.length, 0),
  };
  return [files, other];
}

async function fetchManifest(folder: string): Promise<Manifest> {
  let manifest: Record<string, unknown>;
  try {
    // Some hosts return an HTML page for missing files, which is not JSON.
    manifest = parse(await fetchBytes(folder + MANIFEST), folder + MANIFEST);
  } catch (error) {
    throw new Error(
      `There is no captioner at ${folder}: put the folder that "nic export onnx CAPTIONER OUT --int8" writes there, ` +
        `or name another one by ?model=FOLDER in the address. (${message(error)})`,
    );
  }
  if (manifest.format !== FORMAT) {
    throw new Error(
      `${folder + MANIFEST}: this page reads format ${FORMAT}, not ${manifest.format}`,
    );
  }
  return manifest as unknown as Manifest;
}

async function fetchBytes(url: string, progress: Progress = () => {}): Promise<Uint8Array> {
  let response: Response;
  try {
    // Revalidate cached files, so that files of two exports are not mixed.
    response = await fetch(url, { cache: "no-cache" });
  } catch (error) {
    throw new Error(`${url} cannot be loaded: ${message(error)}`);
  }
  if (!response.ok || !response.body) throw new Error(`${url} cannot be loaded: the host answers ${response.status}`);
  const isPacked = response.headers.has("Content-Encoding"); // the length is then that of the compressed file
  const total = isPacked ? undefined : Number(response.headers.get("Content-Length")) || undefined;
  const parts: Uint8Array[] = [];
  let loaded = 0;
  progress(0, total);
  try {
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      loaded += value.length;
      progress(loaded, total);
    }
  } catch (error) {
    throw new Error(`${url} was truncated: ${message(error)}`);
  }
  const bytes = new Uint8Array(loaded);
  let place = 0;
  for (const part of parts) {
    bytes.set(part, place);
    place += part.length;
  }
  return bytes;
}

/** Compare with the SHA-256 of the export; browsers cannot compute it on plain http. */
async function checkDigest(bytes: Uint8Array, name: string, folder: string, manifest: Manifest): Promise<void> {
  if (name === MAY_CHANGE || !globalThis.crypto?.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>));
  const text = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (text !== manifest.files?.[name]) {
    throw new Error(
      `${folder + name} is not the file that ${MANIFEST} lists: it was changed, truncated, or is from another ` +
        "export. Export the checkpoint again.",
    );
  }
}

function parse(bytes: Uint8Array, url: string): Record<string, unknown> {
  let content: unknown;
  try {
    content = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new Error(`${url} is not a JSON file`);
  }
  if (typeof content !== "object" || content === null) throw new Error(`${url} is not a JSON object`);
  return content as Record<string, unknown>;
}

/** The message of an error. */
export function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Results of Python for photos, searches and words, written by tests/browser in the repository, which runs these tests
 * with the file name in NIC_BROWSER_CASES. Without it, tests that need it are skipped.
 */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Pixels } from "../src/resize";
import type { TokenizerFile } from "../src/tokenizer";

export interface Cases {
  /** RGB photos in base64. */
  images: { width: number; height: number; data: string }[];
  /** SHA-256 of the pixels of an image resized by Pillow. */
  resize: { image: number; width: number; height: number; resample: number; digest: string }[];
  /** SHA-256 of `pixel_values` in float32. */
  preprocessing: { name: string; image: number; settings: Record<string, unknown>; shape: number[]; digest: string }[];
  /** Scores of words by state, and the captions found with them. */
  search: {
    vocabSize: number;
    numStates: number;
    /** float32, of shape `(numStates, vocabSize)`, base64. */
    table: string;
    settings: Record<string, unknown>;
    captions: { ids: number[]; score: number | null }[];
  }[];
  words: { tokenizer: TokenizerFile; ids: number[]; text: string }[];
}

const file = process.env.NIC_BROWSER_CASES;

export const cases: Cases | undefined = file ? JSON.parse(readFileSync(file, "utf-8")) : undefined;

export function imageOf({ width, height, data }: Cases["images"][number]): Pixels {
  return { width, height, data: new Uint8Array(Buffer.from(data, "base64")), channels: 3 };
}

export function floatsOf(data: string): Float32Array {
  const bytes = new Uint8Array(Buffer.from(data, "base64"));
  return new Float32Array(bytes.buffer);
}

export function digestOf(data: Uint8Array | Uint8ClampedArray | Float32Array): string {
  return createHash("sha256")
    .update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    .digest("hex");
}

/** The image with a fourth channel, like from a canvas. */
export function withAlpha(image: Pixels): Pixels {
  const data = new Uint8ClampedArray(image.width * image.height * 4).fill(255);
  for (let i = 0; i < image.width * image.height; i++) data.set(image.data.subarray(3 * i, 3 * i + 3), 4 * i);
  return { ...image, data, channels: 4 };
}

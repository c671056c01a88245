/** Messages between the page and its worker. */

import type { Facts, Result } from "./captioner";
import type { GenerationSettings } from "./settings";

export type ToWorker =
  | { type: "load"; folder: string }
  | { type: "caption"; id: number; photo: Blob | ImageBitmap; settings: Partial<GenerationSettings> };

export type FromWorker =
  | { type: "progress"; loaded: number; total?: number }
  | { type: "ready"; facts: Facts }
  | { type: "failed"; reason: string }
  | { type: "captioned"; id: number; result: Result }
  | { type: "refused"; id: number; reason: string };

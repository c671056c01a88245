/** The worker behind promises. */

import type { Facts, Result } from "./captioner";
import type { FromWorker, ToWorker } from "./messages";
import type { Progress } from "./model_files";
import type { GenerationSettings } from "./settings";

interface Waiting<T> {
  resolve: (value: T) => void;
  reject: (reason: Error) => void;
}

export class CaptionerClient {
  private readonly worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  private readonly photos = new Map<number, Waiting<Result>>();
  private loading?: Waiting<Facts>;
  private progress: Progress = () => {};
  private lastId = 0;

  constructor() {
    this.worker.onmessage = ({ data }: MessageEvent<FromWorker>) => this.hear(data);
    this.worker.onerror = (event) => {
      const error = new Error(
        `this browser cannot run the captioner: ${event.message || "its worker does not start"}`,
      );
      this.loading?.reject(error);
      for (const { reject } of this.photos.values()) reject(error);
      this.photos.clear();
    };
  }

  /** Load the captioner in a folder, given as an absolute URL. */
  load(folder: string, progress: Progress): Promise<Facts> {
    this.progress = progress;
    return new Promise((resolve, reject) => {
      this.loading = { resolve, reject };
      this.ask({ type: "load", folder });
    });
  }

  /** Caption a photo. A bitmap is transferred. */
  caption(photo: Blob | ImageBitmap, settings: Partial<GenerationSettings>): Promise<Result> {
    const id = ++this.lastId;
    return new Promise((resolve, reject) => {
      this.photos.set(id, { resolve, reject });
      this.ask({ type: "caption", id, photo, settings }, photo instanceof ImageBitmap ? [photo] : []);
    });
  }

  private ask(what: ToWorker, handedOver: Transferable[] = []): void {
    this.worker.postMessage(what, handedOver);
  }

  private hear(told: FromWorker): void {
    switch (told.type) {
      case "progress":
        return this.progress(told.loaded, told.total);
      case "ready":
        return this.loading?.resolve(told.facts);
      case "failed":
        return this.loading?.reject(new Error(told.reason));
    }
    const waiting = this.photos.get(told.id);
    this.photos.delete(told.id);
    if (told.type === "captioned") waiting?.resolve(told.result);
    else waiting?.reject(new Error(told.reason));
  }
}

/** The captioner in a separate thread, so that the page and the camera do not freeze. */

import { Captioner } from "./captioner";
import type { FromWorker, ToWorker } from "./messages";
import { message } from "./model_files";

let captioner: Captioner | undefined;
let last: Promise<void> = Promise.resolve();

// One by one: ONNX Runtime cannot run two photos at the same time.
self.onmessage = ({ data }: MessageEvent<ToWorker>) => {
  last = last.then(() => answer(data));
};

async function answer(asked: ToWorker): Promise<void> {
  if (asked.type === "load") {
    try {
      captioner = await Captioner.load(asked.folder, (loaded, total) => tell({ type: "progress", loaded, total }));
      tell({ type: "ready", facts: captioner.facts });
    } catch (error) {
      tell({ type: "failed", reason: message(error) });
    }
    return;
  }
  try {
    if (!captioner) throw new Error("no captioner has been loaded");
    const result = await captioner.caption(asked.photo, asked.settings);
    tell({ type: "captioned", id: asked.id, result });
  } catch (error) {
    tell({ type: "refused", id: asked.id, reason: message(error) });
  }
}

function tell(what: FromWorker): void {
  self.postMessage(what);
}

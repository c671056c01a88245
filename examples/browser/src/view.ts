/** The display of the page. Text is never set as HTML. */

import type { Facts, Result } from "./captioner";

const find = <T extends HTMLElement>(id: string): T => {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element as T;
};

export const elements = {
  stage: find<HTMLDivElement>("stage"),
  hint: find<HTMLParagraphElement>("hint"),
  photo: find<HTMLImageElement>("photo"),
  video: find<HTMLVideoElement>("video"),
  file: find<HTMLInputElement>("file"),
  camera: find<HTMLButtonElement>("camera"),
  beams: find<HTMLSelectElement>("beams"),
  loading: find<HTMLDivElement>("loading"),
  progress: find<HTMLProgressElement>("progress"),
  loaded: find<HTMLParagraphElement>("loaded"),
  error: find<HTMLParagraphElement>("error"),
  caption: find<HTMLOutputElement>("caption"),
  best: find<HTMLOListElement>("best"),
  meaning: find<HTMLParagraphElement>("meaning"),
  times: find<HTMLParagraphElement>("times"),
  facts: find<HTMLElement>("facts"),
};

const MOST_BEAMS = 10;

export function showProgress(loaded: number, total?: number): void {
  if (total === undefined) {
    elements.progress.removeAttribute("value");
    elements.loaded.textContent = `Loading the captioner: ${megabytes(loaded)} MB`;
  } else if (loaded < total) {
    elements.progress.value = loaded / total;
    elements.loaded.textContent = `Loading the captioner: ${megabytes(loaded)} of ${megabytes(total)} MB`;
  } else {
    elements.progress.removeAttribute("value");
    elements.loaded.textContent = "Starting the captioner";
  }
}

/** The captioner is loaded. */
export function showReady({ precision, bytes, words, numBeams, threads }: Facts): void {
  elements.loading.hidden = true;
  elements.facts.textContent =
    `${megabytes(bytes)} MB, ${precision}; ${words.toLocaleString("en")} words; ` +
    `${threads} ${threads === 1 ? "thread" : "threads"}`;
  for (let number = 1; number <= Math.max(MOST_BEAMS, numBeams); number++) {
    elements.beams.add(new Option(number === 1 ? "1 (greedy)" : String(number), String(number)));
  }
  elements.beams.value = String(numBeams);
  elements.beams.disabled = false;
}

/** Show an error instead of a caption. */
export function showError(reason: string): void {
  clearCaption();
  elements.error.textContent = reason;
  elements.error.hidden = false;
}

/** Mark the caption as outdated. */
export function showWaiting(): void {
  elements.error.hidden = true;
  elements.caption.classList.add("waiting");
  if (!elements.caption.textContent) elements.caption.textContent = "…";
}

/** @param more text after the times. */
export function showResult({ captions, times }: Result, more = ""): void {
  elements.error.hidden = true;
  elements.caption.classList.remove("waiting");
  elements.caption.textContent = captions[0].text || "(no word)";
  const rated = captions.filter(({ probability }) => probability !== undefined);
  elements.best.replaceChildren(...rated.map(line));
  elements.meaning.hidden = rated.length === 0;
  const parts = `photo ${times.photo.toFixed(0)}, encoder ${times.encoder.toFixed(0)}, words ${times.search.toFixed(0)}`;
  elements.times.textContent = `${times.total.toFixed(0)} ms: ${parts}${more}`;
}

export function clearCaption(): void {
  elements.error.hidden = true;
  elements.caption.classList.remove("waiting");
  elements.caption.textContent = "";
  elements.times.textContent = "";
  elements.best.replaceChildren();
  elements.meaning.hidden = true;
}

/** Show a photo, the camera, or neither. */
export function showStage(what: "hint" | "photo" | "video"): void {
  for (const name of ["hint", "photo", "video"] as const) elements[name].hidden = name !== what;
  elements.stage.classList.toggle("full", what !== "hint");
}

function line({ text, probability = 0 }: { text: string; probability?: number }): HTMLLIElement {
  const [item, words, number, bar, filled] = ["li", "span", "span", "div", "span"].map((tag) =>
    document.createElement(tag),
  );
  words.textContent = text;
  number.textContent = `${(100 * probability).toFixed(0)} %`;
  bar.className = "bar";
  filled.style.width = `${(100 * probability).toFixed(1)}%`;
  bar.append(filled);
  item.append(words, number, bar);
  return item as HTMLLIElement;
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}

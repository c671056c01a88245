/** The page: captions for a dropped, pasted or selected photo, or for the camera. */

import { Camera } from "./camera";
import { CaptionerClient } from "./client";
import { message } from "./model_files";
import {
  clearCaption,
  elements,
  showError,
  showProgress,
  showReady,
  showResult,
  showStage,
  showWaiting,
} from "./view";

const client = new CaptionerClient();
let photo: File | undefined;
let newest = 0; // of several photos in a row, the last one's caption is shown
let failure: string | undefined;

const camera = new Camera(elements.video, captionPicture, (reason) => {
  stopCamera();
  showError(failure ?? reason);
});

async function load(): Promise<void> {
  const wanted = new URLSearchParams(location.search).get("model") ?? "model";
  try {
    const folder = new URL(wanted.replace(/\/*$/, "/"), document.baseURI);
    if (folder.origin !== location.origin) throw new Error(`${folder.href} is on another host than this page`);
    showReady(await client.load(folder.href, showProgress));
  } catch (error) {
    failure = message(error);
    elements.loading.hidden = true;
    elements.camera.disabled = true;
    elements.file.disabled = true;
    showError(failure);
  }
}

async function captionFile(file: File): Promise<void> {
  stopCamera();
  photo = file;
  const request = ++newest;
  URL.revokeObjectURL(elements.photo.src);
  elements.photo.src = URL.createObjectURL(file);
  elements.photo.alt = file.name;
  showStage("photo");
  if (failure !== undefined) return showError(failure);
  showWaiting();
  try {
    const result = await client.caption(file, settings());
    if (request === newest) showResult(result);
  } catch (error) {
    if (request !== newest || failure !== undefined) return; // the reason is shown already
    photo = undefined;
    showStage("hint");
    showError(`${file.name}: ${message(error)}`);
  }
}

async function captionPicture(picture: ImageBitmap): Promise<void> {
  const [request, start] = [newest, performance.now()];
  const result = await client.caption(picture, settings());
  const rate = 1000 / (performance.now() - start);
  if (camera.isOn && request === newest) showResult(result, `; ${rate.toFixed(1)} captions a second`);
}

async function toggleCamera(): Promise<void> {
  if (camera.isOn) {
    stopCamera();
    showStage("hint");
    return clearCaption();
  }
  elements.camera.disabled = true;
  try {
    await camera.start();
    photo = undefined;
    newest++;
    showStage("video");
    showWaiting();
    elements.camera.textContent = "Stop the camera";
    elements.camera.setAttribute("aria-pressed", "true");
  } catch (error) {
    showError(message(error));
  } finally {
    elements.camera.disabled = false;
  }
}

function stopCamera(): void {
  camera.stop();
  elements.camera.textContent = "Use the camera";
  elements.camera.setAttribute("aria-pressed", "false");
  if (!elements.video.hidden) showStage("hint");
}

function settings(): { num_beams?: number } {
  return elements.beams.disabled ? {} : { num_beams: Number(elements.beams.value) };
}

function takeFile(files?: FileList | null): void {
  if (files?.[0]) void captionFile(files[0]);
  else showError("That was not a file. Drop a photo from a folder, or select one.");
}

elements.file.addEventListener("change", () => {
  if (elements.file.files?.length) takeFile(elements.file.files);
  elements.file.value = ""; // the same photo may be chosen again
});
elements.camera.addEventListener("click", () => void toggleCamera());
elements.beams.addEventListener("change", () => {
  if (photo) void captionFile(photo);
});
// The whole page accepts photos, so that one dropped outside the frame does not replace the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  elements.stage.classList.add("over");
});
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, () => elements.stage.classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  takeFile(event.dataTransfer?.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) takeFile(event.clipboardData.files);
});

void load();

/** Pixels of a photo as Python reads it: rotated upright, without color profile, and transparency on white. */

import type { Pixels } from "./resize";

const MOST_PIXELS = 2 ** 25; // larger photos are reduced to at most this before they are read
const LONGEST = 100; // times the width that a photo may be high, or the other way round; the middle is kept
const STRIP = 2 ** 20; // pixels that go through a canvas at once: on phones, canvases must not be large

/**
 * Read a photo.
 *
 * @param source the bytes of an image file, or a frame of the camera.
 * @throws Error if this browser cannot read it as an image.
 */
export async function readPhoto(source: Blob | ImageBitmap): Promise<Pixels> {
  const bitmap = source instanceof ImageBitmap ? source : await decode(source);
  try {
    return readPixels(bitmap);
  } finally {
    bitmap.close();
  }
}

async function decode(file: Blob): Promise<ImageBitmap> {
  if (file.size === 0) throw new Error("the file is empty");
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    const kind = file.type ? ` (${file.type})` : "";
    throw new Error(`this browser cannot read it as an image${kind}; all browsers read JPEG, PNG, WebP, GIF and AVIF`);
  }
}

function readPixels(bitmap: ImageBitmap): Pixels {
  const kept = {
    width: Math.min(bitmap.width, LONGEST * bitmap.height),
    height: Math.min(bitmap.height, LONGEST * bitmap.width),
  };
  const left = Math.floor((bitmap.width - kept.width) / 2);
  const top = Math.floor((bitmap.height - kept.height) / 2);
  const factor = Math.max(1, Math.ceil(Math.sqrt((kept.width * kept.height) / MOST_PIXELS)));
  const width = Math.ceil(kept.width / factor);
  const height = Math.ceil(kept.height / factor);
  const rows = Math.min(height, Math.max(1, Math.floor(STRIP / width)));
  const canvas = new OffscreenCanvas(width, rows);
  // Without it, the GPU may draw and round differently.
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  if (!context) throw new Error("this browser has no canvas to read photos with");
  const data = new Uint8ClampedArray(width * height * 4);
  for (let row = 0; row < height; row += rows) {
    context.fillStyle = "white";
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, left, top, kept.width, kept.height, 0, -row, width, height);
    const strip = context.getImageData(0, 0, width, Math.min(rows, height - row));
    data.set(strip.data, row * width * 4);
  }
  return { width, height, data, channels: 4 };
}

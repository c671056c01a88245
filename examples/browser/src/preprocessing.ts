/**
 * Preprocess photos to `pixel_values`, bit by bit like `nic_hf.export.preprocessing`.
 */

import { type Pixels, resize, toRgb } from "./resize";

type Settings = Record<string, unknown>;
type Size = { height: number; width: number } | { shortest_edge: number };

// Settings without effect on the pixels.
const WITHOUT_EFFECT = new Set([
  "auto_map",
  "crop_pct",
  "data_format",
  "default_to_square",
  "device",
  "disable_grouping",
  "do_convert_rgb", // photos come as RGB
  "do_reduce_labels",
  "image_processor_type",
  "input_data_format",
  "processor_class",
  "return_tensors",
  "size_divisor",
]);
const KNOWN = new Set([
  "do_resize",
  "size",
  "resample",
  "do_center_crop",
  "crop_size",
  "do_rescale",
  "rescale_factor",
  "do_normalize",
  "image_mean",
  "image_std",
  "do_flip_channel_order",
]);
const BILINEAR = 2;

/** Preprocesses photos by the settings of an image processor. */
export class PhotoPreprocessor {
  private readonly size?: Size;
  private readonly crop?: Size;
  private readonly resample: number;
  private readonly flip: boolean;
  private readonly levels: Float32Array[];

  /** @throws Error if a setting is not supported. */
  constructor(settings: Settings) {
    const asked = Object.fromEntries(
      Object.entries(settings).filter(([, value]) => value !== null && value !== undefined && value !== false),
    );
    const unknown = Object.keys(asked).filter((name) => !KNOWN.has(name) && !WITHOUT_EFFECT.has(name));
    if (unknown.length > 0) {
      const list = unknown.sort().map((name) => `${name}=${JSON.stringify(asked[name])}`);
      throw new Error(`photos cannot be preprocessed like ${settings.image_processor_type} with ${list.join(", ")}`);
    }
    this.size = asked.do_resize ? sizeOf("size", asked) : undefined;
    this.crop = asked.do_center_crop ? sizeOf("crop_size", asked) : undefined;
    if (this.crop && !("height" in this.crop)) {
      throw new Error(`the image processor's crop_size must have a height and a width`);
    }
    if (String(settings.image_processor_type).startsWith("ConvNext") && this.size) {
      [this.size, this.crop] = asConvNext(this.size, this.crop, Number(settings.crop_pct) || 224 / 256);
    }
    this.resample = Number(asked.resample ?? BILINEAR);
    this.flip = Boolean(asked.do_flip_channel_order);
    this.levels = levelsOf(asked);
  }

  /** Preprocess a photo to an array of shape `(3, height, width)`. */
  prepare(photo: Pixels): { data: Float32Array; height: number; width: number } {
    let pixels = photo;
    if (this.size) {
      const [height, width] = target(photo.height, photo.width, this.size);
      pixels = resize(photo, width, height, this.resample);
    }
    pixels = toRgb(pixels);
    if (this.crop && "height" in this.crop) pixels = centreCrop(pixels, this.crop.height, this.crop.width);
    const { width, height } = pixels;
    const area = width * height;
    const data = new Float32Array(3 * area);
    for (let channel = 0; channel < 3; channel++) {
      const levels = this.levels[channel];
      const start = (this.flip ? 2 - channel : channel) * area;
      for (let i = 0, from = channel; i < area; i++, from += 3) data[start + i] = levels[pixels.data[from]];
    }
    return { data, height, width };
  }
}

function sizeOf(name: string, settings: Settings): Size {
  const size = Object.entries((settings[name] ?? {}) as Record<string, number>).filter(([, value]) => value);
  const sides = size
    .map(([side]) => side)
    .sort()
    .join();
  if (sides !== "height,width" && sides !== "shortest_edge") {
    throw new Error(
      `the image processor's ${name} must have height and width, or shortest_edge, got ${JSON.stringify(settings[name])}`,
    );
  }
  return Object.fromEntries(size) as unknown as Size;
}

/** ConvNeXt's processor crops the central `share` of a photo, but nothing from 384 pixels on. */
function asConvNext(size: Size, crop: Size | undefined, share: number): [Size, Size | undefined] {
  if (!("shortest_edge" in size)) throw new Error("ConvNeXt's image processor needs a size with shortest_edge");
  const short = size.shortest_edge;
  const square = { height: short, width: short };
  return short < 384 ? [{ shortest_edge: Math.trunc(short / share) }, square] : [square, crop];
}

function target(height: number, width: number, size: Size): [number, number] {
  if ("height" in size) return [size.height, size.width];
  const short = size.shortest_edge;
  const long = Math.trunc((short * Math.max(height, width)) / Math.min(height, width));
  return width <= height ? [long, short] : [short, long];
}

/** Crop the center, padding small photos with black. Odd differences are split like in Transformers. */
function centreCrop(image: Pixels, height: number, width: number): Pixels {
  const offset = (length: number, wanted: number): number => {
    const before = Math.ceil(Math.max(wanted - length, 0) / 2);
    return Math.max(Math.floor((length - wanted) / 2) + before, 0) - before;
  };
  const top = offset(image.height, height);
  const left = offset(image.width, width);
  const data = new Uint8Array(width * height * 3);
  const begin = Math.max(left, 0);
  const end = Math.min(left + width, image.width);
  for (let row = 0; row < height; row++) {
    const from = row + top;
    if (from < 0 || from >= image.height) continue;
    const start = from * image.width;
    data.set(image.data.subarray((start + begin) * 3, (start + end) * 3), (row * width + begin - left) * 3);
  }
  return { width, height, data, channels: 3 };
}

/** Lookup table of the rescaled and normalized value of each of 256 levels per channel, in float32 like NumPy. */
function levelsOf(settings: Settings): Float32Array[] {
  const { fround } = Math;
  const factor = settings.do_rescale ? Number(settings.rescale_factor ?? 1 / 255) : 1;
  const statistics = (name: string): number[] => {
    if (!settings.do_normalize) return name === "image_mean" ? [0, 0, 0] : [1, 1, 1];
    const given = settings[name];
    if (!Array.isArray(given) || given.length !== 3) throw new Error(`the image processor needs 3 numbers as ${name}`);
    return given.map(fround);
  };
  const [mean, std] = [statistics("image_mean"), statistics("image_std")];
  return [0, 1, 2].map((channel) =>
    Float32Array.from({ length: 256 }, (_, level) => fround(fround(level * factor) - mean[channel]) / std[channel]),
  );
}

/**
 * Resampling that is bit-identical to Pillow's; browsers resize differently, which affects captions.
 *
 * Source: `src/libImaging/Resample.c` of Pillow, for 8 bits per channel. Weights are rounded to 22 fractional bits,
 * rows are resized before columns, and intermediate values are rounded to 8 bits.
 */

/** An image with 8 bits per channel, row by row. */
export interface Pixels {
  width: number;
  height: number;
  /** Of length `width * height * channels`: red, green, blue, and an ignored fourth channel. */
  data: Uint8Array | Uint8ClampedArray;
  /** 3, or 4 for a canvas. */
  channels: 3 | 4;
}

interface Filter {
  /** Half the number of input pixels per output pixel, at the original scale. */
  support: number;
  weight: (x: number) => number;
}

const PRECISION_BITS = 32 - 8 - 2;

/** By the values of Pillow's `Image.Resampling`, which image processors save. */
const FILTERS: Record<number, Filter> = {
  1: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) }, // Lanczos
  2: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) }, // bilinear
  3: { support: 2, weight: bicubic },
  4: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) }, // box
  5: { support: 1, weight: hamming },
};

/**
 * Resize an image like `Image.resize((width, height), resample)`.
 *
 * @param resample a value of `Image.Resampling` other than 0 (nearest neighbor).
 * @returns an image of 3 channels.
 * @throws Error if `resample` has another value, or a side is zero.
 */
export function resize(image: Pixels, width: number, height: number, resample: number): Pixels {
  const filter = FILTERS[resample];
  if (filter === undefined) {
    throw new Error(
      `photos cannot be resized with resample=${resample}; known are ${Object.keys(FILTERS).join(", ")}`,
    );
  }
  if (Math.min(width, height, image.width, image.height) < 1) {
    throw new Error(`cannot resize ${image.width} x ${image.height} pixels to ${width} x ${height}`);
  }
  const rows = width === image.width ? toRgb(image) : resizeRows(image, weights(image.width, width, filter));
  return height === image.height ? rows : resizeColumns(rows, weights(image.height, height, filter));
}

/** The image without a fourth channel. */
export function toRgb(image: Pixels): Pixels {
  const { width, height, channels } = image;
  if (channels === 3) return image;
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < data.length; from += 4, to += 3) {
    data[to] = image.data[from];
    data[to + 1] = image.data[from + 1];
    data[to + 2] = image.data[from + 2];
  }
  return { width, height, data, channels: 3 };
}

/** For each output pixel: the first input pixel, their number, and their weights. */
interface Weights {
  first: Int32Array;
  count: Int32Array;
  /** `most` per pixel, in units of 2 to the power of -22. */
  values: Int32Array;
  most: number;
}

function weights(from: number, to: number, filter: Filter): Weights {
  const scale = from / to;
  const filterScale = Math.max(scale, 1); // enlarging takes the filter as it is, shrinking a wider one
  const support = filter.support * filterScale;
  const most = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(to);
  const count = new Int32Array(to);
  const values = new Int32Array(to * most);
  const exact = new Float64Array(most);
  for (let place = 0; place < to; place++) {
    const centre = (place + 0.5) * scale;
    const begin = Math.max(Math.trunc(centre - support + 0.5), 0);
    const number = Math.min(Math.trunc(centre + support + 0.5), from) - begin;
    let sum = 0;
    for (let i = 0; i < number; i++) {
      exact[i] = filter.weight((i + begin - centre + 0.5) * (1 / filterScale));
      sum += exact[i];
    }
    for (let i = 0; i < number; i++) {
      const scaled = (sum === 0 ? exact[i] : exact[i] / sum) * (1 << PRECISION_BITS);
      values[place * most + i] = Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    }
    first[place] = begin;
    count[place] = number;
  }
  return { first, count, values, most };
}

function resizeRows(image: Pixels, { first, count, values, most }: Weights): Pixels {
  const { height, channels, data } = image;
  const width = first.length;
  const result = new Uint8ClampedArray(width * height * 3);
  for (let row = 0, to = 0; row < height; row++) {
    const start = row * image.width * channels;
    for (let place = 0; place < width; place++, to += 3) {
      let from = start + first[place] * channels;
      let red = 1 << (PRECISION_BITS - 1);
      let green = red;
      let blue = red;
      for (let i = place * most, end = i + count[place]; i < end; i++, from += channels) {
        red = (red + Math.imul(data[from], values[i])) | 0;
        green = (green + Math.imul(data[from + 1], values[i])) | 0;
        blue = (blue + Math.imul(data[from + 2], values[i])) | 0;
      }
      result[to] = red >> PRECISION_BITS; // the array keeps it within 0 and 255
      result[to + 1] = green >> PRECISION_BITS;
      result[to + 2] = blue >> PRECISION_BITS;
    }
  }
  return { width, height, data: result, channels: 3 };
}

function resizeColumns(image: Pixels, { first, count, values, most }: Weights): Pixels {
  const { width, data } = image;
  const height = first.length;
  const stride = width * 3;
  const result = new Uint8ClampedArray(stride * height);
  for (let row = 0, to = 0; row < height; row++) {
    for (let column = 0; column < stride; column++, to++) {
      let from = first[row] * stride + column;
      let sum = 1 << (PRECISION_BITS - 1);
      for (let i = row * most, end = i + count[row]; i < end; i++, from += stride) {
        sum = (sum + Math.imul(data[from], values[i])) | 0;
      }
      result[to] = sum >> PRECISION_BITS;
    }
  }
  return { width, height, data: result, channels: 3 };
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

function bicubic(x: number): number {
  const a = -0.5;
  const distance = Math.abs(x);
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  return distance < 2 ? (((distance - 5) * distance + 8) * distance - 4) * a : 0;
}

function hamming(x: number): number {
  const distance = Math.abs(x);
  if (distance >= 1) return 0;
  return distance === 0 ? 1 : sinc(distance) * (0.54 + 0.46 * Math.cos(distance * Math.PI));
}

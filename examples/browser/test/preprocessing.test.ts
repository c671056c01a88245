import { describe, expect, it } from "vitest";
import { PhotoPreprocessor } from "../src/preprocessing";
import { cases, digestOf, imageOf, withAlpha } from "./cases";

const SQUEEZE = { do_resize: true, size: { height: 2, width: 2 }, resample: 2 };

describe("PhotoPreprocessor", () => {
  it("puts channels one behind the other, rescaled and normalised", () => {
    const data = new Uint8Array([255, 0, 51, 255, 0, 51, 255, 0, 51, 255, 0, 51]);
    const settings = { ...SQUEEZE, do_rescale: true, rescale_factor: 1 / 255, do_normalize: true };
    const statistics = { image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5] };
    const prepared = new PhotoPreprocessor({ ...settings, ...statistics }).prepare({
      width: 2,
      height: 2,
      data,
      channels: 3,
    });
    const expected = [1, 1, 1, 1, -1, -1, -1, -1, ...new Array(4).fill(Math.fround(Math.fround(0.2) - 0.5) / 0.5)];
    expect([...prepared.data]).toEqual(expected);
    expect([prepared.height, prepared.width]).toEqual([2, 2]);
  });

  it.each([
    [{ do_pad: true }, "do_pad=true"],
    [{ do_resize: true, size: { longest_edge: 9 } }, "size must have height and width, or shortest_edge"],
    [{ do_center_crop: true, crop_size: { shortest_edge: 9 } }, "crop_size must have a height and a width"],
    [{ do_normalize: true, image_mean: [1], image_std: [1, 1, 1] }, "3 numbers as image_mean"],
  ])("refuses %j", (settings, reason) => {
    expect(() => new PhotoPreprocessor(settings)).toThrow(reason);
  });

  it.skipIf(!cases)("gives the pixels of Python, to the bit", () => {
    for (const { name, image, settings, shape, digest } of cases!.preprocessing) {
      const photo = withAlpha(imageOf(cases!.images[image]));
      const { data, height, width } = new PhotoPreprocessor(settings).prepare(photo);
      expect([3, height, width], name).toEqual(shape);
      expect(digestOf(data), `${name}, ${photo.width} x ${photo.height}`).toBe(digest);
    }
    expect(cases!.preprocessing.length).toBeGreaterThan(30);
  });
});

import { describe, expect, it } from "vitest";
import { type Pixels, resize } from "../src/resize";
import { cases, digestOf, imageOf, withAlpha } from "./cases";

const image = (width: number, height: number, level: (x: number, y: number) => number): Pixels => {
  const data = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) data.fill(level(i % width, Math.floor(i / width)), 3 * i, 3 * i + 3);
  return { width, height, data, channels: 3 };
};

describe("resize", () => {
  it("takes the mean of two pixels with a box", () => {
    const halved = resize(
      image(4, 2, (x) => 10 * x),
      2,
      1,
      4,
    );
    expect([...halved.data]).toEqual([5, 5, 5, 25, 25, 25]);
  });

  it.each([1, 2, 3, 4, 5])("leaves a surface of one colour as it is, with filter %i", (resample) => {
    const resized = resize(
      image(37, 21, () => 201),
      50,
      8,
      resample,
    );
    expect(new Set(resized.data)).toEqual(new Set([201]));
  });

  it("keeps what overshoots within 0 and 255", () => {
    const edge = resize(
      image(16, 1, (x) => (x < 8 ? 0 : 255)),
      40,
      1,
      3,
    );
    const levels = Array.from({ length: 40 }, (_, x) => edge.data[3 * x]);
    expect(levels).toEqual([...levels].sort((a, b) => a - b)); // wrapped round, some would be on the wrong side
    expect([levels[17], levels[22]]).toEqual([0, 255]);
  });

  it("refuses what it does not know", () => {
    expect(() =>
      resize(
        image(2, 2, () => 0),
        1,
        1,
        0,
      ),
    ).toThrow("resample=0");
    expect(() =>
      resize(
        image(2, 2, () => 0),
        0,
        1,
        2,
      ),
    ).toThrow("cannot resize 2 x 2 pixels to 0 x 1");
  });

  it.skipIf(!cases)("gives Pillow's pixels, to the bit", () => {
    for (const { image, width, height, resample, digest } of cases!.resize) {
      const photo = imageOf(cases!.images[image]);
      const name = `${photo.width} x ${photo.height} to ${width} x ${height}, filter ${resample}`;
      for (const form of [photo, withAlpha(photo)]) {
        expect(digestOf(resize(form, width, height, resample).data), name).toBe(digest);
      }
    }
    expect(cases!.resize.length).toBeGreaterThan(30);
  });
});

import { describe, expect, it } from "vitest";
import { endIds, longest, resolveSettings, shortest } from "../src/settings";

const IDS = { pad_token_id: 0, bos_token_id: 1, eos_token_id: 2, decoder_start_token_id: 1, vocab_size: 9 };

describe("resolveSettings", () => {
  it("puts what is given before the generation config, and that before the ids of the config", () => {
    const settings = resolveSettings(
      IDS,
      { num_beams: 3, eos_token_id: [2, 5], length_penalty: 0.7 },
      { num_beams: 4 },
    );
    expect(settings).toMatchObject({ num_beams: 4, length_penalty: 0.7, pad_token_id: 0, early_stopping: false });
    expect(endIds(settings)).toEqual([2, 5]);
  });

  it("lets pass what changes no caption", () => {
    const neutral = {
      do_sample: false,
      temperature: 0.7,
      use_cache: true,
      diversity_penalty: 0,
      guidance_scale: null,
    };
    expect(resolveSettings(IDS, neutral)).toEqual(resolveSettings(IDS, {}));
  });

  it.each([
    [{ do_sample: true }, "do_sample=true is not known to this page; this page searches"],
    [{ penalty_alpha: 0.6 }, "penalty_alpha=0.6 is not known"],
    [{ num_beams: 0 }, "num_beams must be an integer of at least 1, got 0"],
    [{ max_new_tokens: 1.5 }, "max_new_tokens must be an integer of at least 1"],
    [{ length_penalty: "1" }, "length_penalty must be a number, got 1"],
    [{ repetition_penalty: 0 }, "repetition_penalty must be a number above 0"],
    [{ early_stopping: "soon" }, 'early_stopping must be true, false or "never"'],
    [{ num_beams: 2, num_return_sequences: 3 }, "at most as many captions as it has beams"],
  ])("refuses %j", (settings, reason) => {
    expect(() => resolveSettings(IDS, settings)).toThrow(reason);
  });

  it("counts <bos> in lengths, and new words without it", () => {
    expect(longest(resolveSettings(IDS, {}), 1)).toBe(21);
    expect(longest(resolveSettings(IDS, { max_length: 9 }), 1)).toBe(9);
    expect(longest(resolveSettings(IDS, { max_length: 9, max_new_tokens: 4 }), 1)).toBe(5);
    expect(longest(resolveSettings(IDS, { max_new_tokens: 20 }, { max_length: 9 }), 1)).toBe(9);
    expect(longest(resolveSettings(IDS, { max_length: 9 }, { max_new_tokens: 20 }), 1)).toBe(21);
    expect(shortest(resolveSettings(IDS, { min_length: 6 }), 1)).toBe(6);
    expect(shortest(resolveSettings(IDS, { min_length: 6, min_new_tokens: 3 }), 1)).toBe(4);
    expect(() => longest(resolveSettings(IDS, { max_length: 1 }), 1)).toThrow("no room");
  });
});

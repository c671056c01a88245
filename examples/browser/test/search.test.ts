import { describe, expect, it } from "vitest";
import { logSoftmax, top } from "../src/scores";
import { type Reader, generate } from "../src/search";
import { resolveSettings } from "../src/settings";
import { cases, floatsOf } from "./cases";

/**
 * A reader whose scores depend on all words so far and their order, as in tests/browser in Python.
 *
 * Scores grow with the length, so that the order of words changes the score and there are no ties.
 */
class TableReader implements Reader {
  private states = [0];
  private length = 0;

  constructor(
    readonly vocabSize: number,
    private readonly numStates: number,
    private readonly table: Float32Array,
  ) {}

  async read(words: readonly number[]): Promise<Float32Array> {
    this.states = words.map((word, i) => (this.states[i] * 31 + word * 7 + 1) % this.numStates);
    const scores = new Float32Array(words.length * this.vocabSize);
    this.length++;
    this.states.forEach((state, i) => {
      scores.set(this.table.subarray(state * this.vocabSize, (state + 1) * this.vocabSize), i * this.vocabSize);
    });
    return scores.map((score) => score * (1 + this.length / 16));
  }

  spread(captions: number): void {
    this.states = new Array<number>(captions).fill(this.states[0]);
  }

  reorder(captions: readonly number[]): void {
    this.states = captions.map((caption) => this.states[caption]);
  }
}

const IDS = { pad_token_id: 0, bos_token_id: 1, eos_token_id: 2, decoder_start_token_id: 1 };
const [VOCABULARY, STATES, LENGTH] = [5, 17, 4];

/** Reproducible random numbers (multiplier of Steele and Vigna 2021, https://arxiv.org/abs/2001.05304). */
function table(seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: VOCABULARY * STATES }, () => {
    state = (Math.imul(state, 0x915f77f5) + 1) >>> 0;
    return (6 * state) / 2 ** 32;
  });
}

/** All captions of at most `LENGTH` words and their scores. */
async function everyCaption(scores: Float32Array, lengthPenalty: number): Promise<Map<string, number>> {
  const found = new Map<string, number>();
  const open: { ids: number[]; sum: number }[] = [{ ids: [1], sum: 0 }];
  for (let entry = open.pop(); entry; entry = open.pop()) {
    const reader = new TableReader(VOCABULARY, STATES, scores);
    let next = new Float32Array();
    for (const word of entry.ids) next = new Float32Array(await reader.read([word]));
    logSoftmax(next);
    next.forEach((score, word) => {
      const [ids, sum] = [[...entry.ids, word], entry.sum + score];
      if (word === 2 || ids.length > LENGTH) found.set(ids.join(), sum / (ids.length - 1) ** lengthPenalty);
      else open.push({ ids, sum });
    });
  }
  return found;
}

describe("generate", () => {
  it.each([1, 2, 3, 4, 5])(
    "finds the best captions of all, with as many beams as there are words (%i)",
    async (seed) => {
      const every = await everyCaption(table(seed), 1);
      const beams = VOCABULARY ** LENGTH;
      const settings = resolveSettings(IDS, { max_new_tokens: LENGTH, num_beams: beams, num_return_sequences: 5 });
      const found = await generate(new TableReader(VOCABULARY, STATES, table(seed)), settings);
      const best = [...every].sort((a, b) => b[1] - a[1]).slice(0, 5);
      expect(found.map(({ ids }) => ids.join())).toEqual(best.map(([ids]) => ids));
      found.forEach(({ score }, i) => expect(score).toBeCloseTo(best[i][1], 5));
    },
  );

  it("takes the likeliest word each time without beams", async () => {
    const scores = table(1);
    const [{ ids, score }] = await generate(
      new TableReader(VOCABULARY, STATES, scores),
      resolveSettings(IDS, { max_new_tokens: LENGTH }),
    );
    const reader = new TableReader(VOCABULARY, STATES, scores);
    for (let i = 0; i + 1 < ids.length; i++) expect(top(await reader.read([ids[i]]), 1)).toEqual([ids[i + 1]]);
    expect(ids.at(-1) === 2 || ids.length === 1 + LENGTH).toBe(true);
    expect(score).toBeUndefined();
  });

  it.each([1, 4])("gives up if scores are NaN (%i beams)", async (num_beams) => {
    const reader = new TableReader(VOCABULARY, STATES, table(1).fill(NaN));
    await expect(generate(reader, resolveSettings(IDS, { num_beams }))).rejects.toThrow("NaN");
  });

  it.skipIf(!cases)("finds the captions that Python finds, whatever the settings", async () => {
    for (const { vocabSize, numStates, table, settings, captions } of cases!.search) {
      const found = await generate(
        new TableReader(vocabSize, numStates, floatsOf(table)),
        resolveSettings(IDS, settings),
      );
      const name = JSON.stringify(settings);
      expect(
        found.map(({ ids }) => ids),
        name,
      ).toEqual(captions.map(({ ids }) => ids));
      captions.forEach(({ score }, i) => {
        if (score === null) expect(found[i].score, name).toBeUndefined();
        else expect(Math.abs(found[i].score! - score), name).toBeLessThan(1e-5 * Math.max(1, Math.abs(score)));
      });
    }
    expect(cases!.search.length).toBeGreaterThan(200);
  });
});

describe("top", () => {
  it("gives the first of equals first", () => {
    expect(top([1, 3, 3, -Infinity, 3, 2], 4)).toEqual([1, 2, 4, 5]);
    expect(top([-Infinity, -Infinity], 2)).toEqual([0, 1]);
  });
});

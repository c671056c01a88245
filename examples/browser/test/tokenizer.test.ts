import { describe, expect, it } from "vitest";
import { Tokenizer } from "../src/tokenizer";
import { cases } from "./cases";

const special = (id: number, content: string) => ({ id, content, special: true });
const file = {
  added_tokens: [special(0, "<pad>"), special(1, "<bos>"), special(2, "<eos>")],
  model: { type: "WordLevel", vocab: { "<pad>": 0, "<bos>": 1, "<eos>": 2, a: 3, dog: 4, "'s": 5, ball: 6 } },
};
const decoder = {
  type: "Sequence",
  decoders: [
    { type: "WordPiece", prefix: "##", cleanup: false },
    { type: "Replace", pattern: { Regex: "^ (?=(?:'s)$)" }, content: "" },
  ],
};

describe("Tokenizer", () => {
  it("joins words, leaves special ones out and glues a possessive to its word", () => {
    expect(new Tokenizer({ ...file, decoder }).decode([1, 3, 4, 5, 6, 2, 0, 0])).toBe("a dog's ball");
    expect(new Tokenizer({ ...file, decoder }).decode([1, 2])).toBe("");
  });

  it("puts spaces between words where there is no decoder", () => {
    expect(new Tokenizer(file).decode([1, 3, 4, 5, 2])).toBe("a dog 's");
  });

  it("refuses what it would write otherwise than Python", () => {
    expect(() => new Tokenizer({ ...file, decoder: { type: "ByteLevel" } })).toThrow("a decoder of type ByteLevel");
    expect(() => new Tokenizer({ ...file, decoder: { type: "WordPiece", cleanup: true } })).toThrow("clean-up");
    const unigram = { type: "Unigram", vocab: [["a", 0.5]] as unknown as Record<string, number> };
    expect(() => new Tokenizer({ model: unigram })).toThrow("no words in a model of type Unigram");
  });

  it.skipIf(!cases)("writes what Python writes", () => {
    for (const { tokenizer, ids, text } of cases!.words) expect(new Tokenizer(tokenizer).decode(ids)).toBe(text);
    expect(cases!.words.length).toBeGreaterThan(10);
  });
});

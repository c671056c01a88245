/**
 * The logits processors of `nic_hf.export.logits_processors`, in the same order.
 *
 * Arithmetic is in float32 like in NumPy: each result is rounded by `Math.fround` or by its array.
 */

import { type GenerationSettings, endIds, shortest } from "./settings";

/** Takes the words of a caption so far and the scores of its next word, which it modifies in place. */
export type Processor = (ids: readonly number[], scores: Float32Array) => void;

/** Log probabilities, in place. */
export function logSoftmax(scores: Float32Array): void {
  let highest = -Infinity;
  for (const score of scores) if (score > highest) highest = score;
  let sum = 0;
  for (let i = 0; i < scores.length; i++) {
    scores[i] -= highest;
    sum += Math.exp(scores[i]);
  }
  const logarithm = Math.fround(Math.log(sum));
  for (let i = 0; i < scores.length; i++) scores[i] -= logarithm;
}

/**
 * Indices of the `number` highest scores, in descending order; ties in order of their index.
 *
 * @throws Error if a score is NaN.
 */
export function top(scores: ArrayLike<number>, number: number): number[] {
  const places: number[] = [];
  for (let place = 0; place < scores.length; place++) {
    const score = scores[place];
    if (Number.isNaN(score)) throw new Error("the captioner's scores contain NaN");
    if (places.length === number && !(score > scores[places[number - 1]])) continue;
    let rank = Math.min(places.length, number - 1);
    while (rank > 0 && score > scores[places[rank - 1]]) {
      places[rank] = places[rank - 1];
      rank--;
    }
    places[rank] = place;
  }
  return places;
}

/**
 * Build the processors for the settings.
 *
 * @throws Error if a setting has an id that is not in the vocabulary.
 */
export function buildProcessors(settings: GenerationSettings, promptLength: number, vocabSize: number): Processor[] {
  const ends = endIds(settings);
  const processors: Processor[] = [];
  checkIds("eos_token_id", ends, vocabSize);
  if (settings.repetition_penalty !== 1) processors.push(repetitionPenalty(settings.repetition_penalty));
  if (settings.no_repeat_ngram_size > 0) processors.push(noRepeatedNgram(settings.no_repeat_ngram_size));
  for (const words of settings.bad_words_ids) {
    if (!Array.isArray(words) || words.length === 0) throw new Error("bad_words_ids must be a list of lists of ids");
    checkIds("bad_words_ids", words, vocabSize);
    const isEnd = words.length === 1 && ends.includes(words[0]);
    if (!isEnd) processors.push(forbidAfter(words)); // a caption must be able to end
  }
  const least = shortest(settings, promptLength);
  if (least > promptLength && ends.length > 0) processors.push(forbid(ends, (length) => length < least));
  checkIds("suppress_tokens", settings.suppress_tokens, vocabSize);
  if (settings.suppress_tokens.length > 0) processors.push(forbid(settings.suppress_tokens, () => true));
  checkIds("begin_suppress_tokens", settings.begin_suppress_tokens, vocabSize);
  if (settings.begin_suppress_tokens.length > 0) {
    processors.push(forbid(settings.begin_suppress_tokens, (length) => length === promptLength));
  }
  return processors;
}

function forbid(words: readonly number[], at: (length: number) => boolean): Processor {
  return (ids, scores) => {
    if (at(ids.length)) for (const word of words) scores[word] = -Infinity;
  };
}

/** Forbid the last of `words` after the others. */
function forbidAfter(words: readonly number[]): Processor {
  const before = words.slice(0, -1);
  return (ids, scores) => {
    const start = ids.length - before.length;
    if (start >= 0 && before.every((word, i) => ids[start + i] === word)) scores[words[before.length]] = -Infinity;
  };
}

/** Penalize repeated words, including `<bos>` (Keskar et al. 2019, https://arxiv.org/abs/1909.05858). */
function repetitionPenalty(penalty: number): Processor {
  const by = Math.fround(penalty);
  return (ids, scores) => {
    for (const word of new Set(ids)) scores[word] = scores[word] < 0 ? scores[word] * by : scores[word] / by;
  };
}

/** Forbid repeated n-grams of this size. */
function noRepeatedNgram(size: number): Processor {
  return (ids, scores) => {
    const last = ids.length - size + 1;
    for (let start = 0; start < last; start++) {
      let same = 0;
      while (same < size - 1 && ids[start + same] === ids[last + same]) same++;
      if (same === size - 1) scores[ids[start + same]] = -Infinity;
    }
  };
}

function checkIds(name: string, ids: readonly number[], vocabSize: number): void {
  const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
  if (wrong !== undefined)
    throw new Error(`${name} has ${wrong}, which is not an id of the vocabulary (0 to ${vocabSize - 1})`);
}

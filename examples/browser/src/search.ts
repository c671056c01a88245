/**
 * Greedy decoding and beam search for one photo.
 *
 * Both follow `nic_hf.export.search`, which follows Transformers' `generate()`, step by step and in float32, so that
 * the same logits give the same captions.
 */

import { buildProcessors, logSoftmax, top } from "./scores";
import { type GenerationSettings, endIds, longest } from "./settings";

const NEVER = Math.fround(-1e9); // the library's score of what must not be chosen
const { fround } = Math;

/** The LSTM and its state for several captions of one photo. */
export interface Reader {
  readonly vocabSize: number;
  /** Read one word of each caption, and return the next logits, of length `captions * vocabSize`. */
  read(words: readonly number[]): Promise<Float32Array>;
  /** Repeat the state for `captions` captions. */
  spread(captions: number): void;
  /** Let caption `i` continue caption `captions[i]`. */
  reorder(captions: readonly number[]): void;
}

export interface FoundCaption {
  /** Token ids, starting with `<bos>` and ending with `<eos>`, unless the caption was truncated. */
  ids: number[];
  /** Sum of log probabilities divided by the number of words to the power of `length_penalty`; beam search only. */
  score?: number;
}

/** At most `num_return_sequences` captions, best first. */
export async function generate(reader: Reader, settings: GenerationSettings): Promise<FoundCaption[]> {
  const start = settings.decoder_start_token_id ?? settings.bos_token_id;
  if (start === undefined) throw new Error("config.json names neither decoder_start_token_id nor bos_token_id");
  const logits = await reader.read([start]);
  return settings.num_beams > 1 ? beams(reader, logits, start, settings) : greedy(reader, logits, start, settings);
}

/** Greedy decoding. */
async function greedy(
  reader: Reader,
  logits: Float32Array,
  start: number,
  settings: GenerationSettings,
): Promise<FoundCaption[]> {
  const processors = buildProcessors(settings, 1, reader.vocabSize);
  const [ends, most] = [endIds(settings), longest(settings, 1)];
  const ids = [start];
  reader.spread(1);
  for (;;) {
    const scores = logits.slice();
    for (const process of processors) process(ids, scores);
    const [word] = top(scores, 1);
    ids.push(word);
    if (ends.includes(word) || ids.length === most) return [{ ids }];
    logits = await reader.read([word]);
  }
}

interface Beam {
  ids: number[];
  score: number;
}

interface Candidate extends Beam {
  parent: number;
  ends: boolean;
}

interface Finished extends Beam {
  /** Whether this is a finished caption, or a placeholder. */
  isFinished: boolean;
}

/** Beam search as in `GenerationMixin._beam_search`, for one photo and a prompt of one word. */
async function beams(
  reader: Reader,
  logits: Float32Array,
  start: number,
  settings: GenerationSettings,
): Promise<FoundCaption[]> {
  const { num_beams: number, early_stopping: early, length_penalty: penalty } = settings;
  const { vocabSize } = reader;
  const processors = buildProcessors(settings, 1, vocabSize);
  const [ends, most] = [endIds(settings), longest(settings, 1)];
  // Twice as many candidates as beams, so that enough of them continue even if the best ones end.
  const numCandidates = Math.min(Math.max(2, 1 + ends.length) * number, number * vocabSize);

  // Start with one beam: equal beams would find the same words.
  let running: Beam[] = Array.from({ length: number }, (_, i) => ({ ids: [start], score: i === 0 ? 0 : NEVER }));
  let finished: Finished[] = running.map(({ ids }) => ({ ids, score: NEVER, isFinished: false }));
  let mayImprove = true;
  reader.spread(number);
  let scores = repeat(logits, number);
  for (;;) {
    const candidates = likeliest(scores, running, numCandidates);
    const words = candidates[0].ids.length - 1;

    // The best candidates that continue.
    const chosen = top(
      candidates.map(({ score, ends }) => (ends ? fround(score + NEVER) : score)),
      number,
    );
    running = chosen.map((i) => {
      const { ids, score, ends } = candidates[i];
      return { ids, score: ends ? fround(score + NEVER) : score };
    });

    // The best finished captions: earlier ones, and those that end among the first candidates.
    const isFull = finished.every(({ isFinished }) => isFinished);
    const divisor = fround(words ** penalty);
    const found = candidates.map(({ ids, score, ends }, rank) => {
      const endsWell = ends && rank < number;
      let final = fround(score / divisor);
      for (const never of [isFull && early === true, !mayImprove, !endsWell]) if (never) final = fround(final + NEVER);
      return { ids, score: final, isFinished: endsWell };
    });
    const all: Finished[] = [...finished, ...found];
    finished = top(
      all.map(({ score }) => score),
      number,
    ).map((i) => all[i]);

    // Whether a running beam can still become better than the worst finished caption.
    const counted = early === "never" && penalty > 0 ? most - 1 : words;
    const possible = fround(running[0].score / fround(counted ** penalty));
    const worst = Math.min(...finished.map(({ score }) => score));
    mayImprove &&= finished.some(({ isFinished }) => possible > (isFinished ? worst : NEVER));

    const isDone = early === true && finished.every(({ isFinished }) => isFinished);
    if (!mayImprove || isDone || candidates.every(({ ends }) => ends)) break;
    reader.reorder(chosen.map((i) => candidates[i].parent));
    scores = await reader.read(running.map(({ ids }) => ids[ids.length - 1]));
  }
  // If few words are allowed, there may be fewer captions than beams.
  const ended = finished.filter(({ isFinished }, place) => isFinished || place === 0);
  return ended.slice(0, settings.num_return_sequences).map(({ ids, score }) => ({ ids, score }));

  /** The best continuations of all beams, best first. */
  function likeliest(scores: Float32Array, beams: Beam[], number: number): Candidate[] {
    beams.forEach(({ ids, score }, beam) => {
      const next = scores.subarray(beam * vocabSize, (beam + 1) * vocabSize);
      logSoftmax(next);
      for (const process of processors) process(ids, next);
      for (let word = 0; word < vocabSize; word++) next[word] += score;
    });
    return top(scores, number).map((place) => {
      const [parent, word] = [Math.floor(place / vocabSize), place % vocabSize];
      const ids = [...beams[parent].ids, word];
      return { ids, score: scores[place], parent, ends: ends.includes(word) || ids.length === most };
    });
  }
}

function repeat(values: Float32Array, times: number): Float32Array {
  const repeated = new Float32Array(values.length * times);
  for (let i = 0; i < times; i++) repeated.set(values, i * values.length);
  return repeated;
}

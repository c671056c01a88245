/** What decides which caption is found: `generation_config.json`, with the names of Transformers' `generate()`. */

export interface GenerationSettings {
  max_new_tokens?: number;
  max_length?: number;
  min_new_tokens?: number;
  min_length: number;
  num_beams: number;
  num_return_sequences: number;
  length_penalty: number;
  early_stopping: boolean | "never";
  repetition_penalty: number;
  no_repeat_ngram_size: number;
  bad_words_ids: number[][];
  suppress_tokens: number[];
  begin_suppress_tokens: number[];
  pad_token_id: number;
  bos_token_id?: number;
  eos_token_id: number | number[];
  decoder_start_token_id?: number;
}

type Values = Record<string, unknown>;

const DEFAULTS: GenerationSettings = {
  min_length: 0,
  num_beams: 1,
  num_return_sequences: 1,
  length_penalty: 1,
  early_stopping: false,
  repetition_penalty: 1,
  no_repeat_ngram_size: 0,
  bad_words_ids: [],
  suppress_tokens: [],
  begin_suppress_tokens: [],
  pad_token_id: 0,
  eos_token_id: [],
};
const KNOWN = new Set([
  ...Object.keys(DEFAULTS),
  ...["max_new_tokens", "max_length", "min_new_tokens", "bos_token_id", "decoder_start_token_id"],
]);
const SPECIAL_IDS = ["pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"];

// Settings of speed and bookkeeping, and of sampling, which is refused by `do_sample`: they change no caption here.
const WITHOUT_EFFECT = new Set([
  "_from_model_config",
  "transformers_version",
  "use_cache",
  "cache_implementation",
  "cache_config",
  "disable_compile",
  "compile_config",
  "low_memory",
  "num_assistant_tokens",
  "num_assistant_tokens_schedule",
  "assistant_confidence_threshold",
  "assistant_lookbehind",
  "target_lookbehind",
  "temperature",
  "top_k",
  "top_p",
  "seed",
]);
// What the others are where they have no effect, besides null and false.
const NEUTRAL: Values = {
  typical_p: 1,
  epsilon_cutoff: 0,
  eta_cutoff: 0,
  encoder_repetition_penalty: 1,
  encoder_no_repeat_ngram_size: 0,
  num_beam_groups: 1,
  diversity_penalty: 0,
  guidance_scale: 1,
};

/**
 * Settings of a caption: what is given goes before `generation_config.json`, and that before ids in `config.json`.
 *
 * @throws Error where a setting would change captions and is not known here, or has a value it cannot have.
 */
export function resolveSettings(config: Values, generationConfig: Values, given: Values = {}): GenerationSettings {
  const ids = Object.fromEntries(SPECIAL_IDS.map((name) => [name, config[name]]));
  const own = known(generationConfig);
  const said = known(given);
  if (said.max_length !== undefined || said.max_new_tokens !== undefined) {
    // Else the checkpoint's number of new words would go before the length that is given.
    delete own.max_length;
    delete own.max_new_tokens;
  }
  const settings: GenerationSettings = { ...DEFAULTS, ...known(ids), ...own, ...said };
  for (const name of ["num_beams", "num_return_sequences", "max_new_tokens", "max_length"] as const) {
    checkInteger(name, settings[name], 1);
  }
  for (const name of ["no_repeat_ngram_size", "min_length", "min_new_tokens"] as const) {
    checkInteger(name, settings[name], 0);
  }
  for (const name of ["repetition_penalty", "length_penalty"] as const) {
    const value = settings[name];
    if (typeof value !== "number" || Number.isNaN(value) || (name === "repetition_penalty" && value <= 0)) {
      throw new Error(`${name} must be a number${name === "repetition_penalty" ? " above 0" : ""}, got ${value}`);
    }
  }
  if (![true, false, "never"].includes(settings.early_stopping)) {
    throw new Error(`early_stopping must be true, false or "never", got ${settings.early_stopping}`);
  }
  if (settings.num_return_sequences > settings.num_beams) {
    throw new Error(
      `num_return_sequences is ${settings.num_return_sequences} and num_beams ${settings.num_beams}: ` +
        "a search gives at most as many captions as it has beams",
    );
  }
  return settings;
}

/** Ids of the words that end a caption. */
export function endIds(settings: GenerationSettings): number[] {
  return [settings.eos_token_id].flat();
}

/** Number of words, `<bos>` included, at which a caption is cut off. */
export function longest(settings: GenerationSettings, promptLength: number): number {
  if (settings.max_new_tokens !== undefined) return promptLength + settings.max_new_tokens;
  const longest = settings.max_length ?? promptLength + 20;
  if (longest <= promptLength) throw new Error(`max_length is ${longest}, which leaves no room for a caption`);
  return longest;
}

/** Number of words, `<bos>` included, before which a caption must not end. */
export function shortest(settings: GenerationSettings, promptLength: number): number {
  return settings.min_new_tokens === undefined ? settings.min_length : promptLength + settings.min_new_tokens;
}

function known(source: Values): Partial<GenerationSettings> {
  const values: Values = {};
  for (const [name, value] of Object.entries(source)) {
    if (value === null || value === undefined || WITHOUT_EFFECT.has(name)) continue;
    if (KNOWN.has(name)) {
      values[name] = value;
    } else if (value !== false && value !== NEUTRAL[name]) {
      const hint = name === "do_sample" ? "; this page searches for the likeliest caption and does not draw one" : "";
      throw new Error(`generation_config.json: ${name}=${JSON.stringify(value)} is not known to this page${hint}`);
    }
  }
  return values as Partial<GenerationSettings>;
}

function checkInteger(name: string, value: number | undefined, least: number): void {
  if (value !== undefined && !(Number.isInteger(value) && value >= least)) {
    throw new Error(`${name} must be an integer from ${least}, got ${value}`);
  }
}

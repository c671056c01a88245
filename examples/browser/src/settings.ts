/** Settings of decoding from `generation_config.json`, with the names of Transformers' `generate()`. */

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

// Settings for speed, bookkeeping and sampling (`do_sample` is an error), which do not change captions.
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
// Values without effect of unsupported settings, besides null and false.
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
 * Settings of a caption, in order of precedence: given ones, `generation_config.json`, ids in `config.json`.
 *
 * @throws Error if an unsupported setting would change captions, or a value is invalid.
 */
export function resolveSettings(config: Values, generationConfig: Values, given: Values = {}): GenerationSettings {
  const ids = Object.fromEntries(SPECIAL_IDS.map((name) => [name, config[name]]));
  const own = known(generationConfig);
  const said = known(given);
  if (said.max_length !== undefined || said.max_new_tokens !== undefined) {
    // Otherwise the checkpoint's number of new words would take precedence over the given length.
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

/** Ids of the tokens that end a caption. */
export function endIds(settings: GenerationSettings): number[] {
  return [settings.eos_token_id].flat();
}

/** Maximum number of tokens, including `<bos>`. */
export function longest(settings: GenerationSettings, promptLength: number): number {
  if (settings.max_new_tokens !== undefined) return promptLength + settings.max_new_tokens;
  const longest = settings.max_length ?? promptLength + 20;
  if (longest <= promptLength) throw new Error(`max_length is ${longest}, which leaves no room for a caption`);
  return longest;
}

/** Minimum number of tokens, including `<bos>`. */
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
    throw new Error(`${name} must be an integer of at least ${least}, got ${value}`);
  }
}

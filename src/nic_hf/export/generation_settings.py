"""The arguments of Transformers' `generate()` that the ONNX captioner supports, with checks.

An unknown setting that would change captions is an error; it is never ignored.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

_LENGTHS = ("max_new_tokens", "max_length")

# Settings for speed, bookkeeping and additional outputs, which do not change captions.
_WITHOUT_EFFECT = {
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
}
# Values without effect of unsupported settings, besides None and False.
_NEUTRAL: dict[str, Any] = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "guidance_scale": 1,
}


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of `generate()`, with the names, meanings and defaults of Transformers' `GenerationConfig`.

    Args:
        seed: random seed for sampling; `None` for different samples each time. Samples differ from those of torch.
        max_new_tokens, max_length, min_new_tokens, min_length: limits on the length; `max_length` and `min_length`
            include the prefix. `max_new_tokens` takes precedence over a `max_length` given with it.
        num_beams, length_penalty, early_stopping: for beam search.
        num_return_sequences: number of captions per photo.
        do_sample, temperature, top_k, top_p: for sampling, or beam sampling with several beams.
        repetition_penalty, no_repeat_ngram_size, bad_words_ids, suppress_tokens, begin_suppress_tokens: penalized and
            forbidden words.
        pad_token_id, eos_token_id, decoder_start_token_id: special tokens.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] = ()
    decoder_start_token_id: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_beams", "num_return_sequences", "max_new_tokens", "max_length"):
            _check_integer(name, getattr(self, name), 1)
        for name in ("top_k", "no_repeat_ngram_size", "min_length", "min_new_tokens"):
            _check_integer(name, getattr(self, name), 0)
        for name in ("temperature", "repetition_penalty"):
            _check_number(name, getattr(self, name), above=0.0)
        _check_number("top_p", self.top_p, above=0.0, most=1.0)
        _check_number("length_penalty", self.length_penalty)
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"`early_stopping` must be True, False or 'never', got {self.early_stopping!r}")
        if self.num_return_sequences > self.num_beams and not (self.do_sample and self.num_beams == 1):
            raise ValueError(
                f"`num_return_sequences` is {self.num_return_sequences} and `num_beams` {self.num_beams}: beam search "
                "returns at most one caption per beam; sampling (do_sample=True) returns any number"
            )
        if any(not isinstance(words, Sequence) or len(words) == 0 for words in self.bad_words_ids):
            raise ValueError(f"`bad_words_ids` must be a list of lists of word ids, got {self.bad_words_ids!r:.80}")

    @property
    def end_ids(self) -> list[int]:
        """Ids of the tokens that end a caption."""
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else list(self.eos_token_id)

    def longest(self, prompt_length: int) -> int:
        """Maximum number of tokens, including the prompt.

        Raises:
            ValueError: if the prompt leaves no room for another word.
        """
        if self.max_new_tokens is not None:
            return prompt_length + self.max_new_tokens
        if self.max_length is None:
            return prompt_length + 20
        if self.max_length <= prompt_length:
            raise ValueError(
                f"`decoder_input_ids` has {prompt_length} words and `max_length` is {self.max_length}, which leaves "
                "no room for a caption; use `max_new_tokens`"
            )
        return self.max_length

    def shortest(self, prompt_length: int) -> int:
        """Minimum number of tokens, including the prompt."""
        return self.min_length if self.min_new_tokens is None else prompt_length + self.min_new_tokens


def resolve_settings(
    checkpoint: Mapping[str, Any], generation_config: Any = None, given: Mapping[str, Any] | None = None
) -> GenerationSettings:
    """Settings of a call, in order of precedence: keyword arguments, generation config, checkpoint.

    Args:
        checkpoint: contents of `generation_config.json`.
        generation_config: a dict, or a `GenerationConfig` of Transformers; `None` in it means not set.
        given: keyword arguments of the call; `None` disables a setting.

    Raises:
        ValueError: if a setting has an invalid value, or an unknown setting would change captions.
        TypeError: if `generation_config` has another type.
    """
    given = given or {}
    values: dict[str, Any] = {}
    for source in (checkpoint, _as_mapping(generation_config), given):
        known = _known(source)
        if any(name in known for name in _LENGTHS):
            # A length of this source replaces both lengths of earlier ones.
            values = {name: value for name, value in values.items() if name not in _LENGTHS}
        values |= known
    for name in (name for name, value in given.items() if value is None):
        values.pop(name, None)
        if name == "top_k":
            values[name] = 0
    if given.get("max_length") is not None and given.get("max_new_tokens") is not None:
        logger.warning("`max_new_tokens` (%s) takes precedence over `max_length` (%s)", *map(given.get, _LENGTHS))
    return GenerationSettings(**values)


def _known(source: Mapping[str, Any]) -> dict[str, Any]:
    """Supported settings; unknown ones with an effect raise a `ValueError`."""
    known = {field.name for field in dataclasses.fields(GenerationSettings)}
    values = {}
    for name, value in source.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name in known:
            values[name] = value
        elif value is not False and value != _NEUTRAL.get(name, False):
            raise ValueError(
                f"the ONNX captioner's generate() does not support `{name}` (got {value!r:.80}); it takes "
                f"{', '.join(sorted(known))}. Use the PyTorch model for anything else"
            )
    return values


def _as_mapping(source: Any) -> Mapping[str, Any]:
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return source
    if hasattr(source, "to_diff_dict"):  # only what differs from the defaults
        return source.to_diff_dict()
    raise TypeError(f"`generation_config` must be a dict or a GenerationConfig, got {type(source).__name__}")


def _check_integer(name: str, value: Any, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}")


def _check_number(name: str, value: Any, above: float | None = None, most: float | None = None) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if not is_number or (above is not None and value <= above) or (most is not None and value > most):
        limits = ("" if above is None else f" above {above:g}") + ("" if most is None else f", at most {most:g}")
        raise ValueError(f"`{name}` must be a number{limits}, got {value!r}")

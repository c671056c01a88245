"""Faster `generate()`, and what Transformers' own does not know of a captioner.

All private methods of `GenerationMixin` that nic_hf overrides are here. Each calls Transformers' own; if Transformers
renames one, it is not called any more, which costs speed or a convenience and changes no caption.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..modeling_nic import CACHE_NAME, NICGenerationMixin
from .cache import NICCache, NICStaticCache, static_cache

_DEFAULT_LENGTH = 20  # of a captioner, in words, and of Transformers, which Seq2SeqTrainer writes into `max_length`

# What `generate()` of a captioner cannot do, and the values that do not ask for it.
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "guidance_scale": ((None, 1), "a captioner has no input without the image to guide away from"),
    "prefill_chunk_size": ((None,), "an LSTM reads a prefix word by word, and keeps nothing of it"),
    "assistant_early_exit": ((None,), "it needs a decoder with a head at each layer"),
    "use_mtp": ((None, False), "it needs a model trained to predict several words at once"),
}

# What others put in an instance's place of a method: Accelerate its hooks, PEFT its prompts.
_OVERRIDDEN = {"forward", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation"}


class FastGenerationMixin(NICGenerationMixin):
    """`generate()` of this package's models: the same captions as the core's, sooner.

    The caller's length is the one that counts, what a captioner cannot do is refused, and `stop_strings` work with a
    vocabulary of words.
    """

    config: Any
    get_input_embeddings: Any
    _caches: tuple[str | None, ...] = (None, "dynamic", "dynamic_full", "static")  # kinds of `cache_implementation`
    _runs_plain_loop = False  # whether greedy decoding and sampling may call the decoder and not the model

    def new_cache(self, cache_implementation: str | None, is_assistant: bool) -> Any:
        """An empty state, which can be cropped; a static one is made when the number of captions is known."""
        if cache_implementation not in self._caches:
            kinds = ", ".join(repr(kind) for kind in self._caches if kind is not None)
            raise ValueError(
                f"`cache_implementation` must be {kinds} or None for {type(self).__name__}, whose state is an LSTM's, "
                f"got {cache_implementation!r}"
            )
        if cache_implementation == "static":
            return None
        cache = self._empty_cache()
        if is_assistant:
            cache.activate_past_recording()
        return cache

    def _empty_cache(self) -> Any:
        return NICCache()

    def generate(self, inputs: Any = None, generation_config: GenerationConfig | None = None, **kwargs: Any) -> Any:
        """Generate captions, as in Transformers; see the core's [`NICGenerationMixin.generate`].

        A length given in the call takes precedence over a length of `generation_config`, and that over the
        checkpoint's.

        Raises:
            ValueError: if there is no image, or for an option that a captioner does not have.
        """
        settings = generation_config or self.generation_config
        for name, (neutral, reason) in _UNSUPPORTED.items():
            value = kwargs.get(name, getattr(settings, name, None))
            if value not in neutral:
                raise ValueError(f"a captioner's generate() does not take `{name}` (got {value!r}): {reason}")
        generation_config = self._set_length(generation_config, kwargs)
        strings, tokenizer = kwargs.get("stop_strings", settings.stop_strings), kwargs.get("tokenizer")
        if strings is not None and tokenizer is not None:
            # Transformers' own criterion decodes a made-up prefix, which a vocabulary of words turns into `<unk>`.
            own = NICStopStrings([strings] if isinstance(strings, str) else strings, tokenizer)
            kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or []), own])
            kwargs["stop_strings"] = None
        return super().generate(inputs, generation_config, **kwargs)

    def _set_length(
        self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> GenerationConfig | None:
        """Choose a length if the call gives none: of `generation_config`, or what somebody set in the checkpoint."""
        if kwargs.get("max_new_tokens") is not None or kwargs.get("max_length") is not None:
            return generation_config
        own = self.generation_config
        if generation_config is None:
            if own.max_new_tokens is not None and own.max_length is not None:
                is_set = own.max_new_tokens == _DEFAULT_LENGTH != own.max_length
                kwargs.update({"max_length": own.max_length} if is_set else {"max_new_tokens": own.max_new_tokens})
        elif generation_config.max_new_tokens is None and generation_config.max_length is not None:
            # As a number of new words, since `generate()` would add the checkpoint's and prefer that.
            generation_config, prefix = copy.deepcopy(generation_config), kwargs.get("decoder_input_ids")
            prefix_length = 1 if prefix is None else prefix.shape[-1]
            generation_config.max_new_tokens = generation_config.max_length - prefix_length
            generation_config.max_length = None
        return generation_config

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        cache: Any = None,
        past_key_values: Any = None,
        encoder_outputs: Any = None,
        decoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the words that the LSTM has not read, and the image if it has not read that."""
        cache = past_key_values if cache is None else cache
        kwargs |= {"encoder_outputs": encoder_outputs, "decoder_attention_mask": decoder_attention_mask}
        inputs = super().prepare_inputs_for_generation(input_ids, cache, **kwargs)
        if isinstance(cache, NICStaticCache):
            # A slice's strides tell how many words came before it, and a compiled step would be made for each number.
            words = inputs["decoder_input_ids"]
            inputs["decoder_input_ids"] = words.clone(memory_format=torch.contiguous_format)
            cache.count(words.shape[1])
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        if self.config.attention is None:
            return super()._expand_inputs_for_generation(  # type: ignore[misc]
                expand_size, is_encoder_decoder, input_ids, **model_kwargs
            )
        # Beams of a photo look at the same regions: a copy for each would cost more than the LSTM does.
        encoder_outputs = model_kwargs.pop("encoder_outputs")
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, False, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, "encoder_outputs": encoder_outputs}

    def _prepare_model_inputs(self, inputs: Any, bos_token_id: Any, model_kwargs: dict[str, Any]) -> Any:
        has_features = model_kwargs.get("encoder_outputs") is not None
        if not has_features and torch.is_tensor(inputs) and inputs.dtype == torch.long:  # an assistant gets the words
            raise ValueError("no image: an assistant has a backbone of its own and needs `pixel_values`")
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)  # type: ignore[misc]

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if generation_config.cache_implementation != "static" or model_kwargs.get(CACHE_NAME) is not None:
            theirs: Any = super()._prepare_cache_for_generation  # type: ignore[misc]
            return theirs(generation_config, model_kwargs, generation_mode, batch_size, *args, **kwargs)
        config, weight = self.config, self.get_input_embeddings().weight
        num_captions = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        regions, photos = None, self.check_features(model_kwargs["encoder_outputs"])
        if config.attention is not None:
            places = photos.shape[:2]
            regions = ((*places, config.embedding_size), (*places, config.hidden_size))
        shape = (config.num_hidden_layers, num_captions, config.hidden_size)
        returned = bool(generation_config.return_dict_in_generate)
        # A weight that is offloaded is on no device while nobody uses it.
        device = photos.device if weight.device.type == "meta" else weight.device
        static = static_cache(self, not returned, shape, regions, weight.dtype, device)
        # generate() keeps what each step returned of these, and the next replay of a CUDA graph writes over it.
        static.is_compileable = not (generation_config.output_hidden_states or generation_config.output_attentions)
        model_kwargs[CACHE_NAME] = static

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> "QuickLogitsProcessors":
        theirs: Any = super()._get_logits_processor  # type: ignore[misc]
        return QuickLogitsProcessors(theirs(*args, **kwargs), self.config.vocab_size)

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        given = (logits_processor, stopping_criteria, generation_config)
        state: Any = model_kwargs.get(CACHE_NAME)
        wants_more = synced_gpus or streamer is not None or generation_config.return_dict_in_generate
        pad = getattr(generation_config, "_pad_token_tensor", None)
        model: Any = self
        is_plain = type(state) is NICCache and runs_plain(model)
        if wants_more or pad is None or not is_plain or input_ids.device.type != "cpu":
            theirs: Any = super()._sample  # type: ignore[misc]
            return theirs(input_ids, *given, synced_gpus, streamer, **model_kwargs)
        outputs = model(**self.prepare_inputs_for_generation(input_ids, **model_kwargs), return_dict=True)
        return sample(model, input_ids, outputs.logits[:, -1], state, pad, *given)

    def get_compiled_call(self, compile_config: Any) -> Callable[..., Any]:
        """Return what `generate(cache_implementation="static")` runs for each word after the first."""
        compiled = super().get_compiled_call(compile_config)  # type: ignore[misc]

        def step(*args: Any, **kwargs: Any) -> Any:
            # Without it the graph would break at the LSTM, of which a step runs the cell alone.
            with torch._dynamo.config.patch(allow_rnn=True):
                return compiled(*args, **kwargs)

        return step


class NICStopStrings(StoppingCriteria):
    """Ends a caption with the word that completes one of some strings, whatever the tokenizer's words are.

    Args:
        strings: what to stop at. They may be parts of words, and may go over several.
        tokenizer: the captioner's.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.strings, self.tokenizer = list(strings), tokenizer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which captions have ended, of shape `(batch_size,)`; `input_ids` are all their words."""
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        earlier = self.tokenizer.batch_decode(input_ids[:, :-1], skip_special_tokens=True)
        ended = [
            any(text.find(string, max(0, len(before) + 1 - len(string))) >= 0 for string in self.strings)
            for text, before in zip(texts, earlier, strict=True)
        ]
        return torch.tensor(ended, device=input_ids.device)


class QuickLogitsProcessors(LogitsProcessorList):
    """What `LogitsProcessorList` does, without reading the signature of each processor at each word."""

    def __init__(self, processors: LogitsProcessorList, vocab_size: int) -> None:
        super().__init__(
            _QuickSuppression(processor.suppress_tokens, vocab_size)
            if type(processor) is SuppressTokensLogitsProcessor
            else processor
            for processor in processors
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Scores `(rows, vocab_size)` after all processors; see `LogitsProcessorList`."""
        if not all(_takes_words_and_scores(processor.__class__) for processor in self):
            return super().__call__(input_ids, scores, **kwargs)  # type: ignore[arg-type]
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class _QuickSuppression(SuppressTokensLogitsProcessor):
    """The same scores, by writing to the columns of the words alone."""

    def __init__(self, words: torch.Tensor, vocab_size: int) -> None:
        self.suppress_tokens = words[(words >= 0) & (words < vocab_size)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(-1, self.suppress_tokens.to(scores.device), -float("inf"))


@cache
def _takes_words_and_scores(kind: Any) -> bool:
    return len(inspect.signature(kind.__call__).parameters) == 3  # and itself


def runs_plain(model: PreTrainedModel) -> bool:
    """Whether nobody watches each step: calls of its parts may then take the place of calls of the model."""
    return (
        vars(type(model)).get("_runs_plain_loop", False)  # no subclass, which may have a `forward` of its own
        and _OVERRIDDEN.isdisjoint(vars(model))
        and not (model._forward_hooks or model._forward_pre_hooks)
        and model._compiled_call_impl is None
    )


def sample(
    model: Any,
    input_ids: torch.Tensor,
    logits: torch.Tensor,
    cache: NICCache,
    pad: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
) -> torch.Tensor:
    """Generate word by word until each caption has ended, as `GenerationMixin._sample` does, with less around a step.

    A word costs the LSTM half a millisecond; an output object, a preparation of inputs and an update of arguments for
    each cost a third of that again.

    Args:
        model: the captioner.
        input_ids: the words so far, `<bos>` first, of shape `(num_captions, sequence_length)`.
        logits: scores of the next words, of shape `(num_captions, vocab_size)`.
        cache: the state after the words so far; it ends as the state after all words but the last.
        pad: id of what follows the end of a caption.
        logits_processor, stopping_criteria, generation_config: as `generate()` prepared them.

    Returns:
        All words, of shape `(num_captions, longer_sequence_length)`.
    """
    has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    unfinished = torch.ones(len(input_ids), dtype=torch.bool)
    while True:
        scores = logits_processor(input_ids, logits.float())
        if generation_config.do_sample:
            words = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            words = scores.argmax(dim=-1)
        if has_eos:
            words = torch.where(unfinished, words, pad)
        input_ids = torch.cat([input_ids, words.unsqueeze(1)], dim=-1)
        unfinished = unfinished & ~stopping_criteria(input_ids, None)
        if not unfinished.any():
            return input_ids
        logits = _next_logits(model, words, cache)


def _next_logits(model: Any, words: torch.Tensor, cache: NICCache) -> torch.Tensor:
    """Scores `(num_captions, vocab_size)` after one more word, of shape `(num_captions,)`."""
    inputs = model.decoder.embed_tokens(words).unsqueeze(1)
    hidden_states, state, _ = model.decoder(inputs, (cache.hidden_state, cache.cell_state), cache.regions)
    cache.update(state, num_tokens=1, regions=cache.regions)
    return model.lm_head(hidden_states[:, 0])

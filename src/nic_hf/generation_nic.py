"""What a captioner and an ensemble of them tell `generate()`, and the settings that a checkpoint starts with."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .cache_nic import CACHE_NAME, NICCache, NICStaticCache, static_cache
from .configuration_nic import NICConfig
from .logits_nic import QuickLogitsProcessors

NO_IMAGE = "no image: give `pixel_values`, or its features as `encoder_outputs`"

_MOST_WORDS = 20  # of a caption, where nobody says otherwise
_TRANSFORMERS_LENGTH = 20  # what Seq2SeqTrainer writes into a model's `max_length` that is not set

# What `generate()` of a captioner cannot do, and the values that do not ask for it.
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "guidance_scale": ((None, 1), "a captioner has no input without the image to guide away from"),
    "prefill_chunk_size": ((None,), "an LSTM reads a prefix word by word, and keeps nothing of it"),
    "assistant_early_exit": ((None,), "it needs a decoder with a head at each layer"),
    "use_mtp": ((None, False), "it needs a model trained to predict several words at once"),
}


class NICGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model whose state is an LSTM's, and whose encoder reads images."""

    config: Any
    generation_config: Any
    get_input_embeddings: Any
    _check_features: Any
    _caches: tuple[str | None, ...] = (None, "dynamic", "dynamic_full", "static")  # kinds of `cache_implementation`

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, *args: Any, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        theirs: Any = super()._prepare_generation_config  # type: ignore[misc]
        config, model_kwargs = theirs(generation_config, *args, **kwargs)
        # `generate()` lets `max_new_tokens` beat `max_length` wherever the two come from, and the checkpoint's would
        # beat the user's. Here the call's own length comes first, its configuration's next, and the checkpoint's last.
        given = {} if generation_config is None else vars(generation_config)
        own = {
            "max_new_tokens": self.generation_config.max_new_tokens,
            "max_length": self.generation_config.max_length,
        }
        if own["max_new_tokens"] is not None and own["max_length"] == _TRANSFORMERS_LENGTH:
            own.pop("max_length")
        elif own["max_new_tokens"] == _MOST_WORDS and own["max_length"] is not None:
            own.pop("max_new_tokens")
        for lengths in (kwargs, given, {name: value for name, value in own.items() if name not in kwargs}):
            asked = [name for name in ("max_new_tokens", "max_length") if lengths.get(name) is not None]
            if asked:
                config.max_new_tokens, config.max_length = lengths.get("max_new_tokens"), lengths.get("max_length")
                break
        for name, (neutral, reason) in _UNSUPPORTED.items():
            value = getattr(config, name, None)
            if value not in neutral:
                raise ValueError(f"a captioner's generate() does not take `{name}` (got {value!r}): {reason}")
        if config.cache_implementation not in self._caches:
            kinds = ", ".join(repr(kind) for kind in self._caches if kind is not None)
            raise ValueError(
                f"`cache_implementation` must be {kinds} or None for {type(self).__name__}, whose state is an LSTM's, "
                f"got {config.cache_implementation!r}"
            )
        return config, model_kwargs

    def _get_stopping_criteria(
        self,
        generation_config: GenerationConfig,
        stopping_criteria: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> Any:
        strings = generation_config.stop_strings
        if strings is not None and tokenizer is not None:
            # Transformers' own criterion decodes a made-up prefix, which a vocabulary of words turns into `<unk>`.
            own = NICStopStrings([strings] if isinstance(strings, str) else strings, tokenizer)
            stopping_criteria = StoppingCriteriaList([*(stopping_criteria or []), own])
            generation_config.stop_strings = None  # of this call only
        theirs: Any = super()._get_stopping_criteria  # type: ignore[misc]
        return theirs(generation_config, stopping_criteria, tokenizer=tokenizer, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        cache: NICCache | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        past_key_values: NICCache | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The words that the LSTM has not read, and the image where it has not seen that."""
        cache = past_key_values if cache is None else cache
        num_read = 0 if cache is None else cache.get_seq_length()
        words = input_ids[:, num_read:]
        if isinstance(cache, NICStaticCache):
            # A slice's strides tell how many words came before it, and a compiled step would be made for each number.
            words = words.clone(memory_format=torch.contiguous_format)
        return {
            "decoder_input_ids": words,
            "decoder_attention_mask": decoder_attention_mask if num_read == 0 else None,
            "encoder_outputs": encoder_outputs if num_read == 0 else None,
            "cache": cache,
            "use_cache": use_cache,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }

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
        # Cached features come as a bare tensor; generate() reads the batch size off an encoder's output.
        if model_kwargs.get("encoder_outputs") is not None:
            given = model_kwargs["encoder_outputs"]
            features, states = self._check_features(given), getattr(given, "hidden_states", None)
            model_kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=features, hidden_states=states)
        elif inputs is None and model_kwargs.get("pixel_values") is None:
            raise ValueError(NO_IMAGE)
        elif torch.is_tensor(inputs) and inputs.dtype == torch.long:  # what an assistant gets in place of the photo
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
        if generation_config.use_cache is False or model_kwargs.get(CACHE_NAME) is not None:
            return
        if generation_config.cache_implementation != "static":
            cache = NICCache()
            if getattr(generation_config, "is_assistant", False):
                cache.activate_past_recording()
            model_kwargs[CACHE_NAME] = cache
            return
        config, weight = self.config, self.get_input_embeddings().weight
        num_captions = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        regions, photos = None, self._check_features(model_kwargs["encoder_outputs"])
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

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> QuickLogitsProcessors:
        theirs: Any = super()._get_logits_processor  # type: ignore[misc]
        return QuickLogitsProcessors(theirs(*args, **kwargs), self.config.vocab_size)

    def _update_model_kwargs_for_generation(self, outputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if isinstance(outputs.cache, NICStaticCache):
            outputs.cache.count(outputs.logits.shape[1])
        return super()._update_model_kwargs_for_generation(outputs, *args, **kwargs)


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


def default_generation_config(config: NICConfig) -> GenerationConfig:
    """Beam 3 and at most 20 words, as in the 2016 paper; a special token is never part of a caption."""
    return GenerationConfig(
        num_beams=3,
        max_new_tokens=_MOST_WORDS,
        suppress_tokens=sorted({config.pad_token_id, config.bos_token_id, config.unk_token_id}),
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )

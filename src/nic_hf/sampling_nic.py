"""Greedy decoding and sampling on a CPU: Transformers' loop, without what it does around a step that has little to do.

A word costs the LSTM half a millisecond; an output object, a preparation of inputs and an update of arguments for each
cost a third of that again.
"""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from .cache_nic import NICCache

# What others put in an instance's place of a method: Accelerate its hooks, PEFT its prompts.
_OVERRIDDEN = {"forward", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation"}


def runs_plain(model: PreTrainedModel, kind: type) -> bool:
    """Whether nobody wants to see each step: calls of its parts may then take the place of calls of the model."""
    return (
        model.__class__ is kind  # no subclass, which may have a `forward` of its own
        and _OVERRIDDEN.isdisjoint(vars(model))
        and not (model._forward_hooks or model._forward_pre_hooks)
        and model._compiled_call_impl is None
    )


def sample(
    model: Any,
    input_ids: torch.Tensor,
    logits: torch.Tensor,
    cache: NICCache,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
) -> torch.Tensor:
    """Go on word by word until each caption has ended, as `GenerationMixin._sample` does.

    Args:
        model: the captioner.
        input_ids: the words so far, `<bos>` first, of shape `(num_captions, sequence_length)`.
        logits: scores of the next words, of shape `(num_captions, vocab_size)`.
        cache: the state after the words so far; it ends as the state after all words but the last.
        logits_processor, stopping_criteria, generation_config: as `generate()` prepared them.

    Returns:
        All words, of shape `(num_captions, longer_sequence_length)`.
    """
    has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    pad: Any = generation_config._pad_token_tensor
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
    regions = () if cache.regions is None else (cache.regions,)
    hidden_states, state, *_ = model.decoder(inputs, (cache.hidden_state, cache.cell_state), *regions)
    cache.update(state[0], state[1], num_tokens=1, regions=cache.regions)
    return model.lm_head(hidden_states[:, 0])

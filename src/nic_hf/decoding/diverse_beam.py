"""Diverse beam search, for `generate(custom_generate=...)`: Vijayakumar et al. 2016, https://arxiv.org/abs/1610.02424.

Beams are split into groups, each searched by ordinary beam search; at each step a group pays a penalty for every word
that an earlier group of the same photo has just chosen.

Transformers 5 no longer includes group beam search. It loads the Hub repository
`transformers-community/group-beam-search`, for which `generate()` needs a network and `trust_remote_code=True`, even
with a local copy. This implementation needs neither. Beyond that, its scores leave the penalties out, captions of
different groups are distinct, and one group equals Transformers' beam search.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerateBeamEncoderDecoderOutput

from ..model.cache import cache_field
from ..modeling_nic import CACHE_NAME

# Transformers adds this to the score of beams that are copies, have ended, or are excluded.
NEVER = -1.0e9


@dataclass
class _Beams:
    """Captions of each photo.

    Attributes:
        ids (`torch.LongTensor` of shape `(batch_size, num, max_length)`): token ids.
        rows (`torch.LongTensor` of shape `(batch_size, num, max_new_tokens)`): the row of the scores that each token
            was chosen from, like `beam_indices` in Transformers.
        steered (`torch.FloatTensor` of shape `(batch_size, num)`): scores with diversity penalties, used for search.
        scores (`torch.FloatTensor` of shape `(batch_size, num)`): scores without diversity penalties.
    """

    ids: torch.Tensor
    rows: torch.Tensor
    steered: torch.Tensor
    scores: torch.Tensor

    def take(self, indices: torch.Tensor) -> "_Beams":
        """Select the captions `indices` (of shape `(batch_size, num)`) of each photo."""
        return _Beams(*(_take(tensor, indices) for tensor in (self.ids, self.rows, self.steered, self.scores)))

    def shift(self, amount: torch.Tensor) -> "_Beams":
        """Add `amount` to both scores."""
        return replace(self, steered=self.steered + amount, scores=self.scores + amount)

    @staticmethod
    def join(parts: Sequence["_Beams"]) -> "_Beams":
        """Concatenate the captions of each photo."""
        fields = ("ids", "rows", "steered", "scores")
        return _Beams(*(torch.cat([getattr(part, name) for part in parts], dim=1) for name in fields))


def end_ids(config: GenerationConfig) -> list[int]:
    """Ids of the tokens that end a caption."""
    return [] if config.eos_token_id is None else torch.as_tensor(config.eos_token_id).flatten().tolist()


def _take(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return tensor.take_along_dim(indices.view(*indices.shape, *[1] * (tensor.ndim - 2)), dim=1)


class _Group:
    """The beam search of one group for all photos, step by step like `GenerationMixin._beam_search`."""

    def __init__(
        self, prompt: torch.Tensor, first_row: torch.Tensor, config: GenerationConfig, fill: int, max_length: int
    ) -> None:
        batch_size, self.width, self.prompt_length = prompt.shape
        self.first_row = first_row  # shape: (batch_size, 1)
        self.length_penalty, self.early_stopping = config.length_penalty, config.early_stopping
        self.max_length = max_length
        self.num_candidates = max(2, 1 + len(end_ids(config))) * self.width

        ids = prompt.new_full((batch_size, self.width, max_length), fill)
        ids[..., : self.prompt_length] = prompt
        rows = prompt.new_full((batch_size, self.width, max_length - self.prompt_length), -1)
        never = torch.full((batch_size, self.width), NEVER, device=prompt.device)
        start = never.clone()
        start[:, 0] = 0.0  # the other beams are copies of the first
        self.running = _Beams(ids, rows, start, start)
        self.finished = _Beams(ids, rows, never, never)
        self.is_finished = torch.zeros_like(never, dtype=torch.bool)
        # shape: (batch_size, 1); whether a running caption can still replace a finished one
        self.can_improve = torch.ones_like(self.is_finished[:, :1])
        self.all_hit = False

    def is_open(self) -> torch.Tensor:
        """Photos for which this group still searches, of shape `(batch_size, 1)`."""
        if self.early_stopping is True:
            return self.can_improve & ~self.is_finished.all(dim=1, keepdim=True)
        return self.can_improve

    def step(
        self,
        log_probs: torch.Tensor,
        penalty: torch.Tensor,
        earlier: "list[_Group]",
        stopping_criteria: StoppingCriteriaList,
        all_scores: Any,
        length: int,
    ) -> None:
        """Add a token to captions of `length` tokens.

        `log_probs` has shape `(batch_size, width, vocab_size)`, and `penalty` has shape `(batch_size, vocab_size)`.
        """
        vocab_size = log_probs.shape[-1]
        is_open = self.is_open()
        steered = (log_probs - penalty[:, None] + self.running.steered[..., None]).flatten(1)
        scores = (log_probs + self.running.scores[..., None]).flatten(1)
        # Earlier groups may have ended as many of these captions as they have beams.
        number = min(self.num_candidates + self.width * len(earlier), steered.shape[1])
        top, choice = steered.topk(number)
        beam, word = choice // vocab_size, choice % vocab_size
        candidates = replace(self.running.take(beam), steered=top, scores=scores.gather(1, choice))
        candidates.ids[..., length] = word
        candidates.rows[..., length - self.prompt_length] = self.first_row + beam

        hits = stopping_criteria(candidates.ids[..., : length + 1].flatten(0, 1), all_scores).view(top.shape)
        copies = hits & _is_among(candidates, earlier)
        # Only ends among the best `width` candidates count.
        ends = hits & ~copies & ((~copies).cumsum(dim=1) <= self.width)
        self.all_hit = bool(hits.all())

        following = candidates.shift(hits.float() * NEVER)
        self.running = following.take(following.steered.topk(self.width)[1])
        self._finish(candidates, ends, is_open, length + 1 - self.prompt_length)
        self._look_ahead(length + 1 - self.prompt_length)

    def _finish(self, candidates: _Beams, ends: torch.Tensor, is_open: torch.Tensor, num_words: int) -> None:
        normal = num_words**self.length_penalty
        candidates = replace(candidates, steered=candidates.steered / normal, scores=candidates.scores / normal)
        candidates = candidates.shift((~is_open).float() * NEVER).shift((~ends).float() * NEVER)
        merged = _Beams.join([self.finished, candidates])
        best = merged.steered.topk(self.width)[1]
        self.finished = merged.take(best)
        self.is_finished = _take(torch.cat([self.is_finished, ends], dim=1), best)

    def _look_ahead(self, num_words: int) -> None:
        if self.early_stopping == "never" and self.length_penalty > 0.0:
            num_words = self.max_length - self.prompt_length
        hope = self.running.steered[:, :1] / num_words**self.length_penalty
        worst = torch.where(self.is_finished, self.finished.steered.amin(dim=1, keepdim=True), NEVER)
        self.can_improve = self.can_improve & (hope > worst).any(dim=1, keepdim=True)

    def chosen(self, length: int, vocab_size: int) -> torch.Tensor:
        """Number of running captions with each token at position `length`, of shape `(batch_size, vocab_size)`."""
        alive = (self.running.steered > NEVER / 2).float()
        counts = alive.new_zeros(len(alive), vocab_size)
        return counts.scatter_add_(1, self.running.ids[..., length], alive)


def _is_among(candidates: _Beams, groups: list[_Group]) -> torch.Tensor:
    """Whether each candidate is a finished caption of `groups`, of shape `(batch_size, num)`."""
    found = torch.zeros_like(candidates.steered, dtype=torch.bool)
    for group in groups:
        same = (candidates.ids[:, :, None] == group.finished.ids[:, None]).all(dim=-1)
        found |= (same & group.is_finished[:, None]).any(dim=-1)
    return found


@torch.no_grad()
def diverse_beam_search(
    model: Any,
    input_ids: Any,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    num_beam_groups: int | None = None,
    diversity_penalty: float | None = None,
    **model_kwargs: Any,
) -> Any:
    """Find diverse captions; called by `generate()`.

    ```python
    model.generate(**inputs, custom_generate=diverse_beam_search, num_beams=6, num_beam_groups=3,
                   diversity_penalty=0.5, num_return_sequences=3)
    ```

    At each step the score of a word is reduced by `diversity_penalty` for each running beam of an earlier group of the
    photo that has just chosen it (Hamming diversity, section 4 of the paper); the end token has no penalty.
    `sequences_scores` do not include the penalties, so that they are comparable between groups. Each group stops like
    Transformers' beam search, and skips captions that an earlier group has finished. The returned captions are the
    best of each group, then the second best of each, and so on, sorted by `sequences_scores`. They are distinct; if
    fewer captions are possible, the rest have a score of about -1e9, as in Transformers.

    Args:
        model: a captioner or an ensemble.
        input_ids (`torch.LongTensor` of shape `(batch_size * num_beams, prompt_length)`): the prompts, passed by
            `generate()` like all other arguments.
        logits_processor: modifies log probabilities, before the penalty.
        stopping_criteria: decide which captions have ended.
        generation_config: `num_beams`, `num_return_sequences`, `length_penalty` and `early_stopping` are used.
        num_beam_groups: number of groups, a divisor of `num_beams`. Defaults to the generation config's value, or 1.
        diversity_penalty: penalty in nats, 0.2 to 0.8 in the paper. Defaults to the generation config's value.
        **model_kwargs: inputs of the model.

    Returns:
        Captions of shape `(batch_size * num_return_sequences, sequence_length)`, starting with `<bos>`, or with
        `return_dict_in_generate` the output of beam search, without hidden states.

    Raises:
        ValueError: if `num_beams` is not a multiple of `num_beam_groups`, the penalty is missing or negative, or
            `do_sample` is True.
    """
    config = generation_config
    groups, penalty = _check_settings(config, num_beam_groups, diversity_penalty)
    width = config.num_beams // groups
    batch_size, length = len(input_ids) // config.num_beams, input_ids.shape[1]
    prompt_length = length
    ends = end_ids(config)
    fill = (config.pad_token_id or ends[0]) if ends else -1  # like Transformers, <eos> if <pad> is 0

    prompts = input_ids.view(batch_size, groups, width, length)
    first_rows = torch.arange(batch_size, device=input_ids.device)[:, None] * config.num_beams
    parts = [
        _Group(prompts[:, number], first_rows + number * width, config, fill, config.max_length)
        for number in range(groups)
    ]
    all_scores: Any = () if config.return_dict_in_generate and config.output_scores else None
    all_logits: Any = () if config.return_dict_in_generate and config.output_logits else None
    while True:
        outputs = model(**model.prepare_inputs_for_generation(input_ids, **model_kwargs), return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=True)
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        log_probs = logits_processor(input_ids, logits.log_softmax(dim=-1))
        all_scores = None if all_scores is None else (*all_scores, log_probs)
        all_logits = None if all_logits is None else (*all_logits, logits)

        each = log_probs.view(batch_size, groups, width, -1)
        cost = torch.zeros_like(each[:, 0, 0])  # shape: (batch_size, vocab_size)
        for number, group in enumerate(parts):
            is_open = group.is_open()  # a group that has ended causes no penalties
            group.step(each[:, number], cost, parts[:number], stopping_criteria, all_scores, length)
            cost = cost + penalty * is_open * group.chosen(length, cost.shape[1])

        running = _Beams.join([group.running for group in parts])
        if model_kwargs.get(CACHE_NAME) is not None:
            model_kwargs[CACHE_NAME].reorder_cache(running.rows[..., length - prompt_length].flatten())
        length += 1
        input_ids = running.ids[..., :length].flatten(0, 1)
        if not any(bool(group.is_open().any()) for group in parts) or all(group.all_hit for group in parts):
            break

    best = _choose(parts, config.num_return_sequences)
    num_words = int((best.rows >= 0).sum(dim=-1).max())
    sequences: Any = best.ids[..., : prompt_length + num_words].flatten(0, 1)
    if not config.return_dict_in_generate:
        return sequences
    rows: Any = best.rows[..., :num_words].flatten(0, 1)
    return GenerateBeamEncoderDecoderOutput(
        sequences=sequences,
        sequences_scores=best.scores.flatten() if config.output_scores else None,
        scores=all_scores,
        logits=all_logits,
        beam_indices=rows,
        **cache_field(model_kwargs.get(CACHE_NAME)),
    )


def _check_settings(config: GenerationConfig, groups: int | None, penalty: float | None) -> tuple[int, float]:
    groups = (getattr(config, "num_beam_groups", None) or 1) if groups is None else groups
    if groups < 1 or config.num_beams % groups:
        raise ValueError(f"`num_beams` ({config.num_beams}) must be a multiple of `num_beam_groups`, got {groups}")
    if penalty is None:
        penalty = getattr(config, "diversity_penalty", None) or None
        if penalty is None and groups > 1:
            raise ValueError("give `diversity_penalty` too: 0.2 to 0.8 in the paper; with 0 the groups do not differ")
    penalty = penalty or 0.0
    if penalty < 0:
        raise ValueError(f"`diversity_penalty` must be at least 0, got {penalty}")
    if config.do_sample:
        raise ValueError("diverse beam search does not sample: remove `do_sample`")
    if config.num_return_sequences > config.num_beams:
        raise ValueError(
            f"`num_return_sequences` ({config.num_return_sequences}) must not exceed `num_beams` ({config.num_beams})"
        )
    return groups, penalty


def _choose(groups: list[_Group], number: int) -> _Beams:
    """The best `number` captions of each photo, taken from each group in turn, sorted by score."""
    finished = _Beams.join([group.finished for group in groups])
    width, device = groups[0].width, finished.ids.device
    in_turn = torch.arange(len(groups) * width, device=device).view(len(groups), width).T.flatten()
    finished = finished.take(in_turn.expand(len(finished.ids), -1))
    is_caption = torch.cat([group.is_finished for group in groups], dim=1)[:, in_turn]
    is_caption &= finished.steered > NEVER / 2
    captions_first = (~is_caption).int().argsort(dim=1, stable=True)[:, :number]
    chosen = finished.take(captions_first)
    return chosen.take(chosen.scores.argsort(dim=1, stable=True, descending=True))

"""Greedy decoding, sampling, beam search and beam sampling for all photos of a batch at once.

They follow Transformers' `generate()` step by step, so that the same weights give the same captions. The only
difference is that a photo whose captions are finished leaves the batch.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .generation_settings import GenerationSettings
from .logits_processors import build_processors, log_softmax, top

NO_WORD = -1  # padding of a prompt, which the LSTM does not read
_NEVER = np.float32(-1e9)  # score that Transformers gives to candidates that must not be chosen


class Reader(Protocol):
    """The LSTM and its state for `num_captions` captions of each photo."""

    def read(self, input_ids: np.ndarray) -> np.ndarray:
        """Read one word of each caption (`(batch_size, num_captions)`), and return logits with one more dimension.

        `NO_WORD` is not read, and its logits are meaningless.
        """

    def spread(self, num_captions: int) -> None:
        """Repeat the state of each photo for `num_captions` captions."""

    def reorder(self, captions: np.ndarray) -> None:
        """Let caption `i` of a photo continue its caption `captions[photo, i]`."""

    def keep(self, photos: np.ndarray) -> None:
        """Keep only the photos where the boolean array `photos` is True."""


@dataclass
class NICOnnxOutput:
    """Output of `generate(return_dict_in_generate=True)`.

    Attributes:
        sequences (`np.ndarray` of shape `(batch_size * num_return_sequences, length)`): token ids.
        sequences_scores (`np.ndarray` of shape `(batch_size * num_return_sequences,)`): the sum of log probabilities
            divided by the number of words to the power of `length_penalty`; `None` without beam search.
    """

    sequences: np.ndarray
    sequences_scores: np.ndarray | None = None


def generate(reader: Reader, prompt: np.ndarray, vocab_size: int, settings: GenerationSettings) -> NICOnnxOutput:
    """Generate captions from prompts of shape `(batch_size, prompt_length)`: `<bos>`, then words and `NO_WORD`."""
    method = _beams if settings.num_beams > 1 else _words
    logits = reader.read(prompt[:, :1])
    for position in range(1, prompt.shape[1]):
        words = prompt[:, position : position + 1]
        logits = np.where((words == NO_WORD)[..., None], logits, reader.read(words))
    prompt = np.where(prompt == NO_WORD, settings.pad_token_id, prompt)
    return method(reader, logits, prompt, vocab_size, settings)


def padding(settings: GenerationSettings) -> int:
    """The padding token; like Transformers, beam search pads with `<eos>` if the id of `<pad>` is 0."""
    if settings.num_beams > 1 and not settings.pad_token_id and settings.end_ids:
        return settings.end_ids[0]
    return settings.pad_token_id


def _words(
    reader: Reader, logits: np.ndarray, prompt: np.ndarray, vocab_size: int, settings: GenerationSettings
) -> NICOnnxOutput:
    """Greedy decoding and sampling."""
    each, longest = settings.num_return_sequences, settings.longest(prompt.shape[1])
    processors = build_processors(settings, prompt.shape[1], vocab_size)
    random = np.random.default_rng(settings.seed)
    num_photos, length = prompt.shape
    sequences = np.full((num_photos, each, longest), padding(settings), dtype=np.int64)
    sequences[:, :, :length] = prompt[:, None]
    reader.spread(each)
    logits = np.repeat(logits, each, axis=1)
    active, running = np.arange(num_photos), np.ones((num_photos, each), dtype=bool)
    while True:
        ids, scores = sequences[active, :, :length].reshape(-1, length), logits.reshape(-1, vocab_size)
        for process in processors:
            scores = process(ids, scores)
        if settings.do_sample:
            scores = scores + random.gumbel(size=scores.shape)  # Gumbel-max: the highest is a sample
        words = np.where(running, scores.argmax(axis=-1).reshape(running.shape), settings.pad_token_id)
        sequences[active, :, length] = words
        length += 1
        running &= ~np.isin(words, settings.end_ids)
        if length == longest or not running.any():
            return NICOnnxOutput(sequences[:, :, :length].reshape(-1, length))
        unfinished = np.any(running, axis=1)
        if not unfinished.all():
            reader.keep(unfinished)
            active, running, words = active[unfinished], running[unfinished], words[unfinished]
        logits = reader.read(words)


def _beams(
    reader: Reader, logits: np.ndarray, prompt: np.ndarray, vocab_size: int, settings: GenerationSettings
) -> NICOnnxOutput:
    """Beam search and beam sampling, as in `GenerationMixin._beam_search`.

    Each array has one row per photo. `running` are the captions that continue, `finished` the best ones that have
    ended.
    """
    beams, longest = settings.num_beams, settings.longest(prompt.shape[1])
    processors = build_processors(settings, prompt.shape[1], vocab_size)
    random = np.random.default_rng(settings.seed)
    num_photos, prompt_length = prompt.shape
    # Twice as many candidates as beams, so that enough of them continue even if the best ones end.
    num_candidates = min(max(2, 1 + len(settings.end_ids)) * beams, beams * vocab_size)
    is_early, penalty = settings.early_stopping is True, settings.length_penalty
    is_end = np.zeros(vocab_size, dtype=bool)
    is_end[settings.end_ids] = True

    running = np.full((num_photos, beams, longest), padding(settings), dtype=np.int64)
    running[:, :, :prompt_length] = prompt[:, None]
    # Start with one beam: equal beams would find the same words.
    running_scores = np.full((num_photos, beams), _NEVER)
    running_scores[:, 0] = 0
    finished, finished_scores = running.copy(), np.full((num_photos, beams), _NEVER)
    is_finished, lengths = np.zeros((num_photos, beams), dtype=bool), np.zeros((num_photos, beams), dtype=np.int64)
    may_improve = np.ones((num_photos, 1), dtype=bool)

    sequences, scores_of = finished.copy(), finished_scores.copy()
    lengths_of, active = lengths.copy(), np.arange(num_photos)
    reader.spread(beams)
    logits, length = np.repeat(logits, beams, axis=1), prompt_length
    while True:
        scores = log_softmax(logits).reshape(-1, vocab_size)
        ids = running[:, :, :length].reshape(-1, length)
        for process in processors:
            scores = process(ids, scores)
        total = (scores.reshape(len(active), beams, vocab_size) + running_scores[:, :, None]).reshape(len(active), -1)
        if settings.do_sample:  # without replacement, by the Gumbel-top-k trick (Kool et al. 2019)
            _, places = top(total + random.gumbel(size=total.shape), num_candidates)
            best = _pick(total, places)
        else:
            best, places = top(total, num_candidates)
        parents, words = places // vocab_size, places % vocab_size
        candidates = _pick(running, parents)
        candidates[:, :, length] = words
        length += 1
        ends = is_end[words] | (length == longest)

        # The best candidates that continue.
        next_scores, chosen = top(best + ends * _NEVER, beams)
        running, running_scores, chosen_parents = _pick(candidates, chosen), next_scores, _pick(parents, chosen)

        # The best finished captions: earlier ones, and those that end among the first `beams` candidates.
        ends_well = ends & (np.arange(num_candidates) < beams)
        final = best / np.float32((length - prompt_length) ** penalty)
        final = final + (is_finished.all(axis=1, keepdims=True) & is_early) * _NEVER
        final = final + ~may_improve * _NEVER + ~ends_well * _NEVER
        finished_scores, order = top(np.concatenate([finished_scores, final], axis=1), beams)
        finished = _pick(np.concatenate([finished, candidates], axis=1), order)
        new_lengths = np.full(final.shape, length - prompt_length)
        lengths = _pick(np.concatenate([lengths, new_lengths], axis=1), order)
        is_finished = _pick(np.concatenate([is_finished, ends_well], axis=1), order)

        # Whether a running beam can still become better than the worst finished caption.
        counted = longest if settings.early_stopping == "never" and penalty > 0 else length
        possible = running_scores[:, :1] / np.float32((counted - prompt_length) ** penalty)
        worst = np.where(is_finished, finished_scores.min(axis=1, keepdims=True), _NEVER)
        may_improve &= (possible > worst).any(axis=1, keepdims=True)

        unfinished = may_improve[:, 0] & ~(is_finished.all(axis=1) & is_early) & ~ends.all(axis=1)
        done = ~unfinished
        if done.any():
            sequences[active[done]], scores_of[active[done]] = finished[done], finished_scores[done]
            lengths_of[active[done]] = lengths[done]
        if done.all():
            break
        reader.reorder(chosen_parents)
        if done.any():
            reader.keep(unfinished)
            running, running_scores, active = running[unfinished], running_scores[unfinished], active[unfinished]
            finished, finished_scores = finished[unfinished], finished_scores[unfinished]
            is_finished, lengths, may_improve = is_finished[unfinished], lengths[unfinished], may_improve[unfinished]
        logits = reader.read(running[:, :, length - 1])
    each = settings.num_return_sequences
    longest_found = prompt_length + lengths_of[:, :each].max(initial=1)
    return NICOnnxOutput(
        sequences[:, :each, :longest_found].reshape(-1, longest_found), scores_of[:, :each].reshape(-1)
    )


def _pick(parts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Select `places` of shape `(num_photos, number)` of each photo, ten times as fast as `np.take_along_axis`."""
    return parts[np.arange(len(parts))[:, None], places]

"""The logits processors of Transformers in NumPy.

Each takes the token ids so far, of shape `(num_captions, length)`, and scores of shape `(num_captions, vocab_size)`,
which it may modify in place, and returns scores. They are applied in the order of Transformers.
"""

from collections.abc import Callable

import numpy as np

from .generation_settings import GenerationSettings

Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities over the last axis."""
    scores = logits - logits.max(axis=-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return scores


def top(scores: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The `number` highest scores of each row and their indices, in descending order; ties in order of their index."""
    if number > 16:
        places = np.argpartition(scores, scores.shape[1] - number, axis=-1)[:, -number:]
        places.sort(axis=-1)
        best = np.take_along_axis(scores, places, axis=-1)
        order = np.argsort(-best, axis=-1, kind="stable")
        return np.take_along_axis(best, order, axis=-1), np.take_along_axis(places, order, axis=-1)
    # A few passes of argmax, which is vectorized, are faster than a partial sort.
    rows, scores = np.arange(len(scores)), scores.copy()
    best = np.empty((len(scores), number), dtype=scores.dtype)
    places = np.empty((len(scores), number), dtype=np.int64)
    for rank in range(number):
        places[:, rank] = place = scores.argmax(axis=-1)
        best[:, rank] = scores[rows, place]
        scores[rows, place] = -np.inf
    return best, places


def build_processors(settings: GenerationSettings, prompt_length: int, vocab_size: int) -> list[Processor]:
    """Build the processors for the settings.

    Raises:
        ValueError: if a setting has an id that is not in the vocabulary.
    """
    ends = settings.end_ids
    _check_ids("eos_token_id", ends, vocab_size)
    processors: list[Processor] = []
    if settings.repetition_penalty != 1.0:
        processors.append(_repetition_penalty(settings.repetition_penalty))
    if settings.no_repeat_ngram_size > 0:
        processors.append(_no_repeated_ngram(settings.no_repeat_ngram_size))
    for words in settings.bad_words_ids:
        _check_ids("bad_words_ids", words, vocab_size)
        if list(words) not in [[end] for end in ends]:  # captions must be able to end
            processors.append(_forbid_after(list(words)))
    shortest = settings.shortest(prompt_length)
    if shortest > prompt_length and ends:
        processors.append(_forbid(ends, lambda length: length < shortest))
    if len(settings.suppress_tokens):
        _check_ids("suppress_tokens", settings.suppress_tokens, vocab_size)
        processors.append(_forbid(list(settings.suppress_tokens)))
    if len(settings.begin_suppress_tokens):
        _check_ids("begin_suppress_tokens", settings.begin_suppress_tokens, vocab_size)
        processors.append(_forbid(list(settings.begin_suppress_tokens), lambda length: length == prompt_length))
    return processors + (_sampling(settings) if settings.do_sample else [])


def _sampling(settings: GenerationSettings) -> list[Processor]:
    keep = 1 + len(settings.end_ids) if settings.num_beams > 1 else 1  # beams need a word that continues
    processors: list[Processor] = []
    if settings.temperature != 1.0:
        processors.append(lambda ids, scores: scores / np.float32(settings.temperature))
    if settings.top_k > 0:
        processors.append(_top_k(max(settings.top_k, keep)))
    if settings.top_p < 1.0:
        processors.append(_top_p(settings.top_p, keep))
    return processors


def _forbid(words: list[int], at: Callable[[int], bool] | None = None) -> Processor:
    """Forbid these words, if given only where `at(length)` is True."""

    def process(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if at is None or at(ids.shape[1]):
            scores[:, words] = -np.inf
        return scores

    return process


def _forbid_after(words: list[int]) -> Processor:
    """Forbid the last of `words` after the others."""
    *before, last = words

    def process(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if len(before) <= ids.shape[1]:
            matches = (ids[:, ids.shape[1] - len(before) :] == before).all(axis=1)
            scores[matches, last] = -np.inf
        return scores

    return process


def _repetition_penalty(penalty: float) -> Processor:
    """Penalize repeated words, including the prompt (Keskar et al. 2019, https://arxiv.org/abs/1909.05858)."""

    def process(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        said = np.take_along_axis(scores, ids, axis=1)
        said = np.where(said < 0, said * np.float32(penalty), said / np.float32(penalty))
        np.put_along_axis(scores, ids, said, axis=1)
        return scores

    return process


def _no_repeated_ngram(size: int) -> Processor:
    """Forbid repeated n-grams of this size."""

    def process(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        length = ids.shape[1]
        if length < size:
            return scores
        last = ids[:, length + 1 - size :]
        windows = np.lib.stride_tricks.sliding_window_view(ids, size, axis=1)
        rows, places = np.nonzero((windows[..., :-1] == last[:, None]).all(axis=-1))
        scores[rows, windows[rows, places, -1]] = -np.inf
        return scores

    return process


def _top_k(number: int) -> Processor:
    def process(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if number < scores.shape[1]:
            worst_kept = np.partition(scores, -number, axis=1)[:, -number, None]
            scores[scores < worst_kept] = -np.inf
        return scores

    return process


def _top_p(mass: float, keep: int) -> Processor:
    """Keep the fewest words whose probabilities sum to `mass` (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751)."""

    def process(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        order = np.argsort(scores, axis=1, kind="stable")
        cumulative = np.exp(log_softmax(np.take_along_axis(scores, order, axis=1))).cumsum(axis=1)
        dropped = cumulative <= 1 - mass
        dropped[:, -keep:] = False
        mask = np.zeros_like(dropped)
        np.put_along_axis(mask, order, dropped, axis=1)
        scores[mask] = -np.inf
        return scores

    return process


def _check_ids(name: str, ids: object, vocab_size: int) -> None:
    wrong = [word for word in ids if not 0 <= word < vocab_size]  # type: ignore[attr-defined]
    if wrong:
        raise ValueError(f"`{name}` has {wrong[0]!r}, which is not an id of the vocabulary (0 to {vocab_size - 1})")

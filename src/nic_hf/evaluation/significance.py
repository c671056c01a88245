"""Bootstrap confidence intervals of scores, and paired significance tests between two sets of predictions.

Photos are resampled, and scores are computed from the statistics of each photo (Koehn 2004 for BLEU). CIDEr-D always
uses the document frequencies of the whole corpus.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeVar

import numpy as np

from .bleu import bleu_from_statistics
from .predictions_and_references import EvaluationDataError
from .score_names import BLEU_NAMES, DEFAULT_METRICS
from .scores import CaptionStatistics, caption_statistics, scored_captions
from .words import caption_words

Id = TypeVar("Id", bound=Hashable)

# Size limit of the matrix of resampled photos.
CELLS_AT_A_TIME = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A corpus score and the bounds of its confidence interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """The difference between two scores on the same photos.

    Attributes:
        first, second: Corpus scores.
        difference: `second - first`.
        low, high: Bootstrap interval of the difference.
        p_value: Two-sided p-value under the hypothesis that both are equally good.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_intervals(
    predictions: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    tokenize: Callable[[str], list[str]] = caption_words,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of `score_captions`, by name of the score.

    Args:
        predictions: one caption by image id.
        references: captions by image id.
        metrics: any of `"bleu"`, `"rouge_l"`, `"cider"`.
        confidence: share of resamples inside the interval.
        resamples: number of resamples.
        seed: random seed.
        tokenize: splits a caption into words.

    Raises:
        EvaluationDataError: as in `score_captions`.
        ValueError: if a metric is unknown, the confidence is not between 0 and 1, or there are no resamples.
    """
    _check(confidence, resamples)
    return _intervals(
        caption_statistics(predictions, references, metrics, tokenize=tokenize), confidence, resamples, seed
    )


def _intervals(
    statistics: CaptionStatistics, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    names, scores = _names(statistics), statistics.scores()
    samples = _resampled(statistics, resamples, seed)
    low, high = _percentiles(samples, confidence)
    return {name: Interval(scores[name], float(low[i]), float(high[i])) for i, name in enumerate(names)}


def scores_with_intervals(
    predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]], metrics: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Scores with bootstrap intervals; METEOR and SPICE have no intervals.

    Returns:
        `scores` by name, `intervals` as `[low, high]` by name, and `per_image` with the scores of each photo.
    """
    statistics, scores, per_image = scored_captions(predictions, references, metrics)
    intervals = _intervals(statistics, seed=seed) if _names(statistics) else {}
    return {
        "scores": scores,
        "intervals": {name: [interval.low, interval.high] for name, interval in intervals.items()},
        "per_image": per_image,
    }


def paired_test(
    first: Mapping[Id, str],
    second: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    method: Literal["randomization", "bootstrap"] = "randomization",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    tokenize: Callable[[str], list[str]] = caption_words,
) -> dict[str, PairedDifference]:
    """Test whether two sets of predictions for the same photos differ in score; results by name of the score.

    Args:
        first: one caption by image id.
        second: captions of the same photos by another model.
        references: captions by image id.
        metrics: any of `"bleu"`, `"rouge_l"`, `"cider"`.
        method: how the p-value is computed. `"randomization"` swaps the two captions of random photos (Noreen 1989);
            `"bootstrap"` resamples photos and counts differences that are further from the observed one than that is
            from 0.
        confidence: of the interval of the difference, which is a bootstrap interval with either method.
        resamples: number of random draws; the smallest possible p-value is `1 / (resamples + 1)`.
        seed: random seed.
        tokenize: splits a caption into words.

    Raises:
        EvaluationDataError: if the two sets are of different photos, or as in `score_captions`.
        ValueError: if a metric or the method is unknown, the confidence is not between 0 and 1, or there are no
            resamples.
    """
    _check(confidence, resamples)
    if method not in ("randomization", "bootstrap"):
        raise ValueError(f'method is {method!r}; it must be "randomization" or "bootstrap"')
    for name, predictions in (("first", first), ("second", second)):
        if not isinstance(predictions, Mapping):
            kind = type(predictions).__name__
            raise EvaluationDataError(f"the {name} predictions must be a mapping by image id, not {kind}")
        if not predictions:
            raise EvaluationDataError(f"the {name} predictions are empty: there is nothing to score")
    for image_id in [*first, *second]:
        if image_id not in first or image_id not in second:
            lacking = "first" if image_id not in first else "second"
            raise EvaluationDataError(f"the {lacking} predictions have no caption of {image_id!r}, the others have")
    second = {image_id: second[image_id] for image_id in first}
    a = caption_statistics(first, references, metrics, tokenize=tokenize)
    b = caption_statistics(second, references, metrics, tokenize=tokenize)
    # The same seed draws the same photos for both sets.
    differences = _resampled(b, resamples, seed) - _resampled(a, resamples, seed)
    low, high = _percentiles(differences, confidence)
    scores_a, scores_b = a.scores(), b.scores()
    names = _names(a)
    seen = np.array([scores_b[name] - scores_a[name] for name in names])
    null = differences - seen if method == "bootstrap" else _swapped(a, b, resamples, seed)
    # The tolerance makes a draw equal to the observed difference count, whatever the order of summation.
    extreme = (np.abs(null) >= np.abs(seen) - 1e-12).sum(axis=0)
    p_values = (1 + extreme) / (1 + resamples)
    return {
        name: PairedDifference(
            scores_a[name], scores_b[name], float(seen[i]), float(low[i]), float(high[i]), float(p_values[i])
        )
        for i, name in enumerate(names)
    }


def _check(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    if not isinstance(resamples, Integral) or resamples < 1:
        raise ValueError(f"resamples must be a whole number of at least 1, not {resamples!r}")


def _names(statistics: CaptionStatistics) -> list[str]:
    return [*(BLEU_NAMES if statistics.bleu is not None else ()), *statistics.columns]


def _matrix(statistics: CaptionStatistics) -> np.ndarray:
    """Statistics that are summed over photos, shape `(num_photos, num_statistics)`."""
    parts: list[Any] = [] if statistics.bleu is None else [statistics.bleu]
    return np.column_stack([*parts, *statistics.columns.values()]).astype(np.float64)


def _scores(totals: np.ndarray, statistics: CaptionStatistics) -> np.ndarray:
    """Scores from sums over photos, shape `(..., num_scores)`."""
    cut = 0 if statistics.bleu is None else statistics.bleu.shape[1]
    means = totals[..., cut:] / len(statistics.ids)
    return np.concatenate([bleu_from_statistics(totals[..., :cut]), means], axis=-1) if cut else means


def _chunks(resamples: int, num_photos: int) -> Iterator[int]:
    size = max(1, CELLS_AT_A_TIME // num_photos)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _resampled(statistics: CaptionStatistics, resamples: int, seed: int) -> np.ndarray:
    """Scores of photos drawn with replacement, shape `(resamples, num_scores)`."""
    rng, matrix, num_photos = np.random.default_rng(seed), _matrix(statistics), len(statistics.ids)
    parts = []
    for size in _chunks(resamples, num_photos):
        drawn = rng.integers(num_photos, size=(size, num_photos)) + num_photos * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num_photos).reshape(size, num_photos)
        parts.append(_scores(times @ matrix, statistics))
    return np.concatenate(parts)


def _swapped(a: CaptionStatistics, b: CaptionStatistics, resamples: int, seed: int) -> np.ndarray:
    """Differences after swapping the two captions of random photos, shape `(resamples, num_scores)`."""
    rng, first, second = np.random.default_rng([seed, 1]), _matrix(a), _matrix(b)
    parts = []
    for size in _chunks(resamples, len(a.ids)):
        swap = rng.integers(2, size=(size, len(a.ids))).astype(np.float64)
        moved = swap @ (second - first)
        parts.append(_scores(second.sum(axis=0) - moved, b) - _scores(first.sum(axis=0) + moved, a))
    return np.concatenate(parts)


def _percentiles(samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high

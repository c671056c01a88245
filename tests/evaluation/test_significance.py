"""Bootstrap intervals and the paired test, compared with SciPy."""

import random

import numpy as np
import pytest

from nic_hf.evaluation import EvaluationDataError, bootstrap_intervals, paired_test
from nic_hf.evaluation.scores import caption_statistics

WORDS = ["a", "the", "dog", "cat", "runs", "sits", "on", "grass", "snow", "red", "brown"]


def corpus(seed: int, photos: int = 60) -> dict[int, str]:
    rng = random.Random(seed)
    return {i: " ".join(rng.choices(WORDS, k=rng.randint(4, 9))) for i in range(photos)}


REFERENCES = {i: [corpus(1)[i], corpus(2)[i]] for i in range(60)}


def test_intervals_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    predictions = corpus(3)
    ours = bootstrap_intervals(predictions, REFERENCES, resamples=4000, tokenize=str.split)
    columns = caption_statistics(predictions, REFERENCES, tokenize=str.split).columns
    for name in ("rouge_l", "cider"):
        theirs = stats.bootstrap((columns[name],), np.mean, n_resamples=4000, method="percentile", rng=1)
        interval = theirs.confidence_interval
        width = interval.high - interval.low
        assert (ours[name].low, ours[name].high) == pytest.approx((interval.low, interval.high), abs=0.05 * width)
    for interval in ours.values():
        assert interval.low <= interval.score <= interval.high


def test_randomization_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    first, second = corpus(3), corpus(4)
    ours = paired_test(first, second, REFERENCES, ["rouge_l"], resamples=5000, tokenize=str.split)["rouge_l"]
    a, b = (
        caption_statistics(p, REFERENCES, ["rouge_l"], tokenize=str.split).columns["rouge_l"] for p in (first, second)
    )
    theirs = stats.permutation_test(
        (b, a), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=5000, vectorized=True
    )
    assert ours.difference == pytest.approx(theirs.statistic)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.03)


@pytest.mark.parametrize("method", ["randomization", "bootstrap"])
def test_clear_and_absent_differences_are_told_apart(method):
    copied, predictions = {i: captions[0] for i, captions in REFERENCES.items()}, corpus(3)
    clear = paired_test(predictions, copied, REFERENCES, method=method, resamples=300, tokenize=str.split)
    same = paired_test(predictions, predictions, REFERENCES, method=method, resamples=300, tokenize=str.split)
    assert all(result.p_value < 0.01 and result.low > 0 for result in clear.values())
    assert all(result.p_value == 1 and result.difference == 0 for result in same.values())


def test_the_seed_decides():
    first = bootstrap_intervals(corpus(3), REFERENCES, resamples=50, seed=5, tokenize=str.split)
    assert first == bootstrap_intervals(corpus(3), REFERENCES, resamples=50, seed=5, tokenize=str.split)


def test_predictions_of_different_photos_are_an_error():
    with pytest.raises(EvaluationDataError, match="second predictions have no caption of 'b'"):
        paired_test({"a": "x", "b": "x"}, {"a": "x"}, {"a": ["x"], "b": ["x"]}, tokenize=str.split)

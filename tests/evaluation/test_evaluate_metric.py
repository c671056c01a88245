"""`CaptionMetric` in the `evaluate` library."""

import pytest

from nic_hf.evaluation import CaptionMetric, score_captions

PREDICTIONS = ["A dog runs.", "A cat sits on the grass."]
REFERENCES = [["A brown dog runs.", "A dog."], ["The cat is on the grass."]]


def test_the_metric_gives_the_scores_of_score_captions(tmp_path):
    expected = score_captions(dict(enumerate(PREDICTIONS)), dict(enumerate(REFERENCES)))
    metric = CaptionMetric(cache_dir=str(tmp_path))
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == pytest.approx(expected)
    for prediction, references in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=prediction, references=references)
    assert metric.compute() == pytest.approx(expected)


def test_the_metric_can_be_combined(tmp_path):
    evaluate = pytest.importorskip("evaluate")
    combined = evaluate.combine([CaptionMetric(cache_dir=str(tmp_path))])
    assert combined.compute(predictions=PREDICTIONS, references=REFERENCES)["bleu_1"] > 0

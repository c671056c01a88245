"""METEOR beside pycocoevalcap, and what happens where Java cannot run a metric."""

import logging

import pytest

from nic_hf.evaluation import JavaUnavailableError, java_metrics, score_captions

PREDICTIONS = {"a": "a dog runs", "b": "a cat sits on grass"}
REFERENCES = {"a": ["a brown dog runs", "the dog"], "b": ["a cat on the grass"]}


def test_meteor_equals_pycocoevalcap():
    try:
        java_metrics.check_java("meteor")
    except JavaUnavailableError as error:
        pytest.skip(str(error))
    from pycocoevalcap.meteor.meteor import Meteor

    corpus, photos = Meteor().compute_score(REFERENCES, {i: [text] for i, text in PREDICTIONS.items()})
    ours = score_captions(PREDICTIONS, REFERENCES, ["meteor"], per_image=True, tokenize=str.split)
    assert ours["meteor"] == corpus
    assert [ours["per_image"][i]["meteor"] for i in PREDICTIONS] == photos


def test_other_metrics_come_where_java_is_missing(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        scores = score_captions(PREDICTIONS, REFERENCES, ["rouge_l", "meteor", "spice"], tokenize=str.split)
    assert set(scores) == {"rouge_l"}
    assert "meteor is left out: meteor needs Java" in caplog.text


@pytest.mark.parametrize(("version", "metric"), [(17, "spice"), (7, "spice"), (7, "meteor")])
def test_the_wrong_version_of_java_is_named(monkeypatch, version, metric):
    monkeypatch.setattr(java_metrics, "java_version", lambda: version)
    with pytest.raises(JavaUnavailableError, match=rf"{metric} cannot run: .*Java 8 .*version {version}"):
        java_metrics.check_java(metric)

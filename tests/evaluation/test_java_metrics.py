"""METEOR compared with pycocoevalcap, and errors if Java cannot run a metric."""

import logging
from pathlib import Path

import pytest

from nic_hf.evaluation import JavaUnavailableError, java_metrics, score_captions

PREDICTIONS = {"a": "a dog runs", "b": "a cat sits on grass"}
REFERENCES = {"a": ["a brown dog runs", "the dog"], "b": ["a cat on the grass"]}


HARD_PREDICTIONS = {
    "empty": "",
    "spaces": "  ",
    "not ASCII": "ein Hündchen läuft – 犬 🐕",
    "separator": "a dog ||| runs",
    "separator alone": "|||",
    "lines": "a dog\nruns\r\non grass",
    "signs": "\"a\" dog's \\ %s {0} ' .",
    "long": "a dog runs " * 200,
    "reference empty": "a dog runs",
}
HARD_REFERENCES = {image_id: ["a dog runs on grass", "ein Hündchen läuft 犬"] for image_id in HARD_PREDICTIONS}
HARD_REFERENCES |= {"reference empty": ["", "a dog"], "lines": ["the dog\nruns", "a dog ||| runs"]}


def flickr8k_captions(flickr8k: Path, number: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The first caption of test photos, with the others as references."""
    names = (flickr8k / "Flickr_8k.testImages.txt").read_text("utf-8").split()[:number]
    captions: dict[str, list[str]] = {name: [] for name in names}
    for line in (flickr8k / "Flickr8k.token.txt").read_text("utf-8").splitlines():
        caption_id, caption = line.split("\t")
        captions.get(caption_id.split("#")[0], []).append(caption)
    return {i: texts[0] for i, texts in captions.items()}, {i: texts[1:] for i, texts in captions.items()}


def test_meteor_equals_pycocoevalcap(flickr8k):
    try:
        java_metrics.check_java("meteor")
    except JavaUnavailableError as error:
        pytest.skip(str(error))
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()  # its Java starts while ours runs
    predictions, references = flickr8k_captions(flickr8k, 320)
    # In between, so that a lost or duplicate answer would shift the answers of later photos.
    predictions = {**dict(list(predictions.items())[:160]), **HARD_PREDICTIONS, **predictions}
    references |= HARD_REFERENCES
    ours = score_captions(predictions, references, ["meteor"], per_image=True, tokenize=str.split)
    corpus, photos = meteor.compute_score(
        {i: [" ".join(text.split()) for text in references[i]] for i in predictions},
        {i: [" ".join(text.split())] for i, text in predictions.items()},
    )
    assert len(photos) == 320 + len(HARD_PREDICTIONS)
    assert ours["meteor"] == pytest.approx(corpus, abs=1e-6)
    assert [ours["per_image"][i]["meteor"] for i in predictions] == pytest.approx(photos, abs=1e-6)
    scores = dict(zip(predictions, photos, strict=True))
    assert scores["empty"] == scores["spaces"] == scores["separator alone"] == 0
    assert min(scores["not ASCII"], scores["separator"], scores["lines"], scores["reference empty"]) > 0


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

"""`score_captions` compared with pycocoevalcap's scorers, and its errors."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from nic_hf.evaluation import DocumentFrequencies, EvaluationDataError, load_predictions, load_references
from nic_hf.evaluation import score_captions as score
from nic_hf.evaluation.predictions_and_references import PREDICTION_FORMATS

NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")


def coco_scores(predictions, references):
    """Corpus and photo scores of pycocoevalcap for tokenized captions."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    res = {i: [caption] for i, caption in predictions.items()}
    gts = {i: references[i] for i in predictions}
    corpus, photos = Bleu(4).compute_score(gts, res, verbose=0)
    for scorer in (Rouge(), Cider()):
        value, values = scorer.compute_score(gts, res)
        corpus, photos = [*corpus, value], [*photos, list(values)]
    return dict(zip(NAMES, corpus, strict=True)), dict(zip(NAMES, photos, strict=True))


def assert_equal_to_coco(predictions, references):
    ours = score(predictions, references, per_image=True, tokenize=str.split)
    corpus, photos = coco_scores(predictions, references)
    for name in NAMES:
        assert ours[name] == pytest.approx(corpus[name], abs=1e-9), name
        column = [ours["per_image"][i][name] for i in predictions]
        np.testing.assert_allclose(column, photos[name], atol=1e-9, err_msg=name)


def flickr8k_test_captions(flickr8k: Path) -> dict[str, list[str]]:
    names = set((flickr8k / "Flickr_8k.testImages.txt").read_text("utf-8").split())
    references: dict[str, list[str]] = {}
    with (flickr8k / "captions.txt").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["image"] in names:
                references.setdefault(row["image"], []).append(row["caption"].lower())
    return references


def test_scores_equal_pycocoevalcap_on_flickr8k_captions_one_against_the_others(flickr8k):
    captions = flickr8k_test_captions(flickr8k)
    assert len(captions) == 1000
    predictions = {i: texts[0] for i, texts in captions.items()}
    assert_equal_to_coco(predictions, {i: texts[1:] for i, texts in reversed(captions.items())})


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ({1: "a dog runs"}, {1: ["a dog runs"]}),
        ({1: "", 2: "a dog"}, {1: ["a cat", ""], 2: ["the dog"]}),
        ({1: "dog", 2: "dog dog dog dog dog"}, {1: ["dog", "a dog"], 2: ["dog dog", "cat dog bird dog"]}),
        ({1: "a b c d e", 2: "b a"}, {1: ["a b d c e", "e d c b a", "a b c d e f g"], 2: ["a b a b a b"]}),
        ({1: "", 2: ""}, {1: ["a"], 2: ["b"]}),
    ],
)
def test_scores_equal_pycocoevalcap_on_odd_captions(predictions, references):
    assert_equal_to_coco(predictions, references)


def test_coco_example_gets_its_published_scores(test_data):
    predictions = load_predictions(test_data / "eval" / "coco_fakecap_results.json")
    references = load_references(test_data / "eval" / "coco_fakecap_references.json")
    published = dict(zip(NAMES, (0.57940, 0.40439, 0.27854, 0.19083, 0.39625, 0.59979), strict=True))
    assert score(predictions, references) == pytest.approx(published, abs=5e-6)


def test_given_document_frequencies_of_the_same_references_change_nothing():
    predictions = {1: "a dog runs 1 1/2 miles", 2: "a cat sits on grass"}
    references = {1: ["a brown dog runs 1 1/2 miles", "the dog"], 2: ["a cat on the grass", "1 cat"]}
    given = score(predictions, references, ["cider"], document_frequencies=DocumentFrequencies(references.values()))
    assert given == pytest.approx(score(predictions, references, ["cider"]), abs=1e-12)


def test_document_frequencies_count_photos():
    frequencies = DocumentFrequencies([["a dog", "a dog runs"], ["a cat runs"]], tokenize=str.split)
    ngrams = ("a", "a dog", "dog runs", "a dog runs", "cat dog", "bird", "a bird runs here")
    assert [frequencies[ngram] for ngram in ngrams] == [2, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({}, {"a": ["x"]}, "predictions are empty"),
        ({"a": "x"}, {}, "references are empty"),
        ({"a": "x", "b": "y"}, {"a": ["x"]}, "predictions without references: 'b'"),
        ({1: "x"}, {"1": ["x"]}, "with another type"),
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "references without a prediction: 'b'"),
        ({"a": 3.5}, {"a": ["x"]}, "prediction of 'a' is not text: 3.5"),
        ({"a": float("nan")}, {"a": ["x"]}, "prediction of 'a' is not text: nan"),
        ({"a": "x"}, {"a": ["x", None]}, "reference of 'a' is not text: None"),
        ({"a": "x"}, {"a": "x"}, "references of 'a' must be a list"),
        ({"a": "x"}, {"a": []}, "references of 'a' are an empty list"),
        (["x"], {"a": ["x"]}, "predictions must be a mapping"),
    ],
)
def test_captions_that_cannot_be_scored_are_named(predictions, references, message):
    with pytest.raises(EvaluationDataError, match=message):
        score(predictions, references)


def test_photos_without_a_prediction_are_left_out_on_request():
    references = {"a": ["a dog"], "b": ["a cat"], "c": ["a bird"]}
    predictions = {"c": "a dog", "a": "a dog"}
    scored = score(predictions, references, allow_partial=True)
    assert scored == score(predictions, {i: references[i] for i in predictions})


def test_unknown_metrics_are_named():
    with pytest.raises(ValueError, match="bleu_4"):
        score({"a": "x"}, {"a": ["x"]}, metrics=["bleu_4"])


def test_an_empty_prediction_is_scored_with_a_warning(caplog):
    assert score({"a": ""}, {"a": ["a dog"]}, ["rouge_l"]) == {"rouge_l": 0.0}
    assert "'a'" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"image_id": 1, "caption": "A dog."}\n\n{"image_id": "2", "caption": "A cat."}\n'),
        ("a.json", '[{"image_id": 1, "caption": "A dog."}, {"image_id": 2, "caption": "A cat."}]'),
        ("b.json", '{"1": "A dog.", "2": "A cat."}'),
    ],
)
def test_predictions_are_read_from_each_format(tmp_path, name, text):
    (tmp_path / name).write_text(text, "utf-8")
    assert load_predictions(tmp_path / name) == {"1": "A dog.", "2": "A cat."}


@pytest.mark.parametrize(
    "document",
    [
        {"1": ["A dog.", "Dog."]},
        [{"image_id": 1, "caption": "A dog."}, {"image_id": 1, "caption": "Dog."}],
        {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": c} for c in ("A dog.", "Dog.")]},
    ],
)
def test_references_are_read_from_each_format(tmp_path, document):
    (tmp_path / "a.json").write_text(json.dumps(document), "utf-8")
    assert load_references(tmp_path / "a.json") == {"1": ["A dog.", "Dog."]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"image_id": 1, "caption": "A"}\n{"image_id": 1, "caption": "B"}\n',
            "line 2: 1 has a caption already, at .*1",
        ),
        ('{"image_id": 1, "caption": "A"}\n{"image_id": 2\n', "line 2: not JSON"),
        ('{"image_id": 1, "caption": "A"}\n{"id": 2, "caption": "B"}\n', "line 2: expected"),
        (
            '{"image_id": 1, "caption": "A"}\n{"image_id": 2, "caption": 5}\n',
            "line 2: the caption of 2 is not text: 5",
        ),
        ('{"image_id": null, "caption": "A"}\n', "neither a number nor text"),
        ('{"1": "A", "1": "B"}', "key 1 appears twice"),
        ("[]", "no captions"),
        ("3", PREDICTION_FORMATS[:10]),
        ("a caption", "not JSON"),
    ],
)
def test_faults_in_a_file_of_predictions_are_placed(tmp_path, text, message):
    file = tmp_path / "predictions.jsonl"
    file.write_text(text, "utf-8")
    with pytest.raises(EvaluationDataError, match=message) as error:
        load_predictions(file)
    assert str(file) in str(error.value)

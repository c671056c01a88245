"""Invalid input is an error that names the id, the row, or the file and line; never a silent zero."""

import gzip
import json
import math
import re

import numpy as np
import pytest

from nic_hf.evaluation import (
    CaptionMetric,
    DocumentFrequencies,
    EvaluationDataError,
    bootstrap_intervals,
    diversity_scores,
    load_predictions,
    load_references,
    paired_test,
    score_captions,
    self_cider,
)

NAN = math.nan
PREDICTIONS = {"a": "a dog", "b": "a cat"}
REFERENCES = {"a": ["a dog runs"], "b": ["a cat sits"]}


def first_of_pair(predictions, references, **options):
    return paired_test(predictions, PREDICTIONS, references, resamples=5, **options)


def second_of_pair(predictions, references, **options):
    return paired_test(PREDICTIONS, predictions, references, resamples=5, **options)


def intervals(predictions, references, **options):
    return bootstrap_intervals(predictions, references, resamples=5, **options)


SCORERS = [score_captions, intervals, first_of_pair, second_of_pair]


@pytest.mark.parametrize("score", SCORERS)
@pytest.mark.parametrize(
    ("predictions", "references", "named"),
    [
        ({**PREDICTIONS, "c": "a bird"}, REFERENCES, "'c'"),
        ({"a": "a dog"}, REFERENCES, "'b'"),
        (PREDICTIONS, {"a": ["a dog"]}, "'b'"),
        ({}, REFERENCES, "predictions are empty"),
        (PREDICTIONS, {}, "references are empty"),
        (None, REFERENCES, "predictions must be a mapping by image id, not NoneType"),
        (["a dog"], REFERENCES, "predictions must be a mapping by image id, not list"),
        (PREDICTIONS, [["a dog"]], "references must be a mapping by image id, not list"),
        ({**PREDICTIONS, "a": NAN}, REFERENCES, "prediction of 'a' is not text: nan"),
        ({**PREDICTIONS, "a": None}, REFERENCES, "prediction of 'a' is not text: None"),
        ({**PREDICTIONS, "a": b"a dog"}, REFERENCES, "prediction of 'a' is not text: b'a dog'"),
        ({**PREDICTIONS, "a": ["a dog"]}, REFERENCES, "prediction of 'a' is not text"),
        (PREDICTIONS, {**REFERENCES, "b": [NAN]}, "reference of 'b' is not text: nan"),
        (PREDICTIONS, {**REFERENCES, "b": ["a cat", 3]}, "reference of 'b' is not text: 3"),
        (PREDICTIONS, {**REFERENCES, "b": NAN}, "references of 'b' must be a list of captions, not nan"),
        (PREDICTIONS, {**REFERENCES, "b": None}, "references of 'b' must be a list of captions, not None"),
        (PREDICTIONS, {**REFERENCES, "b": "a cat"}, "references of 'b' must be a list of captions, not 'a cat'"),
        (PREDICTIONS, {**REFERENCES, "b": {"x": "a cat"}}, "references of 'b' must be a list of captions"),
        (PREDICTIONS, {**REFERENCES, "b": []}, "references of 'b' are an empty list"),
    ],
)
def test_captions_that_cannot_be_scored_are_named(score, predictions, references, named):
    with pytest.raises(EvaluationDataError, match=re.escape(named)):
        score(predictions, references)


@pytest.mark.parametrize("score", SCORERS)
def test_ids_of_another_type_are_named(score):
    with pytest.raises(EvaluationDataError, match=r"another type|no caption of (1|'a')"):
        score({1: "a dog", 2: "a cat"}, {"1": ["a dog"], "2": ["a cat"]})


@pytest.mark.parametrize("score", SCORERS)
@pytest.mark.parametrize("metrics", ["bleu", [], ["bleu_4"], [None], None, 5])
def test_metrics_that_there_are_not_are_named(score, metrics):
    with pytest.raises(ValueError, match=f"metrics (are|must be a list of names, not) {re.escape(repr(metrics))}"):
        score(PREDICTIONS, REFERENCES, metrics=metrics)


def test_document_frequencies_of_another_type_are_named():
    with pytest.raises(ValueError, match="document_frequencies must be a DocumentFrequencies, not dict"):
        score_captions(PREDICTIONS, REFERENCES, document_frequencies={"a": 2})


def test_a_score_that_is_not_finite_is_an_error():
    broken = DocumentFrequencies(REFERENCES.values())
    broken.num_documents = NAN
    with pytest.raises(EvaluationDataError, match="cider is nan, through 'a', 'b'"):
        score_captions(PREDICTIONS, REFERENCES, ["bleu", "cider"], document_frequencies=broken)


@pytest.mark.parametrize("resamples", [0, -1, 2.5, NAN, "5", None])
@pytest.mark.parametrize("paired", [False, True])
def test_a_number_of_resamples_that_is_none_is_named(resamples, paired):
    arguments = (PREDICTIONS, PREDICTIONS, REFERENCES) if paired else (PREDICTIONS, REFERENCES)
    with pytest.raises(ValueError, match=re.escape(f"of at least 1, not {resamples!r}")):
        (paired_test if paired else bootstrap_intervals)(*arguments, resamples=resamples)


def test_any_whole_number_of_resamples_will_do():
    expected = bootstrap_intervals(PREDICTIONS, REFERENCES, resamples=5)
    assert bootstrap_intervals(PREDICTIONS, REFERENCES, resamples=np.int64(5)) == expected


@pytest.mark.parametrize("confidence", [0, 1, -0.5, NAN])
def test_a_confidence_outside_its_bounds_is_named(confidence):
    with pytest.raises(ValueError, match=f"confidence must lie between 0 and 1, not {confidence}"):
        bootstrap_intervals(PREDICTIONS, REFERENCES, confidence=confidence)
    with pytest.raises(ValueError, match=f"confidence must lie between 0 and 1, not {confidence}"):
        paired_test(PREDICTIONS, PREDICTIONS, REFERENCES, confidence=confidence)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("a dog", "captions must be a list of captions, not 'a dog'"),
        (PREDICTIONS, "captions must be a list of captions, not {'a': 'a dog'"),
        (None, "captions must be a list of captions, not None"),
        (["a dog", NAN], "captions: number 1 is not text: nan"),
        (["a dog", None], "captions: number 1 is not text: None"),
        ([b"a dog", "a cat"], "captions: number 0 is not text: b'a dog'"),
        ([["a dog"], "a cat"], "captions: number 0 is not text: ['a dog']"),
    ],
)
def test_captions_without_a_diversity_are_named(captions, message):
    with pytest.raises(EvaluationDataError, match=re.escape(message)):
        diversity_scores(captions)
    with pytest.raises(EvaluationDataError, match=re.escape(message)):
        self_cider(captions, DocumentFrequencies(REFERENCES.values()))
    if captions is not None:  # of training captions that are not known
        with pytest.raises(EvaluationDataError, match=re.escape(f"training {message}")):
            diversity_scores(["a dog"], captions)


def test_empty_sets_have_no_diversity():
    with pytest.raises(ValueError, match="at least one caption"):
        diversity_scores(iter([]))
    with pytest.raises(ValueError, match="training_captions is empty"):
        diversity_scores(["a dog"], [])
    with pytest.raises(ValueError, match="at least two captions, not 0"):
        self_cider([], DocumentFrequencies(REFERENCES.values()))


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "predictions are empty"),
        (["a dog"], [["a dog"], ["a cat"]], "Mismatch in the number of predictions (1) and references (2)"),
        ([NAN], [["a dog"]], "prediction of row 0 is not text: nan"),
        # `evaluate` only checks the first one, and converts the second to "nan".
        (["a dog", NAN], [["a dog"], ["a cat"]], "prediction of row 1 is not text: nan"),
        (["a dog", None], [["a dog"], ["a cat"]], "prediction of row 1 is not text: None"),
        ([5], [["a dog"]], "prediction of row 0 is not text: 5"),
        (["a dog", "a cat"], [["a dog"], [NAN]], "reference of row 1 is not text: nan"),
        (["a dog"], [["a dog", None]], "reference of row 0 is not text: None"),
        (["a dog"], ["a dog"], "references of row 0 must be a list of captions, not 'a dog'"),
        (["a dog"], [None], "references of row 0 must be a list of captions, not None"),
        (["a dog"], [[]], "references of row 0 are an empty list"),
    ],
)
def test_rows_that_the_metric_cannot_score_are_named(tmp_path, predictions, references, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CaptionMetric(cache_dir=str(tmp_path)).compute(predictions=predictions, references=references)


def test_rows_of_the_metric_are_counted_over_batches(tmp_path):
    metric = CaptionMetric(cache_dir=str(tmp_path))
    metric.add_batch(predictions=["a dog", "a cat"], references=[["a dog"], ["a cat"]])
    metric.add(prediction="a bird", references=["a bird"])
    with pytest.raises(EvaluationDataError, match="prediction of row 3 is not text: nan"):
        metric.add(prediction=NAN, references=["a bird"])
    with pytest.raises(EvaluationDataError, match="references of row 3 must be a list of captions, not 'a bird'"):
        metric.add(prediction="a bird", references="a bird")
    with pytest.raises(EvaluationDataError, match="prediction of row 4 is not text: nan"):
        metric.add_batch(predictions=["a dog", NAN], references=[["a dog"], ["a cat"]])
    assert metric.compute()["bleu_1"] == pytest.approx(1)


LOADERS = [load_predictions, load_references]
LINE = '{"image_id": 1, "caption": "A"}\n'


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        # Truncated.
        ("p.json", '[{"image_id": 1, "caption": "A"}, {"image_id": 2, "cap', ": not JSON: .*line 1 column"),
        ("p.json", '{"1": "A", "2": "B', ": not JSON: .*line 1"),
        ("p.json", '{\n"1": "A",\n"2": "B', ": not JSON: .*line 3"),
        ("p.json", '{"annotations": [{"image_id": 1, "caption": "A"}', ": not JSON: .*line 1"),
        ("p.jsonl", LINE + '{"image_id": 2, "cap', ": line 2: not JSON"),
        ("p.jsonl", '{"image_id": 2, "cap', ": line 1: not JSON"),
        ("p.json", LINE + '{"image_id": 2, "cap', ": line 2: not JSON"),
        # Wrong types.
        ("p.json", '{"1": NaN}', ": (the|a) caption of 1 is not text: nan"),
        ("p.jsonl", LINE + '{"image_id": 2, "caption": NaN}\n', ": line 2: (the|a) caption of 2 is not text: nan"),
        ("p.json", '[{"image_id": NaN, "caption": "A"}]', ': entry 0: "image_id" is neither a number nor text: nan'),
        ("p.json", '[{"image_id": 1.5, "caption": "A"}]', ': entry 0: "image_id" is neither .*: 1.5'),
        ("p.json", '{"cider": NaN, "bleu_1": 0.5}', ": (the|a) caption of cider is not text: nan"),
        ("p.json", '{"1": {"cider": NaN}}', ": (the|a) caption of 1 is not text: {'cider': nan}"),
        ("p.json", '{"1": null}', ": (the|a) caption of 1 is not text: None"),
        ("p.json", '["A dog."]', ": entry 0: expected .* and found 'A dog.'"),
        ("p.json", '[{"image_id": 1, "caption": "A"}, null]', ": entry 1: expected .* and found None"),
        ("p.json", '{"annotations": [{"image_id": 1}]}', r": annotations\[0\]: expected"),
        # A single line of JSON lines is not {id: caption}.
        ("p.jsonl", '{"image_id": "1", "text": "A dog."}\n', ": entry 0: expected .*image_id"),
        ("p.json", "null", ": contains NoneType; expected"),
        ("p.txt", "image,caption\na.jpg,A dog.\n", ": not JSON: .*; expected"),
        ("p.json", '{"1": "A"}{"2": "B"}', ": not JSON: Extra data"),
        pytest.param("p.json", "[" * 100_000, ": not JSON: maximum recursion depth", id="deep"),
        pytest.param("p.json", "[" + "1" * 5000 + "]", ": not JSON: Exceeds the limit", id="long number"),
        # Duplicates.
        ("p.json", '{"1": "A", "1": "B"}', ": the key 1 appears twice"),
        (
            "p.jsonl",
            LINE + '{"image_id": 2, "image_id": 3, "caption": "B"}',
            ": line 2: the key image_id appears twice",
        ),
        (
            "p.jsonl",
            LINE + '{"image_id": 2, "caption": "B", "caption": "C"}',
            ": line 2: the key caption appears twice",
        ),
        # Empty.
        ("p.json", "", ": contains no captions"),
        ("p.jsonl", "\n \n", ": contains no captions"),
        ("p.json", "{}", ": contains no captions"),
        ("p.json", "[]", ": contains no captions"),
        ("p.json", '{"annotations": []}', ": contains no captions"),
    ],
)
def test_faults_in_a_file_are_placed(tmp_path, load, name, text, message):
    file = tmp_path / name
    file.write_text(text, "utf-8")
    with pytest.raises(EvaluationDataError, match=f"(?s)^{re.escape(str(file))}{message}"):
        load(file)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", '{"1": "A dog."}'.encode("utf-16"), ": line 1: cannot be read as text"),
        (
            "p.jsonl",
            LINE.encode() + '{"image_id": 2, "caption": "café"}'.encode("latin-1"),
            ": line 2: cannot be read",
        ),
        ("p.json.gz", b'{"1": "A dog."}', ": cannot be read as text: Not a gzipped file"),
        ("p.json.gz", gzip.compress(b'{"1": "A dog."}', mtime=0)[:-9], ": cannot be read as text"),
        ("p.json.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 40, ": cannot be read as text"),
    ],
)
def test_bytes_that_are_no_text_are_placed(tmp_path, load, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EvaluationDataError, match=f"^{re.escape(str(tmp_path / name))}{message}"):
        load(tmp_path / name)


def test_an_id_that_comes_twice_is_named_with_both_places(tmp_path):
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"image_id": i, "caption": "A"} for i in (1, 2, "1")]), "utf-8")
    with pytest.raises(EvaluationDataError, match=r"entry 2: 1 has a caption already, at .*p\.json: entry 0"):
        load_predictions(file)
    assert load_references(file) == {"1": ["A", "A"], "2": ["A"]}


def test_a_list_is_no_prediction_and_no_caption_is_no_reference(tmp_path):
    (tmp_path / "p.json").write_text('{"1": ["A dog."]}', "utf-8")
    with pytest.raises(EvaluationDataError, match=r"p\.json: the caption of 1 is not text: \['A dog\.'\]"):
        load_predictions(tmp_path / "p.json")
    (tmp_path / "r.json").write_text('{"1": []}', "utf-8")
    with pytest.raises(EvaluationDataError, match=r"r\.json: 1 has no captions"):
        load_references(tmp_path / "r.json")


@pytest.mark.parametrize("load", LOADERS)
def test_files_that_are_not_there_are_named(tmp_path, load):
    with pytest.raises(OSError, match="nowhere"):
        load(tmp_path / "nowhere.json")
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '\ufeff{"1": "A dog.", "2": "A\u2028cat\x85."}',
        '\ufeff{"image_id": 1, "caption": "A dog."}\n{"image_id": 2, "caption": "A\u2028cat\x85."}',
        '{"image_id": 1, "caption": "A dog."}\r\n\r\n{"image_id": 2, "caption": "A\u2028cat\x85."}\r\n',
        '[\r\n{"image_id": 1, "caption": "A dog."},\r\n{"image_id": 2, "caption": "A\u2028cat\x85."}\r\n]\r\n',
    ],
)
def test_byte_order_marks_and_windows_line_ends_are_read(tmp_path, text):
    for name in ("p.json", "p.jsonl"):
        (tmp_path / name).write_bytes(text.encode())
        assert load_predictions(tmp_path / name) == {"1": "A dog.", "2": "A\u2028cat\x85."}
        assert load_references(tmp_path / name) == {"1": ["A dog."], "2": ["A\u2028cat\x85."]}

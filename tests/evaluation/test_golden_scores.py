"""Scores beside those that pycocoevalcap gave, with its tokenizer in Java (`tests/golden/make_score_golden.py`)."""

import json
import sys
from pathlib import Path

import pytest

from nic_hf.evaluation import score_captions

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from score_corpora import CORPORA  # noqa: E402


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "scores.json").read_text("utf-8"))["corpora"]


@pytest.mark.parametrize("name", CORPORA)
def test_scores_are_those_of_the_java_tools(name: str, golden: dict, test_data: Path) -> None:
    predictions, references = CORPORA[name](test_data)
    scores = score_captions(predictions, references, per_image=True)
    rows = scores.pop("per_image")
    assert len(rows) == golden[name]["photos"]
    assert scores == pytest.approx(golden[name]["scores"], abs=1e-6)
    for score, column in golden[name].get("per_image", {}).items():
        assert [row[score] for row in rows.values()] == pytest.approx(column, abs=1e-6), score

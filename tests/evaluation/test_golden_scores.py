"""Scores compared with pycocoevalcap's, with its Java tokenizer (`tests/golden/make_score_golden.py`)."""

import json
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
import sacrebleu

from nic_hf.evaluation import caption_words, ptb_tokenize, score_captions
from nic_hf.evaluation.ptb import ptb_tokenize_all

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from score_corpora import CORPORA  # noqa: E402

# Two of the difficult strings are Chinese and Thai, which are split into characters by default.
TOKENS = {"hard strings": ptb_tokenize}


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "scores.json").read_text("utf-8"))["corpora"]


@pytest.mark.parametrize("name", CORPORA)
def test_scores_are_those_of_the_java_tools(name: str, golden: dict, test_data: Path) -> None:
    predictions, references = CORPORA[name](test_data)
    scores = score_captions(predictions, references, per_image=True, tokenize=TOKENS.get(name, caption_words))
    rows = scores.pop("per_image")
    assert len(rows) == golden[name]["photos"]
    assert scores == pytest.approx(golden[name]["scores"], abs=1e-6)
    for score, column in golden[name].get("per_image", {}).items():
        assert [row[score] for row in rows.values()] == pytest.approx(column, abs=1e-6), score


@pytest.mark.parametrize("name", ["model, beam 3", "hard strings"])
def test_bleu_is_that_of_sacrebleu(name: str, test_data: Path) -> None:
    predictions, references = CORPORA[name](test_data)
    scores = score_captions(predictions, references, ["bleu"], tokenize=TOKENS.get(name, caption_words))
    said = [" ".join(words) for words in ptb_tokenize_all(predictions.values())]
    cut = iter(ptb_tokenize_all(caption for i in predictions for caption in references[i]))
    referred = [[" ".join(next(cut)) for _ in references[i]] for i in predictions]
    for order in range(1, 5):
        bleu = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
        by_sacrebleu = bleu.corpus_score(said, list(zip_longest(*referred))).score / 100
        assert scores[f"bleu_{order}"] == pytest.approx(by_sacrebleu, abs=1e-6)

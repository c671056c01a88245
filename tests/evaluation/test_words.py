"""Words in scripts without spaces and in Turkish, and warnings about scores of 0."""

import math
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
import sacrebleu

from nic_hf.evaluation import DocumentFrequencies, caption_words, diversity_scores, ptb_tokenize, score_captions
from nic_hf.evaluation.ptb import ptb_tokenize_all
from nic_hf.evaluation.scores import _say_once
from nic_hf.evaluation.words import caption_length, caption_words_all

PREDICTIONS = {"1": "一只棕色的狗在跑步", "2": "两个孩子在沙滩上玩", "3": "一个男人拿着iPhone 15"}
REFERENCES = {
    "1": ["一只狗在草地上跑步。", "棕色的狗在跑步"],
    "2": ["两个孩子在沙滩上玩耍！", "孩子们在海边玩"],
    "3": ["一个男人穿着红色外套，拿着iPhone 15。", "男人在打电话"],
}


@pytest.fixture(autouse=True)
def _said_for_the_first_time() -> Iterator[None]:
    _say_once.cache_clear()
    yield


def test_bleu_of_chinese_is_that_of_sacrebleu() -> None:
    scores = score_captions(PREDICTIONS, REFERENCES, ["bleu"])
    bare = str.maketrans("", "", "。，！")
    referred = [[caption.translate(bare).lower() for caption in REFERENCES[i]] for i in PREDICTIONS]
    said = [caption.lower() for caption in PREDICTIONS.values()]
    for order in range(1, 5):
        bleu = sacrebleu.BLEU(tokenize="zh", smooth_method="none", max_ngram_order=order)
        expected = bleu.corpus_score(said, list(zip_longest(*referred))).score / 100
        assert scores[f"bleu_{order}"] == pytest.approx(expected, abs=1e-6)


def test_all_scores_of_chinese_are_above_0_and_of_equal_captions_perfect() -> None:
    assert all(score > 0.1 for score in score_captions(PREDICTIONS, REFERENCES).values())
    same = score_captions(PREDICTIONS, {i: [f"{caption}。"] for i, caption in PREDICTIONS.items()})
    assert same["bleu_4"] == pytest.approx(1) and same["cider"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("一只狗，two cats' toys在5楼。", "一 只 狗 two cats toys 在 5 楼"),
        ("犬が、走る！「はい」", "犬 が 走 る は い"),
        ("สุนัขวิ่งๆ", "สุ นั ข วิ่ ง ๆ"),
        ("ကလေးနှစ်ယောက်။", "က လေး နှ စ် ယော က်"),
        ("ក្មេងពីរ។", "ក្មេ ង ពី រ"),
        ("IŞIKLI bir İSTANBUL sokağı", "ışıklı bir istanbul sokağı"),
        ("I saw İstanbul's port", "i saw istanbul 's port"),
        ("한국어 문장", "한국어 문장"),
    ],
)
def test_words_of_other_languages(caption: str, words: str) -> None:
    assert caption_words(caption) == words.split()


def test_marks_make_a_difference() -> None:
    assert caption_words("ကိ") != caption_words("ကု")
    assert caption_words("คำ") == caption_words("คํา")  # the vowel in one and in two


def test_words_of_english_are_tokens_of_the_penn_treebank(flickr8k: Path) -> None:
    captions = [line.split("\t")[1] for line in (flickr8k / "Flickr8k.token.txt").read_text("utf-8").splitlines()]
    assert caption_words_all(captions) == ptb_tokenize_all(captions)


def test_context_reaches_across_captions_in_other_scripts() -> None:
    assert caption_words_all(["plan B.", "一只狗", "The dog"])[0] == ptb_tokenize_all(["plan B.", "", "The dog"])[0]


def test_scoring_by_character_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        score_captions(PREDICTIONS, REFERENCES)
    assert caplog.messages == ["captions in a script without spaces are scored by character"]
    caplog.clear()
    scores = score_captions(PREDICTIONS, REFERENCES, tokenize=ptb_tokenize)
    assert scores["bleu_2"] < 0.5 and not caplog.messages


def test_cider_of_one_photo_says_why_it_is_0(caplog: pytest.LogCaptureFixture) -> None:
    one = {"1.jpg": "a dog runs"}, {"1.jpg": ["a dog runs", "a brown dog"]}
    assert score_captions(*one)["cider"] == 0
    assert "CIDEr-D of a single photo is 0" in caplog.text and "document_frequencies" in caplog.text
    caplog.clear()
    frequencies = DocumentFrequencies([["a dog runs"], ["a cat"], ["two birds"]])
    assert score_captions(*one, document_frequencies=frequencies)["cider"] > 0
    assert score_captions(*one, ["bleu"])["bleu_1"] > 0.99
    assert not caplog.messages


def test_cider_of_photos_with_the_same_references_says_why_it_is_0(caplog: pytest.LogCaptureFixture) -> None:
    same = ["a dog runs", "a cat"]
    assert score_captions({"1": "a dog", "2": "a cat"}, {"1": same, "2": same[::-1]})["cider"] == 0
    assert "CIDEr-D is 0 because all 2 photos have the same references" in caplog.text


def test_cider_of_wrong_captions_is_0_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert score_captions({"1": "x", "2": "y"}, {"1": ["a dog"], "2": ["a cat"]})["cider"] == 0
    assert not caplog.messages


def test_lengths_and_variety_are_counted_in_the_same_words() -> None:
    assert caption_length("一只狗") == 3 and caption_length("a man's dog") == 3
    scores = diversity_scores(["一只狗", "一只猫"], ["一只狗。"])
    assert scores.vocabulary == 4 and scores.in_training == 0.5 and math.isclose(scores.distinct_1, 4 / 6)

"""Diversity of captions in cases that can be computed by hand."""

import pytest

from nic_hf.evaluation import DocumentFrequencies, diversity_scores, self_cider
from nic_hf.evaluation.diversity import cider_similarities

FREQUENCIES = DocumentFrequencies([["a dog runs"], ["a cat sits"], ["two birds fly"]], tokenize=str.split)


def test_shares_are_counted_word_by_word():
    scores = diversity_scores(["a dog", "a dog", "a cat", "a bird"], ["a  dog"], tokenize=str.split)
    assert (scores.distinct_captions, scores.in_training, scores.vocabulary) == (0.75, 0.5, 4)
    assert (scores.distinct_1, scores.distinct_2) == (4 / 8, 3 / 4)


def test_self_cider_spans_zero_to_one():
    assert self_cider(["dog runs"] * 4, FREQUENCIES, str.split) == pytest.approx(0, abs=1e-6)
    assert self_cider(["dog runs", "cat sits", "birds fly"], FREQUENCIES, str.split) == pytest.approx(1)


def test_self_cider_of_two_pairs_of_equal_captions_is_a_half():
    captions = ["dog runs", "dog runs", "cat sits", "cat sits"]
    assert self_cider(captions, FREQUENCIES, str.split) == pytest.approx(0.5, abs=1e-6)


def test_similarity_is_the_cosine_of_weighted_words():
    # Unigrams: "dog" weighs log 3 in both, "runs" and "fly" log 3 in one each: cosine 1/2; no bigram in common.
    similarities = cider_similarities(["dog runs", "dog fly"], FREQUENCIES, str.split)
    assert similarities[0, 1] == pytest.approx((0.5 + 0) / 2)


def test_what_has_no_diversity_is_an_error():
    with pytest.raises(ValueError, match="at least one caption"):
        diversity_scores([])
    with pytest.raises(ValueError, match="at least two captions"):
        self_cider(["a dog"], FREQUENCIES)
    with pytest.raises(ValueError, match="caption 1 has no word"):
        self_cider(["dog", ""], FREQUENCIES, str.split)

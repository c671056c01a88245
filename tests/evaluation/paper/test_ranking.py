"""Ranking: likelihoods compared with the model's loss for each pair, and ranks compared with sorting."""

import numpy as np
import pytest
import torch
from tiny import tiny_features, tiny_model

from nic_hf.evaluation.paper import ranking
from nic_hf.evaluation.paper.ranking import (
    annotation_ranking,
    caption_log_likelihoods,
    normalise_by_marginal,
    search_ranking,
)

# One caption is a prefix of another, two are equal, and one is only <eos>.
CAPTIONS = [[4, 5, 6, 2], [4, 5, 2], [7, 2], [4, 5, 6, 8, 9, 2], [2], [4, 5, 2], [9, 8, 7, 6, 5, 4, 2], [7, 4, 2]]


def pair_by_pair(model: torch.nn.Module, features: torch.Tensor) -> np.ndarray:
    """log p of each caption for each photo from the model's loss."""
    scores = np.empty((len(features), len(CAPTIONS)))
    for photo, feature in enumerate(features):
        for number, caption in enumerate(CAPTIONS):
            with torch.no_grad():
                loss = model(encoder_outputs=feature[None], labels=torch.tensor([caption])).loss
            scores[photo, number] = -loss.item() * len(caption)
    return scores


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("photos", "captions", "pairs"), [(64, 128, 4096), (2, 3, 1), (3, 5, 7)])
def test_likelihoods_are_those_of_the_model_pair_by_pair(
    layers: int, photos: int, captions: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "PHOTOS_A_BLOCK", photos)
    monkeypatch.setattr(ranking, "CAPTIONS_A_BLOCK", captions)
    monkeypatch.setattr(ranking, "PAIRS_A_STEP", pairs)
    model, features = tiny_model(num_hidden_layers=layers, initializer_range=0.8), tiny_features(5)
    scores = caption_log_likelihoods(model, features, CAPTIONS)
    np.testing.assert_allclose(scores, pair_by_pair(model, features), rtol=1e-5)


def test_ranks_are_those_of_a_sorted_list() -> None:
    rng = np.random.default_rng(0)
    scores, owner = rng.normal(size=(7, 20)), rng.permutation(np.arange(20) % 7)
    best = []
    for photo in range(7):
        order = sorted(range(20), key=lambda caption: -scores[photo, caption])
        best.append(1 + min(order.index(caption) for caption in range(20) if owner[caption] == photo))
    found = annotation_ranking(scores, owner.tolist())
    assert found.recall_1 == pytest.approx(np.mean(np.array(best) <= 1))
    assert found.recall_5 == pytest.approx(np.mean(np.array(best) <= 5))
    assert found.median_rank == np.median(best)

    ranks = [
        1 + sorted(range(7), key=lambda photo: -scores[photo, caption]).index(owner[caption]) for caption in range(20)
    ]
    search = search_ranking(scores, owner.tolist())
    assert search.recall_5 == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert search.median_rank == np.median(ranks)


def test_a_model_that_says_the_same_of_every_photo_ranks_nothing() -> None:
    constant = np.zeros((10, 50))
    owner = np.arange(50) // 5
    assert annotation_ranking(constant, owner).recall_10 == 0
    assert search_ranking(constant, owner).median_rank == 10


def test_the_marginal_takes_away_what_a_caption_has_for_any_photo() -> None:
    scores = np.log(np.array([[0.5, 0.1], [0.5, 0.3]]))
    np.testing.assert_allclose(normalise_by_marginal(scores), np.log([[1.0, 0.5], [1.0, 1.5]]))


def test_bad_input_is_named() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="caption 1 has no tokens"):
        caption_log_likelihoods(model, tiny_features(2), [[4, 2], []])
    with pytest.raises(ValueError, match=r"model is in training mode.*eval"):
        caption_log_likelihoods(model.train(), tiny_features(2), [[4, 2]])
    with pytest.raises(ValueError, match="photo 1 has no caption"):
        annotation_ranking(np.zeros((2, 2)), [0, 0])
    with pytest.raises(ValueError, match="2 captions are scored, but photos are given for 1"):
        search_ranking(np.zeros((2, 2)), [0])
    with pytest.raises(ValueError, match="caption 1 for photo 0 is NaN"):
        search_ranking(np.array([[0.0, np.nan]]), [0, 0])

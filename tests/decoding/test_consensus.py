"""Consensus decoding chooses the caption with the highest expected CIDEr-D among those of the beam search."""

from typing import Any

import numpy as np
import pytest
import torch
from plain import words_of
from tiny import CAPTIONS, tiny_features, tiny_model, tiny_tokenizer

from nic_hf import NICForConditionalGeneration
from nic_hf.decoding import CaptionSimilarity, ConsensusDecoding, NICEnsemble
from nic_hf.evaluation import DocumentFrequencies, score_captions

BEAMS = 6
SETTINGS: dict[str, Any] = {"num_beams": BEAMS, "length_penalty": 0.0, "max_new_tokens": 9}
PHOTOS = [CAPTIONS[start : start + 2] for start in range(0, len(CAPTIONS) - 1, 2)]


@pytest.fixture(scope="module")
def model() -> NICForConditionalGeneration:
    return tiny_model()


@pytest.fixture(scope="module")
def consensus() -> ConsensusDecoding:
    return ConsensusDecoding.from_captions(PHOTOS, tiny_tokenizer())


def expected_gain(candidates: list[tuple[int, ...]], scores: list[float], sharpness: float) -> list[float]:
    """Computed by `score_captions`, with each pair as a photo."""
    texts = [" ".join(map(str, caption)) for caption in candidates]
    known = [[" ".join(map(str, ids)) for ids in tiny_tokenizer()(list(own)).input_ids] for own in PHOTOS]
    pairs = {(i, j): texts[i] for i in range(len(texts)) for j in range(len(texts))}
    cider = score_captions(
        pairs,
        {(i, j): [texts[j]] for i, j in pairs},
        ["cider"],
        per_image=True,
        document_frequencies=DocumentFrequencies(known, tokenize=str.split),
        tokenize=str.split,
    )["per_image"]
    weights = np.exp(sharpness * np.array(scores))
    return [
        sum(weights[j] * cider[i, j]["cider"] for j in range(len(texts))) / weights.sum() for i in range(len(texts))
    ]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("sharpness", [0.0, 0.1, 3.0])
def test_it_chooses_the_highest_expected_score(
    model: NICForConditionalGeneration, sharpness: float, length_penalty: float
) -> None:
    features = tiny_features(5)
    settings = {**SETTINGS, "length_penalty": length_penalty}
    scored = {"return_dict_in_generate": True, "output_scores": True}
    beams = model.generate(encoder_outputs=features, num_return_sequences=BEAMS, **settings, **scored)
    consensus = ConsensusDecoding.from_captions(PHOTOS, tiny_tokenizer(), sharpness)
    found = model.generate(encoder_outputs=features, custom_generate=consensus, **settings, num_return_sequences=3)
    changed = 0
    for photo in range(5):
        rows = range(photo * BEAMS, (photo + 1) * BEAMS)
        captions = [words_of(beams.sequences[row]) for row in rows]
        scores = [
            float(beams.sequences_scores[row]) * len(words) ** length_penalty
            for row, words in zip(rows, captions, strict=True)
        ]
        gains = expected_gain(captions, scores, sharpness)
        chosen = [captions.index(words_of(row)) for row in found[photo * 3 : photo * 3 + 3]]
        assert [gains[place] for place in chosen] == pytest.approx(sorted(gains, reverse=True)[:3], abs=1e-6)
        changed += chosen[0] != 0
    if sharpness == 0:
        assert changed, "it is the beam search's caption each time"


def test_what_it_returns_is_what_the_beam_search_returns(
    model: NICForConditionalGeneration, consensus: ConsensusDecoding
) -> None:
    features = tiny_features(4)
    scored = {"return_dict_in_generate": True, "output_scores": True, "num_return_sequences": BEAMS}
    beams = model.generate(encoder_outputs=features, **SETTINGS, **scored)
    found = model.generate(encoder_outputs=features, custom_generate=consensus, **SETTINGS, **scored)
    for photo in range(4):
        rows = slice(photo * BEAMS, (photo + 1) * BEAMS)
        pairs = [
            {
                words_of(row): float(score)
                for row, score in zip(o.sequences[rows], o.sequences_scores[rows], strict=True)
            }
            for o in (beams, found)
        ]
        assert pairs[0] == pairs[1]
    steps = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    assert torch.allclose(steps.sum(dim=1), found.sequences_scores, atol=1e-5)


def test_a_photo_alone_gets_the_caption_it_gets_among_others(
    model: NICForConditionalGeneration, consensus: ConsensusDecoding
) -> None:
    features = tiny_features(6)
    together = model.generate(encoder_outputs=features, custom_generate=consensus, **SETTINGS)
    for photo in range(6):
        alone = model.generate(encoder_outputs=features[photo : photo + 1], custom_generate=consensus, **SETTINGS)
        assert words_of(alone[0]) == words_of(together[photo])


def test_an_ensemble_has_a_consensus_too(model: NICForConditionalGeneration, consensus: ConsensusDecoding) -> None:
    features = tiny_features(3)
    alone = model.generate(encoder_outputs=features, custom_generate=consensus, **SETTINGS)
    ensemble = NICEnsemble([model, tiny_model()])
    found = ensemble.generate(encoder_outputs=features, custom_generate=consensus, **SETTINGS)
    assert [words_of(row) for row in found] == [words_of(row) for row in alone], "of two that are the same"


def test_copies_and_stand_ins_come_last(consensus: ConsensusDecoding) -> None:
    captions = [(5, 6, 2), (5, 6, 2), (5, 7, 2), (9, 9, 9)]
    assert consensus.rank(captions, np.array([-1.0, -1.0, -2.0, -1.0e9]))[2:] == [1, 3]


def test_bad_settings_are_refused(model: NICForConditionalGeneration, consensus: ConsensusDecoding) -> None:
    features = tiny_features(1)
    for settings in ({"num_beams": 1}, {"do_sample": True, "num_beams": 4}):
        with pytest.raises(ValueError, match="beam search: give `num_beams`"):
            model.generate(encoder_outputs=features, custom_generate=consensus, **settings)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        ConsensusDecoding(sharpness=-1)
    with pytest.raises(ValueError, match="at least one photo"):
        CaptionSimilarity([])

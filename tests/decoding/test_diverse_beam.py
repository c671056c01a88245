"""Diverse beam search, compared with Transformers' beam search for one group and a plain one for several."""

import functools
from typing import Any

import pytest
import torch
from plain import EOS, NEVER, mean_next_scores, plain_diverse_beam, words_of
from tiny import tiny_features, tiny_model, tiny_pixels
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, ViTConfig

from nic_hf import NICForConditionalGeneration
from nic_hf.decoding import NICEnsemble, diverse_beam_search

SCORED = {"max_new_tokens": 9, "output_scores": True, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def model() -> NICForConditionalGeneration:
    return tiny_model()


def search(model: Any, features: torch.Tensor, groups: int, penalty: float, **settings: Any) -> Any:
    return model.generate(
        encoder_outputs=features,
        custom_generate=diverse_beam_search,
        num_beam_groups=groups,
        diversity_penalty=penalty,
        **{**SCORED, **settings},
    )


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize(("width", "number"), [(2, 1), (5, 3)])
def test_one_group_is_the_librarys_beam_search(
    model: NICForConditionalGeneration, width: int, number: int, length_penalty: float, early_stopping: bool | str
) -> None:
    settings = {
        "num_beams": width,
        "num_return_sequences": number,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
    }
    features = tiny_features(6)
    expected = model.generate(encoder_outputs=features, **SCORED, **settings)
    for penalty in (0.0, 0.5):  # there is no earlier group to differ from
        found = search(model, features, 1, penalty, **settings)
        assert torch.equal(found.sequences, expected.sequences)
        assert torch.equal(found.sequences_scores, expected.sequences_scores)
        assert torch.equal(found.beam_indices, expected.beam_indices)
        for ours, theirs in zip(found.scores, expected.scores, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("length_penalty", [0.0, 1.5])
@pytest.mark.parametrize("penalty", [0.0, 0.4, 20.0])
@pytest.mark.parametrize(("width", "groups", "number"), [(4, 2, 2), (6, 3, 6), (4, 4, 3)])
def test_groups_find_what_a_plain_search_finds(
    model: NICForConditionalGeneration, width: int, groups: int, number: int, penalty: float, length_penalty: float
) -> None:
    features = tiny_features(3)
    found = search(
        model,
        features,
        groups,
        penalty,
        num_beams=width,
        num_return_sequences=number,
        length_penalty=length_penalty,
    )
    expected = [
        caption
        for feature in features
        for caption in plain_diverse_beam(
            mean_next_scores([model], [feature]), width, groups, penalty, length_penalty, number=number
        )
    ]
    assert [words_of(row) for row in found.sequences] == [words for words, _ in expected]
    torch.testing.assert_close(found.sequences_scores, torch.tensor([score for _, score in expected]))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_that_end_as_soon_as_they_are_full_find_what_a_plain_search_finds(seed: int, penalty: float) -> None:
    # With four words captions end early, and groups often find the same ones.
    model, features = tiny_model(seed=seed, vocab_size=8), tiny_features(3)
    settings: dict[str, Any] = {"length_penalty": 0.5, "early_stopping": True}
    found = search(model, features, 3, penalty, num_beams=6, num_return_sequences=6, **settings)
    expected = [
        caption
        for feature in features
        for caption in plain_diverse_beam(mean_next_scores([model], [feature]), 6, 3, penalty, number=6, **settings)
    ]
    assert [words_of(row) for row in found.sequences] == [words for words, _ in expected]
    torch.testing.assert_close(found.sequences_scores, torch.tensor([score for _, score in expected]))


@pytest.mark.parametrize("max_new_tokens", [2, 9])
@pytest.mark.parametrize("penalty", [0.0, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_several_captions_of_a_photo_are_distinct_and_come_best_first(
    seed: int, penalty: float, max_new_tokens: int
) -> None:
    model = tiny_model(seed=seed, vocab_size=9)
    settings = {"num_beams": 8, "num_return_sequences": 8, "max_new_tokens": max_new_tokens}
    found = search(model, tiny_features(3), 4, penalty, **settings)
    captions = [words_of(row) for row in found.sequences]
    scores = found.sequences_scores.view(3, 8)
    assert all(len(set(captions[start : start + 8])) == 8 for start in range(0, 24, 8))
    assert (scores.diff(dim=1) <= 0).all()
    assert (scores > -1e3).all()


def test_one_caption_of_each_group_starts_with_a_word_of_its_own(model: NICForConditionalGeneration) -> None:
    features = tiny_features(6)
    first = search(model, features, 4, 50.0, num_beams=4, num_return_sequences=4).sequences[:, 1].view(6, 4)
    assert all(len(set(row.tolist())) == 4 for row in first)
    best = model.generate(encoder_outputs=features, num_beams=2, max_new_tokens=9)
    chosen = search(model, features, 2, 0.5, num_beams=4, num_return_sequences=1).sequences
    assert [words_of(row) for row in chosen] == [words_of(row) for row in best], "the first group is undisturbed"


@pytest.mark.parametrize("penalty", [0.0, 0.4])
def test_a_batch_gives_what_single_photos_give(penalty: float) -> None:
    model = tiny_model(seed=1, vocab_size=12)
    features = tiny_features(6)
    settings = {"num_beams": 6, "num_return_sequences": 5, "length_penalty": 0.3, "early_stopping": True}
    together = search(model, features, 3, penalty, **settings)
    alone = [search(model, feature[None], 3, penalty, **settings) for feature in features]
    rows = [row for result in alone for row in result.sequences]
    assert [words_of(row) for row in together.sequences] == [words_of(row) for row in rows]
    torch.testing.assert_close(together.sequences_scores, torch.cat([result.sequences_scores for result in alone]))
    assert len({len(words_of(row)) for row in rows}) > 2, "captions of one length, so that the test shows little"


def test_scores_are_the_captions_log_likelihood_without_penalties(model: NICForConditionalGeneration) -> None:
    found = search(
        model, tiny_features(3), 2, 0.7, num_beams=4, num_return_sequences=4, length_penalty=0.0, output_logits=True
    )
    transitions = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    torch.testing.assert_close(transitions.sum(dim=1), found.sequences_scores)
    logits = [scores.log_softmax(dim=-1) for scores in found.logits]
    kept = [word for word in range(27) if word not in NEVER]
    torch.testing.assert_close(logits[0][:, kept], found.scores[0][:, kept])


def test_without_a_cache_it_finds_the_same(model: NICForConditionalGeneration) -> None:
    settings = {"num_beams": 4, "num_return_sequences": 4}
    cached = search(model, tiny_features(3), 2, 0.5, **settings)
    uncached = search(model, tiny_features(3), 2, 0.5, use_cache=False, **settings)
    assert torch.equal(cached.sequences, uncached.sequences)


def test_photos_prefixes_and_logits_processors_are_heeded(model: NICForConditionalGeneration) -> None:
    class Forbid(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.index_fill(1, torch.tensor([24]), -torch.inf)

    prefix = torch.tensor([[1, 5, 6], [1, 9, 10]])
    settings = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 4}
    found = model.generate(
        pixel_values=tiny_pixels(2),
        decoder_input_ids=prefix,
        custom_generate=diverse_beam_search,
        logits_processor=LogitsProcessorList([Forbid()]),
        **settings,
    )
    assert torch.equal(found[:, :3], prefix.repeat_interleave(4, dim=0))
    assert not (found[:, 3:] == 24).any()
    assert len({tuple(row) for row in found.tolist()}) == 8


def test_settings_may_be_bound_beforehand_or_stand_in_a_generation_config(model: NICForConditionalGeneration) -> None:
    features = tiny_features(3)
    settings = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 9}
    expected = search(model, features, 2, 0.5, **settings).sequences
    bound = functools.partial(diverse_beam_search, num_beam_groups=2, diversity_penalty=0.5)
    assert torch.equal(model.generate(encoder_outputs=features, custom_generate=bound, **settings), expected)
    config = GenerationConfig.from_dict(
        {**model.generation_config.to_dict(), **settings, "num_beam_groups": 2, "diversity_penalty": 0.5}
    )
    from_config = model.generate(
        encoder_outputs=features, generation_config=config, custom_generate=diverse_beam_search
    )
    assert torch.equal(from_config, expected)


def test_an_ensemble_is_searched_as_a_plain_search_over_mean_probabilities_does() -> None:
    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    models = [tiny_model(), tiny_model(seed=1, hidden_size=5, backbone_config=vit)]
    features = [tiny_features(3), tiny_features(3, seed=1, size=8)]
    found = search(NICEnsemble(models), torch.cat(features, dim=1), 2, 0.5, num_beams=4, num_return_sequences=4)
    expected = [
        caption
        for each in zip(*features, strict=True)
        for caption in plain_diverse_beam(mean_next_scores(models, each), 4, 2, 0.5, number=4)
    ]
    assert [words_of(row) for row in found.sequences] == [words for words, _ in expected]
    torch.testing.assert_close(found.sequences_scores, torch.tensor([score for _, score in expected]))


def test_where_fewer_captions_are_possible_the_rest_are_marked_by_their_score() -> None:
    model = tiny_model(vocab_size=6)  # two words, or none at all
    found = search(model, tiny_features(1), 2, 0.5, num_beams=4, num_return_sequences=4, max_new_tokens=1)
    real = found.sequences_scores > -1e8
    assert {words_of(row) for row in found.sequences[real]} == {(4,), (5,), (EOS,)}
    assert real.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beam_groups": 3, "diversity_penalty": 0.5}, r"`num_beams` \(4\) must be a multiple.*got 3"),
        ({"num_beam_groups": 0, "diversity_penalty": 0.5}, "got 0"),
        ({"num_beam_groups": 2}, "give `diversity_penalty` too"),
        ({"num_beam_groups": 2, "diversity_penalty": -1.0}, "at least 0, got -1.0"),
        ({"num_beam_groups": 2, "diversity_penalty": 0.5, "do_sample": True}, "does not sample"),
        ({"num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 5}, "num_return_sequences"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    model: NICForConditionalGeneration, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(encoder_outputs=tiny_features(1), custom_generate=diverse_beam_search, num_beams=4, **settings)

"""Assisted decoding: drafts that the captioner checks, and takes back where they are wrong, change no caption."""

from typing import Any

import pytest
import torch
from tiny import tiny_features, tiny_model, tiny_pixels

from nic_hf import NICCache
from nic_hf.decoding import NICEnsemble

CAPTIONERS: list[dict[str, Any]] = [
    {},
    {"num_hidden_layers": 3},
    {"attention": "soft"},
    {"attention": "soft", "num_hidden_layers": 2},
]
GREEDY: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 20}


@pytest.mark.parametrize("changes", CAPTIONERS, ids=str)
@pytest.mark.parametrize("prefix", [[1], [1, 7, 7, 9, 7]])
def test_words_looked_up_in_the_caption_change_no_word(changes: dict[str, Any], prefix: list[int]) -> None:
    model = tiny_model(**changes)
    for seed in range(5):
        settings = {"decoder_input_ids": torch.tensor([prefix]), "pixel_values": tiny_pixels(1, seed), **GREEDY}
        expected = model.generate(**settings)
        assert torch.equal(model.generate(**settings, prompt_lookup_num_tokens=3), expected)


@pytest.mark.parametrize("changes", CAPTIONERS, ids=str)
def test_an_assistants_words_change_no_word(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    for assistant in (model, tiny_model(seed=3), tiny_model(seed=5, attention="soft", hidden_size=4)):
        for seed in range(5):
            settings = {"pixel_values": tiny_pixels(1, seed), **GREEDY}
            expected = model.generate(**settings)
            assert torch.equal(model.generate(**settings, assistant_model=assistant), expected)


def test_drafts_of_an_ensemble_change_no_word() -> None:
    ensemble = NICEnsemble([tiny_model(), tiny_model(seed=3, attention="soft")])
    for seed in range(5):
        settings = {"pixel_values": tiny_pixels(1, seed), **GREEDY}
        expected = ensemble.generate(**settings)
        assert torch.equal(ensemble.generate(**settings, assistant_model=tiny_model()), expected)
        assert torch.equal(ensemble.generate(**settings, prompt_lookup_num_tokens=2), expected)


def test_the_right_drafts_are_taken() -> None:
    """A captioner that assists itself is right each time, and asked once for several words."""
    model, asked = tiny_model(), []
    settings = {"pixel_values": tiny_pixels(1), "num_beams": 1, "suppress_tokens": [0, 1, 2, 3]}
    expected = model.generate(**settings)
    assistant = tiny_model()
    assistant.generation_config.num_assistant_tokens = 9
    assistant.generation_config.assistant_confidence_threshold = 0.0
    model.register_forward_pre_hook(
        lambda *given: asked.append(given[2]["decoder_input_ids"].shape[1]), with_kwargs=True
    )
    assert torch.equal(model.generate(**settings, assistant_model=assistant), expected)
    assert len(asked) < 6
    assert sum(asked) == 20


def test_scores_and_looks_of_drafts_are_those_of_plain_decoding() -> None:
    model = tiny_model(attention="soft")
    settings = {"pixel_values": tiny_pixels(1), **GREEDY}
    more = {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True}
    expected = model.generate(**settings, **more)
    found = model.generate(**settings, **more, prompt_lookup_num_tokens=3)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.scores, expected.scores)


def test_drafts_are_refused_where_transformers_refuses_them() -> None:
    model = tiny_model()
    for settings, message in (
        ({"pixel_values": tiny_pixels(2), **GREEDY}, "batch_size = 1"),
        ({"pixel_values": tiny_pixels(1), **GREEDY, "cache_implementation": "static"}, "(?i)static cache"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**settings, prompt_lookup_num_tokens=3)


def test_a_beam_search_is_not_assisted() -> None:
    """Transformers says so in its log, and searches."""
    settings = {"pixel_values": tiny_pixels(2), "num_beams": 3}
    found = tiny_model().generate(**settings, prompt_lookup_num_tokens=3)
    assert torch.equal(found, tiny_model().generate(**settings))


def test_an_assistant_needs_the_photo() -> None:
    with pytest.raises(ValueError, match="no image"):
        tiny_model().generate(encoder_outputs=tiny_features(1), **GREEDY, assistant_model=tiny_model(seed=3))


@pytest.mark.parametrize("changes", CAPTIONERS, ids=str)
@torch.no_grad()
def test_a_cropped_cache_is_one_that_has_not_read_the_words(changes: dict[str, Any]) -> None:
    model, pixel_values = tiny_model(**changes), tiny_pixels(2)
    words = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 11, 12]])
    cache = NICCache()
    cache.activate_past_recording()
    assert cache.is_croppable
    whole = model(pixel_values=pixel_values, decoder_input_ids=words, cache=cache)
    plain = model(pixel_values=pixel_values, decoder_input_ids=words)
    torch.testing.assert_close(whole.logits, plain.logits)
    cache.crop(0)
    assert cache.get_seq_length() == 5
    cache.crop(-3)
    assert cache.get_seq_length() == 2
    again = model(decoder_input_ids=words[:, 2:], cache=cache)
    torch.testing.assert_close(again.logits, whole.logits[:, 2:])
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(-1)
    last = model(decoder_input_ids=words[[1, 0], 4:], cache=cache)
    torch.testing.assert_close(last.logits, whole.logits[[1, 0], 4:])
    cache.crop(-5)
    assert not cache.has_read_image


def test_words_that_were_not_recorded_cannot_be_taken_back() -> None:
    cache = tiny_model()(pixel_values=tiny_pixels(1), decoder_input_ids=torch.tensor([[1, 5]])).cache
    assert not cache.is_croppable
    with pytest.raises(ValueError, match=r"crop\(-1\): 0 words can be removed"):
        cache.crop(-1)
    cache.activate_past_recording()
    with pytest.raises(ValueError, match=r"crop\(-1\): 0 words can be removed"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(1)

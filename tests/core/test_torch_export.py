"""`torch.export`: encoder and decoder as graphs that need no Python, for any number of photos and words."""

from typing import Any

import pytest
import torch
from tiny import tiny_labels, tiny_model, tiny_pixels
from torch import nn

from nic_hf import NICCache, NICForConditionalGeneration


class Scores(nn.Module):
    """Logits of captions, teacher-forced."""

    def __init__(self, model: NICForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values, decoder_input_ids=decoder_input_ids, use_cache=False).logits


def test_the_encoder_is_exported_for_any_batch() -> None:
    encoder = tiny_model().get_encoder()
    batch = torch.export.Dim("batch", min=1)

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.encoder(pixel_values).last_hidden_state

    exported = torch.export.export(Features(), (tiny_pixels(3),), dynamic_shapes=({0: batch},)).module()
    for number in (1, 3, 7):
        with torch.no_grad():
            expected = encoder(tiny_pixels(number)).last_hidden_state
            torch.testing.assert_close(exported(tiny_pixels(number)), expected)


def test_scores_of_captions_are_exported() -> None:
    model = tiny_model()
    words = tiny_labels([5, 5, 5])
    exported = torch.export.export(Scores(model), (tiny_pixels(3), words)).module()
    with torch.no_grad():
        expected = model(pixel_values=tiny_pixels(3, seed=1), decoder_input_ids=words).logits
        torch.testing.assert_close(exported(tiny_pixels(3, seed=1), words), expected)


class Step(nn.Module):
    """One word: logits of the next, and the state after it."""

    def __init__(self, model: NICForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: torch.Tensor, cache: NICCache) -> tuple[torch.Tensor, NICCache]:
        output = self.model(decoder_input_ids=words, cache=cache, use_cache=True)
        return output.logits[:, -1], output.cache


@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 2}, {"attention": "soft"}], ids=str)
@torch.no_grad()
def test_a_step_is_exported_with_its_cache(changes: dict[str, Any]) -> None:
    """Captions word by word, by a graph that takes a cache and gives one."""
    model = tiny_model(**changes)
    bos = torch.ones(3, 1, dtype=torch.long)

    def start(seed: int) -> Any:
        return model(pixel_values=tiny_pixels(3, seed), decoder_input_ids=bos)

    exported = torch.export.export(Step(model), (bos, start(0).cache)).module()
    output = start(1)
    logits, cache, words = output.logits[:, -1], output.cache, [bos]
    for _ in range(9):
        logits[:, [0, 1, 3]] = -torch.inf  # never part of a caption
        words.append(logits.argmax(-1, keepdim=True))
        logits, cache = exported(words[-1], cache)
        assert isinstance(cache, NICCache)
    settings = {"num_beams": 1, "max_new_tokens": 9, "eos_token_id": None}
    assert torch.equal(torch.cat(words, dim=1), model.generate(pixel_values=tiny_pixels(3, 1), **settings))


@torch.no_grad()
def test_an_exported_step_takes_any_number_of_captions() -> None:
    model, batch = tiny_model(num_hidden_layers=2), torch.export.Dim("batch", min=1)

    def inputs(number: int) -> tuple[torch.Tensor, NICCache]:
        bos = torch.ones(number, 1, dtype=torch.long)
        return bos + 4, model(pixel_values=tiny_pixels(number), decoder_input_ids=bos).cache

    shapes = ({0: batch}, [{1: batch}, {1: batch}])
    exported = torch.export.export(Step(model), inputs(3), dynamic_shapes=shapes).module()
    for number in (1, 5):
        torch.testing.assert_close(exported(*inputs(number))[0], Step(model)(*inputs(number))[0])

"""`torch.export`: encoder and decoder as graphs that need no Python, for any number of photos and words."""

import torch
from tiny import tiny_labels, tiny_model, tiny_pixels
from torch import nn

from nic_hf import NICForConditionalGeneration


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

"""Captions of unequal length in training: their padding is neither read nor scored, and nothing else changes."""

import pytest
import torch
from tiny import tiny_config, tiny_labels, tiny_pixels
from torch.nn import functional as F

from nic_hf import NICForConditionalGeneration
from nic_hf.model import decoder
from nic_hf.model.decoder import NICLSTM
from nic_hf.model.losses import bag_of_words_loss

LENGTHS = [3, 7, 1, 5, 5]


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    found = [weight.grad.clone() for weight in module.parameters() if weight.grad is not None]
    module.zero_grad()
    return found


@pytest.mark.parametrize("layers", [1, 2])
def test_captions_read_together_are_as_read_alone(layers: int) -> None:
    torch.manual_seed(0)
    lstm = NICLSTM(12, 20, layers).train()
    inputs, factors = torch.randn(5, 7, 12), torch.randn(5, 7, 20)
    start = (torch.randn(layers, 5, 20), torch.randn(layers, 5, 20))
    outputs, (hidden, cell) = lstm._read_packed(inputs, start, torch.tensor(LENGTHS))
    (outputs * factors).sum().backward()
    found = gradients(lstm)
    for row, length in enumerate(LENGTHS):
        own_start = (start[0][:, [row]].contiguous(), start[1][:, [row]].contiguous())
        alone, (own_hidden, own_cell) = torch.nn.LSTM.forward(lstm, inputs[row : row + 1, :length], own_start)
        torch.testing.assert_close(outputs[row, :length], alone[0])
        assert not outputs[row, length:].any()
        torch.testing.assert_close((hidden[:, row], cell[:, row]), (own_hidden[:, 0], own_cell[:, 0]))
        (alone[0] * factors[row, :length]).sum().backward()
    torch.testing.assert_close(found, gradients(lstm), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rates", [{}, {"recurrent_dropout": 0.3}])
def test_large_weights_in_bfloat16_are_read_without_padding(
    rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NICForConditionalGeneration(tiny_config(dropout=0.0, **rates)).train()
    inputs = {"pixel_values": tiny_pixels(3), "labels": tiny_labels([3, 8, 5])}
    packed = []
    read = NICLSTM._read_packed
    monkeypatch.setattr(NICLSTM, "_read_packed", lambda *args: packed.append(args[3].tolist()) or read(*args))

    def learned() -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        return loss.detach(), gradients(model)

    loss, expected = learned()
    assert packed == [], "small ones are faster as they are"
    monkeypatch.setattr(decoder, "_FIT_INTO_CACHE", 0)
    packed_loss, found = learned()
    assert packed == [[4, 9, 6]], "the image, and the words"
    torch.testing.assert_close(packed_loss, loss, rtol=2e-3, atol=2e-3)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 0.03 * other.norm() + 1e-6
    model(**inputs).loss.backward()
    assert len(packed) == 1, "in float32 oneDNN is faster"


@pytest.mark.parametrize("attention", [None, "soft"])
@pytest.mark.parametrize("masked", ["after", "before and after"])
def test_words_alone_are_scored_and_the_loss_is_that_of_all_places(attention: str | None, masked: str) -> None:
    settings = {"attention": attention, "label_smoothing": 0.1, "bag_of_words_loss": 0.5}
    model = NICForConditionalGeneration(tiny_config(dropout=0.0, attention_regularisation=0.0, **settings)).train()
    labels = tiny_labels([3, 8, 5, 8])
    words = model.prepare_decoder_input_ids_from_labels(labels)
    if masked != "after":
        labels[1, :2] = -100  # what a user does not want to be learned
    pixels = tiny_pixels(4)
    output = model(pixel_values=pixels, labels=labels, decoder_input_ids=words)
    logits = model(pixel_values=pixels, decoder_input_ids=words).logits  # of all places
    is_word = labels != -100
    torch.testing.assert_close(output.logits[is_word], logits[is_word])
    assert output.logits.shape == logits.shape and not output.logits[~is_word].any()
    image = model.image_projection(output.image_features)
    bag = (
        bag_of_words_loss(model.bag_of_words, image.mean(1) if attention else image, labels, is_word, model.config)
        / is_word.sum()
    )
    expected = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, label_smoothing=0.1) + bag
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    found = gradients(model)
    expected.backward()
    torch.testing.assert_close(found, gradients(model), rtol=1e-4, atol=1e-6)

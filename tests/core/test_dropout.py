"""Dropout on what the LSTM reads and says, and on the way from one word to the next."""

import pytest
import torch
from tiny import tiny_config, tiny_labels, tiny_pixels

from nic_hf import NICConfig, NICForConditionalGeneration
from nic_hf.model.decoder import NICLSTM, NICDropout, TrainedDecoder, drop_inputs, quick_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_a_share_and_scales_the_rest_and_its_gradient(dtype: torch.dtype) -> None:
    inputs = torch.ones(200, 300, dtype=dtype, requires_grad=True)
    dropped = quick_dropout(inputs, 0.2)
    assert dropped.dtype is dtype and set(dropped.unique().tolist()) == {0.0, 1.25}
    assert (dropped == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    dropped.sum().backward()
    assert torch.equal(inputs.grad, dropped), "what was dropped learns nothing"
    assert quick_dropout(inputs, 0.0) is inputs and quick_dropout(inputs, 0.2, training=False) is inputs


def test_dropout_is_that_of_the_seed() -> None:
    first, again, other = (torch.manual_seed(seed) and quick_dropout(torch.ones(50), 0.5) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_variational_dropout_takes_the_same_units_from_all_words() -> None:
    inputs = torch.ones(64, 7, 32)
    dropped = NICDropout(0.5, variational=True)(inputs)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped[:, 0].mean().item() == pytest.approx(1, abs=0.1)
    assert not torch.equal(dropped[0], dropped[1]), "captions have masks of their own"


def test_plain_dropout_takes_other_units_from_each_word() -> None:
    dropped = NICDropout(0.5)(torch.ones(4, 7, 32))
    assert not torch.equal(dropped, dropped[:, :1].expand_as(dropped))


@pytest.mark.parametrize("variational", [False, True])
def test_nothing_is_dropped_in_eval_mode(variational: bool) -> None:
    dropout = NICDropout(0.5, variational).eval()
    inputs = torch.randn(3, 4, 5)
    assert torch.equal(dropout(inputs), inputs)
    assert dropout.draw_mask(inputs) is None


@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_dropout_equals_a_loop_over_words_with_the_same_weights_dropped(layers: int) -> None:
    decoder = TrainedDecoder(tiny_config(num_hidden_layers=layers, dropout=0.0, recurrent_dropout=0.4)).train()
    inputs = torch.randn(3, 6, decoder.lstm.input_size)
    torch.manual_seed(5)
    outputs, (hidden, cell), _ = decoder(inputs)

    torch.manual_seed(5)
    weights = [[ih, quick_dropout(hh, 0.4), *biases] for ih, hh, *biases in decoder.lstm.all_weights]
    expected = inputs
    for layer, own in enumerate(weights):
        state = (torch.zeros(3, decoder.lstm.hidden_size), torch.zeros(3, decoder.lstm.hidden_size))
        steps = []
        for position in range(6):
            state = torch.lstm_cell(expected[:, position], state, *own)
            steps.append(state[0])
        expected = torch.stack(steps, dim=1)
        torch.testing.assert_close(hidden[layer], state[0])
        torch.testing.assert_close(cell[layer], state[1])
    torch.testing.assert_close(outputs, expected)


def test_recurrent_dropout_draws_anew_each_time_and_lets_all_weights_learn() -> None:
    lstm = NICLSTM(4, 64, 1, recurrent_dropout=0.3)
    first, second = (lstm.draw_weights()[0][1] for _ in range(2))
    assert not torch.equal(first, second)
    assert (first == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)
    first.sum().backward()
    assert lstm.weight_hh_l0.grad is not None and (lstm.weight_hh_l0.grad != 0).any()
    assert lstm.eval().draw_weights()[0][1] is lstm.weight_hh_l0


@pytest.mark.parametrize("attention", [None, "soft"])
def test_a_captioner_trains_with_both_and_is_itself_in_eval_mode(attention: str | None) -> None:
    rates = {"dropout": 0.4, "variational_dropout": True, "recurrent_dropout": 0.4}
    config = tiny_config(attention=attention)
    model = NICForConditionalGeneration(config).eval()
    dropping = NICForConditionalGeneration(tiny_config(attention=attention, **rates))
    dropping.load_state_dict(model.state_dict())
    inputs = {"pixel_values": tiny_pixels(2), "labels": tiny_labels([3, 5])}
    losses = {dropping.train()(**inputs).loss.item() for _ in range(3)}
    assert len(losses) == 3
    assert dropping.eval()(**inputs).loss.item() == pytest.approx(model(**inputs).loss.item(), abs=1e-6)


@pytest.mark.parametrize("rate", [1.0, -0.1, "0.5", True])
def test_a_rate_that_is_none_is_refused(rate: object) -> None:
    with pytest.raises(ValueError, match="recurrent_dropout"):
        NICConfig(recurrent_dropout=rate)


def share_of_zeros(tensor: torch.Tensor) -> float:
    return (tensor == 0).float().mean().item()


def test_the_image_has_a_rate_of_its_own() -> None:
    """With words never dropped and the image always nearly so, and the other way round."""
    words, image = torch.ones(50, 3, 40), torch.ones(50, 1, 40)
    inputs = torch.cat([image, words], dim=1)
    kept = drop_inputs(inputs, NICDropout(0.5), image_dropout=0.0)
    assert torch.equal(kept[:, :1], image) and share_of_zeros(kept[:, 1:]) == pytest.approx(0.5, abs=0.03)
    dropped = drop_inputs(inputs, NICDropout(0.0), image_dropout=0.5)
    assert torch.equal(dropped[:, 1:], words) and (dropped[:, :1] == 0).float().mean().item() == pytest.approx(
        0.5, abs=0.05
    )
    assert (drop_inputs(inputs, NICDropout(0.5), image_dropout=None)[:, :1] == 0).any(), "no image: all are words"
    assert torch.equal(drop_inputs(inputs, NICDropout(0.5).eval(), image_dropout=0.9), inputs)


@pytest.mark.parametrize("attention", [None, "soft"])
def test_a_captioner_uses_the_rate_of_the_image(attention: str | None) -> None:
    model = NICForConditionalGeneration(tiny_config(attention=attention, image_dropout=0.6)).train()
    inputs = {"pixel_values": tiny_pixels(2), "labels": tiny_labels([3, 5])}
    assert len({model(**inputs).loss.item() for _ in range(4)}) > 1
    model = NICForConditionalGeneration(
        tiny_config(attention=attention, image_dropout=0.0, freeze_backbone=True)
    ).train()
    assert len({model(**inputs).loss.item() for _ in range(4)}) == 1

"""The decoder against the equations of the paper and against plain PyTorch."""

import copy

import pytest
import torch
from tiny import tiny_features, tiny_labels, tiny_model
from torch import nn

from nic_hf import NICCache, NICForConditionalGeneration

WORDS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 11, 12], [1, 5, 5, 20, 21]])


def model_of(layers: int) -> NICForConditionalGeneration:
    return tiny_model(seed=3, num_hidden_layers=layers, initializer_range=0.8)


def logits_by_hand(model: NICForConditionalGeneration, features: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Equations 4 to 8 of the paper, written out for one photo and one word at a time."""
    projection, lstm = model.image_projection, model.decoder.lstm
    size = lstm.hidden_size
    rows = []
    for feature, caption in zip(features, words, strict=True):
        image = projection.linear.weight @ ((feature - projection.mean) / projection.std) + projection.linear.bias
        inputs = [image, *(model.decoder.embed_tokens.weight[word] for word in caption)]
        hidden = [torch.zeros(size) for _ in range(lstm.num_layers)]
        memory = [torch.zeros(size) for _ in range(lstm.num_layers)]
        outputs = []
        for x in inputs:
            for layer in range(lstm.num_layers):
                parameters = dict(lstm.named_parameters())
                w_x, w_m = parameters[f"weight_ih_l{layer}"], parameters[f"weight_hh_l{layer}"]
                bias = parameters[f"bias_ih_l{layer}"] + parameters[f"bias_hh_l{layer}"]
                gates = w_x @ x + w_m @ hidden[layer] + bias
                i, f = torch.sigmoid(gates[:size]), torch.sigmoid(gates[size : 2 * size])
                candidate, o = torch.tanh(gates[2 * size : 3 * size]), torch.sigmoid(gates[3 * size :])
                memory[layer] = f * memory[layer] + i * candidate
                hidden[layer] = o * torch.tanh(memory[layer])
                x = hidden[layer]
            outputs.append(model.lm_head.weight @ x + model.lm_head.bias)
        rows.append(torch.stack(outputs[1:]))  # the image, at t = -1, predicts no word
    return torch.stack(rows)


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_scores_follow_the_equations_of_the_paper(layers: int) -> None:
    model = model_of(layers)
    found = model(encoder_outputs=tiny_features(3), decoder_input_ids=WORDS).logits
    torch.testing.assert_close(found, logits_by_hand(model, tiny_features(3), WORDS))


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_one_word_at_a_time_gives_what_an_unrolled_lstm_gives(layers: int) -> None:
    model = model_of(layers)
    unrolled = nn.LSTM(7, 9, layers, batch_first=True)
    unrolled.load_state_dict(model.decoder.lstm.state_dict())
    image = model.image_projection(tiny_features(3))
    inputs = torch.cat([image.unsqueeze(1), model.decoder.embed_tokens(WORDS)], dim=1)
    outputs, (hidden_state, cell_state) = unrolled(inputs)
    expected = model.lm_head(outputs[:, 1:])

    cache = NICCache()
    steps = []
    for position in range(WORDS.shape[1]):
        result = model(
            encoder_outputs=tiny_features(3) if position == 0 else None,
            decoder_input_ids=WORDS[:, position : position + 1],
            cache=cache,
            use_cache=True,
        )
        assert result.cache is cache
        assert cache.get_seq_length() == position + 1
        steps.append(result.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected)
    torch.testing.assert_close(cache.hidden_state, hidden_state)
    torch.testing.assert_close(cache.cell_state, cell_state)


@pytest.mark.parametrize("cut", [1, 2, 4])
@torch.no_grad()
def test_a_caption_may_be_read_in_pieces(cut: int) -> None:
    model = model_of(2)
    whole = model(encoder_outputs=tiny_features(3), decoder_input_ids=WORDS).logits
    first = model(encoder_outputs=tiny_features(3), decoder_input_ids=WORDS[:, :cut])
    second = model(decoder_input_ids=WORDS[:, cut:], cache=copy.copy(first.cache))
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole)
    assert second.image_features is None
    # The name that the state had before Transformers 5.24, and has in everybody's code.
    same = model(decoder_input_ids=WORDS[:, cut:], past_key_values=first.past_key_values)
    assert torch.equal(same.logits, second.logits)
    assert same["past_key_values"] is first.cache


@torch.no_grad()
def test_every_photo_and_every_word_read_so_far_matters_and_no_later_one() -> None:
    model = model_of(1)
    before = model(encoder_outputs=tiny_features(3), decoder_input_ids=WORDS).logits
    other_photo = tiny_features(3)
    other_photo[1] += 1
    after = model(encoder_outputs=other_photo, decoder_input_ids=WORDS).logits
    assert torch.equal(after[0], before[0])
    assert (after[1] != before[1]).any(dim=-1).all()

    other_word = WORDS.clone()
    other_word[:, 2] = 15
    after = model(encoder_outputs=tiny_features(3), decoder_input_ids=other_word).logits
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert (after[:, 2:] != before[:, 2:]).any(dim=-1).all()


@torch.no_grad()
def test_hidden_states_are_what_the_words_are_scored_from() -> None:
    model = model_of(2)
    result = model(encoder_outputs=tiny_features(3), decoder_input_ids=WORDS, output_hidden_states=True)
    (hidden_states,) = result.decoder_hidden_states
    assert hidden_states.shape == (3, 5, 9)
    torch.testing.assert_close(model.lm_head(hidden_states), result.logits)
    assert model(encoder_outputs=tiny_features(3), decoder_input_ids=WORDS).decoder_hidden_states is None


@torch.no_grad()
def test_features_are_standardised_by_the_statistics_set() -> None:
    model = model_of(1)
    features = tiny_features(3)
    model.set_feature_statistics(torch.zeros(10), torch.ones(10))
    expected = model(encoder_outputs=(features - 5) / 3, decoder_input_ids=WORDS).logits
    model.set_feature_statistics(torch.full((10,), 5.0), torch.full((10,), 3.0))
    torch.testing.assert_close(model(encoder_outputs=features, decoder_input_ids=WORDS).logits, expected)
    model.set_feature_statistics(torch.zeros(10), torch.zeros(10))
    assert model(encoder_outputs=features, decoder_input_ids=WORDS).logits.isfinite().all()


@torch.no_grad()
def test_padding_changes_nothing_for_other_captions_or_for_words_before_it() -> None:
    model = model_of(2)
    labels = tiny_labels([3, 6, 4])
    whole = model(encoder_outputs=tiny_features(3), labels=labels)
    words = losses = 0
    for row, length in enumerate([3, 6, 4]):
        alone = model(encoder_outputs=tiny_features(3)[row : row + 1], labels=labels[row : row + 1, :length])
        torch.testing.assert_close(whole.logits[row : row + 1, :length], alone.logits)
        losses, words = losses + alone.loss * length, words + length
    torch.testing.assert_close(whole.loss, losses / words)

    wider = torch.cat([labels, torch.full((3, 4), -100)], dim=1)
    padded = model(encoder_outputs=tiny_features(3), labels=wider)
    torch.testing.assert_close(padded.loss, whole.loss)
    torch.testing.assert_close(padded.logits[:, :6], whole.logits)


def test_a_cache_reorders_repeats_selects_and_forgets() -> None:
    cache = NICCache()
    cache.reorder_cache(torch.tensor([0]))  # before the photo is read there is nothing to reorder
    assert cache.get_seq_length() == 0
    hidden_state, cell_state = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    cache.update((hidden_state, cell_state), num_tokens=2)
    cache.update((hidden_state, cell_state), num_tokens=1)
    assert cache.get_seq_length() == 3
    assert cache.get_max_cache_shape() == -1

    order = torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    assert torch.equal(cache.hidden_state, hidden_state[:, order])
    assert torch.equal(cache.cell_state, cell_state[:, order])
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.hidden_state, hidden_state[:, [2, 2, 0, 0, 0, 0]])
    cache.batch_select_indices(torch.tensor([1, 5]))
    assert torch.equal(cache.cell_state, cell_state[:, [2, 0]])
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.hidden_state is None


@pytest.mark.parametrize(("settings", "forget_bias"), [({}, 1.0), ({"forget_bias": 4.0}, 4.0)])
def test_the_forget_gate_starts_open(settings: dict[str, float], forget_bias: float) -> None:
    """As TensorFlow's cell in im2txt, so that a photo read first is not forgotten at once."""
    model = tiny_model(num_hidden_layers=2, initializer_range=0.08, **settings)
    for layer in range(2):
        bias = getattr(model.decoder.lstm, f"bias_ih_l{layer}") + getattr(model.decoder.lstm, f"bias_hh_l{layer}")
        assert torch.equal(bias.view(4, 9), torch.tensor([0.0, forget_bias, 0.0, 0.0]).view(4, 1).expand(4, 9))
    for name in ("decoder.embed_tokens.weight", "decoder.lstm.weight_hh_l1", "lm_head.weight"):
        weight = model.get_parameter(name)
        assert 0.04 < weight.abs().max() <= 0.08, name

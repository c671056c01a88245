"""Soft attention against the equations of Xu et al. 2015, against plain PyTorch, and against itself in pieces."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_backbones import BACKBONES, captioner, save_random
from test_beam_search import beam_by_hand, words_of
from tiny import (
    save_tiny_checkpoint,
    tiny_config,
    tiny_labels,
    tiny_model,
    tiny_photos,
    tiny_pixels,
    tiny_processor,
)
from torch import nn
from torch.nn import functional as F

from nic_hf import NICCache, NICConfig, NICForConditionalGeneration
from nic_hf.layers_nic import NICAttention, NICRegions

REGIONS = 5
WORDS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 11, 12], [1, 5, 5, 20, 21]])
LENGTHS = [3, 6, 2, 5]


def attentive_model(seed: int = 79, **changes: Any) -> NICForConditionalGeneration:
    """A tiny captioner with attention; the captions of the default seed end, and at different lengths."""
    return tiny_model(seed, attention="soft", **changes)


def model_of(layers: int) -> NICForConditionalGeneration:
    return attentive_model(seed=3, num_hidden_layers=layers, initializer_range=0.8)


def regions_of(batch_size: int = 4, seed: int = 0, num_regions: int = REGIONS) -> torch.Tensor:
    """Random features of shape `(batch_size, num_regions, 10)`."""
    return torch.randn(batch_size, num_regions, 10, generator=torch.Generator().manual_seed(seed)) * 2


class PlainCaptioner(nn.Module):
    """Show, Attend and Tell written again, with one loop over captions and one over words."""

    def __init__(self, model: NICForConditionalGeneration) -> None:
        super().__init__()
        weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        self.mean, self.std = weights["image_projection.mean"], weights["image_projection.std"]
        layers = model.config.num_hidden_layers
        self.names = [n for n, _ in model.named_parameters() if not n.startswith("encoder.")]
        self.all = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(weights[name]) for name in self.names})
        self.layers = range(layers)
        self.size = model.config.hidden_size

    def weight(self, name: str) -> torch.Tensor:
        return self.all[name.replace(".", "/")]

    def cell(self, layer: int, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lstm = {n: self.weight(f"decoder.lstm.{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        gates = lstm["weight_ih"] @ x + lstm["bias_ih"] + lstm["weight_hh"] @ h + lstm["bias_hh"]
        i, f, g, o = gates.split(self.size)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def caption(self, regions: torch.Tensor, words: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of each next word, `(len(words), vocab_size)`, and weights `(len(words), num_regions)`."""
        project = (self.weight("image_projection.linear.weight"), self.weight("image_projection.linear.bias"))
        annotations = [project[0] @ ((region - self.mean) / self.std) + project[1] for region in regions]
        h = [torch.zeros(self.size) for _ in self.layers]
        c = [torch.zeros(self.size) for _ in self.layers]
        image = sum(annotations) / len(annotations)
        scores, looks = [], []
        for word in [None, *words]:
            if word is None:
                x = torch.cat([image, torch.zeros_like(image)])
            else:
                attention = {
                    n: self.weight(f"decoder.attention.{n}")
                    for n in ("key.weight", "key.bias", "query.weight", "score.weight", "gate.weight", "gate.bias")
                }
                before = h[-1]
                e = torch.stack(
                    [
                        attention["score.weight"][0]
                        @ torch.tanh(
                            attention["key.weight"] @ a + attention["key.bias"] + attention["query.weight"] @ before
                        )
                        for a in annotations
                    ]
                )
                alpha = e.exp() / e.exp().sum()
                beta = 1 / (1 + torch.exp(-(attention["gate.weight"][0] @ before + attention["gate.bias"][0])))
                context = beta * sum(share * a for share, a in zip(alpha, annotations, strict=True))
                looks.append(alpha)
                x = torch.cat([self.weight("decoder.embed_tokens.weight")[word], context])
            for layer in self.layers:
                h[layer], c[layer] = self.cell(layer, x, h[layer], c[layer])
                x = h[layer]
            if word is not None:
                scores.append(self.weight("lm_head.weight") @ x + self.weight("lm_head.bias"))
        return torch.stack(scores), torch.stack(looks)

    def loss(self, regions: torch.Tensor, labels: torch.Tensor, factor: float = 0.0) -> torch.Tensor:
        total, number = torch.zeros(()), 0
        for photo, row in zip(regions, labels.tolist(), strict=True):
            words = [word for word in row if word != -100]
            scores, looks = self.caption(photo, [1, *words[:-1]])
            total = total - scores.log_softmax(-1)[torch.arange(len(words)), words].sum()
            total = total + factor * sum((1 - share) ** 2 for share in looks.sum(0))
            number += len(words)
        return total / number


# The configuration


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"attention": "hard"}, "`attention` must be 'soft' or None, got 'hard'"),
        ({"attention": True}, "`attention` must be 'soft' or None, got True"),
        ({"attention": "soft", "attention_regularisation": -1}, "must be a number from 0, got -1"),
        ({"attention": "soft", "attention_regularisation": "1"}, "must be a number from 0, got '1'"),
        ({"attention_regularisation": 1.0}, "`attention_regularisation` needs attention='soft'"),
    ],
)
def test_a_value_that_cannot_work_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tiny_config(**changes)


def test_the_choice_survives_a_round_trip_through_a_file(tmp_path: Path) -> None:
    tiny_config(attention="soft", attention_regularisation=0.5).save_pretrained(tmp_path)
    config = NICConfig.from_pretrained(tmp_path)
    assert (config.attention, config.attention_regularisation) == ("soft", 0.5)


def test_a_checkpoint_from_before_attention_loads_and_is_what_it_was(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for name in ("attention", "attention_regularisation"):
        config.pop(name, None)
    file.write_text(json.dumps(config))
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.attention is None
    assert torch.equal(loaded.generate(pixel_values=tiny_pixels()), model.generate(pixel_values=tiny_pixels()))


def test_a_model_without_attention_has_the_weights_it_had() -> None:
    names = {name for name in tiny_model().state_dict() if not name.startswith("encoder.backbone.")}
    assert names == {
        "image_projection.mean",
        "image_projection.std",
        "image_projection.linear.weight",
        "image_projection.linear.bias",
        "decoder.embed_tokens.weight",
        "decoder.lstm.weight_ih_l0",
        "decoder.lstm.weight_hh_l0",
        "decoder.lstm.bias_ih_l0",
        "decoder.lstm.bias_hh_l0",
        "lm_head.weight",
        "lm_head.bias",
    }


@torch.no_grad()
def test_a_model_without_attention_has_none_to_show() -> None:
    result = tiny_model()(pixel_values=tiny_pixels(3), decoder_input_ids=WORDS, output_attentions=True)
    assert result.cross_attentions is None
    assert result.cache.regions is None


# The equations


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_scores_and_weights_follow_the_equations_of_the_paper(layers: int) -> None:
    model = model_of(layers)
    found = model(encoder_outputs=regions_of(3), decoder_input_ids=WORDS, output_attentions=True)
    plain = [
        PlainCaptioner(model).caption(photo, words) for photo, words in zip(regions_of(3), WORDS.tolist(), strict=True)
    ]
    torch.testing.assert_close(found.logits, torch.stack([scores for scores, _ in plain]))
    torch.testing.assert_close(found.cross_attentions[0], torch.stack([looks for _, looks in plain]))


@torch.no_grad()
def test_weights_add_up_to_one_and_move_from_word_to_word() -> None:
    result = model_of(1)(encoder_outputs=regions_of(3), decoder_input_ids=WORDS, output_attentions=True)
    (weights,) = result.cross_attentions
    assert weights.shape == (3, 5, REGIONS)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 5))
    assert (weights.diff(dim=1).abs().amax(dim=-1) > 1e-3).all()
    assert model_of(1)(encoder_outputs=regions_of(3), decoder_input_ids=WORDS).cross_attentions is None


@torch.no_grad()
def test_of_one_region_the_context_is_its_feature_behind_the_gate() -> None:
    torch.manual_seed(0)
    attention = NICAttention(7, 9)
    features, hidden_state = torch.randn(3, 1, 7), torch.randn(3, 9)
    context, weights = attention(hidden_state, attention.read_regions(features))
    gate = torch.sigmoid(hidden_state @ attention.gate.weight[0] + attention.gate.bias)
    torch.testing.assert_close(context, gate[:, None] * features[:, 0])
    assert torch.equal(weights, torch.ones(3, 1))


@torch.no_grad()
def test_behind_a_closed_gate_only_the_mean_of_the_regions_is_seen() -> None:
    model = model_of(1)
    model.decoder.attention.gate.bias.fill_(-100.0)
    mean = regions_of(3).mean(dim=1, keepdim=True)
    of_regions = model(encoder_outputs=regions_of(3), decoder_input_ids=WORDS).logits
    torch.testing.assert_close(model(encoder_outputs=mean, decoder_input_ids=WORDS).logits, of_regions)
    model.decoder.attention.gate.bias.fill_(100.0)
    assert not torch.allclose(model(encoder_outputs=mean, decoder_input_ids=WORDS).logits, of_regions, atol=0.1)


@torch.no_grad()
def test_the_order_of_the_regions_changes_nothing() -> None:
    model, order = model_of(2), torch.tensor([3, 0, 4, 1, 2])
    result = model(encoder_outputs=regions_of(3), decoder_input_ids=WORDS, output_attentions=True)
    moved = model(encoder_outputs=regions_of(3)[:, order], decoder_input_ids=WORDS, output_attentions=True)
    torch.testing.assert_close(moved.logits, result.logits, rtol=0, atol=1e-5)
    assert (moved.logits - result.logits).abs().max() / result.logits.abs().max() < 1e-6
    torch.testing.assert_close(moved.cross_attentions[0], result.cross_attentions[0][..., order])


@torch.no_grad()
def test_features_are_standardised_channel_by_channel() -> None:
    model, regions = model_of(1), regions_of(3)
    model.set_feature_statistics(torch.zeros(10), torch.ones(10))
    mean, std = torch.linspace(-5, 5, 10), torch.linspace(0.5, 3, 10)
    expected = model(encoder_outputs=(regions - mean) / std, decoder_input_ids=WORDS).logits
    model.set_feature_statistics(mean, std)
    torch.testing.assert_close(model(encoder_outputs=regions, decoder_input_ids=WORDS).logits, expected)


# One word at a time, batches, padding


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1), (2, 3), (4, 1)])
@torch.no_grad()
def test_a_caption_read_in_pieces_is_read_the_same(cuts: tuple[int, ...], layers: int) -> None:
    model = model_of(layers)
    whole = model(encoder_outputs=regions_of(3), decoder_input_ids=WORDS, output_attentions=True)
    cache, pieces = NICCache(), []
    for number, words in enumerate(WORDS.split(cuts, dim=1)):
        pieces.append(
            model(
                encoder_outputs=regions_of(3) if number == 0 else None,
                decoder_input_ids=words,
                cache=cache,
                use_cache=True,
                output_attentions=True,
            )
        )
    torch.testing.assert_close(torch.cat([piece.logits for piece in pieces], dim=1), whole.logits)
    torch.testing.assert_close(
        torch.cat([piece.cross_attentions[0] for piece in pieces], dim=1), whole.cross_attentions[0]
    )
    torch.testing.assert_close(cache.hidden_state, whole.cache.hidden_state)
    torch.testing.assert_close(cache.cell_state, whole.cache.cell_state)
    assert cache.get_seq_length() == 5


def test_regions_are_projected_once_a_caption() -> None:
    model, calls = attentive_model(), []
    for module in (model.image_projection, model.decoder.attention.key):
        module.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape[:2]))
    model.generate(encoder_outputs=regions_of(4), num_beams=3)
    assert calls == [(4, REGIONS)] * 2, "once a photo, whatever the number of beams and words"


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model, labels, regions = model_of(2), tiny_labels([3, 6, 4]), regions_of(3)
    whole = model(encoder_outputs=regions, labels=labels)
    words = losses = 0
    for row, length in enumerate([3, 6, 4]):
        alone = model(encoder_outputs=regions[row : row + 1], labels=labels[row : row + 1, :length])
        torch.testing.assert_close(whole.logits[row : row + 1, :length], alone.logits)
        losses, words = losses + alone.loss * length, words + length
    torch.testing.assert_close(whole.loss, losses / words)
    wider = torch.cat([labels, torch.full((3, 4), -100)], dim=1)
    torch.testing.assert_close(model(encoder_outputs=regions, labels=wider).loss, whole.loss)


def test_padding_changes_nothing_in_the_regularisation() -> None:
    model = attentive_model(attention_regularisation=2.0).train()
    labels = tiny_labels(LENGTHS)
    expected = model(encoder_outputs=regions_of(), labels=labels).loss
    wider = torch.cat([labels, torch.full((4, 3), -100)], dim=1)
    torch.testing.assert_close(model(encoder_outputs=regions_of(), labels=wider).loss, expected)


def test_several_captions_of_a_photo_share_its_regions_and_cost_what_they_cost_apart() -> None:
    model = attentive_model(attention_regularisation=0.5).train()
    regions, labels = regions_of(2), tiny_labels([3, 6, 2, 5]).unflatten(0, (2, 2))
    labels[1, 1] = -100  # a photo with fewer captions
    apart = model(encoder_outputs=regions.repeat_interleave(2, dim=0), labels=labels.flatten(0, 1))
    for together in (
        model(encoder_outputs=regions, labels=labels),
        model(encoder_outputs=regions, labels=labels.flatten(0, 1)),
    ):
        torch.testing.assert_close(together.logits, apart.logits)
        torch.testing.assert_close(together.loss, apart.loss)
        assert together.image_features.shape == regions.shape
    without = model(encoder_outputs=regions.repeat_interleave(2, dim=0)[:3], labels=labels.flatten(0, 1)[:3])
    torch.testing.assert_close(apart.loss, without.loss)


def test_two_captions_of_a_photo_share_a_pass_of_the_backbone() -> None:
    model, batches = attentive_model(), []
    model.encoder.backbone.register_forward_hook(
        lambda module, args, kwargs, output: batches.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    result = model(pixel_values=tiny_pixels(2), labels=tiny_labels(LENGTHS).unflatten(0, (2, 2)))
    assert batches == [2]
    assert result.logits.shape == (4, 6, 27)


# Learning


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("factor", [0.0, 0.7])
def test_training_follows_plain_pytorch(factor: float, layers: int) -> None:
    model = attentive_model(
        seed=3, num_hidden_layers=layers, initializer_range=0.8, attention_regularisation=factor
    ).train()
    plain = PlainCaptioner(model)
    ours = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    start = copy.deepcopy(model.state_dict())
    for step in range(3):
        regions, labels = regions_of(4, seed=step), tiny_labels(LENGTHS, seed=step)
        loss, expected = model(encoder_outputs=regions, labels=labels).loss, plain.loss(regions, labels, factor)
        torch.testing.assert_close(loss, expected)
        for optimizer, value in ((ours, loss), (theirs, expected)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for name in plain.names:
        torch.testing.assert_close(model.get_parameter(name), plain.weight(name), rtol=1e-4, atol=1e-5)
        assert not torch.equal(model.get_parameter(name), start[name]), f"{name} did not learn"


def test_regularisation_is_a_matter_of_training_only() -> None:
    regular, plain = attentive_model(attention_regularisation=3.0), attentive_model()
    inputs = {"encoder_outputs": regions_of(), "labels": tiny_labels(LENGTHS)}
    assert torch.equal(regular(**inputs).loss, plain(**inputs).loss)
    assert regular.train()(**inputs).loss > plain.train()(**inputs).loss


def test_regularisation_spreads_the_looks() -> None:
    def unevenness(factor: float) -> float:
        model = attentive_model(attention_regularisation=factor).train()
        optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.02)
        inputs = {"encoder_outputs": regions_of(), "labels": tiny_labels([5, 5, 5, 5])}
        for _ in range(30):
            optimizer.zero_grad()
            model(**inputs).loss.backward()
            optimizer.step()
        looks = model.eval()(**inputs, output_attentions=True).cross_attentions[0].sum(dim=1)
        return (1 - looks).square().sum(dim=-1).mean().item()

    assert unevenness(2.0) < 0.5 * unevenness(0.0)


@pytest.mark.parametrize("factor", [0.0, 0.7])
def test_losses_of_parts_of_a_batch_add_up(factor: float) -> None:
    model, regions, labels = (
        attentive_model(attention_regularisation=factor).train(),
        regions_of(),
        tiny_labels(LENGTHS),
    )
    whole = model(encoder_outputs=regions, labels=labels).loss
    parts = [
        model(encoder_outputs=regions[part], labels=labels[part], num_items_in_batch=number).loss
        for part, number in ((slice(0, 1), torch.tensor(16)), (slice(1, 4), 16))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_gradient_accumulation_in_trainer_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    from test_plain_trainer import LABELS, SETTINGS
    from transformers import Trainer, TrainingArguments

    samples = [{"encoder_outputs": r, "labels": c} for r, c in zip(regions_of(16), LABELS, strict=True)]

    def trained(batch_size: int, steps: int) -> dict[str, torch.Tensor]:
        # Far from saturation, where a step multiplies the rounding errors of the one before.
        model = attentive_model(initializer_range=0.3, attention_regularisation=0.3)
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
        Trainer(model, TrainingArguments(str(tmp_path), **sizes, **SETTINGS), train_dataset=samples).train()
        return model.state_dict()

    at_once, in_parts, start = trained(8, 1), trained(2, 4), attentive_model(initializer_range=0.3).state_dict()
    assert (at_once["decoder.attention.key.weight"] - start["decoder.attention.key.weight"]).abs().max() > 0.001
    for name, tensor in at_once.items():
        torch.testing.assert_close(in_parts[name], tensor, rtol=0, atol=2e-6)


def test_a_frozen_backbone_stays_and_an_unfrozen_one_learns_through_its_regions() -> None:
    for frozen in (True, False):
        model = attentive_model(freeze_backbone=frozen).train()
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
        for step in range(2):
            model(pixel_values=tiny_pixels(4, seed=step), labels=tiny_labels(LENGTHS)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        of_backbone = {name for name in before if name.startswith("encoder.")}
        assert moved & of_backbone == (set() if frozen else of_backbone)
        assert {"decoder.attention.query.weight", "decoder.attention.gate.weight"} <= moved


def test_attention_tells_what_a_pooled_feature_cannot() -> None:
    """Four regions, each of a place and a kind: the caption names the kinds in the order of the places.

    The mean of the regions has the same kinds and the same places whatever kind is where.
    """

    def batch(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        kinds = torch.stack([torch.randperm(6, generator=generator)[:4] for _ in range(number)])
        places = torch.eye(4).expand(number, 4, 4)
        regions = torch.cat([places, torch.eye(6)[kinds]], dim=-1) * 3
        return regions, F.pad(kinds + 4, (0, 1), value=2)

    shares = {}
    for attention in (None, "soft"):
        model = tiny_model(
            attention=attention, vocab_size=10, hidden_size=24, embedding_size=16, initializer_range=0.3
        )
        model.set_feature_statistics(torch.zeros(10), torch.ones(10))
        optimizer = torch.optim.Adam(
            [weight for weight in model.train().parameters() if weight.requires_grad], lr=0.01
        )
        for step in range(400):
            regions, labels = batch(32, seed=step)
            optimizer.zero_grad()
            model(encoder_outputs=regions if attention else regions.mean(dim=1), labels=labels).loss.backward()
            optimizer.step()
        regions, labels = batch(100, seed=10_000)
        found = model.eval().generate(
            encoder_outputs=regions if attention else regions.mean(dim=1),
            num_beams=1,
            min_new_tokens=5,
            max_new_tokens=5,
        )
        shares[attention] = (found[:, 1:5] == labels[:, :4]).float().mean().item()
    assert shares["soft"] > 0.95
    assert shares[None] < 0.5


def test_dropout_makes_training_random_and_evaluation_not() -> None:
    model = attentive_model(dropout=0.5, num_hidden_layers=2)
    inputs = {"encoder_outputs": regions_of(), "labels": tiny_labels(LENGTHS)}
    assert torch.equal(model(**inputs).loss, model(**inputs).loss)
    model.train()
    assert not torch.equal(model(**inputs).loss, model(**inputs).loss)


# Decoding


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("width", "length_penalty"), [(2, 1.0), (3, 0.0), (3, 0.7), (5, 1.0)])
def test_a_beam_finds_what_a_plain_beam_finds(width: int, length_penalty: float, layers: int) -> None:
    model = attentive_model(num_hidden_layers=layers, seed=79 if layers == 1 else 7)
    regions = regions_of(4)
    found = model.generate(
        encoder_outputs=regions,
        num_beams=width,
        length_penalty=length_penalty,
        max_new_tokens=9,
        output_scores=True,
        return_dict_in_generate=True,
    )
    expected = [beam_by_hand(model, photo, width, length_penalty, max_words=9) for photo in regions]
    assert [words_of(row) for row in found.sequences] == [words for words, _ in expected]
    torch.testing.assert_close(found.sequences_scores, torch.tensor([score for _, score in expected]))
    assert len({tuple(words) for words, _ in expected}) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 3, "decoder_input_ids": torch.tensor([[1, 5, 6], [1, 9, 10], [1, 5, 7], [1, 20, 21]])},
    ],
    ids=["greedy", "beam", "several", "prefix"],
)
def test_decoding_without_a_cache_gives_the_same(settings: dict[str, Any]) -> None:
    model = attentive_model()
    settings = {"encoder_outputs": regions_of(), "output_scores": True, "return_dict_in_generate": True, **settings}
    cached, uncached = model.generate(**settings), model.generate(use_cache=False, **settings)
    assert torch.equal(cached.sequences, uncached.sequences)
    for ours, theirs in zip(cached.scores, uncached.scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "do_sample": True}])
@torch.no_grad()
def test_samples_and_beams_score_what_they_say(settings: dict[str, Any]) -> None:
    model, regions = attentive_model(), regions_of()
    torch.manual_seed(0)
    found = model.generate(
        encoder_outputs=regions,
        **{"do_sample": settings["num_beams"] == 1, **settings},
        num_return_sequences=3,
        suppress_tokens=None,
        top_k=0,
        max_new_tokens=6,
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    transitions = model.compute_transition_scores(
        found.sequences, found.scores, found.get("beam_indices"), normalize_logits=settings["num_beams"] == 1
    )
    words = found.sequences[:, 1:]
    after_eos = (words == 2).cumsum(dim=1) - (words == 2).int() > 0
    log_p = model(encoder_outputs=regions, decoder_input_ids=found.sequences[:, :-1]).logits.log_softmax(dim=-1)
    expected = log_p.gather(2, words[..., None]).squeeze(2).masked_fill(after_eos, 0.0).sum(dim=1)
    width = transitions.shape[1]
    torch.testing.assert_close(transitions.masked_fill(after_eos[:, :width], 0.0).sum(dim=1), expected)


@pytest.mark.parametrize("width", [1, 3])
def test_a_batch_gives_what_single_photos_give(width: int) -> None:
    model, pixel_values = attentive_model(), tiny_pixels(5)
    together = model.generate(pixel_values=pixel_values, num_beams=width)
    for row, photo in zip(together, pixel_values, strict=True):
        alone = model.generate(pixel_values=photo[None], num_beams=width)[0]
        assert torch.equal(row[: len(alone)], alone)
        assert set(row[len(alone) :].tolist()) <= {0, 2}


def test_the_backbone_runs_once_whatever_the_beam() -> None:
    model, batches = attentive_model(), []
    model.encoder.backbone.register_forward_hook(
        lambda module, args, kwargs, output: batches.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    assert len(model.generate(pixel_values=tiny_pixels(2), num_beams=4, num_return_sequences=2)) == 4
    assert batches == [2]


def test_generate_shows_where_it_looked() -> None:
    model, regions = attentive_model(), regions_of()
    found = model.generate(
        encoder_outputs=regions, num_beams=1, output_attentions=True, return_dict_in_generate=True, max_new_tokens=6
    )
    looks = torch.cat([step[0] for step in found.cross_attentions], dim=1)
    with torch.no_grad():
        again = model(encoder_outputs=regions, decoder_input_ids=found.sequences[:, :-1], output_attentions=True)
    torch.testing.assert_close(looks, again.cross_attentions[0])
    found = model.generate(
        encoder_outputs=regions, num_beams=3, output_attentions=True, return_dict_in_generate=True, max_new_tokens=6
    )
    assert {step[0].shape for step in found.cross_attentions} == {(12, 1, REGIONS)}


def test_image_features_may_stand_for_photos() -> None:
    model, pixel_values = attentive_model(), tiny_pixels(3)
    features = model.get_image_features(pixel_values)
    assert features.shape == (3, 16, 10)
    expected = model.generate(pixel_values=pixel_values)
    for form in (features, (features,), [features], {"last_hidden_state": features}, model.encoder(pixel_values)):
        assert torch.equal(model.generate(encoder_outputs=form), expected)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 10), torch.zeros(3, 5, 9), torch.zeros(3, 0, 10), (), "x"])
def test_other_things_than_regions_are_refused(wrong: Any) -> None:
    for call in (attentive_model().generate, attentive_model().forward):
        with pytest.raises(ValueError, match=r"must be features of shape \(batch_size, num_regions, 10\), got"):
            call(encoder_outputs=wrong, decoder_input_ids=torch.ones(3, 1, dtype=torch.long))


def test_what_does_not_fit_is_refused() -> None:
    model = attentive_model()
    with pytest.raises(ValueError, match="3 captions do not fit 2 images"):
        model(encoder_outputs=regions_of(2), decoder_input_ids=WORDS)
    with torch.no_grad():
        cache = tiny_model()(pixel_values=tiny_pixels(3), decoder_input_ids=WORDS).cache
    with pytest.raises(ValueError, match="holds no regions"):
        model(decoder_input_ids=WORDS[:, :1], cache=cache)


@torch.no_grad()
def test_a_cache_reorders_repeats_selects_and_forgets() -> None:
    """Whatever becomes of the rows, each goes on as its caption alone would."""
    model, regions = attentive_model(), regions_of(3)

    def check(cache: NICCache, rows: list[int]) -> None:
        """`rows`: the caption that each row of the cache has read."""
        found = model(decoder_input_ids=torch.full((len(rows), 1), 9), cache=copy.copy(cache)).logits
        for row, caption in enumerate(rows):
            words = torch.cat([WORDS[caption : caption + 1], torch.tensor([[9]])], dim=1)
            alone = model(encoder_outputs=regions[caption : caption + 1], decoder_input_ids=words).logits[:, -1]
            torch.testing.assert_close(found[row], alone)

    cache = model(encoder_outputs=regions, decoder_input_ids=WORDS).cache
    check(cache, [0, 1, 2])
    kept = cache.regions
    cache.batch_repeat_interleave(2)
    check(cache, [0, 0, 1, 1, 2, 2])
    cache.reorder_cache(torch.tensor([1, 0, 3, 3, 4, 5]))  # as beams of one photo change places
    assert cache.regions is kept
    check(cache, [0, 0, 1, 1, 2, 2])
    cache.batch_select_indices(torch.tensor([0, 2, 5]))
    assert cache.regions is kept
    check(cache, [0, 1, 2])
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    check(cache, [2, 0, 0])
    cache.batch_select_indices(torch.tensor([1]))
    check(cache, [0])
    cache.reset()
    assert cache.regions is None
    cache.reorder_cache(torch.tensor([0]))  # before the photo is read there is nothing to reorder


def test_regions_of_other_photos_are_not_taken() -> None:
    regions = NICRegions(torch.arange(6.0).view(2, 3, 1), torch.arange(6.0).view(2, 3, 1) + 10)
    moved = regions.select(torch.tensor([3, 0, 1]), num_captions=4)
    assert moved.features[:, 0, 0].tolist() == [3.0, 0.0, 0.0]
    assert moved.keys[:, 0, 0].tolist() == [13.0, 10.0, 10.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_decode_and_learn(dtype: torch.dtype) -> None:
    half = attentive_model().to(dtype)
    assert half.generate(pixel_values=tiny_pixels(2)).shape[0] == 2
    assert half(pixel_values=tiny_pixels(4), labels=tiny_labels(LENGTHS)).loss.dtype == torch.float32
    with torch.autocast("cpu", dtype):
        model = attentive_model(attention_regularisation=1.0).train()
        model(pixel_values=tiny_pixels(4), labels=tiny_labels(LENGTHS)).loss.backward()
        assert model.eval().generate(pixel_values=tiny_pixels(2)).shape[0] == 2


# Compiling


@torch.no_grad()
def test_a_compiled_forward_gives_the_same_loss_and_scores() -> None:
    torch._dynamo.reset()
    model, labels = attentive_model(num_hidden_layers=2), tiny_labels([3, 5, 4, 6])
    expected = model(encoder_outputs=regions_of(), labels=labels)
    found = torch.compile(model, backend="aot_eager")(encoder_outputs=regions_of(), labels=labels)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
    torch._dynamo.reset()


@pytest.mark.parametrize("width", [1, 3])
def test_the_decoding_step_is_compiled_once_and_not_once_a_word(width: int) -> None:
    torch._dynamo.reset()
    compiled = torch._dynamo.testing.CompileCounter()
    model = attentive_model()
    settings = {"pixel_values": tiny_pixels(), "num_beams": width}
    expected = model.generate(**settings, min_new_tokens=15, max_new_tokens=15)
    model.forward = torch.compile(model.forward, backend=compiled, dynamic=True)
    model.generate(**settings, min_new_tokens=3, max_new_tokens=3)
    after_three_words = compiled.frame_count
    assert torch.equal(model.generate(**settings, min_new_tokens=15, max_new_tokens=15), expected)
    assert 0 < compiled.frame_count <= after_three_words + 1
    torch._dynamo.reset()


# Checkpoints


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_a_loaded_model_is_the_saved_one(layers: int, tmp_path: Path) -> None:
    model = attentive_model(num_hidden_layers=layers)
    model.set_feature_statistics(torch.linspace(-1, 1, 10), torch.linspace(0.5, 2, 10))
    model.save_pretrained(tmp_path, max_shard_size="4KB" if layers == 2 else "1GB")
    torch.manual_seed(123)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.generate(pixel_values=tiny_pixels()), model.generate(pixel_values=tiny_pixels()))
    words = {"pixel_values": tiny_pixels(3), "decoder_input_ids": WORDS}
    assert torch.equal(loaded(**words).logits, model(**words).logits)


def test_weights_start_as_the_others_do() -> None:
    model = attentive_model(initializer_range=0.08)
    for name in ("key.weight", "query.weight", "score.weight", "gate.weight"):
        weight = model.get_parameter(f"decoder.attention.{name}")
        assert 0.04 < weight.abs().max() <= 0.08, name
    bias = model.decoder.lstm.bias_ih_l0 + model.decoder.lstm.bias_hh_l0
    assert torch.equal(bias.view(4, 9), torch.tensor([0.0, 1.0, 0.0, 0.0]).view(4, 1).expand(4, 9))


SCRIPT = """
import sys
sys.modules["nic_hf"] = None  # any import of it fails
import json
from pathlib import Path
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
remote = {"trust_remote_code": True}
photos = sorted(str(path) for path in Path("photos").iterdir())
for folder, copy in (("checkpoint", "copy"), ("copy", "second-copy")):
    model = AutoModelForImageTextToText.from_pretrained(folder, **remote)
    processor = AutoProcessor.from_pretrained(folder, **remote)
    ids = model.generate(**processor(images=photos, return_tensors="pt"))
    model.save_pretrained(copy)
    processor.save_pretrained(copy)
answers = pipeline("image-to-text", model=folder, **remote)(photos)
Path("captions.json").write_text(json.dumps([
    processor.batch_decode(ids, skip_special_tokens=True),
    [answer[0]["generated_text"] for answer in answers],
]))
"""


def test_a_checkpoint_works_where_nic_hf_is_not_installed(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "checkpoint", attention="soft", seed=79)
    assert (tmp_path / "checkpoint" / "layers_nic.py").is_file()
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(tiny_photos(3)):
        photo.save(tmp_path / "photos" / f"{number}.png")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert run.returncode == 0, run.stderr
    ids = model.generate(**tiny_processor()(images=tiny_photos(3), return_tensors="pt"))
    captions = tiny_processor().batch_decode(ids, skip_special_tokens=True)
    assert len(set(captions)) > 1
    assert json.loads((tmp_path / "captions.json").read_text()) == [captions, captions]


# Backbones

# Tokens of each that stand for no patch; CNNs and those that have none are left out.
EXTRA_TOKENS = {"vit": 1, "dinov2": 1, "clip_vision_model": 1}


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_regions_of_a_backbone_are_its_places_or_patches(name: str, tmp_path: Path) -> None:
    bare = save_random(BACKBONES[name](), tmp_path / "backbone")
    pixel_values = tiny_pixels(3, size=64) if name in ("resnet", "convnext", "mobilenet_v2") else tiny_pixels(3)
    hidden_state = bare(pixel_values).last_hidden_state
    if hidden_state.ndim == 4:
        expected = torch.stack(
            [
                hidden_state[:, :, y, x]
                for y, x in torch.cartesian_prod(
                    torch.arange(hidden_state.shape[2]), torch.arange(hidden_state.shape[3])
                ).tolist()
            ],
            dim=1,
        )
    else:
        expected = hidden_state[:, EXTRA_TOKENS.get(name, 0) :]

    for source in (tmp_path / "backbone", bare):
        model = captioner(source, attention="soft")
        features = model.get_image_features(pixel_values)
        torch.testing.assert_close(features, expected)
        assert features.shape[2] == model.config.feature_size
        side = features.shape[1] ** 0.5
        assert side == int(side), "not a grid"
    labels = tiny_labels([4, 6, 2], vocab_size=30)
    outputs = model(pixel_values=pixel_values, labels=labels)
    captions = model.generate(pixel_values=pixel_values, num_beams=2, max_new_tokens=5)
    model.save_pretrained(tmp_path / "captioner")
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path / "captioner")
    again = loaded(pixel_values=pixel_values, labels=labels)
    torch.testing.assert_close(again.logits, outputs.logits, rtol=0, atol=0)
    assert torch.equal(loaded.generate(pixel_values=pixel_values, num_beams=2, max_new_tokens=5), captions)


@pytest.mark.parametrize("name", ["resnet", "vit", "swin"])
def test_every_weight_of_an_unfrozen_backbone_learns_through_its_regions(name: str, tmp_path: Path) -> None:
    save_random(BACKBONES[name](), tmp_path)
    model = captioner(tmp_path, freeze_backbone=False, attention="soft").train()
    model(pixel_values=tiny_pixels(3), labels=tiny_labels([3, 4, 5], vocab_size=30)).loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None and "mask_token" not in name]
    assert without == [], "a pooling layer that nothing reads would stop distributed training"

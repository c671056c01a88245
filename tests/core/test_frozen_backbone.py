"""Frozen means frozen: no gradient, no BatchNorm update, no dropout."""

import copy

import pytest
import torch
from tiny import tiny_labels, tiny_model, tiny_pixels

from nic_hf import NICForConditionalGeneration


def train_some_steps(model: NICForConditionalGeneration) -> None:
    """As Trainer does, in train mode at every step, and with weight decay, which moves weights by itself."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    for step in range(3):
        model.train()
        model(pixel_values=tiny_pixels(4, seed=step), labels=tiny_labels([3, 4, 5, 2], seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()


def moved(model: NICForConditionalGeneration, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_a_frozen_backbone_does_not_move() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    train_some_steps(model)
    changed = moved(model, before)
    assert not {name for name in changed if name.startswith("encoder.")}
    assert {"lm_head.weight", "decoder.embed_tokens.weight", "decoder.lstm.weight_hh_l0"} <= changed
    assert not {"image_projection.mean", "image_projection.std"} & changed
    assert all(weight.grad is None for weight in model.encoder.parameters())


def test_an_unfrozen_backbone_moves_weights_and_batchnorm_statistics() -> None:
    model = tiny_model(freeze_backbone=False)
    before = copy.deepcopy(model.state_dict())
    train_some_steps(model)
    changed = {name for name in moved(model, before) if name.startswith("encoder.")}
    assert changed == {name for name in before if name.startswith("encoder.")}


def test_a_frozen_backbone_stays_in_eval_mode() -> None:
    model = tiny_model(dropout=0.5)
    model.train()
    assert model.training
    assert model.decoder.dropout.training
    assert not any(module.training for module in model.encoder.backbone.modules())
    pixel_values = tiny_pixels()
    expected = model.eval().get_image_features(pixel_values)
    assert torch.equal(model.train().get_image_features(pixel_values), expected)


def test_a_backbone_thaws_and_freezes() -> None:
    model = tiny_model().train()
    model.set_backbone_frozen(False)
    assert not model.config.freeze_backbone
    assert all(module.training for module in model.encoder.modules())
    before = copy.deepcopy(model.state_dict())
    train_some_steps(model)
    assert any(name.startswith("encoder.") for name in moved(model, before))

    model.train()
    model.set_backbone_frozen(True)
    assert model.config.freeze_backbone
    assert not any(module.training for module in model.encoder.backbone.modules())
    before = copy.deepcopy(model.state_dict())
    model.zero_grad()
    train_some_steps(model)
    assert not any(name.startswith("encoder.") for name in moved(model, before))


def test_thawing_in_eval_mode_leaves_eval_mode() -> None:
    model = tiny_model()
    model.set_backbone_frozen(False)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("frozen", [True, False])
def test_word_embeddings_are_frozen_where_asked(frozen: bool) -> None:
    model = tiny_model(freeze_word_embeddings=frozen)
    before = copy.deepcopy(model.state_dict())
    train_some_steps(model)
    assert ("decoder.embed_tokens.weight" in moved(model, before)) is not frozen
    assert "lm_head.weight" in moved(model, before)

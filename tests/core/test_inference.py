"""`optimize_for_inference`: the same features and captions, sooner."""

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from subset import real_backbone
from test_backbones import BACKBONES, save_random
from tiny import tiny_labels, tiny_model, tiny_pixels
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nic_hf import NICConfig, NICForConditionalGeneration
from nic_hf.data import load_captions
from nic_hf.layers_nic import NICEncoder
from nic_hf.model.encoder import faster_encoder, skip_neutral_gates
from nic_hf.model.processor import load_image_processor
from nic_hf.training.fine_tuning import thaw_backbone


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("extra", [{}, {"attention": "soft"}], ids=["pooled", "regions"])
def test_every_backbone_gives_the_same_features(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    save_random(BACKBONES[name](), tmp_path)
    sizes = {"vocab_size": 20, "embedding_size": 6, "hidden_size": 8}
    model = NICForConditionalGeneration.from_backbone_pretrained(tmp_path, **sizes, **extra).eval()
    for module in model.encoder.modules():  # as after training; new ones would hardly show what is folded
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.bias)
    expected = model.get_image_features(tiny_pixels())
    before = norms(model)
    model.optimize_for_inference()
    torch.testing.assert_close(model.get_image_features(tiny_pixels()), expected, rtol=1e-3, atol=1e-4)
    assert (
        norms(model) == 0 or norms(model) < before / 4
    )  # one or two of MobileViT and EfficientNet follow no convolution


@pytest.mark.parametrize("extra", [{}, {"feature_layers": "all"}, {"attention": "soft"}], ids=str)
def test_real_photos_get_the_captions_they_had(extra: dict[str, Any], test_data: Path, flickr8k: Path) -> None:
    backbone = real_backbone(test_data)
    sizes = {"vocab_size": 60, "embedding_size": 16, "hidden_size": 24, "initializer_range": 0.5}
    torch.manual_seed(0)
    model = NICForConditionalGeneration.from_backbone_pretrained(backbone, **sizes, **extra).eval()
    photos: Dataset = load_captions(flickr8k, "dev").select(range(6))
    pixels = load_image_processor(backbone)(list(photos["image"]), return_tensors="pt")["pixel_values"]
    features, captions = model.get_image_features(pixels), model.generate(pixel_values=pixels, num_beams=3)
    assert len(set(map(tuple, captions.tolist()))) > 1
    assert model.optimize_for_inference() is model
    assert norms(model) == 0
    torch.testing.assert_close(model.get_image_features(pixels), features, rtol=1e-3, atol=1e-4)
    assert torch.equal(model.generate(pixel_values=pixels, num_beams=3), captions)


def test_it_can_be_neither_saved_nor_trained_and_the_original_is_as_it_was(tmp_path: Path) -> None:
    original = tiny_model()
    state = copy.deepcopy(original.state_dict())
    encoder = faster_encoder(original.encoder)
    assert original.state_dict().keys() == state.keys()
    assert all(torch.equal(original.state_dict()[name], state[name]) for name in state)
    with pytest.raises(ValueError, match="cannot be trained"):
        encoder.set_frozen(False)
    model = copy.deepcopy(original).optimize_for_inference()
    with pytest.raises(ValueError, match="cannot be saved"):
        model.save_pretrained(tmp_path / "fast")
    assert not (tmp_path / "fast").exists()
    with pytest.raises(ValueError, match="cannot be trained"):
        model.set_backbone_frozen(False)
    original.save_pretrained(tmp_path / "plain")


class TwoReaders(nn.Module):
    """A backbone in which BatchNorm is not the only one to read the convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=32)
        self.dtype = torch.float32
        self.convolution, self.norm, self.activation = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        maps = self.convolution(pixel_values)
        pooled = (self.activation(self.norm(maps)) + maps).mean((2, 3))
        return BaseModelOutputWithPooling(pooler_output=pooled)


def test_a_backbone_that_cannot_be_folded_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    encoder: NICEncoder = tiny_model().encoder
    encoder.backbone = TwoReaders()  # type: ignore[assignment]
    nn.init.normal_(encoder.backbone.norm.running_mean)
    encoder.eval()
    expected = encoder(tiny_pixels()).last_hidden_state
    with caplog.at_level(logging.WARNING):
        faster = faster_encoder(encoder)
    assert "cannot be folded" in caplog.text and norms(faster) == 1
    torch.testing.assert_close(faster(tiny_pixels()).last_hidden_state, expected)


def test_bfloat16_is_used_or_said_not_to_be(caplog: pytest.LogCaptureFixture) -> None:
    capabilities = torch.cpu.get_capabilities()
    model = tiny_model()
    expected = model.get_image_features(tiny_pixels())
    with caplog.at_level(logging.WARNING):
        model.optimize_for_inference(torch.bfloat16)
    dtype = model.encoder.backbone.dtype
    if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")):
        assert dtype == torch.bfloat16
    else:
        assert dtype == torch.float32 and "no instructions for bfloat16" in caplog.text
    features = model.get_image_features(tiny_pixels())
    torch.testing.assert_close(features.float(), expected, rtol=0.05, atol=0.05)
    assert model.lm_head.weight.dtype == torch.float32
    model.generate(pixel_values=tiny_pixels())


def gated_model(**kwargs: Any) -> NICForConditionalGeneration:
    """A captioner with a small EfficientNet, all of whose gates but the last multiply by one."""
    config = NICConfig(
        backbone_config=BACKBONES["efficientnet"](), vocab_size=50, embedding_size=6, hidden_size=8, **kwargs
    )
    torch.manual_seed(0)
    model = NICForConditionalGeneration(config).eval()
    gates = [module for module in model.encoder.modules() if hasattr(module, "act_expand")]
    for gate in gates[:-1]:
        nn.init.zeros_(gate.expand.weight)
        nn.init.constant_(gate.expand.bias, 40.0)
    return model


def test_gates_that_multiply_by_one_are_skipped_and_others_are_not() -> None:
    model = gated_model()
    number = sum(hasattr(module, "act_expand") for module in model.encoder.modules())
    expected = model.get_image_features(tiny_pixels())
    assert skip_neutral_gates(model.encoder) == number - 1 > 2
    calls: list[nn.Module] = []
    for module in model.encoder.modules():
        if isinstance(module, nn.Sigmoid):
            module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    assert torch.equal(model.get_image_features(tiny_pixels()), expected) and len(calls) == 1


def test_gates_that_multiply_by_one_stay_so_in_training_and_in_the_checkpoint(tmp_path: Path) -> None:
    model = gated_model(freeze_batch_norm=True)
    before = {name: weight.clone() for name, weight in model.state_dict().items() if ".squeeze_excite." in name}
    backbone = sum(weight.numel() for weight in model.encoder.backbone.parameters())
    number = thaw_backbone(model)
    *neutral, last = sorted({name.rpartition(".squeeze_excite.")[0] for name in before})
    assert number == backbone - sum(w.numel() for name, w in before.items() if not name.startswith(last))
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=0.1, weight_decay=0.5)
    model.train()
    for _ in range(3):
        model(pixel_values=tiny_pixels(2), labels=tiny_labels([3, 4])).loss.backward()
        optimizer.step()
    after = model.state_dict()
    changed = {name.rpartition(".squeeze_excite.")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {last} and neutral
    model.eval().save_pretrained(tmp_path)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.get_image_features(tiny_pixels()), model.get_image_features(tiny_pixels()))

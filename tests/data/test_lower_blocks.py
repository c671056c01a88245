"""Fine-tuning from what the frozen blocks gave: the same features and gradients as from the photos."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from subset import real_backbone
from tiny import tiny_model, tiny_pixels
from transformers import ViTConfig

from nic_hf import NICForConditionalGeneration
from nic_hf.data import (
    FeatureTable,
    PhotoDataset,
    UpperEncoder,
    cache_features,
    load_captions,
    lower_blocks,
    split_encoder,
)
from nic_hf.model.processor import NICProcessor, load_image_processor
from nic_hf.tokenization import train_tokenizer
from nic_hf.training.fine_tuning import thaw_backbone

SIZES = {"embedding_size": 12, "hidden_size": 16, "freeze_batch_norm": True}


@pytest.fixture(scope="module")
def photos(flickr8k: Path) -> Dataset:
    return load_captions(flickr8k, "dev").select(range(5))


@pytest.fixture(scope="module")
def processor(photos: Dataset, test_data: Path) -> NICProcessor:
    words = train_tokenizer((caption for captions in photos["captions"] for caption in captions), min_frequency=1)
    return NICProcessor(load_image_processor(real_backbone(test_data)), words)


def captioner(test_data: Path, processor: NICProcessor, **settings: Any) -> NICForConditionalGeneration:
    torch.manual_seed(0)
    return NICForConditionalGeneration.from_backbone_pretrained(
        real_backbone(test_data), tokenizer=processor.tokenizer, **SIZES, **settings
    )


def gradients(model: NICForConditionalGeneration, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    labels = torch.arange(4, 10).expand(len(pixel_values), -1)
    model.zero_grad()
    model(pixel_values=pixel_values, labels=labels).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("settings", [{}, {"feature_layers": "all"}, {"attention": "soft"}], ids=str)
@pytest.mark.parametrize("trained", [r"layer\.2[2-5]", r"layer\.25\.normalization"])
def test_features_and_gradients_are_those_of_the_photos(
    trained: str,
    settings: dict[str, Any],
    test_data: Path,
    processor: NICProcessor,
    photos: Dataset,
    tmp_path: Path,
) -> None:
    model = captioner(test_data, processor, dropout=0.0, **settings)
    thaw_backbone(model, trained)
    model.train()
    pixels = torch.stack([PhotoDataset(photos, processor)[row]["pixel_values"] for row in range(len(photos))])
    expected, expected_gradients = model.get_image_features(pixels), gradients(model, pixels)
    names = list(model.state_dict())

    model.encoder = split_encoder(model.encoder, pixels.shape[1:])
    assert isinstance(model.encoder, UpperEncoder) and model.encoder.training
    assert list(model.encoder.lower)[-1] == ("layer.21" if "2[2" in trained else "layer.24")
    table = cache_features(
        model, processor, photos, tmp_path, lower_blocks=model.encoder.lower_blocks[0], dtype=torch.float16
    )
    kept = PhotoDataset(photos, processor, table)
    inputs = torch.stack([kept[row]["pixel_values"] for row in range(len(photos))])
    scale = expected.abs().max()
    assert (model.get_image_features(inputs) - expected).abs().max() < 3e-3 * scale
    found = gradients(model, inputs)
    assert found.keys() == expected_gradients.keys()
    assert any(name.startswith("encoder.") for name in found)
    for name, gradient in found.items():
        assert (gradient - expected_gradients[name]).norm() <= 0.03 * expected_gradients[name].norm() + 1e-7, name
    # Photos are taken too, and a checkpoint is the same.
    torch.testing.assert_close(model.get_image_features(pixels), expected)
    assert list(model.state_dict()) == names
    assert not model.encoder.backbone.get_submodule("layer.0").__dict__.get("forward")


def test_a_step_of_training_moves_what_it_should(test_data: Path, processor: NICProcessor) -> None:
    model = captioner(test_data, processor)
    thaw_backbone(model, r"layer\.2[45]")
    model.encoder = split_encoder(model.encoder, (3, 224, 224))
    before = copy.deepcopy(model.encoder.state_dict())
    inputs = model.encoder.lower_blocks[0](torch.randn(2, 3, 224, 224)).last_hidden_state[:, 0].detach()
    gradients(model.train(), inputs)
    torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0).step()
    moved = {name for name, tensor in model.encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all("layer.24." in name or "layer.25." in name for name in moved)
    assert not any("running" in name for name in moved)


def test_a_vision_transformer_is_split_too() -> None:
    backbone = ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = tiny_model(backbone_config=backbone, use_backbone_pooler=False, freeze_batch_norm=True)
    thaw_backbone(model, r"layers?\.3\.|^layernorm")
    expected = model.get_image_features(tiny_pixels())
    model.encoder = split_encoder(model.encoder)
    assert len(model.encoder.lower) >= 2
    inputs = model.encoder.lower_blocks[0](tiny_pixels()).last_hidden_state[:, 0]
    torch.testing.assert_close(model.get_image_features(inputs), expected, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_split_is_refused(test_data: Path, processor: NICProcessor, photos: Dataset) -> None:
    model = captioner(test_data, processor)
    thaw_backbone(model)
    with pytest.raises(ValueError, match="first blocks frozen"):
        split_encoder(model.encoder)
    thaw_backbone(model, "layer.25")
    model.encoder.freeze_batch_norm = False
    with pytest.raises(ValueError, match="freeze_batch_norm"):
        split_encoder(model.encoder)
    with pytest.raises(ValueError, match="is not frozen"):
        cache_features(model, processor, photos)
    assert FeatureTable([], 0).input_name == "encoder_outputs"


def test_a_gpu_that_is_full_is_not_taken_for_blocks_that_cannot_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(freeze_batch_norm=True)
    thaw_backbone(model, 0.1)

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lower_blocks.UpperEncoder, "__init__", full)
    with pytest.raises(torch.OutOfMemoryError):
        split_encoder(model.encoder)

"""Any Transformers vision model can be the backbone."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_labels, tiny_pixels
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    EfficientNetConfig,
    MobileNetV2Config,
    MobileViTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from nic_hf import NICForConditionalGeneration

TRANSFORMER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
CNN = {"hidden_sizes": [6, 8, 10, 12], "depths": [1, 1, 2, 1]}
BACKBONES: dict[str, Callable[[], PreTrainedConfig]] = {
    "mobilevit": lambda: MobileViTConfig(
        image_size=32,
        hidden_sizes=[12, 16, 20],
        neck_hidden_sizes=[8, 8, 16, 16, 32, 32, 24],
        num_attention_heads=4,
        output_stride=32,
    ),
    "mobilenet_v2": lambda: MobileNetV2Config(image_size=32, depth_multiplier=0.25, min_depth=8),
    "resnet": lambda: ResNetConfig(embedding_size=6, **CNN),
    "convnext": lambda: ConvNextConfig(**CNN),
    "efficientnet": lambda: EfficientNetConfig(
        image_size=32,
        width_coefficient=0.1,
        depth_coefficient=0.2,
        hidden_dim=128,
    ),
    "vit": lambda: ViTConfig(**TRANSFORMER),
    "dinov2": lambda: Dinov2Config(**TRANSFORMER),
    "swin": lambda: SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2
    ),
    "clip_vision_model": lambda: CLIPVisionConfig(**TRANSFORMER),
    "siglip_vision_model": lambda: SiglipVisionConfig(**TRANSFORMER),
}


def save_random(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    # Large enough for different photos to have different features.
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
    for name, buffer in model.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


def captioner(folder: Any, **changes: Any) -> NICForConditionalGeneration:
    torch.manual_seed(1)
    settings = {"vocab_size": 30, "embedding_size": 8, "hidden_size": 9, "initializer_range": 1.0, **changes}
    return NICForConditionalGeneration.from_backbone_pretrained(folder, **settings).eval()


def expected_feature(outputs: Any) -> torch.Tensor:
    if getattr(outputs, "pooler_output", None) is not None:
        return outputs.pooler_output.reshape(len(outputs.pooler_output), -1)
    return outputs.last_hidden_state.mean(dim=1)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_a_backbone_captions_learns_saves_and_loads(name: str, tmp_path: Path) -> None:
    bare = save_random(BACKBONES[name](), tmp_path / "backbone")
    model = captioner(tmp_path / "backbone")
    assert model.config.backbone_config.model_type == name
    pixel_values = tiny_pixels(3)

    feature = model.get_image_features(pixel_values)
    torch.testing.assert_close(feature, expected_feature(bare(pixel_values)))
    assert feature.shape == (3, model.config.feature_size)
    assert feature.std(dim=0).max() > 0, "all photos look the same to this backbone, so that the test shows nothing"

    labels = tiny_labels([4, 6, 2], vocab_size=30)
    outputs = model(pixel_values=pixel_values, labels=labels)
    assert outputs.logits.shape == (3, 6, 30)
    assert outputs.loss.isfinite()
    captions = model.generate(pixel_values=pixel_values, num_beams=2, max_new_tokens=5)
    assert captions.shape[0] == 3

    model.save_pretrained(tmp_path / "captioner")
    torch.manual_seed(2)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path / "captioner")
    again = loaded(pixel_values=pixel_values, labels=labels)
    torch.testing.assert_close(again.logits, outputs.logits, rtol=0, atol=0)
    assert torch.equal(loaded.generate(pixel_values=pixel_values, num_beams=2, max_new_tokens=5), captions)


@pytest.mark.parametrize("name", ["resnet", "vit", "swin"])
def test_an_unfrozen_backbone_learns_through_its_feature(name: str, tmp_path: Path) -> None:
    save_random(BACKBONES[name](), tmp_path)
    model = captioner(tmp_path, freeze_backbone=False).train()
    model(pixel_values=tiny_pixels(3), labels=tiny_labels([3, 4, 5], vocab_size=30)).loss.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())
    assert sum(weight.grad.abs().sum() for weight in model.encoder.parameters() if weight.grad is not None) > 0


@pytest.mark.parametrize(
    ("model_class", "config_class"), [(CLIPModel, CLIPConfig), (SiglipModel, SiglipConfig)], ids=["clip", "siglip"]
)
@torch.no_grad()
def test_a_two_tower_checkpoint_gives_its_image_half(
    model_class: type[PreTrainedModel], config_class: type[PreTrainedConfig], tmp_path: Path
) -> None:
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    both = model_class(config_class(text_config={**text, "vocab_size": 50}, vision_config=TRANSFORMER)).eval()
    both.save_pretrained(tmp_path)
    expected = both.vision_model(tiny_pixels(2)).pooler_output
    for source in (tmp_path, both):
        model = captioner(source)
        torch.testing.assert_close(model.get_image_features(tiny_pixels(2)), expected)
        assert not any("text" in name for name, _ in model.named_parameters())


@torch.no_grad()
def test_a_classifier_without_pooler_weights_gets_no_random_pooler(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = ViTForImageClassification(ViTConfig(**TRANSFORMER, num_labels=5)).eval()
    classifier.save_pretrained(tmp_path / "classifier")
    expected = classifier.vit(tiny_pixels(2)).last_hidden_state.mean(dim=1)
    for source in (tmp_path / "classifier", classifier):
        model = captioner(source)
        assert model.encoder.backbone.pooler is None
        torch.testing.assert_close(model.get_image_features(tiny_pixels(2)), expected, rtol=0, atol=0)

    model.save_pretrained(tmp_path / "captioner")
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path / "captioner")
    torch.testing.assert_close(loaded.get_image_features(tiny_pixels(2)), expected, rtol=0, atol=0)


@torch.no_grad()
def test_a_loaded_model_may_be_the_backbone_and_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    backbone = ViTModel(ViTConfig(**TRANSFORMER)).train()
    before = backbone.config.to_dict()
    model = captioner(backbone)
    expected = backbone.eval()(tiny_pixels(2)).pooler_output
    torch.testing.assert_close(model.get_image_features(tiny_pixels(2)), expected, rtol=0, atol=0)
    assert backbone.config.to_dict() == before
    assert all(weight.requires_grad for weight in backbone.parameters()), "freezing reached the user's own model"


@torch.no_grad()
def test_a_backbone_saved_in_half_precision_is_used_in_the_precision_of_the_captioner(tmp_path: Path) -> None:
    save_random(BACKBONES["resnet"](), tmp_path / "full").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    model = captioner(tmp_path / "half")
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    model.save_pretrained(tmp_path / "captioner")
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path / "captioner")
    assert {tensor.dtype for tensor in loaded.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    pixel_values = tiny_pixels(2)
    torch.testing.assert_close(
        loaded.get_image_features(pixel_values), model.get_image_features(pixel_values), rtol=0, atol=0
    )


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    bert = BertModel(config)
    bert.save_pretrained(tmp_path)
    for source in (tmp_path, bert):
        with pytest.raises(ValueError, match=r"type .bert. cannot be the backbone of a captioner.*`pixel_values`"):
            captioner(source)


def test_a_backbone_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    save_random(BACKBONES["resnet"](), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.endswith("convolution.weight"))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{tmp_path}.*lacks weights of ResNetModel.*{lost}"):
        captioner(tmp_path)


def test_a_backbone_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-backbone"):
        captioner(tmp_path / "no-such-backbone")


def test_loading_a_classifier_does_not_talk_of_weights_made_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ViTForImageClassification(ViTConfig(**TRANSFORMER, num_labels=5)).save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        captioner(tmp_path)
    assert caplog.text == ""


@torch.no_grad()
def test_features_of_the_real_mobilenet_v2_are_the_bare_models(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "backbones" / "mobilenet-v2"
    bare = AutoModel.from_pretrained(folder).eval()
    model = captioner(folder)
    pixel_values = tiny_pixels(2, size=224)
    expected = bare(pixel_values).pooler_output.flatten(1)
    assert expected.shape == (2, 1280)
    torch.testing.assert_close(model.get_image_features(pixel_values), expected, rtol=0, atol=0)

    model.save_pretrained(tmp_path)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.get_image_features(pixel_values), expected, rtol=0, atol=0)
    assert (tmp_path / "config.json").stat().st_size < 5000, "ImageNet's labels are in the captioner's config.json"

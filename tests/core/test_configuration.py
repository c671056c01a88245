"""NICConfig: what it refuses, and that nothing is lost on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config
from transformers import AutoConfig, CLIPConfig, CLIPVisionConfig, ViTConfig

from nic_hf import NICConfig, NICForConditionalGeneration


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("vocab_size", 0, "`vocab_size` must be a positive integer, got 0"),
        ("vocab_size", 12.5, "`vocab_size` must be a positive integer, got 12.5"),
        ("vocab_size", True, "`vocab_size` must be a positive integer, got True"),
        ("embedding_size", -1, "`embedding_size` must be a positive integer, got -1"),
        ("hidden_size", "512", "`hidden_size` must be a positive integer, got '512'"),
        ("num_hidden_layers", 0, "`num_hidden_layers` must be a positive integer, got 0"),
        ("feature_size", 0, "`feature_size` must be a positive integer, got 0"),
        ("dropout", 1.0, r"`dropout` must be a number in \[0, 1\), got 1.0"),
        ("dropout", "0.3", r"`dropout` must be a number in \[0, 1\), got '0.3'"),
        ("label_smoothing", -0.1, r"`label_smoothing` must be a number in \[0, 1\), got -0.1"),
        ("pad_token_id", 27, r"`pad_token_id` must be an id of the vocabulary, 0 to 26 .*, got 27"),
        ("unk_token_id", -1, r"`unk_token_id` must be an id of the vocabulary, 0 to 26 .*, got -1"),
        ("eos_token_id", None, r"`eos_token_id` must be an id of the vocabulary, 0 to 26 .*, got None"),
        ("bos_token_id", 2, "the special tokens need ids of their own"),
        ("backbone_config", {"image_size": 32}, "`backbone_config` needs a `model_type`"),
        ("backbone_config", "google/vit-base-patch16-224", "must be a configuration or a dict, got 'google/vit"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_name(name: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tiny_config(**{name: value})


def test_every_field_survives_a_round_trip_through_a_file(tmp_path: Path) -> None:
    changes = {
        "backbone_config": ViTConfig(hidden_size=16, num_attention_heads=2, image_size=64),
        "use_backbone_pooler": False,
        "feature_size": 16,
        "vocab_size": 99,
        "embedding_size": 5,
        "hidden_size": 6,
        "num_hidden_layers": 3,
        "dropout": 0.25,
        "label_smoothing": 0.125,
        "freeze_backbone": False,
        "freeze_word_embeddings": True,
        "initializer_range": 0.5,
        "forget_bias": 2.5,
        "pad_token_id": 9,
        "bos_token_id": 8,
        "eos_token_id": 7,
        "unk_token_id": 6,
    }
    NICConfig(**changes).save_pretrained(tmp_path)
    for loaded in (NICConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, NICConfig)
        assert loaded.decoder_start_token_id == 8
        backbone = loaded.backbone_config
        assert isinstance(backbone, ViTConfig)
        assert (backbone.hidden_size, backbone.num_attention_heads, backbone.image_size) == (16, 2, 64)
        del changes["backbone_config"]
        assert {name: getattr(loaded, name) for name in changes} == changes
        changes["backbone_config"] = backbone


def test_a_backbone_may_be_given_as_a_dict() -> None:
    given = {"model_type": "vit", "hidden_size": 24, "num_attention_heads": 2}
    config = tiny_config(backbone_config=given)
    assert isinstance(config.backbone_config, ViTConfig)
    assert config.backbone_config.hidden_size == 24
    assert given == {"model_type": "vit", "hidden_size": 24, "num_attention_heads": 2}, "the user's dict was changed"


def test_of_a_two_tower_configuration_the_image_half_is_taken() -> None:
    config = tiny_config(backbone_config=CLIPConfig(vision_config={"hidden_size": 48}))
    assert isinstance(config.backbone_config, CLIPVisionConfig)
    assert config.backbone_config.hidden_size == 48


def test_the_default_backbone_is_mobilenet_v2() -> None:
    assert NICConfig().backbone_config.model_type == "mobilenet_v2"


def test_fields_of_a_later_version_are_kept(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attention_over_regions": {"heads": 4}}))
    config = NICConfig.from_pretrained(tmp_path)
    assert config.attention_over_regions == {"heads": 4}
    assert NICForConditionalGeneration(config).config.to_dict()["attention_over_regions"] == {"heads": 4}


def test_special_tokens_may_have_any_ids() -> None:
    model = NICForConditionalGeneration(
        tiny_config(pad_token_id=20, bos_token_id=21, eos_token_id=22, unk_token_id=23)
    )
    generation = model.generation_config
    assert (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id) == (20, 21, 22)
    assert generation.decoder_start_token_id == 21
    assert generation.suppress_tokens == [20, 21, 23]

"""Features of several layers of the backbone side by side."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_labels, tiny_pixels
from transformers import PreTrainedConfig, ResNetConfig, ViTConfig

from nic_hf import NICConfig, NICForConditionalGeneration
from nic_hf.decoding.ensemble import find_same_encoder

RESNET = ResNetConfig(embedding_size=6, hidden_sizes=[6, 8, 10, 12], depths=[1, 1, 2, 1])
VIT = ViTConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)


@pytest.mark.parametrize("backbone", [None, RESNET, VIT], ids=["mobilenet", "resnet", "vit"])
def test_all_layers_are_the_means_over_places_beside_the_pooled_feature(backbone: PreTrainedConfig | None) -> None:
    own = {} if backbone is None else {"backbone_config": backbone}
    model = NICForConditionalGeneration(tiny_config(feature_layers="all", **own)).eval()
    with torch.no_grad():
        features = model.get_image_features(tiny_pixels())
        outputs = model.encoder.backbone(tiny_pixels(), output_hidden_states=True)
    expected = [outputs.pooler_output.flatten(1)]
    for states in outputs.hidden_states:
        places = tuple(range(2, states.ndim)) if states.ndim == 4 else (1,)
        expected.append(states.sum(places) / torch.tensor([states.shape[place] for place in places]).prod())
    torch.testing.assert_close(features, torch.cat(expected, dim=1))
    assert features.shape[1] == model.config.feature_size


def test_layers_are_chosen_by_number_also_from_the_end() -> None:
    everything = NICForConditionalGeneration(tiny_config(feature_layers="all")).eval()
    last = everything.encoder.backbone(tiny_pixels(), output_hidden_states=True).hidden_states
    few = NICForConditionalGeneration(tiny_config(feature_layers=[-2, 0])).eval()
    few.encoder.load_state_dict(everything.encoder.state_dict())
    sizes = [last[-2].shape[1], last[0].shape[1]]
    with torch.no_grad():
        features = few.get_image_features(tiny_pixels())[:, -sum(sizes) :]
    torch.testing.assert_close(features, torch.cat([last[-2].mean((2, 3)), last[0].mean((2, 3))], dim=1))


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    model = NICForConditionalGeneration(tiny_config(feature_layers=[0, -1])).eval()
    model.save_pretrained(tmp_path)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    inputs = {"pixel_values": tiny_pixels(2), "labels": tiny_labels([3, 5])}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_encoders_that_read_other_layers_are_not_the_same() -> None:
    one = NICForConditionalGeneration(tiny_config(feature_layers="all")).encoder
    other = NICForConditionalGeneration(tiny_config()).encoder
    other.load_state_dict(one.state_dict())
    assert find_same_encoder(one, [other]) is None
    assert find_same_encoder(one, [other, one]) == 1


@pytest.mark.parametrize("layers", ["last", [], [1.5], [True], 3])
def test_layers_that_are_none_are_refused(layers: object) -> None:
    with pytest.raises(ValueError, match="feature_layers"):
        NICConfig(feature_layers=layers)


def test_a_layer_that_the_backbone_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`feature_layers` has 99, but the backbone has \d+ layers"):
        NICForConditionalGeneration(tiny_config(feature_layers=[0, 99]))


def test_with_attention_each_region_has_what_the_layers_give_at_its_place() -> None:
    model = NICForConditionalGeneration(tiny_config(feature_layers=[0, -1], attention="soft")).eval()
    pixels = tiny_pixels(2)
    with torch.no_grad():
        regions = model.get_image_features(pixels)
        outputs = model.encoder.backbone(pixel_values=pixels, output_hidden_states=True)
    last, first = outputs.last_hidden_state, outputs.hidden_states[0]
    height, width = last.shape[-2:]
    finer = first.shape[-1] // width
    assert finer > 1
    for row in range(height):
        for column in range(width):
            place = first[:, :, finer * row : finer * (row + 1), finer * column : finer * (column + 1)].mean((2, 3))
            expected = torch.cat([last[:, :, row, column], place, last[:, :, row, column]], dim=1)
            torch.testing.assert_close(regions[:, row * width + column], expected)


def test_regions_of_a_transformer_are_its_patches_in_every_layer() -> None:
    model = NICForConditionalGeneration(
        tiny_config(backbone_config=VIT, feature_layers="all", attention="soft")
    ).eval()
    with torch.no_grad():
        regions = model.get_image_features(tiny_pixels(2))
        outputs = model.encoder.backbone(pixel_values=tiny_pixels(2), output_hidden_states=True)
    expected = torch.cat([outputs.last_hidden_state, *outputs.hidden_states], dim=-1)[:, 1:]
    torch.testing.assert_close(regions, expected)
    assert model(pixel_values=tiny_pixels(2), labels=tiny_labels([3, 5])).logits.shape[:2] == (2, 5)

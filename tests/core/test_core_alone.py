"""The core, which is saved with checkpoints, is short, and gives the captions of the package without any of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save_tiny_checkpoint, tiny_features, tiny_labels, tiny_model, tiny_photos, tiny_pixels, tiny_processor
from transformers import GenerationMixin

from nic_hf import NICProcessor, images, modeling_nic, processing_nic
from nic_hf.model import generation
from nic_hf.model.checkpoint import CORE

PLAIN: dict[str, Any] = {}
CAPTIONERS: list[dict[str, Any]] = [
    PLAIN,
    {"num_hidden_layers": 3, "feature_layers": "all"},
    {"attention": "soft"},
    {"attention": "soft", "num_hidden_layers": 2, "feature_layers": [-1]},
    {"embedding_size": 9, "tie_word_embeddings": True},
]
PREFIX = {
    "decoder_input_ids": torch.tensor([[1, 0, 0, 7], [1, 7, 9, 12], [1, 0, 5, 6], [1, 5, 6, 8]]),
    "decoder_attention_mask": torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]),
}
DECODING: list[dict[str, Any]] = [
    PLAIN,
    {"num_beams": 1},
    {"num_beams": 1, "use_cache": False},
    {"num_beams": 1, "do_sample": True, "num_return_sequences": 3},
    {"num_beams": 4, "do_sample": True, "num_return_sequences": 2},
    {"num_beams": 5, "use_cache": False},
    {"num_beams": 3, "max_length": 6},
    {"num_beams": 1, "max_new_tokens": 3, "cache_implementation": "static"},
    PREFIX,
    {**PREFIX, "num_beams": 1},
]
# All private methods of GenerationMixin that the package overrides.
HOOKS = sorted(
    {name for name in vars(generation.FastGenerationMixin) if name in dir(GenerationMixin) and "__" not in name}
    - {"generate", "prepare_inputs_for_generation"}
)


def core_model(**changes: Any) -> modeling_nic.NICForConditionalGeneration:
    """The model of the core, with the weights of the package's."""
    model = tiny_model(**changes)
    core = modeling_nic.NICForConditionalGeneration(model.config)
    assert type(core) is not type(model)
    core.load_state_dict(model.state_dict())
    return core.eval()


def captions(model: Any, settings: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(3)
    return model.generate(tiny_pixels(4), **settings)


def test_it_is_at_most_five_files_and_1200_lines(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path)
    code = list(tmp_path.rglob("*.py"))
    assert {file.stem for file in code} == set(CORE)
    assert len(code) <= 5
    assert sum(len(file.read_text("utf-8").splitlines()) for file in code) <= 1200


@pytest.mark.parametrize("settings", DECODING, ids=lambda settings: " ".join(settings) or "as the checkpoint says")
@pytest.mark.parametrize("changes", CAPTIONERS, ids=str)
def test_its_captions_are_those_of_the_package(changes: dict[str, Any], settings: dict[str, Any]) -> None:
    expected = captions(tiny_model(**changes), settings)
    assert torch.equal(captions(core_model(**changes), settings), expected)


@pytest.mark.parametrize("changes", CAPTIONERS, ids=str)
def test_its_outputs_and_gradients_are_those_of_the_package(changes: dict[str, Any]) -> None:
    labels = torch.stack([tiny_labels([3, 7, 5]), tiny_labels([6, 2, 7], seed=1)], dim=1)
    inputs = {"pixel_values": tiny_pixels(3), "labels": labels, "num_items_in_batch": torch.tensor(40)}
    asked = {"output_hidden_states": True, "output_attentions": True, "use_cache": True}
    found, gradients = [], []
    for model in (core_model(**changes), tiny_model(**changes)):
        model.set_backbone_frozen(False) if hasattr(model, "set_backbone_frozen") else model.encoder.set_frozen(False)
        found.append(model(**inputs, **asked))
        model.train()(**inputs).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    core, package = found
    assert core.keys() == package.keys()
    for name in core:
        if name not in ("cache", "past_key_values"):
            torch.testing.assert_close(core[name], package[name], msg=name)
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HOOKS)
def test_a_private_method_that_transformers_renames_changes_no_caption(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers would call its own, and not know the package's."""
    expected = {number: captions(tiny_model(), settings) for number, settings in enumerate(DECODING)}
    attentive = captions(tiny_model(attention="soft"), {})
    monkeypatch.delattr(generation.FastGenerationMixin, name)
    for number, settings in enumerate(DECODING):
        if name != "_prepare_cache_for_generation" or "cache_implementation" not in settings:
            assert torch.equal(captions(tiny_model(), settings), expected[number]), settings
    assert torch.equal(captions(tiny_model(attention="soft"), {}), attentive)


def test_there_are_private_methods_to_rename() -> None:
    assert {"_sample", "_get_logits_processor", "_expand_inputs_for_generation"} <= set(HOOKS)


@pytest.mark.parametrize("make", [core_model, tiny_model])
@pytest.mark.parametrize("changes", [PLAIN, {"attention": "soft"}], ids=str)
def test_another_name_of_the_cache_changes_no_caption(
    make: Any, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if modeling_nic.CACHE_NAME != "cache":
        pytest.skip("outputs have the name that the installed Transformers had at import")
    settings = [each for each in DECODING if "cache_implementation" not in each]
    expected = [captions(make(**changes), each) for each in settings]
    monkeypatch.setattr(modeling_nic, "CACHE_NAME", "")
    monkeypatch.setattr(generation, "CACHE_NAME", "")
    for each, found in zip(settings, expected, strict=True):
        assert torch.equal(captions(make(**changes), each), found), each


def test_options_of_training_that_it_does_not_have_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = core_model(recurrent_dropout=0.2, bag_of_words_loss=0.5).train()
    modeling_nic.logger.warning_once.cache_clear()
    with caplog.at_level("WARNING", logger="nic_hf.modeling_nic"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_nic.logger, "propagate", True)
        model(encoder_outputs=tiny_features(2), labels=tiny_labels([3, 4]))
    assert "without the package nic_hf training ignores recurrent_dropout, bag_of_words_loss" in caplog.text


def levels() -> list[Any]:
    """Photos of every kind that both loaders take."""
    ramp = np.linspace(0, 1, 48 * 40).reshape(48, 40)
    photo = tiny_photos(1)[0]
    sixteen = Image.fromarray((ramp * 65535).astype(np.uint16))
    return [
        photo,
        photo.convert("L"),
        photo.convert("P"),
        photo.convert("RGBA"),
        photo.convert("LA"),
        photo.convert("1"),
        sixteen,
        sixteen.convert("F"),
        Image.fromarray((ramp * 255).astype(np.int32)),
        ramp.astype(np.float32),
        ramp * 255,
        (ramp * 65535).astype(np.int32),
        (ramp * 65535).astype(np.uint16),
        ramp > 0.5,
        np.asarray(photo),
        np.asarray(photo).transpose(2, 0, 1).copy(),
        torch.from_numpy(np.asarray(photo) / 255).to(torch.bfloat16),
    ]


@pytest.mark.parametrize("number", range(len(levels())))
def test_its_photos_are_those_of_the_package(number: int, tmp_path: Path) -> None:
    photo = levels()[number]
    assert np.array_equal(processing_nic.to_rgb(photo), images.to_rgb(photo))
    if isinstance(photo, Image.Image) and photo.mode not in ("F", "I"):
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        photo.save(tmp_path / "photo.png", exif=exif)
        found = processing_nic.load_photo(tmp_path / "photo.png")
        assert found.size == (photo.height, photo.width)
        assert np.array_equal(found, images.load_photo(tmp_path / "photo.png"))
        assert np.array_equal(found, processing_nic.load_photo((tmp_path / "photo.png").read_bytes()))


@pytest.mark.parametrize("wrong", [np.full((4, 4), -1.0), np.zeros((5, 5, 7)), np.zeros((0, 3)), "no photo", 5])
def test_what_is_no_photo_is_refused(wrong: Any) -> None:
    with pytest.raises((ValueError, OSError)):
        processing_nic.load_photo(wrong)


def test_its_processor_gives_what_the_package_gives(tmp_path: Path) -> None:
    tiny_processor().save_pretrained(tmp_path)
    core, package = processing_nic.NICProcessor.from_pretrained(tmp_path), NICProcessor.from_pretrained(tmp_path)
    inputs = {"images": tiny_photos(2), "text": ["", "a dog"], "text_target": ["a man", "the snow"]}
    for options in ({"return_tensors": "pt"}, {"return_tensors": "np", "padding": "max_length", "max_length": 7}):
        found, expected = core(**inputs, **options), package(**inputs, **options)
        assert found.keys() == expected.keys()
        for name in expected:
            assert np.array_equal(found[name], expected[name]), name

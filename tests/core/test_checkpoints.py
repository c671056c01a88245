"""Saving and loading: nothing is lost, nothing is made up, nothing is warned of."""

import contextlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import save_tiny_checkpoint, tiny_model, tiny_pixels, tiny_processor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from nic_hf import NICConfig, NICForConditionalGeneration, NICProcessor

CODE = {"configuration_nic.py", "layers_nic.py", "modeling_nic.py", "pipeline_nic.py", "processing_nic.py"}


@contextlib.contextmanager
def silence_expected() -> Iterator[None]:
    """Fail where anything is warned of, or logged at WARNING or above, by anyone."""
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    collector = Collector(logging.WARNING)
    # Transformers' logger passes nothing on to the root.
    loggers = [logging.getLogger(), logging.getLogger("transformers"), logging.getLogger("accelerate")]
    for logger in loggers:
        logger.addHandler(collector)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(collector)
    assert [record.getMessage() for record in records] == []
    assert [str(warning.message) for warning in caught] == []


@torch.no_grad()
def logits(model: NICForConditionalGeneration) -> torch.Tensor:
    words = torch.tensor([[1, 5, 6, 7]] * 4)
    return model(pixel_values=tiny_pixels().to(model.dtype), decoder_input_ids=words).logits


def assert_same_model(loaded: NICForConditionalGeneration, model: NICForConditionalGeneration) -> None:
    expected, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert torch.equal(logits(loaded), logits(model))
    assert not loaded.training


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_a_loaded_model_is_the_saved_one(dtype: torch.dtype, layers: int, tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=layers).to(dtype)
    model.set_feature_statistics(torch.linspace(-1, 1, 10), torch.linspace(0.5, 2, 10))
    model.save_pretrained(tmp_path)
    # A loader that initialised weights again would do so from another seed.
    torch.manual_seed(123)
    with silence_expected():
        loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_model(loaded, model)
    names = set(loaded.state_dict())
    assert {"image_projection.mean", "image_projection.std", "decoder.lstm.weight_hh_l0"} <= names
    assert any(name.endswith("running_var") for name in names)


def test_a_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    with silence_expected():
        loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_model(loaded, model)


@pytest.mark.parametrize("max_shard_size", ["1GB", "4KB"])
def test_device_map_auto_gives_the_same_model(max_shard_size: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    with silence_expected():
        loaded = NICForConditionalGeneration.from_pretrained(tmp_path, device_map="auto")
    loaded.cpu()
    assert_same_model(loaded, model)


def test_a_checkpoint_loads_in_the_precision_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with silence_expected():
        loaded = NICForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_same_model(loaded, model.to(torch.bfloat16))


def test_auto_classes_load_what_was_saved(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path)
    with silence_expected():
        config = AutoConfig.from_pretrained(tmp_path)
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
        processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(config) is NICConfig
    assert type(loaded) is NICForConditionalGeneration
    assert type(processor) is NICProcessor
    assert_same_model(loaded, model)


def test_no_weight_shares_memory_with_the_file(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(bytes(file.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_frozen_stays_so_over_saving(frozen: bool, tmp_path: Path) -> None:
    tiny_model(freeze_backbone=frozen, freeze_word_embeddings=frozen).save_pretrained(tmp_path)
    model = NICForConditionalGeneration.from_pretrained(tmp_path)
    for name, weight in model.named_parameters():
        may_freeze = name.startswith(("encoder.", "decoder.embed_tokens."))
        assert weight.requires_grad is not (frozen and may_freeze), name


def test_a_checkpoint_holds_what_it_needs_and_no_pickle(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == CODE | {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "weights.sha256",
    }
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == set(tiny_model().state_dict())
    for file in tmp_path.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))


def test_a_checkpoint_says_how_to_decode(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path).generation_config
    assert (loaded.num_beams, loaded.max_new_tokens, loaded.suppress_tokens) == (3, 20, [0, 1, 3])

    changed = GenerationConfig.from_pretrained(tmp_path)
    changed.num_beams = 5
    changed.save_pretrained(tmp_path)
    assert NICForConditionalGeneration.from_pretrained(tmp_path).generation_config.num_beams == 5


@pytest.mark.parametrize(("first", "second"), [("4KB", "1GB"), ("1GB", "4KB"), ("4KB", "7KB")])
def test_a_second_save_leaves_no_weights_of_the_first(first: str, second: str, tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path, max_shard_size=first)
    (tmp_path / "notes.txt").write_text("the user's own")
    model = tiny_model(seed=2)
    model.save_pretrained(tmp_path, max_shard_size=second)
    assert_same_model(NICForConditionalGeneration.from_pretrained(tmp_path), model)

    index = tmp_path / "model.safetensors.index.json"
    expected = set(json.loads(index.read_text())["weight_map"].values()) if second != "1GB" else {"model.safetensors"}
    assert {file.name for file in tmp_path.glob("*.safetensors")} == expected
    assert index.exists() == (second != "1GB")
    assert (tmp_path / "notes.txt").read_text() == "the user's own"


def test_a_variant_is_saved_beside_the_usual_weights(tmp_path: Path) -> None:
    usual, variant = tiny_model(seed=1), tiny_model(seed=2)
    usual.save_pretrained(tmp_path)
    variant.save_pretrained(tmp_path, variant="ema", max_shard_size="4KB")
    assert_same_model(NICForConditionalGeneration.from_pretrained(tmp_path), usual)
    assert_same_model(NICForConditionalGeneration.from_pretrained(tmp_path, variant="ema"), variant)
    variant.save_pretrained(tmp_path, variant="ema")
    assert {file.name for file in tmp_path.glob("*.safetensors")} == {"model.safetensors", "model.ema.safetensors"}
    assert_same_model(NICForConditionalGeneration.from_pretrained(tmp_path, variant="ema"), variant)


def test_a_model_may_be_saved_over_the_checkpoint_that_it_was_loaded_from(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path)
    model = NICForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model), expected)
    assert_same_model(NICForConditionalGeneration.from_pretrained(tmp_path), model)


def test_a_state_dict_may_be_given(tmp_path: Path) -> None:
    """As Trainer does."""
    model, other = tiny_model(seed=1), tiny_model(seed=2)
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    assert_same_model(NICForConditionalGeneration.from_pretrained(tmp_path), other)


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, is_main_process=False)
    assert not any(file.is_file() for file in tmp_path.rglob("*") if file.suffix != ".py")


def test_loading_info_is_given_where_it_is_asked_for(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path)
    _, info = NICForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_word_embeddings_can_be_resized(tmp_path: Path) -> None:
    model = tiny_model(freeze_word_embeddings=True)
    before = logits(model)
    model.resize_token_embeddings(31, mean_resizing=False)
    assert model.config.vocab_size == 31
    assert not model.get_input_embeddings().weight.requires_grad
    assert model.get_output_embeddings().out_features == 31
    torch.testing.assert_close(logits(model)[..., :27], before, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    assert_same_model(NICForConditionalGeneration.from_pretrained(tmp_path), model)


def test_a_processor_keeps_its_settings(tmp_path: Path) -> None:
    processor = tiny_processor()
    files = processor.save_pretrained(tmp_path)
    assert all(Path(file).is_file() for file in files)
    with silence_expected():
        loaded: Any = NICProcessor.from_pretrained(tmp_path)
    settings = processor.image_processor.to_dict()
    settings.pop("auto_map", None)  # written into the object while saving
    assert loaded.image_processor.to_dict() == settings
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert loaded.tokenizer.init_kwargs["model_max_length"] == 64


def test_weights_that_others_copied_in_are_recorded_by_the_next_save(tmp_path: Path) -> None:
    """Trainer copies those of a checkpoint into its folder, saves the processor there and pushes all of it."""
    save_tiny_checkpoint(tmp_path / "run")
    save_tiny_checkpoint(tmp_path / "checkpoint", seed=50)
    shutil.copy(tmp_path / "checkpoint" / "model.safetensors", tmp_path / "run" / "model.safetensors")
    with pytest.raises(OSError, match="changed since it was saved"):
        NICForConditionalGeneration.from_pretrained(tmp_path / "run")
    tiny_processor().save_pretrained(tmp_path / "run")
    NICForConditionalGeneration.from_pretrained(tmp_path / "run")
    record = (tmp_path / "checkpoint" / "weights.sha256").read_bytes()
    assert (tmp_path / "run" / "weights.sha256").read_bytes() == record

    (tmp_path / "run" / "weights.sha256").unlink()
    tiny_processor().save_pretrained(tmp_path / "run")
    assert (tmp_path / "run" / "weights.sha256").read_bytes() == record


def test_a_flipped_bit_is_found_after_a_further_save_too(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=times)  # a disk that forgets a bit tells nobody
    tiny_processor().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors: changed since it was saved"):
        NICForConditionalGeneration.from_pretrained(tmp_path)


def test_a_processor_alone_leaves_no_record(tmp_path: Path) -> None:
    tiny_processor().save_pretrained(tmp_path)
    assert not (tmp_path / "weights.sha256").exists()

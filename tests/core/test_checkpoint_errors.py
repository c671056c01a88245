"""Damaged checkpoints are refused by name, and a save that fails leaves what was there."""

import fnmatch
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CAPTIONS, save_tiny_checkpoint, tiny_model, tiny_pixels, tiny_processor

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.model.processor import load_image_processor
from nic_hf.tokenization import train_tokenizer


@torch.no_grad()
def logits(model: NICForConditionalGeneration) -> torch.Tensor:
    return model(pixel_values=tiny_pixels(), decoder_input_ids=torch.tensor([[1, 5, 6]] * 4)).logits


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "weights.sha256").unlink(missing_ok=True)  # changed on purpose


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_tiny_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    "lost", ["lm_head.bias", "decoder.lstm.weight_hh_l0", "image_projection.mean", "encoder.backbone.*running_var"]
)
def test_a_lost_tensor_is_named(lost: str, checkpoint: Path) -> None:
    name = fnmatch.filter(load_file(checkpoint / "model.safetensors"), lost)[0]
    edit_weights(checkpoint, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"{checkpoint}: the checkpoint lacks 1 tensors: {name}$"):
        NICForConditionalGeneration.from_pretrained(checkpoint)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.update({"lm_head.weight": torch.zeros(27, 5)}))
    complaint = r"1 tensors .* do not fit its config.json .*: lm_head.weight is \(27, 5\) and should be \(27, 9\)"
    with pytest.raises(ValueError, match=complaint):
        NICForConditionalGeneration.from_pretrained(checkpoint)


def test_a_vocabulary_size_that_is_not_that_of_the_weights_is_refused(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", vocab_size=40)
    with pytest.raises(ValueError, match=r"`vocab_size`.*embed_tokens.weight is \(27, 7\) and should be \(40, 7\)"):
        NICForConditionalGeneration.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="the tokenizer has 27 words and the model 40"):
        NICProcessor.from_pretrained(checkpoint)


def test_other_shapes_are_taken_by_who_asks_for_that(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", vocab_size=40)
    model = NICForConditionalGeneration.from_pretrained(checkpoint, ignore_mismatched_sizes=True)
    assert model.lm_head.out_features == 40


def test_token_ids_outside_the_vocabulary_are_refused(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", eos_token_id=99)
    with pytest.raises(ValueError, match="`eos_token_id` must be an id of the vocabulary, 0 to 26"):
        NICForConditionalGeneration.from_pretrained(checkpoint)


@pytest.mark.parametrize("left", [0, 5, 1000, 0.5])
def test_a_truncated_file_of_weights_is_named(left: float, checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    size = int(left * file.stat().st_size) if isinstance(left, float) else left
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(OSError, match=f"{checkpoint}: the weights cannot be read"):
        NICForConditionalGeneration.from_pretrained(checkpoint)


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="4KB")
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        NICForConditionalGeneration.from_pretrained(tmp_path)


def test_a_tokenizer_with_other_words_is_refused(checkpoint: Path) -> None:
    train_tokenizer([*CAPTIONS, "a zebra"], min_frequency=1).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=f"{checkpoint}: the tokenizer has 28 words and the model 27"):
        NICProcessor.from_pretrained(checkpoint)


def test_a_tokenizer_with_other_special_tokens_is_refused(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", bos_token_id=2, eos_token_id=1)
    with pytest.raises(ValueError, match="`bos_token_id` is 1 in the tokenizer and 2 in the model"):
        NICProcessor.from_pretrained(checkpoint)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing-here"):
        NICForConditionalGeneration.from_pretrained(tmp_path / "nothing-here")


def test_a_folder_without_a_processor_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(OSError, match=rf"{checkpoint} holds no tokenizer.json; save the processor there"):
        NICProcessor.from_pretrained(checkpoint)
    (checkpoint / "processor_config.json").unlink()
    with pytest.raises(OSError, match=rf"{checkpoint}.*preprocessor_config.json"):
        NICProcessor.from_pretrained(checkpoint)


@pytest.mark.parametrize("make", [tiny_model, tiny_processor])
def test_a_file_in_place_of_the_directory_is_named(make: Callable[[], Any], tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.write_text("mine")
    for path in (target, target / "below"):
        with pytest.raises(OSError, match=f"cannot save to {path}"):
            make().save_pretrained(path)
    assert target.read_text() == "mine"


def mount(folder: Path, *options: str) -> bool:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder, "size=1m"):
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("make", [tiny_model, tiny_processor])
def test_a_directory_that_cannot_be_written_is_named(make: Callable[[], Any], small_disk: Path) -> None:
    save_tiny_checkpoint(small_disk)
    files = {file.name: file.read_bytes() for file in small_disk.iterdir()}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path in (small_disk, small_disk / "below"):
        with pytest.raises(OSError, match=f"cannot save to {path}.*Read-only file system"):
            make().save_pretrained(path)
    assert {file.name: file.read_bytes() for file in small_disk.iterdir()} == files


@pytest.mark.parametrize("free", [0, 16, 100, 180])
def test_a_full_disk_leaves_the_earlier_checkpoint(free: int, small_disk: Path) -> None:
    target = small_disk / "checkpoint"
    expected = logits(save_tiny_checkpoint(target, seed=1))
    files = {file.name: file.read_bytes() for file in target.iterdir()}
    fill_disk(small_disk, free_kilobytes=free)

    # About 250 KB, so that writing fails at the code, at the configuration or within the weights.
    larger = tiny_model(seed=2, hidden_size=100)
    with pytest.raises(OSError, match=f"cannot save to {target}: .*what it held before is unchanged"):
        larger.save_pretrained(target)
    if free == 0:
        with pytest.raises(OSError, match=f"cannot save to {target}"):
            tiny_processor().save_pretrained(target)

    assert {file.name: file.read_bytes() for file in target.iterdir()} == files, "files changed, or were left behind"
    assert torch.equal(logits(NICForConditionalGeneration.from_pretrained(target)), expected)
    NICProcessor.from_pretrained(target)

    (small_disk / "filling").unlink()
    larger.save_pretrained(target)
    assert torch.equal(logits(NICForConditionalGeneration.from_pretrained(target)), logits(larger))


def fill_disk(folder: Path, free_kilobytes: int) -> None:
    statistics = os.statvfs(folder)
    filling = statistics.f_bavail * statistics.f_frsize - free_kilobytes * 1024
    (folder / "filling").write_bytes(bytes(filling))


LIMITED_SAVE = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from tiny import tiny_model
model = tiny_model(seed=2, hidden_size=100)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    model.save_pretrained(sys.argv[1])
except OSError as error:
    print(error)
"""


def test_a_limit_on_file_sizes_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """Like a full disk, without the right to mount one: quotas work this way too."""
    pytest.importorskip("resource", reason="only POSIX systems limit the size of files")
    expected = logits(save_tiny_checkpoint(tmp_path, seed=1))
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    command = [sys.executable, "-c", LIMITED_SAVE, str(tmp_path), str(Path(__file__).parents[1])]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"cannot save to {tmp_path}" in run.stdout, run.stdout + run.stderr
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    assert torch.equal(logits(NICForConditionalGeneration.from_pretrained(tmp_path)), expected)


def test_a_bug_while_saving_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(model.config, "save_pretrained", broken)
    with pytest.raises(KeyError, match="a bug"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["/nowhere/model", "./nowhere", "~/nowhere", "runs/nowhere/checkpoint-1", Path("nowhere")]
)
@pytest.mark.parametrize(
    "load",
    [
        NICForConditionalGeneration.from_pretrained,
        NICForConditionalGeneration.from_backbone_pretrained,
        load_image_processor,
    ],
)
def test_a_folder_that_is_not_there_is_not_taken_for_a_hub_id(load: Callable[[Any], Any], name: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^{re.escape(str(name))}: no such folder; [^\n]+$"):
        load(name)

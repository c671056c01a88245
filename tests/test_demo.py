"""The main job: what `make demo` runs, on the built-in scenes and on real photos."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from subset import make_subset, real_backbone

import nic_hf
from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor, demo
from nic_hf.data import load_captions
from nic_hf.data.scene_grammar import caption_is_correct
from nic_hf.data.scenes import draw_scene, make_scene

FEW_SCENES = {"train": 600, "validation": 4, "test": 12}


def test_it_trains_captions_judges_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NUM_SCENES", FEW_SCENES)
    lines: list[str] = []
    result = demo.run_demo(tmp_path / "out", epochs=0.05, say=lines.append)

    assert json.loads((tmp_path / "out" / "captions.json").read_text()) == result.captions
    assert list(result.captions) == [f"test-{index:05d}" for index in range(12)]
    scenes = [make_scene("test", index)[0] for index in range(12)]
    correct = sum(map(caption_is_correct, result.captions.values(), scenes)) / len(scenes)
    assert result.metrics["correct"] == correct
    assert any(line.startswith(f"{correct:.1%} of 12 captions are correct") for line in lines)
    with Image.open(result.sheet) as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 200
    with Image.open(tmp_path / "out" / "photos.png") as sheet:
        assert sheet.width > 7 * 200
    assert sum(line.startswith("  ") and ".jpg: " in line for line in lines) == 7

    # Its last lines can be copied into a shell.
    commands = [shlex.split(line) for line in lines if " caption photo.jpg" in line or " demo --data " in line]
    assert len(commands) == 2
    for command in commands:
        start = command[: command.index("caption" if "caption" in command else "demo")]
        done = subprocess.run([*start, "--version"], capture_output=True, text=True, timeout=120)
        assert done.stdout == f"nic_hf {nic_hf.__version__}\n", done.stderr

    # The captioner that it names says the same of the same picture.
    model = NICForConditionalGeneration.from_pretrained(result.checkpoint)
    processor = NICProcessor.from_pretrained(result.checkpoint)
    (said,) = ImageToTextPipeline(model=model, processor=processor)(draw_scene(scenes[0]))
    assert said["generated_text"] == result.captions["test-00000"]


@pytest.mark.skipif(os.name == "nt", reason="commands of Windows end in .exe")
def test_the_command_that_it_prints_is_the_one_of_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone, other = tmp_path / "my clone", tmp_path / "other"
    for folder in (clone / ".venv" / "bin", other):
        folder.mkdir(parents=True)
        (folder / "nic").write_text("#!/bin/sh\n")
        (folder / "nic").chmod(0o755)
    python = clone / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(clone)
    monkeypatch.setenv("PATH", str(python.parent))
    assert demo.nic_command() == "nic"
    for path in (other, tmp_path / "nowhere"):
        monkeypatch.setenv("PATH", str(path))
        assert demo.nic_command() == ".venv/bin/nic"
    monkeypatch.chdir(tmp_path)
    assert demo.nic_command() == "'my clone/.venv/bin/nic'"
    monkeypatch.chdir(other)
    assert demo.nic_command() == f"'{clone}/.venv/bin/nic'"
    (python.parent / "nic").unlink()
    assert demo.nic_command() == f"'{python}' -m nic_hf"


@pytest.mark.slow
def test_it_captions_at_least_95_percent_of_unseen_scenes_right(tmp_path: Path) -> None:
    result = demo.run_demo(tmp_path)
    assert len(result.captions) == 300
    assert result.metrics["correct"] >= 0.95


def test_it_takes_photos_of_ones_own(flickr8k: Path, test_data: Path, tmp_path: Path) -> None:
    subset = make_subset(flickr8k, tmp_path / "subset", train=16, dev=5, test=3)
    command = [sys.executable, "-m", "nic_hf", "demo", "--output", str(tmp_path / "out"), "--epochs", "1"]
    command += ["--data", str(subset), "--backbone", str(real_backbone(test_data))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    captions = json.loads((tmp_path / "out" / "captions.json").read_text())
    assert list(captions) == load_captions(subset, "test")["image_id"][:]
    assert "Training on 16 pictures" in done.stdout
    assert (tmp_path / "out" / "captions.png").stat().st_size > 10_000


@pytest.mark.parametrize("options", [["--data", "photos"], ["--backbone", "model"]])
def test_photos_without_a_backbone_are_one_clear_line(options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nic_hf", "demo", "--output", str(tmp_path / "out"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == "nic demo: --data and --backbone: give both, or neither for the built-in scenes"
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to .*file"):
        demo.run_demo(tmp_path / "file")

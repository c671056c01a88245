"""A checkpoint works where nic_hf is not installed: its code travels with it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny_checkpoint, tiny_model, tiny_photos, tiny_processor

SCRIPT = """
import sys
sys.modules["nic_hf"] = None  # any import of it fails
import json
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

photos = sorted(str(path) for path in Path("photos").iterdir())
remote = {"trust_remote_code": True}

def use(folder, copy):
    config = AutoConfig.from_pretrained(folder, **remote)
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **remote)
    processor = AutoProcessor.from_pretrained(folder, **remote)
    ids = model.generate(**processor(images=photos, return_tensors="pt"))
    named = pipeline("image-to-text", model=folder, **remote)
    inferred = pipeline(model=folder, **remote)
    model.save_pretrained(copy)
    processor.save_pretrained(copy)
    named.save_pretrained(copy + "-of-pipeline")
    return {
        "modules": [type(thing).__module__ for thing in (config, model, processor, named, inferred)],
        "captions": processor.batch_decode(ids, skip_special_tokens=True),
        "named": [answer[0]["generated_text"] for answer in named(photos)],
        "inferred": [answer[0]["generated_text"] for answer in inferred(photos, batch_size=2)],
        "frozen": not any(weight.requires_grad for weight in model.encoder.parameters()),
        "missing": sorted(info["missing_keys"]),
    }

def use_in_half_precision(given):
    doors = {"named": ["image-to-text"], "inferred": [], "native": ["image-text-to-text"]}
    captioners = {name: pipeline(*task, model="checkpoint", **remote, **given) for name, task in doors.items()}
    answers = {name: captioners[name](photos) for name in ("named", "inferred")}
    native = captioners["native"](images=photos, text=[""] * len(photos))
    captioners["named"].processor.save_pretrained("of-half")
    return {
        **{name: [answer[0]["generated_text"] for answer in each] for name, each in answers.items()},
        "native": [answer["generated_text"] for answer in native],
        "formats": sorted({str(captioner.model.dtype) for captioner in captioners.values()}),
    }

half = [{"dtype": torch.float16}, {"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}]
Path("half.json").write_text(json.dumps([use_in_half_precision(given) for given in half]))
reports = [use("checkpoint", "copy"), use("copy", "second-copy"), use("copy-of-pipeline", "third-copy")]
Path("reports.json").write_text(json.dumps(reports))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a process without nic_hf used a checkpoint, and what it then saved itself."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "photos").mkdir()
    for number, photo in enumerate(tiny_photos(3)):
        photo.save(folder / "photos" / f"{number}.png")
    save_tiny_checkpoint(folder / "checkpoint")
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, cwd=folder, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr, run.stderr
    return folder


@pytest.fixture(scope="module")
def reports(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "reports.json").read_text())


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """What the installed package says of the photos."""
    with torch.no_grad():
        ids = tiny_model().generate(**tiny_processor()(images=tiny_photos(3), return_tensors="pt"))
    captions = tiny_processor().batch_decode(ids, skip_special_tokens=True)
    assert len(set(captions)) > 1
    return captions


def test_auto_classes_give_the_same_captions(reports: list[dict[str, Any]], captions: list[str]) -> None:
    first = reports[0]
    assert first["captions"] == captions
    assert all(module.startswith("transformers_modules.checkpoint") for module in first["modules"]), first["modules"]
    assert first["frozen"]
    assert first["missing"] == []


def test_the_image_to_text_pipeline_gives_the_same_captions(
    reports: list[dict[str, Any]], captions: list[str]
) -> None:
    assert reports[0]["named"] == captions
    assert reports[0]["inferred"] == captions


def test_what_is_saved_there_is_whole(folder: Path) -> None:
    original = {file.name: file for file in (folder / "checkpoint").iterdir()}
    for copy in ("copy", "copy-of-pipeline", "second-copy", "third-copy"):
        # Digests of weights are recorded by the package.
        assert {file.name for file in (folder / copy).iterdir()} == set(original) - {"weights.sha256"}
        for name, file in original.items():
            if name.endswith(".py") or name in ("tokenizer.json", "generation_config.json"):
                assert (folder / copy / name).read_bytes() == file.read_bytes(), name


def test_what_is_saved_there_works_again(reports: list[dict[str, Any]], captions: list[str]) -> None:
    for report in reports[1:]:
        assert all(module.startswith("transformers_modules.copy") for module in report["modules"])
        assert [report[name] for name in ("captions", "named", "inferred")] == [captions] * 3


def test_half_precision_works_in_every_door(folder: Path) -> None:
    found = json.loads((folder / "half.json").read_text())
    formats = [torch.float16, torch.bfloat16, torch.bfloat16]
    for report, dtype in zip(found, formats, strict=True):
        with torch.no_grad():
            pixels = tiny_processor()(images=tiny_photos(3), return_tensors="pt").pixel_values
            ids = tiny_model().to(dtype).generate(pixels)
        captions = tiny_processor().batch_decode(ids, skip_special_tokens=True)
        assert report == {"named": captions, "inferred": captions, "native": captions, "formats": [str(dtype)]}
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json"):
        assert (folder / "of-half" / name).read_bytes() == (folder / "copy" / name).read_bytes()

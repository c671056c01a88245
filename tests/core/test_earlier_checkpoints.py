"""Checkpoints saved with their code in sixteen files, before the core became five, are used as they are."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from tiny import tiny_photos
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.model.checkpoint import CORE, changed_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints_of_sixteen_files.tar.xz"
NAMES = ("plain", "attentive")
WITHOUT_PACKAGE = """
import sys
sys.modules["nic_hf"] = None  # any import of it fails
import json
from pathlib import Path
from transformers import pipeline
photos = sorted(str(path) for path in Path("photos").iterdir())
found = {}
for name in ("plain", "attentive"):
    captioner = pipeline("image-to-text", model=name, trust_remote_code=True)
    found[name] = [answer[0]["generated_text"] for answer in captioner(photos)]
Path("found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(folder, filter="data")
    (folder / "photos").mkdir()
    for number, photo in enumerate(tiny_photos(3)):
        photo.save(folder / "photos" / f"{number}.png")
    return folder


def expected(folder: Path, name: str) -> list[str]:
    return json.loads((folder / name / "captions.json").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_package_gives_the_captions_of_that_time(folder: Path, name: str) -> None:
    assert len(list((folder / name).glob("*.py"))) == 16
    assert changed_weights(folder / name) == []
    for classes in ((NICForConditionalGeneration, NICProcessor), (AutoModelForImageTextToText, AutoProcessor)):
        model, processor = (each.from_pretrained(folder / name) for each in classes)
        assert type(model) is NICForConditionalGeneration and type(processor) is NICProcessor
        with torch.no_grad():
            ids = model.generate(**processor(images=tiny_photos(3), return_tensors="pt"))
        assert processor.batch_decode(ids, skip_special_tokens=True) == expected(folder, name)
    captioner = ImageToTextPipeline(model=model, processor=processor)
    assert [answer[0]["generated_text"] for answer in captioner(tiny_photos(3))] == expected(folder, name)


def test_their_own_code_gives_the_captions_of_that_time(folder: Path) -> None:
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", WITHOUT_PACKAGE]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    assert run.returncode == 0, run.stderr
    found = json.loads((folder / "found.json").read_text("utf-8"))
    assert found == {name: expected(folder, name) for name in NAMES}


def test_their_pipeline_works_with_the_package(folder: Path) -> None:
    captioner = pipeline("image-to-text", model=str(folder / "plain"), trust_remote_code=True)
    assert [answer[0]["generated_text"] for answer in captioner(tiny_photos(3))] == expected(folder, "plain")


@pytest.mark.parametrize("name", NAMES)
def test_saved_again_they_have_the_new_code(folder: Path, name: str, tmp_path: Path) -> None:
    NICForConditionalGeneration.from_pretrained(folder / name).save_pretrained(tmp_path)
    NICProcessor.from_pretrained(folder / name).save_pretrained(tmp_path)
    assert {file.stem for file in tmp_path.glob("*.py")} == set(CORE)
    captioner = pipeline("image-to-text", model=str(tmp_path), trust_remote_code=True)
    assert [answer[0]["generated_text"] for answer in captioner(tiny_photos(3))] == expected(folder, name)

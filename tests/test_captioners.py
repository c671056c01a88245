"""The captioner that comes with the package, and the doors that open on it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from subset import make_subset

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.captioners import DEFAULT, captioner_names, captioner_path
from nic_hf.data import PhotoDataset, load_captions
from nic_hf.dataset_captions import generate_captions
from nic_hf.evaluation.scores import score_captions

FOLDER = Path(captioner_path())


def nic(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "nic_hf", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((320, 240)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def test_a_captioner_comes_with_the_package_without_code_and_local_paths() -> None:
    assert DEFAULT in captioner_names() and FOLDER.name == DEFAULT
    files = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 25_000_000
    assert not [file.name for file in files if file.suffix in (".py", ".png", ".jpg")]
    for file in files:
        if file.suffix != ".safetensors":
            text = file.read_text("utf-8")
            assert "auto_map" not in text and "custom_pipelines" not in text, file
            assert not re.search(r'["\s](/\w+/|[A-Z]:\\)', text), "a path of the machine where it was trained"


def test_it_is_stored_in_float16_and_computes_in_float32() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - not a dictionary
    assert torch.float16 in kinds and torch.float32 not in kinds
    model = NICForConditionalGeneration.from_pretrained(FOLDER)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_names_are_resolved_and_other_paths_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert captioner_path(DEFAULT) == captioner_path() == str(FOLDER)
    assert captioner_path("me/flickr8k") == "me/flickr8k" and captioner_path(tmp_path) == str(tmp_path)
    (tmp_path / DEFAULT / "Images").mkdir(parents=True)  # the photos of that name
    assert captioner_path(DEFAULT) == str(FOLDER)
    (tmp_path / DEFAULT / "config.json").write_text("{}")
    assert captioner_path(DEFAULT) == DEFAULT and captioner_path() == str(FOLDER)


def test_the_command_line_and_the_pipeline_open_on_it(photo: Path) -> None:
    expected = ImageToTextPipeline.from_pretrained()(str(photo))[0]["generated_text"]
    model, processor = NICForConditionalGeneration.from_pretrained(FOLDER), NICProcessor.from_pretrained(FOLDER)
    assert ImageToTextPipeline(model=model, processor=processor)(str(photo))[0]["generated_text"] == expected
    assert len(expected.split()) > 2
    done = nic(photo.parent, "caption", "photo.jpg")
    assert done.stdout == f"photo.jpg\t{expected}\n", done.stderr
    done = nic(photo.parent, "export", "onnx", "onnx")
    assert done.returncode == 0, done.stderr
    done = nic(photo.parent, "caption", "photo.jpg", "--model", "onnx")
    assert done.stdout == f"photo.jpg\t{expected}\n", done.stderr


def test_evaluate_without_data_and_captioner_says_what_it_needs(tmp_path: Path) -> None:
    done = nic(tmp_path, "evaluate")
    assert done.returncode == 2 and done.stderr == "nic evaluate: give --data, photos with captions\n"


def test_the_scores_of_its_card_are_those_of_its_files(flickr8k: Path) -> None:
    model, processor = NICForConditionalGeneration.from_pretrained(FOLDER), NICProcessor.from_pretrained(FOLDER)
    photos = PhotoDataset(load_captions(flickr8k, "test"), processor)
    captions = generate_captions(model.optimize_for_inference(), photos, num_beams=3)
    scores = score_captions(captions, photos.references(), ["bleu", "cider"])
    assert (Path(__file__).parents[1] / "MODEL_CARD.md").read_text("utf-8") == (FOLDER / "README.md").read_text(
        "utf-8"
    )
    stated = {
        result.metric_name: result.metric_value
        for result in ModelCard.load(FOLDER / "README.md").data.eval_results or []
    }
    assert stated["BLEU-4, beam 3"] == round(100 * scores["bleu_4"], 2) >= 22
    assert stated["CIDEr-D, beam 3"] == round(100 * scores["cider"], 2) >= 56


def test_training_starts_from_it(flickr8k: Path, tmp_path: Path) -> None:
    make_subset(flickr8k, tmp_path / "photos", train=12, dev=8, test=4)
    words = ["--recipe", "frozen", "--data", "photos", "--from_checkpoint", DEFAULT, "--output_dir", "own"]
    words += ["--max_steps", "2", "--use_cpu", "true", "--cache_dir", str(tmp_path / "cache"), "--report_to", "none"]
    done = nic(tmp_path, "train", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["eval_cider"] > 0.2, "it had learned from such photos"
    config = json.loads((tmp_path / "own" / "config.json").read_text("utf-8"))
    assert config["hidden_size"] == json.loads((FOLDER / "config.json").read_text("utf-8"))["hidden_size"]
    assert (tmp_path / "own" / "modeling_nic.py").is_file()

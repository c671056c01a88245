"""A trained captioner with a real backbone on real photos: the same captions in ONNX, 8 bits, and without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from subset import make_subset
from workshop import Workshop

import nic_hf
from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.export import NICOnnxCaptioner, calibration_photos, export_onnx, quantize_onnx

NUM_PHOTOS = 100


@pytest.fixture(scope="module")
def flickr(flickr8k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subset(flickr8k, tmp_path_factory.mktemp("flickr") / "subset", train=64, dev=NUM_PHOTOS)


@pytest.fixture(scope="module")
def checkpoint(test_data: Path, flickr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner trained enough to give different captions for different photos."""
    folder = tmp_path_factory.mktemp("onnx")
    model, processor = Workshop(test_data, flickr, folder).trained()
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def photos(flickr: Path) -> list[Path]:
    names = (flickr / "Flickr_8k.devImages.txt").read_text("utf-8").split()
    return [flickr / "Images" / name for name in names]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> NICForConditionalGeneration:
    return NICForConditionalGeneration.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def pixels(checkpoint: Path, photos: list[Path]) -> torch.Tensor:
    return NICProcessor.from_pretrained(checkpoint)(images=photos, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def captioner(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> NICOnnxCaptioner:
    return export_onnx(checkpoint, tmp_path_factory.mktemp("onnx") / "float32")


@pytest.fixture(scope="module")
def in_8_bits(captioner: NICOnnxCaptioner, flickr: Path) -> dict[str, NICOnnxCaptioner]:
    folder = captioner.folder.parent
    return {
        "dynamic": quantize_onnx(captioner.folder, folder / "dynamic"),
        "static": quantize_onnx(captioner.folder, folder / "static", calibration_photos(flickr, "train", 40)),
    }


@torch.no_grad()
def in_pytorch(
    model: NICForConditionalGeneration, checkpoint: Path, pixels: torch.Tensor, **settings: Any
) -> list[str]:
    ids = model.generate(pixel_values=pixels, **settings)
    return NICProcessor.from_pretrained(checkpoint).batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 1}, {"num_beams": 5, "length_penalty": 0.7, "no_repeat_ngram_size": 2}]
)
def test_captions_of_real_photos_are_the_same(
    captioner: NICOnnxCaptioner,
    model: NICForConditionalGeneration,
    checkpoint: Path,
    pixels: torch.Tensor,
    photos: list[Path],
    settings: dict[str, Any],
) -> None:
    expected = in_pytorch(model, checkpoint, pixels, **settings)
    assert len(set(expected)) > 20
    assert captioner.caption(photos, **settings) == expected


@torch.no_grad()
def test_features_and_logits_are_the_same(
    captioner: NICOnnxCaptioner, model: NICForConditionalGeneration, pixels: torch.Tensor, photos: list[Path]
) -> None:
    np.testing.assert_array_equal(captioner.preprocess(photos), pixels)
    features = captioner.get_image_features(pixels)
    np.testing.assert_allclose(features, model.get_image_features(pixels), atol=1e-4)
    words = torch.randint(model.config.vocab_size, (NUM_PHOTOS, 9), generator=torch.Generator().manual_seed(0))
    expected = model(pixel_values=pixels, decoder_input_ids=words).logits
    reader = captioner.reader(features)
    for position in range(9):
        found = reader.read(words[:, position : position + 1].numpy())
        np.testing.assert_allclose(found[:, 0], expected[:, position], atol=1e-4)


@pytest.mark.parametrize("way", ["dynamic", "static"])
def test_8_bits_take_a_quarter_of_the_room_and_say_much_the_same(
    captioner: NICOnnxCaptioner, in_8_bits: dict[str, NICOnnxCaptioner], photos: list[Path], way: str
) -> None:
    rounded = in_8_bits[way]

    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.glob("*.onnx"))

    # The structure of the graphs, with scales and names, is a large part of such a small captioner.
    assert size(rounded.folder) < 0.45 * size(captioner.folder)
    assert rounded.manifest["precision"] == f"int8, {way}"
    assert rounded.manifest["next_words_as_float32"] > 0.9
    same = np.mean([a == b for a, b in zip(rounded.caption(photos), captioner.caption(photos), strict=True)])
    assert same > 0.6


def test_with_fixed_ranges_a_caption_does_not_depend_on_its_neighbours(
    in_8_bits: dict[str, NICOnnxCaptioner], photos: list[Path]
) -> None:
    static = in_8_bits["static"]
    together = static.generate(static.preprocess(photos[:12]), return_dict_in_generate=True)
    for number in range(12):
        alone = static.generate(static.preprocess(photos[number : number + 1]), return_dict_in_generate=True)
        np.testing.assert_allclose(alone.sequences_scores[0], together.sequences_scores[number], rtol=1e-5)


WITHOUT_TORCH = """
import importlib.abc, json, sys, time
from pathlib import Path

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not to be imported")

BLOCKED = {"torch", "transformers", "accelerate", "datasets", "onnx", "onnxscript", "safetensors", "huggingface_hub"}
sys.meta_path.insert(0, Blocker())
start = time.perf_counter()
from nic_hf.export import NICOnnxCaptioner

captioner = NICOnnxCaptioner.from_pretrained(sys.argv[1])
captions = [captioner.caption(sys.argv[2])]
seconds = time.perf_counter() - start
captions += captioner.caption(sys.argv[3:], num_beams=3)
ids = captioner.generate(captioner.preprocess(sys.argv[2:]), do_sample=True, num_beams=1, seed=0)
assert ids.shape[0] == len(sys.argv[2:])
assert not BLOCKED & set(sys.modules)
try:
    captioner.caption("missing.jpg")
except OSError as error:
    missing = str(error)
try:
    from nic_hf.export import export_onnx
except ImportError as error:
    writing = str(error)
print(json.dumps({"captions": captions, "missing": missing, "writing": writing, "seconds": seconds}))
"""


def test_it_captions_where_torch_and_transformers_cannot_be_imported(
    captioner: NICOnnxCaptioner, photos: list[Path]
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(nic_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(captioner.folder), *map(str, photos[:4])],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["captions"] == captioner.caption(photos[:4])
    assert report["missing"] == "missing.jpg: cannot read it as an image: there is no such file"
    assert "pip install 'nic_hf[onnx]'" in report["writing"]

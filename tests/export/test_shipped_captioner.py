"""The captioner that comes with the package, whose backbone has parts that only cost time: gates that are always open,
and an average over a window that is larger than the photo."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nic_hf import NICForConditionalGeneration, NICProcessor, load_captions
from nic_hf.captioners import captioner_path
from nic_hf.export import NICOnnxCaptioner, calibration_photos, export_onnx, quantize_onnx
from nic_hf.export.onnx_folder import ENCODER

NUM_PHOTOS = 48


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> NICOnnxCaptioner:
    return export_onnx(captioner_path(None), tmp_path_factory.mktemp("shipped") / "onnx")


@pytest.fixture(scope="module")
def photos(flickr8k: Path) -> list:
    return [row["image"].convert("RGB") for row in load_captions(flickr8k, "dev").select(range(NUM_PHOTOS))]


def operators(captioner: NICOnnxCaptioner) -> Counter:
    return Counter(node.op_type for node in onnx.load(captioner.folder / ENCODER).graph.node)


def test_open_gates_and_windows_without_end_are_not_exported(exported: NICOnnxCaptioner, photos: list) -> None:
    assert operators(exported)["Conv"] == 49  # 81 with the gates
    assert operators(exported)["Sigmoid"] == operators(exported)["AveragePool"] == 0
    folder = captioner_path(None)
    model, processor = NICForConditionalGeneration.from_pretrained(folder).eval(), NICProcessor.from_pretrained(folder)
    pixels = processor(images=photos, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.get_image_features(pixels).numpy()
    features = exported.get_image_features(pixels.numpy())
    np.testing.assert_allclose(features.reshape(expected.shape), expected, atol=2e-4)
    words = model.generate(pixel_values=pixels)
    assert processor.batch_decode(words, skip_special_tokens=True) == exported.caption(photos)


def test_8_bits_keep_every_part_of_the_features(
    exported: NICOnnxCaptioner, photos: list, flickr8k: Path, tmp_path: Path
) -> None:
    quantized = quantize_onnx(exported.folder, tmp_path / "int8", calibration_photos(flickr8k, number=64))
    assert quantized.manifest["next_words_as_float32"] > 0.95
    pixels = exported.preprocess(photos)
    plain, rounded = (each.get_image_features(pixels).reshape(NUM_PHOTOS, -1) for each in (exported, quantized))
    error = np.abs(plain - rounded).mean(axis=0) / (plain.std(axis=0) + 1e-6)
    assert error[:1280].mean() < 0.08 and error[1280:].mean() < 0.08  # the pooled output, and the means of the layers

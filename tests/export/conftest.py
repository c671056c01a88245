"""ONNX captioners shared by tests: a tiny one, one with attention, and their PyTorch models."""

from pathlib import Path

import pytest
from one_thread import one_thread as one_thread
from tiny import tiny_model, tiny_processor

from nic_hf.export import NICOnnxCaptioner, export_onnx


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> NICOnnxCaptioner:
    """`tiny_model()` with two LSTM layers, exported; tests must not change its folder."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    return export_onnx(tiny_model(num_hidden_layers=2), folder, processor=tiny_processor())


@pytest.fixture(scope="session")
def attentive_onnx(tmp_path_factory: pytest.TempPathFactory) -> NICOnnxCaptioner:
    """`tiny_model()` with attention, exported."""
    folder: Path = tmp_path_factory.mktemp("onnx") / "attention"
    return export_onnx(tiny_model(attention="soft"), folder, processor=tiny_processor())

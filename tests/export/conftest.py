"""ONNX captioners that tests share: a tiny one, one with attention, and what they were exported from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_processor

from nic_hf.export import NICOnnxCaptioner, export_onnx


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are slower on many threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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

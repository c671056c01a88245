"""A tiny captioner that has attention, and photos for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_checkpoint, tiny_photos
from transformers.utils import logging

from nic_hf.app import AppCaptioner


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner that looks at 4 x 4 regions."""
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("app") / "looker"
    save_tiny_checkpoint(folder, attention="soft")
    return folder


@pytest.fixture(scope="session")
def captioner(checkpoint: Path) -> AppCaptioner:
    return AppCaptioner.load(checkpoint, "cpu")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six photos whose captions differ."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"photo {number}.png" for number in range(6)]
    for path, photo in zip(paths, tiny_photos(6), strict=True):
        photo.save(path)
    return paths

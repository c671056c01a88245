"""A tiny captioner that has attention, and photos for it."""

from pathlib import Path

import pytest
from one_thread import one_thread as one_thread
from tiny import save_tiny_checkpoint, save_tiny_photos
from transformers.utils import logging

from nic_hf.app import AppCaptioner


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
    return save_tiny_photos(tmp_path_factory.mktemp("photos"))

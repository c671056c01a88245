"""A captioner of random weights, photos of random colours, and what Transformers' own loop says of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from one_thread import one_thread as one_thread
from tiny import save_tiny_checkpoint, tiny_photos
from transformers.utils import logging

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.captioning import Captioner, load_captioner


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint on disk."""
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("captioner")
    save_tiny_checkpoint(folder)
    return str(folder)


@pytest.fixture(scope="session")
def captioner(checkpoint: str) -> Captioner:
    """That checkpoint, loaded for many photos."""
    return load_captioner(checkpoint, "cpu")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 13 photos, some in subfolders."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    for number, photo in enumerate(tiny_photos(13)):
        path = folder / ("sub" if number % 4 == 3 else "") / f"photo{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path)
    return folder


@pytest.fixture(scope="session")
def expected(checkpoint: str) -> Callable[..., dict[str, str]]:
    """Captions of photos one by one, by the pipeline."""
    model = NICForConditionalGeneration.from_pretrained(checkpoint)
    pipeline = ImageToTextPipeline(model=model, processor=NICProcessor.from_pretrained(checkpoint))

    def caption(paths: list[Path], **generation: int) -> dict[str, str]:
        return {path.as_posix(): pipeline(str(path), **generation)[0]["generated_text"] for path in paths}

    return caption


@pytest.fixture(scope="session")
def paths(photos: Path) -> list[Path]:
    """The photos of the folder as the command takes them: those of a folder, then those of its subfolders."""
    return sorted(photos.rglob("*.png"), key=lambda path: (len(path.parts), path))

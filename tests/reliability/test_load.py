"""Many clients at once: each gets its own photo's caption, and memory stays where it was."""

import gc
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from load_generator import plain, press
from tiny import tiny_model, tiny_photos, tiny_processor

from nic_hf import ImageToTextPipeline

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from photo_server import photo_server

CLIENTS = 64


@pytest.fixture(scope="module")
def captioner() -> Iterator[ImageToTextPipeline]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ImageToTextPipeline(model=tiny_model(), processor=tiny_processor())
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    def png(photo: Any) -> bytes:
        stream = io.BytesIO()
        photo.save(stream, "PNG")
        return stream.getvalue()

    return [png(photo) for photo in tiny_photos(CLIENTS, seed=11)]


@pytest.fixture(scope="module")
def alone(captioner: ImageToTextPipeline, photos: list[bytes]) -> list[str]:
    captions = [captioner(photo)[0]["generated_text"] for photo in photos]
    assert len(set(captions)) > 10, "photos that all get one caption would hide a mix-up"
    return captions


def check_load(captioner: Any, photos: list[bytes], alone: list[str], seconds: float) -> None:
    with photo_server(captioner) as url:
        ask, process = plain(url), psutil.Process()
        warm = press(ask, photos, alone, CLIENTS, seconds / 4)  # pools fill up
        gc.collect()
        before = process.memory_info().rss
        load = press(ask, photos, alone, CLIENTS, seconds)
        gc.collect()
        growth = process.memory_info().rss / before - 1
    print(f"{load}; memory {100 * growth:+.1f} % of {before / 2**20:.0f} MiB")
    assert warm.errors == load.errors == []
    assert load.answers >= CLIENTS
    assert growth < 0.05


def test_64_clients_for_a_while(captioner: ImageToTextPipeline, photos: list[bytes], alone: list[str]) -> None:
    check_load(captioner, photos, alone, 10)


@pytest.mark.soak
def test_64_clients_for_ten_minutes(
    captioner: ImageToTextPipeline, photos: list[bytes], alone: list[str], soak_scale: float
) -> None:
    check_load(captioner, photos, alone, 600 * soak_scale)


def test_a_client_that_gets_another_photos_caption_is_found(photos: list[bytes]) -> None:
    load = press(lambda photo: "a cat", photos[:2], ["a cat", "a dog"], 2, 0.01)
    assert load.answers >= 1 and load.errors and "'a cat', not 'a dog'" in load.errors[0]


def test_a_model_shared_by_16_threads_captions_as_alone(
    captioner: ImageToTextPipeline, photos: list[bytes], alone: list[str]
) -> None:
    for settings in ({}, {"num_beams": 3}):
        wanted = alone if not settings else [captioner(photo, **settings)[0]["generated_text"] for photo in photos]
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda photo, s=settings: captioner(photo, **s)[0]["generated_text"], photos * 3))
        assert found == wanted * 3

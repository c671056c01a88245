"""A trained captioner with a real backbone on a hundred real photos: the same captions in the browser as in Python."""

from pathlib import Path
from typing import Any

import pytest
from browser_captioner import captions_of, hosting, open_page, wait_until_ready, write_photos
from datasets import Image
from subset import make_subset
from workshop import Workshop

from nic_hf.data import load_captions
from nic_hf.export import NICOnnxCaptioner, export_onnx

NUM_PHOTOS = 100


@pytest.fixture(scope="module")
def flickr(flickr8k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subset(flickr8k, tmp_path_factory.mktemp("flickr") / "subset", train=64, dev=NUM_PHOTOS)


@pytest.fixture(scope="module")
def trained(test_data: Path, flickr: Path, tmp_path_factory: pytest.TempPathFactory) -> NICOnnxCaptioner:
    """An 8-bit captioner trained enough to give different captions for different photos."""
    folder = tmp_path_factory.mktemp("trained")
    model, processor = Workshop(test_data, flickr, folder).trained()
    return export_onnx(model, folder / "int8", processor=processor, int8=True)


@pytest.mark.slow
def test_a_hundred_photos_get_the_captions_of_python(
    site: Path, browser: Any, flickr: Path, trained: NICOnnxCaptioner, tmp_path: Path
) -> None:
    rows = load_captions(flickr, "dev", cache_dir=tmp_path / "arrow").cast_column("image", Image(decode=False))
    photos = write_photos(rows, tmp_path)
    with hosting(site, {"model": trained.folder}) as url:
        page = open_page(browser, url)
        wait_until_ready(page)
        for beams in (3, 1):
            expected = [trained.caption(photo, num_beams=beams) for photo in photos["PNG"]]
            assert len(expected) == NUM_PHOTOS and len(set(expected)) > 20
            assert captions_of(page, photos["PNG"], beams)[0] == expected
        # Chromium and Pillow may decode a JPEG with a difference of one level.
        found, _ = captions_of(page, photos["JPEG"], 1)
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 0.95 * NUM_PHOTOS
        page.close()

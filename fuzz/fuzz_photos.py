"""Fuzz photos: any bytes give an RGB image or an `OSError` that names the file."""

import tempfile
import warnings
from pathlib import Path

from harness import fuzz, instrumented

with instrumented():
    from nic_hf.images import load_photo

from PIL import Image

_FOLDER = tempfile.TemporaryDirectory()
warnings.simplefilter("ignore")  # of damaged EXIF blocks and the like
Image.init()


def check(data: bytes) -> None:
    """The whole input is the file."""
    file = Path(_FOLDER.name, "photo.jpg")
    file.write_bytes(data)
    for at_least in (None, (32, 32)):
        try:
            photo = load_photo(file, at_least=at_least)
        except OSError as error:
            assert str(file) in str(error), f"names no file: {error}"
            continue
        assert photo.mode == "RGB" and photo.width > 0 and photo.height > 0


if __name__ == "__main__":
    fuzz(check)

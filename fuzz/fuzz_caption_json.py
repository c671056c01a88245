"""Caption files of JSON: COCO's and Karpathy's."""

import os
import tempfile
from pathlib import Path

from harness import fuzz, instrumented

with instrumented():
    from nic_hf.data.loading import _read_json
    from nic_hf.data.problems import CaptionDataError, Problems

_FOLDER = tempfile.TemporaryDirectory()
_ROOT = Path(_FOLDER.name, "data")
_PHOTOS = _ROOT / "Images"
_PHOTOS.mkdir(parents=True)
(_PHOTOS / "a.jpg").write_bytes(b"photo")
(_ROOT / "secret.jpg").write_bytes(b"photo")


def check(data: bytes) -> None:
    """The first byte chooses the split, the rest is the file."""
    if not data:
        return
    file = _ROOT / "dataset.json"
    file.write_bytes(data[1:])
    for on_error in ("skip", "raise"):
        try:
            rows = _read_json(file, [None, "train"][data[0] % 2], None, Problems(on_error))
        except CaptionDataError as error:
            assert str(_ROOT) in str(error), f"names no file: {error}"
            continue
        for row in rows:
            assert os.path.commonpath([row.path, _PHOTOS]) == str(_PHOTOS), row.path
            assert row.captions and all(text == text.strip() and text for text in row.captions)


if __name__ == "__main__":
    fuzz(check)

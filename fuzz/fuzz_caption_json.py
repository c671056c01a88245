"""Fuzz JSON caption files: COCO's and Karpathy's."""

import os
import tempfile
from pathlib import Path

from harness import fuzz, instrumented

with instrumented():
    from nic_hf.data.loading import rows_of
    from nic_hf.data.errors import CaptionDataError, ErrorCollector
    from nic_hf.data.caption_folders import Part, SourceOptions

_FOLDER = tempfile.TemporaryDirectory()
_ROOT = Path(_FOLDER.name, "data")
_PHOTOS = _ROOT / "Images"
_PHOTOS.mkdir(parents=True)
(_PHOTOS / "a.jpg").write_bytes(b"photo")
(_ROOT.parent / "secret.jpg").write_bytes(b"photo")


def check(data: bytes) -> None:
    """The first byte selects the split, the rest is the file."""
    if not data:
        return
    file = _ROOT / "dataset.json"
    file.write_bytes(data[1:])
    for on_error in ("skip", "raise"):
        try:
            split = [None, "train"][data[0] % 2]
            rows, _ = rows_of([Part(file)], split, SourceOptions(), ErrorCollector(on_error), str(file))
        except CaptionDataError as error:
            assert str(_ROOT) in str(error), f"names no file: {error}"
            continue
        for row in rows:
            assert os.path.commonpath([row.path, _ROOT]) == str(_ROOT), row.path
            assert row.captions and all(text == text.strip() and text for text in row.captions)


if __name__ == "__main__":
    fuzz(check)

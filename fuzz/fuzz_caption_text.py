"""Fuzz text caption files: Kaggle's CSV, Flickr8k's token files, `metadata.csv`, `metadata.jsonl`, split lists."""

import os
import tempfile
from pathlib import Path

from harness import fuzz, instrumented

with instrumented():
    from nic_hf.data.loading import rows_of
    from nic_hf.data.errors import CaptionDataError, ErrorCollector, SkippedItem
    from nic_hf.data.caption_folders import Part, SourceOptions

_FOLDER = tempfile.TemporaryDirectory()
_ROOT = Path(_FOLDER.name, "data")
_PHOTOS = _ROOT / "Images"
_PHOTOS.mkdir(parents=True)
for _name in ("a.jpg", "1.jpg"):
    (_PHOTOS / _name).write_bytes(b"photo")
# Must not be reachable by names such as ../secret.jpg.
(_ROOT.parent / "secret.jpg").write_bytes(b"photo")


def check(data: bytes) -> None:
    """The first byte selects the reader, the rest is the file."""
    if not data:
        return
    kind, content = data[0] % 5, data[1:]
    skipped: list[SkippedItem] = []
    for problems in (ErrorCollector("skip", skipped), ErrorCollector("raise")):
        try:
            rows = _read(kind, content, problems)
        except CaptionDataError as error:
            assert str(_ROOT) in str(error), f"names no file: {error}"
            continue
        assert problems is not None and rows is not None
        for row in rows:
            assert os.path.commonpath([row.path, _ROOT]) == str(_ROOT), row.path
            assert row.captions and all(text == text.strip() and text for text in row.captions)
            for text in row.captions:
                text.encode()
    assert all(item.reason and str(_ROOT) in item.file for item in skipped)


def _read(kind: int, content: bytes, problems: ErrorCollector) -> list:
    """Rows of a table, a table with a split list, or a metadata file."""
    table, lists = _ROOT / "captions.txt", _ROOT / "Flickr_8k.trainImages.txt"
    file = [table, _ROOT / "captions.tsv", lists, _PHOTOS / "metadata.csv", _PHOTOS / "metadata.jsonl"][kind]
    if kind == 2:
        table.write_bytes(b"image,caption\na.jpg,a dog\n1.jpg,a cat\n")
    file.write_bytes(content)
    try:
        part = Part(table if kind == 2 else file, root=_PHOTOS if kind > 2 else None)
        return rows_of([part], "train" if kind == 2 else None, SourceOptions(), problems, str(_ROOT))[0]
    finally:
        file.unlink()


if __name__ == "__main__":
    fuzz(check)

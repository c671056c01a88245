"""Where captions go: the interface, text files next to the photos, and the terminal."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from ..digests import number_digest
from ..writing import write_text
from .caption_formats import CaptionRecord, json_line
from .photo_sources import PhotoItem

KEPT_FOR_SHEET = 100


class CaptionSink(Protocol):
    """What takes captions."""

    def is_done(self, item: PhotoItem) -> bool:
        """Whether the photo has captions already. Called once for each photo, in their order, by another thread."""

    def add(self, item: PhotoItem, captions: list[str]) -> None:
        """Take the captions of a photo."""

    def flush(self) -> None:
        """Let what was taken outlast the process."""

    def find(self, image_ids: Sequence[str]) -> dict[str, list[str]]:
        """Captions of some photos, of this run or an earlier one."""


class SidecarFiles:
    """Captions as text files beside the photos: `dog.txt` for `dog.jpg`, a line a caption.

    A photo that has such a file, which is not empty, is done, whoever wrote it.

    Args:
        overwrite: write them anew.
    """

    def __init__(self, overwrite: bool = False) -> None:
        self.overwrite = overwrite
        self._sidecars: set[int] = set()

    def is_done(self, item: PhotoItem) -> bool:
        """See [`CaptionSink`].

        Raises:
            ValueError: another photo of this run has the same file beside it.
        """
        if item.source is None:
            return False
        sidecar = number_digest(str(self._path(item)))
        if sidecar in self._sidecars:
            raise ValueError(f"{item.image_id}: another photo has its captions in {self._path(item).name} already")
        self._sidecars.add(sidecar)
        # An empty file is what a power cut may leave: waiting for the disk at each photo would take too long.
        return not self.overwrite and self._path(item).exists() and self._path(item).stat().st_size > 0

    def add(self, item: PhotoItem, captions: list[str]) -> None:
        """See [`CaptionSink`]."""
        write_text(self._path(item), "\n".join(captions) + "\n", sync=False)

    def flush(self) -> None:
        """See [`CaptionSink`]."""

    def find(self, image_ids: Sequence[str]) -> dict[str, list[str]]:
        """See [`CaptionSink`]."""
        found = {image_id: Path(image_id).with_suffix(".txt") for image_id in image_ids}
        return {
            image_id: path.read_text("utf-8").splitlines() or [""] for image_id, path in found.items() if path.exists()
        }

    def _path(self, item: PhotoItem) -> Path:
        if not isinstance(item.source, (str, os.PathLike)) or "://" in os.fspath(item.source):
            raise ValueError(f"{item.image_id}: is no file, so there is nothing to put a .txt beside")
        return Path(item.source).with_suffix(".txt")


class Printed:
    """Captions as lines on the terminal, or wherever standard output goes: id, tab, caption; or JSON.

    Args:
        file: where to write.
        as_json: a JSON object a photo, in place of a line a caption.
    """

    def __init__(self, file: IO[str], as_json: bool = False) -> None:
        self.file, self.as_json = file, as_json
        self._kept: dict[str, list[str]] = {}

    def is_done(self, item: PhotoItem) -> bool:
        """See [`CaptionSink`]."""
        return False

    def add(self, item: PhotoItem, captions: list[str]) -> None:
        """See [`CaptionSink`]."""
        if len(self._kept) < KEPT_FOR_SHEET:
            self._kept[item.image_id] = captions
        if self.as_json:
            self.file.write(json_line(CaptionRecord(item.image_id, captions).to_json()).decode())
            return
        name = item.image_id if item.image_id.isprintable() else repr(item.image_id)[1:-1]
        for caption in captions:
            self.file.write(f"{name}\t{caption}\n")

    def flush(self) -> None:
        """See [`CaptionSink`]."""
        self.file.flush()

    def find(self, image_ids: Sequence[str]) -> dict[str, list[str]]:
        """See [`CaptionSink`]: of this run, the first ones."""
        return {image_id: self._kept[image_id] for image_id in image_ids if image_id in self._kept}

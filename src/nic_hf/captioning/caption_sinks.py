"""Destinations of captions: the interface, text files next to the photos, and the terminal."""

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
    """A destination of captions."""

    def is_done(self, item: PhotoItem) -> bool:
        """Whether the photo has captions already. Called once per photo, in order, by another thread."""

    def add(self, item: PhotoItem, captions: list[str], confidences: list[float] | None = None) -> None:
        """Add the captions of a photo; `confidences` are only given if the run computes them."""

    def flush(self) -> None:
        """Write buffered captions, so that they survive the process."""

    def find(self, image_ids: Sequence[str]) -> dict[str, list[str]]:
        """Return captions of some photos, from this run or an earlier one."""


class SidecarFiles:
    """Text files next to the photos: `dog.txt` for `dog.jpg`, one caption per line.

    A photo that has such a file, unless it is empty, counts as captioned.

    Args:
        overwrite: replace existing files.
    """

    def __init__(self, overwrite: bool = False) -> None:
        self.overwrite = overwrite
        self._sidecars: set[int] = set()

    def is_done(self, item: PhotoItem) -> bool:
        """See [`CaptionSink`].

        Raises:
            ValueError: another photo of this run has the same text file.
        """
        if item.source is None:
            return False
        sidecar = number_digest(str(self._path(item)))
        if sidecar in self._sidecars:
            raise ValueError(f"{item.image_id}: {self._path(item).name} already has the captions of another photo")
        self._sidecars.add(sidecar)
        # A power failure may leave an empty file: waiting for the disk at each photo would take too long.
        return not self.overwrite and self._path(item).exists() and self._path(item).stat().st_size > 0

    def add(self, item: PhotoItem, captions: list[str], confidences: list[float] | None = None) -> None:
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
            raise ValueError(f"{item.image_id}: not a file, so there is no place for a .txt")
        return Path(item.source).with_suffix(".txt")


class Printed:
    """Standard output: id, tab and caption per line, or JSON.

    Args:
        file: the stream to write to.
        as_json: write one JSON object per photo.
    """

    def __init__(self, file: IO[str], as_json: bool = False) -> None:
        self.file, self.as_json = file, as_json
        self._kept: dict[str, list[str]] = {}

    def is_done(self, item: PhotoItem) -> bool:
        """See [`CaptionSink`]."""
        return False

    def add(self, item: PhotoItem, captions: list[str], confidences: list[float] | None = None) -> None:
        """See [`CaptionSink`]."""
        if len(self._kept) < KEPT_FOR_SHEET:
            self._kept[item.image_id] = captions
        if self.as_json:
            self.file.write(json_line(CaptionRecord(item.image_id, captions, confidences).to_json()).decode())
            return
        name = item.image_id if item.image_id.isprintable() else repr(item.image_id)[1:-1]
        for caption in captions:
            self.file.write(f"{name}\t{caption}\n")

    def flush(self) -> None:
        """See [`CaptionSink`]."""
        self.file.flush()

    def find(self, image_ids: Sequence[str]) -> dict[str, list[str]]:
        """See [`CaptionSink`]: only the first photos of this run."""
        return {image_id: self._kept[image_id] for image_id in image_ids if image_id in self._kept}

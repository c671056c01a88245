"""Caption the photos that a visitor uploaded together, into a file."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..captioning import BrokenPhoto, CaptionRun, PhotoItem, PhotoSources
from ..captioning.caption_formats import CaptionRecord, caption_format
from ..photo_files import is_photo_name, suffix_of
from .scored_captions import AppCaptioner, UnknownFormatError, readable

# Small, so that photos of other visitors get a turn between batches.
BATCH_SIZE = 8


class SentPhotos(PhotoSources):
    """Uploaded photos, under their original names.

    Files that are photos neither by name nor by content are left out.

    Args:
        paths: the files. Equal names are made unique: `dog.jpg`, `dog (2).jpg`.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        # Unlike on the command line, a path is never a tar file or a pattern, and a missing one is not an error.
        self.uses_stdin, self._sources = False, []
        self._items: list[PhotoItem] = []
        self._left_out: Counter[str] = Counter()
        taken: set[str] = set()
        for number, path in enumerate(paths):
            name, copy = Path(path).name, 1
            while name in taken:
                copy += 1
                name = f"{Path(path).stem} ({copy}){Path(path).suffix}"
            taken.add(name)
            try:
                with readable(path):
                    problem = None
            except OSError as error:
                problem = str(error)
                if isinstance(error, UnknownFormatError) and not is_photo_name(name):
                    self._left_out[suffix_of(name)] += 1
                    continue
            self._items.append(PhotoItem(name, None if problem else path, (number, 0), problem))

    @property
    def left_out(self) -> Counter[str]:
        """See [`nic_hf.captioning.PhotoSources`]."""
        return self._left_out

    def items(self, process: int = 0, processes: int = 1) -> Iterator[PhotoItem]:
        """See [`nic_hf.captioning.PhotoSources`]."""
        return iter(self._items)

    def count(self) -> int:
        """Number of photos."""
        return len(self._items)


class _Records:
    """A sink that stores captions and reports their number."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.records: list[CaptionRecord] = []
        self._tell = tell

    def is_done(self, item: PhotoItem) -> bool:
        return False

    def add(self, item: PhotoItem, captions: list[str], confidences: list[float] | None = None) -> None:
        self.records.append(CaptionRecord(item.image_id, captions, confidences))
        self._tell(len(self.records))

    def flush(self) -> None:
        pass

    def find(self, image_ids: Sequence[str]) -> dict[str, list[str]]:
        wanted = set(image_ids)
        return {record.image_id: record.captions for record in self.records if record.image_id in wanted}


@contextmanager
def caption_file(
    captioner: AppCaptioner,
    paths: Sequence[str | os.PathLike[str]],
    suffix: str,
    *,
    num_captions: int = 1,
    tell: Callable[[int], None] = lambda done: None,
    **generation: Any,
) -> Iterator[tuple[Path, list[CaptionRecord], list[BrokenPhoto]]]:
    """Caption photos into a temporary file.

    Args:
        captioner: the captioner.
        paths: the photos.
        suffix: suffix of the format: `.jsonl`, `.csv`, or another that `nic caption` writes.
        num_captions: captions per photo.
        tell: called with the number of photos captioned so far.
        **generation: arguments of `generate()`.

    Yields:
        The file, its records, and the photos that could not be read.
    """
    sink = _Records(tell)
    run = CaptionRun(
        captioner,
        SentPhotos([os.fspath(path) for path in paths]),
        sink,
        num_captions=num_captions,
        batch_size=BATCH_SIZE,
        workers=2,
        allow_private=False,
        with_confidence=not isinstance(captioner.calibration, str),
        **generation,
    )
    summary = run.run()
    with tempfile.TemporaryDirectory(prefix="nic_captions_") as folder:
        file = Path(folder) / f"captions{suffix}"
        caption_format(file).write(sink.records, file, num_captions)
        yield file, sink.records, summary.broken

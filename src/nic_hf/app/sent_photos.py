"""Captions of the photos that a visitor sent together, as a file."""

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

# Photos of other visitors get a turn between batches.
BATCH_SIZE = 8


class SentPhotos(PhotoSources):
    """Photos that lie somewhere under the names that their owner gave them.

    A file that is a photo neither by its name nor by its content is left out.

    Args:
        paths: the files. Two of one name are told apart: `dog.jpg`, `dog (2).jpg`.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        # Not as on the command line, where a path may be a tar file or a pattern, and one that is gone ends it all.
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
        """How many there are."""
        return len(self._items)


class _Records:
    """A sink that keeps captions, and tells how many there are."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.records: list[CaptionRecord] = []
        self._tell = tell

    def is_done(self, item: PhotoItem) -> bool:
        return False

    def add(self, item: PhotoItem, captions: list[str]) -> None:
        self.records.append(CaptionRecord(item.image_id, captions))
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
    """Caption photos into a file that is there for as long as the context lasts.

    Args:
        captioner: captions them.
        paths: the photos.
        suffix: says the format: `.jsonl` or `.csv`, or another that `nic caption` writes.
        num_captions: captions a photo.
        tell: called with the number of photos that are captioned.
        **generation: passed to `generate()`.

    Yields:
        The file, what is in it, and the photos that could not be read. Files that are no photos are in neither.
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
        **generation,
    )
    summary = run.run()
    with tempfile.TemporaryDirectory(prefix="nic_captions_") as folder:
        file = Path(folder) / f"captions{suffix}"
        caption_format(file).write(sink.records, file, num_captions)
        yield file, sink.records, summary.broken

"""`CaptionFile`: captions in one file, which a later run continues.

The file is assembled from parts, which are JSON lines with one photo per line. A single process that writes JSON lines
appends to the file itself. Otherwise each process has a hidden part next to the file; at the end of the run, the parts
are merged in the order of the photos, without duplicates. The parts of a killed run are continued by the next run.
"""

import json
import os
import queue
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..digests import number_digest
from ..writing import replacing, write_text
from .caption_formats import CaptionFormat, CaptionRecord, caption_format, json_line, parsed
from .photo_sources import PhotoItem


class CaptionFile:
    """A file of captions.

    `NAME.run.json` next to it records the captioner, the settings, and how the run ended. Captions of another
    captioner or with other settings are never mixed in.

    Args:
        path: the suffix determines the format: `.jsonl`, `.csv`, `.parquet` or `.json` (COCO results).
        made_by: captioner and settings, as plain values, which all captions in the file share.
        about: further plain values for `NAME.run.json`.
        captions_a_photo: number of captions per photo.
        overwrite: replace existing captions instead of continuing.
        in_order: whether captions are added in the order of the photos; if not, they are sorted at the end.
        process, processes: rank of this process, and number of processes.

    Raises:
        ValueError: unknown format.
        OSError: the file cannot be read or written, or its captions were made by another captioner or with other
            settings; the message names it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        made_by: Mapping[str, Any],
        *,
        about: Mapping[str, Any] | None = None,
        captions_a_photo: int = 1,
        overwrite: bool = False,
        in_order: bool = True,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.path = Path(path)
        self.format: CaptionFormat = caption_format(self.path)
        if self.path.suffix.lower() == ".json" and captions_a_photo != 1:
            raise ValueError(f"{path}: COCO results hold one caption per photo; write .jsonl, .csv or .parquet")
        self.made_by, self.captions_a_photo = dict(made_by), captions_a_photo
        self.process, self.processes = process, processes
        self.run_file = self.path.with_name(f"{self.path.name}.run.json")
        self._appends = processes == 1 and self.path.suffix.lower() == ".jsonl"
        self._met = _PhotoPlaces()
        self._done: set[int] = set()
        self._done_elsewhere: queue.SimpleQueue[PhotoItem] = queue.SimpleQueue()
        self._part: IO[bytes] | None = None
        self.about = dict(about or {})
        self.overwrite, self.in_order = overwrite, in_order

    def clear(self) -> None:
        """Remove the files of an earlier run if they are to be overwritten."""
        if self.overwrite and self.process == 0:
            # The record of the captioner goes last: captions must never be left without it.
            for file in (*self._parts(), self.path, self.run_file):
                file.unlink(missing_ok=True)

    def open(self) -> None:
        """Read existing captions. If there are several processes, all must do this before any calls [`begin`]."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._check_run()
            parts = self._parts()
            self._done = {number_digest(record.image_id) for record in self._records()}
            self.resumed = len(self._done)
            attempt = 1 + max((int(part.name.split(".")[-3]) for part in parts), default=0)
            own = self.path.with_name(f".{self.path.name}.{attempt}.{self.process}.part")
            self._own = self.path if self._appends else own
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise OSError(f"cannot continue {self.path}: {error}") from error

    def begin(self) -> None:
        """Open the part of this process, once all processes have called [`open`]."""
        with _write_error(self._own):
            if self.process == 0:
                self._write_run(finished=False)
            if self._own.exists():
                _cut_torn_line(self._own)
            self._part = self._own.open("ab")

    def is_done(self, item: PhotoItem) -> bool:
        """See [`CaptionSink`]."""
        self._met.add(item.image_id, item.key)
        if number_digest(item.image_id) not in self._done:
            return False
        if self.processes > 1:
            self._done_elsewhere.put(item)  # the process that merges the parts only meets its own photos
        return True

    def add(self, item: PhotoItem, captions: list[str], confidences: list[float] | None = None) -> None:
        """See [`CaptionSink`]."""
        assert self._part is not None, "begin() comes first"
        row = CaptionRecord(item.image_id, captions, confidences).to_json()
        with _write_error(self._own):
            self._part.write(json_line(row if self._appends else {"key": item.key, **row}))

    def flush(self) -> None:
        """See [`CaptionSink`]."""
        if self._part is None:
            return
        with _write_error(self._own):
            while not self._done_elsewhere.empty():
                item = self._done_elsewhere.get()
                self._part.write(json_line({"key": item.key, "image_id": item.image_id}))
            self._part.flush()

    def close(self) -> None:
        """Close the part of this process."""
        if self._part is not None:
            part, self._part = self._part, None
            with _write_error(self._own):
                part.close()

    def finish(self, finished: bool, **facts: Any) -> None:
        """Merge the parts; called by the first process, once all have closed theirs.

        Args:
            finished: whether all photos were processed.
            **facts: further values for `NAME.run.json`.
        """
        parts = self._parts()
        if self.path.suffix.lower() == ".jsonl" and self.path.exists():
            sources = [self.path, *parts]
        elif self.path.exists():
            earlier = self.path.with_name(f".{self.path.name}.0.0.part")
            with earlier.open("wb") as file:
                for place, record in enumerate(self.format.read(self.path)):
                    file.write(json_line({"key": (-1, place), **record.to_json()}))
            sources = parts = [earlier, *(part for part in parts if part != earlier)]
        else:
            sources = parts
        if not self._appends or parts or self.resumed or not self.in_order:
            lines, in_order = self._lines_in_order(sources)
            if not (self._appends and len(sources) == 1 and in_order):
                self._replace(_Records(sources, lines))
        for part in parts:
            part.unlink(missing_ok=True)
        self._write_run(finished, **facts)

    def find(self, image_ids: Sequence[str]) -> dict[str, list[str]]:
        """See [`CaptionSink`]."""
        wanted = set(image_ids)
        found = (record for record in self._records() if record.image_id in wanted)
        return {record.image_id: record.captions for record in found}

    def _lines_in_order(self, parts: Sequence[Path]) -> tuple[np.ndarray, bool]:
        """Return part and offset of the first record of each photo, in the order of the photos.

        The place of a photo is where this process met it, else the last note of another process, else the place in its
        record. Records without a place come first.

        Returns:
            An array of shape `(photos, 2)`, and whether the parts hold exactly these records in this order.
        """
        noted = _PhotoPlaces()
        digests, keys, lines = array("Q"), array("q"), array("q")
        for number, part in enumerate(parts):
            for offset, row in _rows_of(part):
                if "caption" not in row:
                    noted.add(row["image_id"], row["key"])
                    continue
                keys.extend(row.get("key") or (-1, len(digests)))
                digests.append(number_digest(row["image_id"]))
                lines.extend((number, offset))
        photos = np.asarray(digests, dtype=np.uint64)
        places = np.asarray(keys, dtype=np.int64).reshape(-1, 2)
        for known in (noted, self._met):
            places = known.places_of(photos, places)
        _, first = np.unique(photos, return_index=True)
        order = first[np.lexsort((first, places[first, 1], places[first, 0]))]
        return np.asarray(lines).reshape(-1, 2)[order], np.array_equal(order, np.arange(len(photos)))

    def _replace(self, records: "_Records") -> None:
        try:
            with replacing(self.path) as temporary:
                self.format.write(records, temporary, self.captions_a_photo)
        except OSError as error:
            raise OSError(f"{error}; the captions are kept, run the command again") from error

    def _parts(self) -> list[Path]:
        """Return the parts of this file, the oldest first."""
        prefix = f".{self.path.name}."
        folder = self.path.parent
        names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        found = [
            (int(numbers[0]), int(numbers[1]), name)
            for name in names
            if name.startswith(prefix)
            and name.endswith(".part")
            and len(numbers := name[len(prefix) : -len(".part")].split(".")) == 2
            and all(number.isdigit() for number in numbers)
        ]
        return [folder / name for *_, name in sorted(found)]

    def _records(self) -> Iterator[CaptionRecord]:
        parts = self._parts()
        if self.path.exists():
            if self.path.suffix.lower() == ".jsonl":
                parts.append(self.path)
            else:
                yield from self.format.read(self.path)
        for part in parts:
            yield from (CaptionRecord.from_json(row) for _, row in _rows_of(part) if "caption" in row)

    def _check_run(self) -> None:
        """Refuse to continue captions of another captioner or with other settings."""
        if not self.run_file.exists():
            if self.path.exists():
                raise FileExistsError(
                    f"it exists and is not from `nic caption`: there is no {self.run_file.name}; give another name, or"
                    " --overwrite"
                )
            return
        before = json.loads(self.run_file.read_bytes())["made_by"]
        names = [name for name in {**before, **self.made_by} if before.get(name) != self.made_by.get(name)]
        if names and (self.path.exists() or self._parts()):
            changes = ", ".join(f"{name} {before.get(name)!r}, now {self.made_by.get(name)!r}" for name in names)
            raise FileExistsError(f"its captions were made differently ({changes}); give another name, or --overwrite")

    def _write_run(self, finished: bool, **facts: Any) -> None:
        document = {**self.about, "made_by": self.made_by, "finished": finished, **facts}
        write_text(self.run_file, json.dumps(document, indent=1, ensure_ascii=True) + "\n")


@contextmanager
def _write_error(file: Path) -> Iterator[None]:
    """Name a file in the error if it cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {file}: {error}") from error


class _PhotoPlaces:
    """Places of photos in their sources, in 24 bytes per photo."""

    def __init__(self) -> None:
        self._digests, self._keys = array("Q"), array("q")

    def add(self, image_id: str, key: Sequence[int]) -> None:
        """Store a place: number of the source, number in the source. The last one of a photo counts."""
        self._digests.append(number_digest(image_id))
        self._keys.extend(key)

    def places_of(self, digests: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
        """Return places of shape `(photos, 2)`; unknown photos have those in `otherwise`."""
        known = np.asarray(self._digests, dtype=np.uint64)
        if not len(known):
            return otherwise
        order = np.argsort(known, kind="stable")
        found = order[np.searchsorted(known[order], digests, side="right") - 1]
        keys = np.asarray(self._keys, dtype=np.int64).reshape(-1, 2)
        return np.where((known[found] == digests)[:, None], keys[found], otherwise)


class _Records:
    """Records of several parts in the given order; can be iterated over more than once."""

    def __init__(self, parts: Sequence[Path], lines: np.ndarray) -> None:
        self._parts, self._lines = parts, lines

    def __iter__(self) -> Iterator[CaptionRecord]:
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("rb")) for part in self._parts]
            for number, offset in self._lines:
                files[number].seek(offset)
                yield CaptionRecord.from_json(json.loads(files[number].readline()))


def _rows_of(part: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield offset and content of each line, without an incomplete last line.

    A line without a caption notes the place of a photo whose caption is in another part.
    """
    offset = 0
    with part.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                try:
                    row = parsed(line)
                    row["image_id"], row["caption" if "key" not in row else "key"]
                except (ValueError, KeyError, TypeError):
                    raise ValueError(f"line {number} holds no caption: {line[:60]!r}") from None
                yield offset, row
            offset += len(line)


def _cut_torn_line(file: Path) -> None:
    """Truncate an incomplete last line."""
    with file.open("r+b") as content:
        end = position = content.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - 65536)
            content.seek(start)
            newline = content.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < end:
            content.truncate(position)

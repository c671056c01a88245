"""Where captions go: to a file that is whole whatever happens, to files beside the photos, or to the terminal.

A file of captions is made of parts, files of JSON lines that grow by a line a photo. One process that writes JSON
lines appends to the file itself; all else has hidden parts beside the file, which are put together in the order of the
photos, each photo once, when the run ends. A run that was killed leaves its parts, and the next one goes on from them.
"""

import json
import os
import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

from ..writing import replacing, write_text
from .caption_formats import CaptionFormat, CaptionRecord, caption_format, json_line, parsed
from .photo_index import PhotoIndex
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


class CaptionFile:
    """Captions as one file, which a later run goes on with.

    Beside it lies `NAME.run.json`: which captioner and which settings made it, and how the run ended. Captions of
    another captioner, or made with other settings, are never put into the same file.

    Args:
        path: its name says the format: `.jsonl`, `.csv`, `.parquet` or `.json` (COCO results).
        made_by: plain values that all captions in it have in common.
        about: more plain values to write into `NAME.run.json`.
        captions_a_photo: how many captions each photo has.
        overwrite: begin anew, in place of going on.
        in_order: captions are added in the order of the photos; where not, they are put in order at the end.
        process, processes: which of several processes this is.

    Raises:
        ValueError: no such format, or the file is of something else than `made_by`.
        OSError: naming the file, where it cannot be read or written.
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
            raise ValueError(f"{path}: COCO results hold one caption a photo; write .jsonl, .csv or .parquet")
        self.made_by, self.captions_a_photo = dict(made_by), captions_a_photo
        self.process, self.processes = process, processes
        self.run_file = self.path.with_name(f"{self.path.name}.run.json")
        self._appends = processes == 1 and self.path.suffix.lower() == ".jsonl"
        self._index, self._done = PhotoIndex(), PhotoIndex()
        self._met: queue.SimpleQueue[PhotoItem] = queue.SimpleQueue()
        self._part: IO[bytes] | None = None
        self.about = dict(about or {})
        self.overwrite, self.in_order = overwrite, in_order

    def clear(self) -> None:
        """Remove what an earlier run left, where it is to be overwritten."""
        if self.overwrite and self.process == 0:
            # What says who made the captions goes last: a kill in between must not leave captions of nobody.
            for file in (*self._parts(), self.path, self.run_file):
                file.unlink(missing_ok=True)

    def open(self) -> None:
        """Read what is done, and get ready to add to it. Several processes have to do so before any of them adds."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._check_run()
            parts = self._parts()
            for record in self._records():
                self._done.add(record.image_id)
            self.resumed = len(self._done)
            attempt = 1 + max((int(part.name.split(".")[-3]) for part in parts), default=0)
            own = self.path.with_name(f".{self.path.name}.{attempt}.{self.process}.part")
            self._own = self.path if self._appends else own
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise OSError(f"cannot go on with {self.path}: {error}") from error

    def begin(self) -> None:
        """Make the files, once all processes have read what was there."""
        try:
            if self.process == 0:
                self._write_run(finished=False)
            if self._own.exists():
                _cut_torn_line(self._own)
            self._part = self._own.open("ab")
        except OSError as error:
            raise OSError(f"cannot write {self._own}: {error}") from error

    def is_done(self, item: PhotoItem) -> bool:
        """See [`CaptionSink`]."""
        self._index.add(item.image_id, item.key)
        if item.image_id not in self._done:
            return False
        if self.processes > 1:
            self._met.put(item)  # the process that puts the parts together meets its own photos only
        return True

    def add(self, item: PhotoItem, captions: list[str]) -> None:
        """See [`CaptionSink`]."""
        assert self._part is not None, "begin() comes first"
        row = CaptionRecord(item.image_id, captions).to_json()
        try:
            self._part.write(json_line(row if self._appends else {"key": item.key, **row}))
        except OSError as error:
            raise OSError(f"cannot write {self._own}: {error}") from error

    def flush(self) -> None:
        """See [`CaptionSink`]."""
        try:
            if self._part is not None:
                while not self._met.empty():
                    item = self._met.get()
                    self._part.write(json_line({"key": item.key, "image_id": item.image_id}))
                self._part.flush()
        except OSError as error:
            raise OSError(f"cannot write {self._own}: {error}") from error

    def close(self) -> None:
        """No more captions from this process."""
        if self._part is not None:
            part, self._part = self._part, None
            try:
                part.close()
            except OSError as error:
                raise OSError(f"cannot write {self._own}: {error}") from error

    def finish(self, finished: bool, **facts: Any) -> None:
        """Put the parts together. By the first process alone, once all have closed theirs.

        Args:
            finished: whether all photos had their turn.
            **facts: go into `NAME.run.json`.
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
            self._index_records(sources)
            if not (self._appends and len(sources) == 1 and self._index.records_are_in_order()):
                self._replace(_Records(sources, self._index))
        for part in parts:
            part.unlink(missing_ok=True)
        self._write_run(finished, **facts)

    def find(self, image_ids: Sequence[str]) -> dict[str, list[str]]:
        """See [`CaptionSink`]."""
        wanted = set(image_ids)
        found = (record for record in self._records() if record.image_id in wanted)
        return {record.image_id: record.captions for record in found}

    def _index_records(self, parts: Sequence[Path]) -> None:
        for number, part in enumerate(parts):
            for offset, row in _rows_of(part):
                if "caption" in row:
                    self._index.add_record(row["image_id"], row.get("key"), number, offset)
                else:
                    self._index.note(row["image_id"], row["key"])

    def _replace(self, records: "_Records") -> None:
        try:
            with replacing(self.path) as temporary:
                self.format.write(records, temporary, self.captions_a_photo)
        except OSError as error:
            raise OSError(f"{error}; the captions are kept, run it again") from error

    def _parts(self) -> list[Path]:
        """Parts of this file and no other, the oldest first."""
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
        """Refuse to mix captions."""
        if not self.run_file.exists():
            if self.path.exists():
                raise FileExistsError(
                    f"it is there and not of `nic caption`, as {self.run_file.name} is not beside it; give another "
                    "name, or --overwrite"
                )
            return
        before = json.loads(self.run_file.read_bytes())["made_by"]
        names = [name for name in {**before, **self.made_by} if before.get(name) != self.made_by.get(name)]
        if names and (self.path.exists() or self._parts()):
            changes = ", ".join(f"{name} {before.get(name)!r}, now {self.made_by.get(name)!r}" for name in names)
            raise FileExistsError(f"its captions were made otherwise ({changes}); give another name, or --overwrite")

    def _write_run(self, finished: bool, **facts: Any) -> None:
        document = {**self.about, "made_by": self.made_by, "finished": finished, **facts}
        write_text(self.run_file, json.dumps(document, indent=1, ensure_ascii=True) + "\n")


class _Records:
    """The records of several parts in the order of the photos, each id once; can be gone through again."""

    def __init__(self, parts: Sequence[Path], index: PhotoIndex) -> None:
        self._parts, self._index = parts, index

    def __iter__(self) -> Iterator[CaptionRecord]:
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("rb")) for part in self._parts]
            for number, offset in self._index.records():
                files[number].seek(offset)
                yield CaptionRecord.from_json(json.loads(files[number].readline()))


def _rows_of(part: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset and content of each line; one that was cut short at the end is left out.

    A line without a caption says where a photo stands that has its caption in another part.
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
    """Cut off a last line that was not written whole."""
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


class SidecarFiles:
    """Captions as text files beside the photos: `dog.txt` for `dog.jpg`, a line a caption.

    A photo that has such a file, which is not empty, is done, whoever wrote it.

    Args:
        overwrite: write them anew.
    """

    def __init__(self, overwrite: bool = False) -> None:
        self.overwrite = overwrite
        self._sidecars = PhotoIndex()

    def is_done(self, item: PhotoItem) -> bool:
        """See [`CaptionSink`].

        Raises:
            ValueError: another photo of this run has the same file beside it.
        """
        if item.source is None:
            return False
        if not self._sidecars.add(str(self._path(item))):
            raise ValueError(f"{item.image_id}: another photo has its captions in {self._path(item).name} already")
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

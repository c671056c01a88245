"""The photos to caption: files, folders, patterns, URLs, lists, tar files and datasets, as one ordered stream."""

import glob
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.tar_shards import TAR_SUFFIXES, expand_braces, find_shards, tar_rows
from ..photo_files import is_photo_name, left_out_line, suffix_of

STDIN = "-"

_URL = ("http://", "https://")

# Id, what to open, and why there is nothing to open.
Photo = tuple[str, Any, str | None]


@dataclass(frozen=True)
class PhotoItem:
    """A photo to caption, not yet opened.

    Attributes:
        image_id: names it in the output: its path or URL as given, `shard.tar/key.jpg` in a tar file, or the id in a
            dataset. Bytes of a name that are not UTF-8 are written as `\\xff`.
        source: what [`nic_hf.images.load_photo`] takes; None if there is a problem.
        key: place in the order of the sources: number of the source, number in it.
        problem: why there is nothing to open.
    """

    image_id: str
    source: Any
    key: tuple[int, int]
    problem: str | None = None

    def owner(self, processes: int) -> int:
        """Which of several processes captions it; depends on the id alone."""
        return zlib.crc32(self.image_id.encode()) % processes


class PhotoSources:
    """The photos that a user named.

    Sources are opened and listed one at a time, as they are read.

    Args:
        paths: each a photo, a folder (with its subfolders, without hidden ones), a pattern such as `photos/*.jpg`,
            an `http` or `https` URL, tar files of photos (a file, a folder of nothing else, or a pattern such as
            `https://host/{000..099}.tar`), or `-` for paths on standard input, one per line.
        lists: text files of paths and URLs, one per line.
        data: a dataset that [`nic_hf.data.load_captions`] reads.
        split: its split; the whole dataset if not given.
        data_options: arguments of `load_captions` for it.

    Raises:
        FileNotFoundError: a path does not exist, a pattern matches no file, or a folder holds no photos.
        ValueError: there is nothing to caption, or standard input is named twice.
    """

    def __init__(
        self,
        paths: Sequence[str] = (),
        *,
        lists: Sequence[str | os.PathLike[str]] = (),
        data: str | None = None,
        split: str | None = None,
        data_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not paths and not lists and data is None:
            raise ValueError("no photos: name files, folders, addresses, a --list or --data")
        if split is not None and data is None:
            raise ValueError("--split requires --data: give --data too")
        if list(paths).count(STDIN) > 1:
            raise ValueError("standard input (-) can be read once only")
        self.uses_stdin = STDIN in paths
        self._unmatched: Counter[str] = Counter()  # files that patterns name and that are not photos
        sources: list[_Source] = []
        for path in paths:
            found, others = _sources_of(path)
            sources += found
            self._unmatched.update(others)
        for file in lists:
            if not Path(file).is_file():
                raise FileNotFoundError(f"{file}: no such file")
            sources.append(_PathList(os.fspath(file)))
        if data is not None:
            sources.append(_Data(data, split, data_options or {}))
        self._sources = list({(type(source), source.name): source for source in sources}.values())

    @property
    def are_files(self) -> bool:
        """Whether each photo may be a file, so that a text file can be written next to it."""
        return not any(isinstance(source, (_Shard, _Data)) or source.name.startswith(_URL) for source in self._sources)

    @property
    def left_out(self) -> Counter[str]:
        """Number of files of folders and patterns that are not photos, by suffix; hidden files are not counted.

        Folders count once they have been listed.
        """
        return sum((source.left_out for source in self._sources), self._unmatched)

    def items(self, process: int = 0, processes: int = 1) -> Iterator[PhotoItem]:
        """Photos in the order of the sources, or the share of one of several processes.

        If there are at least as many tar files as processes, each is read by one process.
        """
        shards = [number for number, source in enumerate(self._sources) if isinstance(source, _Shard)]
        whole = {number: place % processes for place, number in enumerate(shards)} if len(shards) >= processes else {}
        for number, source in enumerate(self._sources):
            if whole.get(number, process) != process:
                continue
            for place, (image_id, photo, problem) in enumerate(source):
                item = PhotoItem(_printable(image_id), photo, (number, place), problem)
                if number in whole or item.owner(processes) == process:
                    yield item

    def count(self) -> int | None:
        """Number of photos, or None if they would have to be read for that."""
        counts = [source.count() for source in self._sources]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None


class _Source:
    """Some of the photos."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Photo]:
        raise NotImplementedError

    def count(self) -> int | None:
        """Number of photos, if it can be told without opening any."""
        return None


class _Photo(_Source):
    """One file or URL."""

    def __iter__(self) -> Iterator[Photo]:
        yield self.name if self.name.startswith(_URL) else Path(self.name).as_posix(), self.name, None

    def count(self) -> int:
        return 1


class _Folder(_Source):
    def __iter__(self) -> Iterator[Photo]:
        self.left_out = Counter()
        return self._walk(self.left_out)

    def _walk(self, left_out: Counter[str]) -> Iterator[Photo]:
        errors: list[OSError] = []
        for folder, subfolders, files in os.walk(self.name, onerror=errors.append):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            yield from _unlisted(errors)
            for name in sorted(files):
                if name.startswith("."):
                    continue
                if is_photo_name(name):
                    path = Path(folder, name)
                    yield path.as_posix(), str(path), None
                else:
                    left_out[suffix_of(name)] += 1
        yield from _unlisted(errors)

    def count(self) -> int:
        return sum(1 for _ in self._walk(Counter()))


def _unlisted(errors: list[OSError]) -> Iterator[Photo]:
    while errors:
        error = errors.pop(0)
        folder = Path(str(error.filename)).as_posix()
        yield folder, None, f"{folder}: the folder cannot be read: {error.strerror}"


class _PathList(_Source):
    def __iter__(self) -> Iterator[Photo]:
        with Path(self.name).open(encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from _named(file)

    def count(self) -> int:
        with Path(self.name).open("rb") as file:
            return sum(1 for line in file if line.strip())


class _StandardInput(_Source):
    def __iter__(self) -> Iterator[Photo]:
        return _named(sys.stdin)


def _named(lines: Iterable[str]) -> Iterator[Photo]:
    for line in lines:
        name = line.rstrip("\r\n")
        if name.startswith(_URL):
            yield name, name, None
        elif name.strip():
            yield Path(name).as_posix(), Path(name), None


class _Shard(_Source):
    def __iter__(self) -> Iterator[Photo]:
        shard = self.name if "://" in self.name else Path(self.name).as_posix()
        try:
            for row in tar_rows([self.name], "skip"):
                image = row["image"]
                if image is not None:
                    # The path is tar://key.jpg::shard.tar. Missing captions do not matter here.
                    yield f"{shard}/{image['path'][len('tar://') :].split('::', 1)[0]}", image["bytes"], None
                elif row["image_id"] or row["problem"]:
                    yield f"{shard}/{row['image_id']}".rstrip("/"), None, row["problem"]
        except OSError as error:
            yield shard, None, f"{shard}: cannot be read: {error}"


class _Data(_Source):
    def __init__(self, name: str, split: str | None, options: Mapping[str, Any]) -> None:
        super().__init__(name)
        self.split, self.options = split, options

    @cached_property
    def rows(self) -> Any:
        from datasets import Image

        from ..data.loading import load_captions

        return load_captions(self.name, self.split, **self.options).cast_column("image", Image(decode=False))

    def __iter__(self) -> Iterator[Photo]:
        for row in self.rows.select_columns(["image", "image_id"]):
            image = row["image"]
            yield row["image_id"], image["path"] if image["bytes"] is None else image["bytes"], None

    def count(self) -> int:
        return len(self.rows)


def _sources_of(path: str) -> tuple[list[_Source], Counter[str]]:
    """Sources that an argument of the command line stands for, and the suffixes of files that are not photos."""
    is_tar = path.lower().endswith(TAR_SUFFIXES)
    found = Path(path).expanduser()
    nothing: Counter[str] = Counter()
    if path == STDIN:
        return [_StandardInput(path)], nothing
    if path.startswith(_URL) and not is_tar:
        return [_Photo(path)], nothing
    if found.is_dir():
        return _sources_of_folder(str(found))
    if is_tar:
        return [_Shard(shard) for shard in find_shards(path, None)], nothing
    if found.is_file():
        return [_Photo(str(found))], nothing
    if not set("*?[{").intersection(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    patterns = expand_braces(str(found))
    matches = [match for pattern in patterns for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    if not matches:
        raise FileNotFoundError(f"{path}: no file matches")
    photos = [match for match in matches if Path(match).is_dir() or is_photo_name(match)] or matches
    others = Counter(map(suffix_of, {*matches} - {*photos}))
    sources: list[_Source] = []
    for match in photos:
        own, own_others = _sources_of_folder(match) if Path(match).is_dir() else ([_Photo(match)], nothing)
        sources += own
        others.update(own_others)
    return sources, others


def _sources_of_folder(path: str) -> tuple[list[_Source], Counter[str]]:
    folder = _Folder(path)
    if next(iter(folder), None) is not None:
        return [folder], Counter()
    shards = find_shards(path, None)
    if not shards:
        others = left_out_line(folder.left_out)
        raise FileNotFoundError(f"{path}: no photos in this folder{others and f'; {others}'}")
    return [_Shard(shard) for shard in shards], folder.left_out - Counter(map(suffix_of, shards))


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

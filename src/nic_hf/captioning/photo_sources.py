"""Which photos: files, folders, patterns, addresses, lists, tar files and data sets, as one stream in one order."""

import glob
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..data.tar_shards import TAR_SUFFIXES, expand_braces, find_shards, tar_rows
from ..photo_files import is_photo_name, left_out_line, suffix_of

STDIN = "-"

_URL = ("http://", "https://")


@dataclass(frozen=True)
class PhotoItem:
    """A photo to caption, not yet opened.

    Attributes:
        image_id: names it in the output: its path or address as it was given, `shard.tar/key.jpg` in a tar file, or a
            data set's own id. Names that are not UTF-8 have their odd bytes written as `\\xff`.
        source: what [`nic_hf.images.load_photo`] takes; None where there is a problem.
        key: place in the order of the sources: number of the source, number in it.
        problem: why there is nothing to open.
    """

    image_id: str
    source: Any
    key: tuple[int, int]
    problem: str | None = None

    def owner(self, processes: int) -> int:
        """Which of several processes captions it: the same wherever it stands and whatever stands beside it."""
        return zlib.crc32(self.image_id.encode()) % processes


class PhotoSources:
    """The photos that a user named.

    Nothing is opened or listed before it is its turn, so that memory does not grow with the number of photos.

    Args:
        paths: each a photo, a folder (with its subfolders; hidden ones left out), a pattern such as `photos/*.jpg`,
            an `http` or `https` address, tar files of photos (a file, a folder of nothing else, or a pattern such as
            `https://host/{000..099}.tar`), or `-` for paths on standard input, one a line.
        lists: text files of paths and addresses, one a line.
        data: a data set that [`nic_hf.data.load_captions`] reads.
        split: its split; all of it where not given.
        data_options: arguments of `load_captions` for it.

    Raises:
        FileNotFoundError: naming a path that is not there, a pattern that no file fits, or a folder without photos.
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
            raise ValueError("--split is of a data set: give --data too")
        self.uses_stdin = list(paths).count(STDIN) > 0
        if list(paths).count(STDIN) > 1:
            raise ValueError("standard input (-) can be read once only")
        self._sources: list[_Source] = []
        for path in paths:
            self._sources += _sources_of(path)
        for file in lists:
            if not Path(file).is_file():
                raise FileNotFoundError(f"{file}: no such file")
            self._sources.append(_PathList(os.fspath(file)))
        if data is not None:
            self._sources.append(_Data(data, split, data_options or {}))
        self._sources = list({(type(source), source.name): source for source in self._sources}.values())

    @property
    def are_files(self) -> bool:
        """Whether each photo may be a file, so that another file can be put beside it."""
        return not any(isinstance(source, (_Shard, _Address, _Data)) for source in self._sources)

    @property
    def left_out(self) -> Counter[str]:
        """How many files of folders and patterns are no photos by their names, by suffix, as far as they were listed.

        Hidden files are not counted.
        """
        return sum((source.left_out for source in self._sources), Counter())

    def items(self, process: int = 0, processes: int = 1) -> Iterator[PhotoItem]:
        """Photos in the order of the sources, or the share of one of several processes.

        A tar file is read by one process, as long as there are enough of them for all.
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
        """How many photos there are, or None where only reading would tell."""
        total = 0
        for source in self._sources:
            number = source.count()
            if number is None:
                return None
            total += number
        return total


class _Source:
    """Some photos: each with its id, what to open, and why not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[str, Any, str | None]]:
        raise NotImplementedError

    def count(self) -> int | None:
        """Number of photos, where it can be told without opening any."""
        return None


class _File(_Source):
    def __iter__(self) -> Iterator[tuple[str, Any, str | None]]:
        yield Path(self.name).as_posix(), self.name, None

    def count(self) -> int:
        return 1


class _Address(_File):
    def __iter__(self) -> Iterator[tuple[str, Any, str | None]]:
        yield self.name, self.name, None


class _NoPhotos(_Source):
    """Files that were left out where there are photos too."""

    def __init__(self, name: str, left_out: Counter[str]) -> None:
        super().__init__(name)
        self.left_out = left_out

    def __iter__(self) -> Iterator[tuple[str, Any, str | None]]:
        return iter(())

    def count(self) -> int:
        return 0


class _Folder(_Source):
    def __iter__(self) -> Iterator[tuple[str, Any, str | None]]:
        self.left_out = Counter()
        return self._walk(self.left_out)

    def _walk(self, left_out: Counter[str]) -> Iterator[tuple[str, Any, str | None]]:
        problems: list[OSError] = []
        for folder, subfolders, files in os.walk(self.name, onerror=problems.append):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            yield from _unlisted(problems)
            for name in sorted(files):
                if name.startswith("."):
                    continue
                if is_photo_name(name):
                    path = Path(folder, name)
                    yield path.as_posix(), str(path), None
                else:
                    left_out[suffix_of(name)] += 1
        yield from _unlisted(problems)

    def count(self) -> int:
        return sum(1 for _ in self._walk(Counter()))


def _unlisted(problems: list[OSError]) -> Iterator[tuple[str, Any, str | None]]:
    while problems:
        error = problems.pop(0)
        folder = Path(str(error.filename)).as_posix()
        yield folder, None, f"{folder}: the folder cannot be read: {error.strerror}"


class _PathList(_Source):
    def __iter__(self) -> Iterator[tuple[str, Any, str | None]]:
        with Path(self.name).open(encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from _lines(file)

    def count(self) -> int:
        with Path(self.name).open("rb") as file:
            return sum(1 for line in file if line.strip())


class _StandardInput(_Source):
    def __iter__(self) -> Iterator[tuple[str, Any, str | None]]:
        yield from _lines(sys.stdin)


def _lines(file: IO[str] | Iterable[str]) -> Iterator[tuple[str, Any, str | None]]:
    for line in file:
        name = line.rstrip("\r\n")
        if name.startswith(_URL):
            yield name, name, None
        elif name.strip():
            yield Path(name).as_posix(), Path(name), None


class _Shard(_Source):
    def __iter__(self) -> Iterator[tuple[str, Any, str | None]]:
        shard = self.name if "://" in self.name else Path(self.name).as_posix()
        try:
            for row in tar_rows([self.name], "skip"):
                image = row["image"]
                if image is not None:
                    # tar://key.jpg::shard.tar; what its captions lack is no matter here
                    yield f"{shard}/{image['path'][len('tar://') :].split('::', 1)[0]}", image["bytes"], None
                elif row["image_id"] or row["problem"]:
                    yield f"{shard}/{row['image_id']}".rstrip("/"), None, row["problem"]
        except OSError as error:
            yield shard, None, f"{shard}: cannot be read: {error}"


class _Data(_Source):
    def __init__(self, name: str, split: str | None, options: Mapping[str, Any]) -> None:
        super().__init__(name)
        self.split, self.options = split, options
        self._rows: Any = None

    @property
    def rows(self) -> Any:
        if self._rows is None:
            from datasets import Image

            from ..data.loading import load_captions

            rows = load_captions(self.name, self.split, **self.options)
            self._rows = rows.cast_column("image", Image(decode=False))
        return self._rows

    def __iter__(self) -> Iterator[tuple[str, Any, str | None]]:
        for row in self.rows.select_columns(["image", "image_id"]):
            image = row["image"]
            yield row["image_id"], image["path"] if image["bytes"] is None else image["bytes"], None

    def count(self) -> int:
        return len(self.rows)


def _sources_of(path: str) -> list[_Source]:
    """What an argument of the command line stands for."""
    if path == STDIN:
        return [_StandardInput(path)]
    is_tar = path.lower().endswith(TAR_SUFFIXES)
    if path.startswith(_URL) and not is_tar:
        return [_Address(path)]
    found = Path(path).expanduser()
    if found.is_dir():
        return _folder(str(found))
    if is_tar:
        return [_Shard(shard) for shard in find_shards(path, None)]
    if found.is_file():
        return [_File(str(found))]
    if not set("*?[{").intersection(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    patterns = expand_braces(str(found))
    matches = [match for pattern in patterns for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    if not matches:
        raise FileNotFoundError(f"{path}: no file has such a name")
    photos = [match for match in matches if Path(match).is_dir() or is_photo_name(match)] or matches
    others = _NoPhotos(path, Counter(map(suffix_of, {*matches} - {*photos})))
    return [*(source for match in photos for source in _matched(match)), others]


def _matched(path: str) -> list[_Source]:
    return _folder(path) if Path(path).is_dir() else [_File(path)]


def _folder(path: str) -> list[_Source]:
    folder = _Folder(path)
    if next(iter(folder), None) is not None:
        return [folder]
    shards = find_shards(path, None)
    if not shards:
        others = left_out_line(folder.left_out)
        raise FileNotFoundError(f"{path}: no photos in this folder{others and f'; {others}'}")
    return [*map(_Shard, shards), _NoPhotos(path, folder.left_out - Counter(map(suffix_of, shards)))]


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

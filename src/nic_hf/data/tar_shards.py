"""WebDataset shards: tar files in which consecutive files `key.jpg` and `key.txt` or `key.json` belong to one photo.

`load_dataset("webdataset")` decodes while it reads: one caption with broken JSON ends the whole shard, and no message
says which. This reader attributes each error to its key.
"""

import gzip
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from ..photo_files import is_photo_name, photo_suffixes, suffix_of
from .columns import caption_columns, cell_captions
from .errors import CaptionDataError, OnError, RejectedError
from .names import SPLITS, canonical_split, split_words
from .splits import check_split
from .text_files import clean_caption

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_TEXT_SUFFIXES = (".txt", ".json")
_BLOCK = 512  # block size of tar files
_MOST_BYTES = 200 * 2**20  # per file, as each is held in memory: a megabyte of gzip can expand to a gigabyte
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_shards(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], split: str | None) -> list[str]:
    """Return paths or URLs of the tar files that a source names, in order; none if it names something else.

    Args:
        source: a tar file, a folder of them (also in subfolders), a pattern (`train-*.tar`,
            `https://host/train-{000..099}.tar`), or a list of such.
        split: keep files with this split in their name or in that of their folder.

    Raises:
        CaptionDataError: a file does not exist, or there is none of that split.
    """
    if isinstance(source, (str, os.PathLike)):
        folder = Path(source)
        if folder.is_dir():
            shards = sorted(os.fspath(path) for path in folder.rglob("*") if path.name.lower().endswith(TAR_SUFFIXES))
        else:
            shards = [path for pattern in expand_braces(os.fspath(source)) for path in _matching(pattern)]
    else:
        shards = [shard for each in source for shard in find_shards(each, None)]
    if not shards or split is None:
        return shards
    by_split: dict[str, list[str]] = {}
    for shard in shards:
        for name in splits_named(shard):
            by_split.setdefault(name, []).append(shard)
    check_split(canonical_split(split), by_split, f"{len(shards)} tar files from {shards[0]} on")
    return by_split[canonical_split(split)]


def expand_braces(pattern: str) -> list[str]:
    """Expand braces like a shell.

    >>> expand_braces("{a,b}-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    numbers = _RANGE.fullmatch(match[1])
    if numbers:
        first, last = numbers.groups()
        parts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        parts = match[1].split(",")
    return [name for part in parts for name in expand_braces(pattern[: match.start()] + part + pattern[match.end() :])]


def _matching(pattern: str) -> list[str]:
    if not pattern.lower().endswith(TAR_SUFFIXES):
        return []
    if not set("*?[").intersection(pattern):
        if "://" not in pattern and not Path(pattern).is_file():
            raise CaptionDataError(f"{pattern}: no such file")
        return [pattern]
    files, root = fsspec.core.url_to_fs(pattern)
    found = sorted(files.glob(root))
    if not found:
        raise CaptionDataError(f"{pattern}: no file matches")
    return [files.unstrip_protocol(path) if "://" in pattern else os.fspath(Path(path)) for path in found]


def splits_named(shard: str) -> set[str]:
    """Return the splits that a tar file or its folder is named after."""
    path = PurePosixPath(shard.replace("\\", "/"))
    return (split_words(path.name) | {canonical_split(path.parent.name)}) & set(SPLITS)


def tar_rows(shards: Sequence[str], on_error: OnError) -> Iterator[dict[str, Any]]:
    """Yield `image`, `image_id`, `captions` and `problem` of each key.

    `problem` describes what was left out of the key or of a damaged shard; `captions` are those that can be used. The
    image's path (`tar://key.jpg::shard.tar`) names shard and key.

    Raises:
        CaptionDataError: the first problem, if `on_error` is "raise".
        OSError: a shard cannot be opened or, if it is remote, read.
    """
    for shard in shards:
        key, row = "", None
        try:
            for key, files, problems in _keys(shard):
                row = _row(shard, key, files, problems)
                if row["problem"] and on_error == "raise":
                    raise CaptionDataError(row["problem"])
                yield row
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            problem = f"{shard}: damaged{f' after {key}' if key else ''}: {error}"
            if on_error == "raise":
                raise CaptionDataError(problem) from error
            yield {"image": None, "image_id": "", "captions": [], "problem": problem}


def _keys(shard: str) -> Iterator[tuple[str, dict[str, tuple[str, bytes]], list[str]]]:
    """Yield each key with its files (name and content by suffix), and problems with its other files."""
    current = ""
    files: dict[str, tuple[str, bytes]] = {}
    problems: list[str] = []
    # Watched, because tarfile takes a broken header for the end of the archive.
    with fsspec.open(shard, "rb", compression="gzip" if shard.lower().endswith("gz") else None) as raw:
        watched = _Watched(raw)
        with tarfile.open(fileobj=watched, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would keep them all
                name = PurePosixPath(member.name)
                suffix = suffix_of(name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                if suffix not in _TEXT_SUFFIXES and not is_photo_name(name):
                    continue
                key = str(name.parent / name.name.split(".", 1)[0])
                if key != current:
                    if current:
                        yield current, files, problems
                    current, files, problems = key, {}, []
                if suffix in files:
                    problems.append(f"{member.name} occurs twice")
                    continue
                if member.size > _MOST_BYTES:
                    problems.append(f"{member.name} has {member.size:,} bytes; {_MOST_BYTES:,} are the most")
                    continue
                content = tar.extractfile(member)
                assert content is not None, member.name  # it is a file
                files[suffix] = (member.name, content.read())
        if watched.last != bytes(_BLOCK):
            raise tarfile.ReadError("there is no end mark, so it was truncated")
        if current:
            yield current, files, problems


class _Watched:
    """A file that remembers the last block read and limits the size of a read."""

    def __init__(self, file: Any) -> None:
        self.file, self.last = file, b""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_BYTES + _BLOCK:
            raise tarfile.ReadError(f"a name or a header in it claims {size:,} bytes")
        self.last = self.file.read(size)
        return self.last


def _row(shard: str, key: str, files: dict[str, tuple[str, bytes]], problems: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"image": None, "image_id": key, "captions": []}
    photo = next((files[suffix] for suffix in photo_suffixes() if suffix in files), None)
    if photo is None or not photo[1]:
        problems.append("no photo" if photo is None else "the photo is empty (0 bytes)")
    else:
        row["image"] = {"bytes": photo[1], "path": f"tar://{photo[0]}::{shard}"}
        try:
            row["captions"] = clean_captions(_captions(files), problems)
        except RejectedError as rejected:
            problems.append(str(rejected))
    row["problem"] = f"{shard}: {key}: {'; '.join(problems)}" if problems else None
    return row


def clean_captions(captions: Any, problems: list[str]) -> list[str]:
    """Strip captions; add those that cannot be used to `problems` instead."""
    kept = []
    for caption in captions:
        try:
            kept.append(clean_caption(caption))
        except RejectedError as rejected:
            problems.append(str(rejected))
    if not kept:
        raise RejectedError("the photo has no caption that can be used")
    return kept


def _captions(files: dict[str, tuple[str, bytes]]) -> Iterator[Any]:
    """Return unchecked captions: those in the JSON file, if any, else the lines of the text file."""
    if ".json" in files:
        try:
            document = json.loads(_text(*files[".json"]))
        except (json.JSONDecodeError, RecursionError) as error:
            raise RejectedError(f"{files['.json'][0]} is not valid JSON: {error}") from None
        try:
            cells = (
                [document[name] for name in caption_columns(document)] if isinstance(document, dict) else [document]
            )
            return cell_captions(cells)
        except RejectedError:
            if ".txt" not in files:
                raise
    if ".txt" not in files:
        raise RejectedError("no captions: neither a .txt nor a .json next to the photo")
    lines = [line for line in _text(*files[".txt"]).splitlines() if line.strip()]
    return iter(lines)


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RejectedError(f"{name} is not valid UTF-8 (byte 0x{content[error.start]:02x})") from None

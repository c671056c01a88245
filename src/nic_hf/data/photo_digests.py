"""Digests of photos. Files are read once, and recognised later by path, size and times."""

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.compute as pc

from ..digests import digest_of, raw_digest
from ..progress_bar import progress_bar

logger = logging.getLogger(__name__)

INDEX = "photos.sqlite"

# Timestamps have a limited resolution: a photo that changed just before it was read could change again unnoticed.
_SETTLED_NS = 2_000_000_000
_PHOTOS_A_BATCH = 500
_SECONDS_TO_WAIT = 5.0  # for another process that writes to the index
_CREATE = (
    "CREATE TABLE IF NOT EXISTS photos"
    " (path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, changed INTEGER, digest BLOB) WITHOUT ROWID"
)

_held: dict[str, list[bytes]] = {}  # digests of photos that a dataset holds as bytes, by its fingerprint
_MOST_HELD = 8


class _State(NamedTuple):
    """State of a file, to tell whether it changed; times in nanoseconds."""

    size: int
    modified: int
    changed: int  # change time of the inode, which no program can set; on Windows, the creation time

    def is_settled(self) -> bool:
        """Whether a later change would get other times."""
        return time.time_ns() - max(self.modified, self.changed) > _SETTLED_NS


def photo_digests(photos: datasets.Dataset, folder: Path) -> list[bytes]:
    """Return a digest of each photo's content (see [`nic_hf.digests.raw_digest`]).

    Digests of files are kept in `photos.sqlite` by path, size and times; a file is read again if one of these changed.
    Digests of photos that the dataset holds as bytes are computed once per process.

    Args:
        photos: a dataset with a column `image`.
        folder: folder of the index. If the index cannot be read or written, photos are read instead.
    """
    images = photos.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    held = _held.get(photos._fingerprint)
    if held is not None:
        return held
    digests: list[bytes] = []
    fresh: list[tuple[Any, ...]] = []
    any_file = False
    index = _Index(folder / INDEX)
    bar = progress_bar(total=len(images), unit="photo", desc="Checking photos", hidden=len(images) < 2048)
    with closing(index), bar:
        for batch in images.with_format("arrow").iter(_PHOTOS_A_BATCH):
            column = batch["image"].combine_chunks()
            contents = pc.struct_field(column, "bytes")
            # Absolute, because a relative path could name another photo from another working directory.
            paths = [path and os.path.abspath(path) for path in pc.struct_field(column, "path").to_pylist()]  # noqa: PTH100
            in_file = contents.is_null().to_pylist()
            files = [path for path, is_file in zip(paths, in_file, strict=True) if is_file]
            any_file = any_file or bool(files)
            known = index.find(files)
            for content, path in zip(contents, paths, strict=True):
                if content.is_valid:
                    digests.append(raw_digest(content.as_buffer()))
                    continue
                state = _state(path)
                digest = None if state is None else known.get((path, state))
                if digest is None:
                    digest = _digest_of_file(path)
                    if state is not None and state == _state(path) and state.is_settled():
                        fresh.append((path, *state, digest))
                digests.append(digest)
            bar.update(len(paths))
    if fresh:
        index.add(fresh)
    if not any_file:
        if len(_held) >= _MOST_HELD:
            _held.clear()
        _held[photos._fingerprint] = digests
    return digests


def chunk_keys(digests: Sequence[bytes], photos_a_chunk: int) -> list[str]:
    """Return a digest of the photos of each chunk."""
    starts = range(0, len(digests), photos_a_chunk)
    return [digest_of(digests[start : start + photos_a_chunk]) for start in starts]


def _state(path: str) -> _State | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path a photo would take longer than the call
    except OSError:
        return None
    return _State(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _digest_of_file(path: str) -> bytes:
    """Digest of a file, or of its name if it is missing."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        content = f"missing: {path}".encode()
    return raw_digest(content)


class _Index:
    """Index of digests on disk. If it fails, a warning is logged and photos are read instead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        if path.exists():
            try:
                self._database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_SECONDS_TO_WAIT)
            except sqlite3.Error as error:
                self._give_up(error)

    def find(self, paths: Sequence[str]) -> dict[tuple[str, _State], bytes]:
        """Return the known digests by path and state."""
        if self._database is None or not paths:
            return {}
        question = f"SELECT * FROM photos WHERE path IN ({','.join('?' * len(paths))})"
        try:
            rows = self._database.execute(question, paths).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return {}
        return {(path, _State(*state)): digest for path, *state, digest in rows}

    def add(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add rows to the index."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_SECONDS_TO_WAIT)) as database, database:
                database.execute(_CREATE)
                database.executemany("INSERT OR REPLACE INTO photos VALUES (?, ?, ?, ?, ?)", rows)
        except (OSError, sqlite3.Error) as error:
            logger.warning(
                "cannot write the digests of photos to %s (%s): the next start reads the photos again",
                self.path,
                error,
            )

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _give_up(self, error: sqlite3.Error) -> None:
        self.close()
        if isinstance(error, sqlite3.OperationalError):  # it is locked or cannot be opened
            logger.warning("%s cannot be read (%s): photos are read instead", self.path, error)
            return
        logger.warning("%s is damaged (%s): it is removed and photos are read again", self.path, error)
        try:
            self.path.unlink(missing_ok=True)
        except OSError as problem:
            logger.warning("%s cannot be removed: %s", self.path, problem)

"""Digests of photos: each file is read once, and known again by its path, size and times."""

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

# Times of files are counted in steps: a photo that changed so shortly before it was read may change within its step.
_SETTLED_NS = 2_000_000_000
_PHOTOS_A_BATCH = 500
_SECONDS_TO_WAIT = 5.0  # for another process that writes the index
_CREATE = (
    "CREATE TABLE IF NOT EXISTS photos"
    " (path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, changed INTEGER, digest BLOB) WITHOUT ROWID"
)

_held: dict[str, list[bytes]] = {}  # digests of the photos of a data set that holds them itself, by its fingerprint
_MOST_HELD = 8


class _State(NamedTuple):
    """What tells whether a file is still the one that was read; times in nanoseconds."""

    size: int
    modified: int
    changed: int  # of the inode too, which no program can set back; on Windows, when the file was made

    def is_settled(self) -> bool:
        """Whether a change to come would change the times too."""
        return time.time_ns() - max(self.modified, self.changed) > _SETTLED_NS


def photo_digests(photos: datasets.Dataset, folder: Path) -> list[bytes]:
    """A digest of each photo's content: 16 bytes of BLAKE2b.

    Those of files are kept in `photos.sqlite`, by path, size and times; a file is read again where one of these
    changed. Those of photos that the data set holds itself are computed once a process.

    Args:
        photos: a data set with a column `image`.
        folder: where the index is. Where it cannot be read or written, photos are read.
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
            # Absolute: from another working directory the same path may be of another photo.
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
    """A digest of the photos of each chunk."""
    starts = range(0, len(digests), photos_a_chunk)
    return [digest_of(digests[start : start + photos_a_chunk]) for start in starts]


def _state(path: str) -> _State | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path a photo would take longer than the call
    except OSError:
        return None
    return _State(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _digest_of_file(path: str) -> bytes:
    """Digest of a file; of one that is gone, of its name."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        content = f"missing: {path}".encode()
    return raw_digest(content)


class _Index:
    """Digests of files on disk. What goes wrong with it costs time, and is logged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        if path.exists():
            try:
                self._database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_SECONDS_TO_WAIT)
            except sqlite3.Error as error:
                self._give_up(error)

    def find(self, paths: Sequence[str]) -> dict[tuple[str, _State], bytes]:
        """What is known of files, by path and state."""
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
        """Keep what was found out."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_SECONDS_TO_WAIT)) as database, database:
                database.execute(_CREATE)
                database.executemany("INSERT OR REPLACE INTO photos VALUES (?, ?, ?, ?, ?)", rows)
        except (OSError, sqlite3.Error) as error:
            logger.warning(
                "cannot keep the digests of photos in %s (%s): the next start reads them again", self.path, error
            )

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _give_up(self, error: sqlite3.Error) -> None:
        self.close()
        if isinstance(error, sqlite3.OperationalError):  # it is locked, or of no use as it is
            logger.warning("%s cannot be read (%s): photos are read in its place", self.path, error)
            return
        logger.warning("%s is damaged (%s): it is removed, and photos are read again", self.path, error)
        try:
            self.path.unlink(missing_ok=True)
        except OSError as problem:
            logger.warning("%s cannot be removed: %s", self.path, problem)

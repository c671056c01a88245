"""Atomic writing of files, and escaping of other people's text for Markdown."""

import os
import re
import shutil
import socket
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STALE_SECONDS = 3600
_LONGEST_NAME = 40  # characters of the file's name in the temporary name, which is limited to 255 bytes
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\.tmp", re.DOTALL)

_tidied: set[Path] = set()  # folders that this process has searched for leftovers


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename the file to `path` after the block.

    The content is on disk before the rename, so neither a kill nor a power failure leaves a partial file. Each writer
    has its own temporary file; if several processes write the same file, the last one wins. Temporary files of killed
    processes are removed, and the folder is created if it does not exist.

    Args:
        path: the file.
        sync: wait for the disk. Without it, a power failure may leave an empty file, and writing thousands of files
            takes a third of the time.

    Raises:
        OSError: the file cannot be written; an existing file is left unchanged.
    """
    path = Path(path)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _tidied:
            remove_leftovers(path.parent)
        yield temporary
        if sync:
            sync_file(temporary)
        os.replace(temporary, path)  # noqa: PTH105 - replaces an existing file on Windows too
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def staging_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder in `target`, for files that are to appear there together; it is removed at the end.

    Folders of killed processes are removed, and `target` is created if it does not exist.

    Raises:
        OSError: naming `target`, if it is a file or cannot be written.
    """
    target = Path(target)
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"{target} is a file")
        target.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        staging = target / _temporary_name("saving")
        staging.mkdir()
    except OSError as error:
        raise OSError(f"cannot save to {target}: {error}") from error
    try:
        yield staging
        _sync_folder(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that cannot be written, or cannot be made; nothing is left behind.

    Raises:
        OSError: naming it.
    """
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0")  # which a full disk refuses
    except OSError as error:
        reason = f"{place} is a file; give a folder" if place.is_file() else error.strerror or str(error)
        raise OSError(f"cannot write to {os.fspath(folder)}: {reason}") from error


def sync_file(path: str | os.PathLike[str]) -> None:
    """Wait until the content of a file is on disk."""
    with Path(path).open("r+b") as file:
        os.fsync(file.fileno())


def _temporary_name(name: str) -> str:
    return f".{name[:_LONGEST_NAME]}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


def write_bytes(path: str | os.PathLike[str], content: bytes, *, sync: bool = True) -> Path:
    """Write a file atomically (see [`replacing`]).

    Raises:
        OSError: the file cannot be written; an existing file is left unchanged.
    """
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = True) -> Path:
    """Write text atomically, in UTF-8 and with `\\n` line ends on every platform."""
    return write_bytes(path, text.encode("utf-8"), sync=sync)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files of killed processes, or of processes on other machines after an hour."""
    folder = Path(folder)
    _tidied.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            owner = _TEMPORARY.fullmatch(entry.name)
            if owner is None:
                continue
            with suppress(OSError):  # another process removed it, Windows has it open, or the folder is read-only
                if os.name == "posix" and owner[1] == _host():
                    gone = not _runs(int(owner[2]))
                else:
                    gone = time.time() - entry.stat().st_mtime > _STALE_SECONDS
                if gone and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif gone:
                    os.unlink(entry.path)  # noqa: PTH108 - the name as the system returned it


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # only checks that the process exists; POSIX only
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it belongs to another user
    return True


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk, if the system supports this."""
    if os.name != "posix":
        return
    with suppress(OSError):  # not supported by some file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def markdown_text(text: str) -> str:
    """Escape captions, names of photos and other foreign text, so that Markdown shows neither HTML nor links.

    Escaping twice gives the same as once.

    >>> markdown_text("a dog <img src=x> ![](http://host/seen.png)")
    'a dog &lt;img src=x> !&#91;](http://host/seen.png)'
    """
    return text.replace("<", "&lt;").replace("[", "&#91;")

"""Files that are written whole or not at all, and text of others in Markdown."""

import os
import re
import socket
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STALE_SECONDS = 3600
_LONGEST_NAME = 40  # characters of a file's name in that of its temporary one, which has to fit into 255 bytes
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\.tmp", re.DOTALL)

_tidied: set[Path] = set()  # folders that this process has looked for leftovers in


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """A temporary path in the folder of `path`, which is made where it is missing; renamed to `path` after the block.

    The content is on the disk before the rename, so that neither a kill nor a power cut leaves half a file. Each
    writer has a temporary file of its own: where several processes write the same file, the last one's stays. What
    processes that were killed left in the folder is removed.

    Args:
        path: the file.
        sync: wait for the disk. Without it a power cut may leave an empty file, and thousands of files take a third of
            the time.

    Raises:
        OSError: naming `path`, where it cannot be written; what was there stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:_LONGEST_NAME]}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _tidied:
            remove_leftovers(path.parent)
        yield temporary
        if sync:
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - replaces an existing file on Windows too
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes, *, sync: bool = True) -> Path:
    """Write a file whole or not at all (see [`replacing`]).

    Raises:
        OSError: naming `path`, where it cannot be written; what was there stays.
    """
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = True) -> Path:
    """As [`write_bytes`], UTF-8 and `\\n` at the ends of lines everywhere."""
    return write_bytes(path, text.encode("utf-8"), sync=sync)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files of processes that were killed; of those of other machines, after an hour."""
    folder = Path(folder)
    _tidied.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            owner = _TEMPORARY.fullmatch(entry.name)
            if owner is None:
                continue
            with suppress(OSError):  # another process was faster, Windows has it open, or the folder is read only
                if os.name == "posix" and owner[1] == _host():
                    gone = not _runs(int(owner[2]))
                else:
                    gone = time.time() - entry.stat().st_mtime > _STALE_SECONDS
                if gone:
                    os.unlink(entry.path)  # noqa: PTH108 - a name, as the system gave it


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and sends nothing; only on POSIX
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is someone else's
    return True


def _sync_folder(folder: Path) -> None:
    """Put a rename on the disk, where the system has a call for that."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some file systems know no such thing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def markdown_text(text: str) -> str:
    """Text of others, such as captions and names of photos, as Markdown in which it is neither HTML nor a link.

    Twice gives the same as once.

    >>> markdown_text("a dog <img src=x> ![](http://host/seen.png)")
    'a dog &lt;img src=x> !&#91;](http://host/seen.png)'
    """
    return text.replace("<", "&lt;").replace("[", "&#91;")

"""Files that are written whole or not at all, and text of others in Markdown."""

import os
from contextlib import suppress
from pathlib import Path


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file under a temporary name beside it, then rename; folders are made where they are missing.

    Raises:
        OSError: naming `path`, where it cannot be written; what was there stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)  # noqa: PTH105 - replaces an existing file on Windows too
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """As [`write_bytes`], UTF-8 and `\\n` at the ends of lines everywhere."""
    return write_bytes(path, text.encode("utf-8"))


def markdown_text(text: str) -> str:
    """Text of others, such as captions and names of photos, as Markdown in which it is neither HTML nor a link.

    Twice gives the same as once.

    >>> markdown_text("a dog <img src=x> ![](http://host/seen.png)")
    'a dog &lt;img src=x> !&#91;](http://host/seen.png)'
    """
    return text.replace("<", "&lt;").replace("[", "&#91;")

"""Recognise the columns of a table that hold photos, captions and splits, and read caption cells."""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .errors import RejectedError

# In order of preference.
IMAGE_COLUMNS = (
    *("image", "file_name", "filename", "image_name", "image_path", "image_file", "image_filename", "file"),
    *("file_path", "filepath", "path", "img", "img_name", "img_path", "img_file", "photo", "photo_name", "photo_path"),
    *("photo_file", "picture", "image_id", "img_id", "photo_id"),
)
CAPTION_COLUMNS = (
    *("captions", "caption", "sentences", "sentence", "text", "texts", "comments", "comment", "description"),
    *("descriptions", "caption_text", "caption_str", "raw", "alt_text", "title"),
)
_SPLIT_COLUMNS = ("split", "set_name", "partition", "subset", "set")

_NUMBERED = re.compile(r"(?:caption|sentence|text|comment|description)s?_?(\d+)")
_IMAGE_WORDS = {"image", "images", "file", "filename", "photo", "picture", "img"}
_CAPTION_WORDS = {"caption", "captions", "sentence", "text", "comment", "description"}
_OTHER_WORDS = {"number", "id", "ids", "url", "count", "length", "len", "width", "height", "size", "lang", "language"}


class Columns(NamedTuple):
    """Names of the columns that are read.

    Attributes:
        image: photo names; None if the table holds the photos themselves.
        captions: one column of captions or several.
        split: names of splits, if there is such a column.
    """

    image: str | None
    captions: tuple[str, ...]
    split: str | None


@functools.lru_cache(maxsize=1000)  # each record of a JSON file has its own columns, mostly the same
def recognise(columns: tuple[str, ...], image: str | None = None, caption: str | None = None) -> Columns:
    """Recognise image, caption and split columns by their names.

    Args:
        columns: all names.
        image: name of the image column, if known.
        caption: name of the caption column, or several separated by commas, if known.
    """
    found = _named(columns, image)[0] if image else _image_column(columns)
    rest = [name for name in columns if name != found]
    return Columns(found, tuple(caption_columns(rest, caption, columns)), split_column(columns))


def caption_columns(columns: Iterable[str], named: str | None = None, shown: Sequence[str] | None = None) -> list[str]:
    """Return the first of `CAPTION_COLUMNS` that exists, or else all of `caption_0`, `caption_1`, ... in order.

    >>> caption_columns(["image", "caption_1", "caption_0"])
    ['caption_0', 'caption_1']

    Args:
        columns: all names.
        named: name of the caption column, or several separated by commas, if known.
        shown: all columns of the table, for messages.
    """
    columns = list(columns)
    if named:
        return _named(columns, named)
    plain = {_plain(name): name for name in reversed(columns)}
    for name in CAPTION_COLUMNS:
        if name in plain:
            return [plain[name]]
    numbered = [(int(match[1]), plain[match[0]]) for match in map(_NUMBERED.fullmatch, plain) if match]
    if numbered:
        return [name for _, name in sorted(numbered)]
    likely = [plain[name] for name in plain if _words(name) & _CAPTION_WORDS and not _words(name) & _OTHER_WORDS]
    if len(likely) == 1:
        return likely
    raise RejectedError(
        f"no caption column: expected one of {', '.join(CAPTION_COLUMNS[:9])}, or caption_0, caption_1, ..., "
        f"and found {', '.join(shown or columns) or 'no columns'}"
    )


def split_column(columns: Iterable[str]) -> str | None:
    """Return the column with each row's split, or None."""
    plain = {_plain(name): name for name in columns}
    return next((plain[name] for name in _SPLIT_COLUMNS if name in plain), None)


def cell_captions(cells: Sequence[Any]) -> Iterator[Any]:
    """Yield the unchecked captions of one row's caption cells.

    A cell is a text, a list of texts, or a list of objects with the text under "raw" (Karpathy's sentences). If there
    are several cells, empty ones are skipped: they pad rows with fewer captions.
    """
    for cell in cells:
        if len(cells) > 1 and (cell is None or cell == ""):
            continue
        for value in cell if isinstance(cell, list) else [cell]:
            yield value["raw"] if isinstance(value, Mapping) and "raw" in value else value


def listed(cell: str) -> str | list[str]:
    """Parse a cell into which pandas or NumPy wrote a list of captions; return any other text unchanged.

    >>> listed("['a dog', \\"a dog's bed\\"]"), listed("[a dog]")
    (['a dog', "a dog's bed"], '[a dog]')
    """
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]") and len(text) > 2 and text[1:].lstrip()[:1] in "'\""):
        return cell
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        # One by one: NumPy writes no commas between texts, and Python would concatenate them.
        captions = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    except (tokenize.TokenError, SyntaxError, ValueError):
        raise RejectedError(f"a list that is not closed or quoted as in Python: {text:.100}") from None
    others = {token.string for token in tokens if token.type not in (tokenize.STRING, tokenize.NL, tokenize.NEWLINE)}
    if others <= {"[", "]", ",", ""} and all(isinstance(caption, str) for caption in captions):
        return captions
    raise RejectedError(f"a list that is not closed or quoted as in Python: {text:.100}")


def _image_column(columns: Sequence[str]) -> str:
    plain = {_plain(name): name for name in reversed(columns)}
    for name in IMAGE_COLUMNS:
        if name in plain:
            return plain[name]
    unlikely = _OTHER_WORDS | _CAPTION_WORDS
    likely = [plain[name] for name in plain if _words(name) & _IMAGE_WORDS and not _words(name) & unlikely]
    if len(likely) == 1:
        return likely[0]
    raise RejectedError(
        f"no image column: expected one of {', '.join(IMAGE_COLUMNS[:5])}, ... "
        f"and found {', '.join(columns) or 'no columns'}"
    )


def _named(columns: Sequence[str], names: str) -> list[str]:
    plain = {_plain(name): name for name in reversed(columns)}
    found = []
    for name in names.split(","):
        column = name.strip() if name.strip() in columns else plain.get(_plain(name))
        if column is None:
            raise RejectedError(f"no column {name.strip()!r}: the columns are {', '.join(columns) or 'none'}")
        found.append(column)
    return found


def _plain(name: str) -> str:
    """Convert a name to lower case with underscores.

    >>> _plain(" Image Name"), _plain("fileName")
    ('image_name', 'file_name')
    """
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip(" \"'\t\ufeff"))
    return re.sub(r"[\s-]+", "_", name).lower()


def _words(name: str) -> set[str]:
    return set(name.split("_"))

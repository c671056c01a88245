"""Which columns of a table hold captions, and the captions in their cells."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .problems import RejectedError

CAPTION_COLUMNS = ("captions", "caption", "sentences", "text")

_NUMBERED = re.compile(r"(?:caption|sentence|text)_?(\d+)")


def caption_columns(columns: Iterable[str]) -> list[str]:
    """Return the first of `CAPTION_COLUMNS` there is, or else all of `caption_0`, `caption_1`, ..., in that order.

    >>> caption_columns(["image", "caption_1", "caption_0"])
    ['caption_0', 'caption_1']

    Raises:
        RejectedError: there is neither.
    """
    columns = list(columns)
    for name in CAPTION_COLUMNS:
        if name in columns:
            return [name]
    numbered = [(int(match[1]), match[0]) for match in map(_NUMBERED.fullmatch, columns) if match]
    if not numbered:
        raise RejectedError(
            f"no caption column: expected one of {', '.join(CAPTION_COLUMNS)}, or caption_0, caption_1, ..., "
            f"and found {', '.join(columns) or 'no columns'}"
        )
    return [name for _, name in sorted(numbered)]


def cell_captions(cells: Sequence[Any]) -> Iterator[Any]:
    """Yield the captions, not yet checked, of one row's caption cells.

    A cell is a text, a list of texts, or a list of objects with the text under "raw" (Karpathy's sentences). One cell
    of several may be empty: a table as wide as its longest row pads the others.
    """
    for cell in cells:
        if len(cells) > 1 and (cell is None or cell == ""):
            continue
        for value in cell if isinstance(cell, list) else [cell]:
            yield value["raw"] if isinstance(value, Mapping) and "raw" in value else value

"""Reading text, CSV lines, JSON and captions so that every fault has a place and a plain reason."""

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .problems import CaptionDataError, Problems, RejectedError

LONGEST_CAPTION = 131_072  # characters, which is also the most that Python's csv takes for a field


def read_lines(file: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of each line that is not blank.

    A byte-order mark and CR LF line ends are accepted. Only LF ends a line: captions may hold the rarer line
    separators of Unicode. A line that is not UTF-8 is rejected; the others are still read.
    """
    # The whole file at once: a generator over an open file would keep its handle for as long as an error is kept.
    for number, raw in enumerate(file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        text = ""
        with problems.at(file, line=number):
            text = _decode(raw)
        if text.strip():
            yield number, text.removesuffix("\r")


def csv_fields(line: str) -> list[str]:
    """Split one line of a CSV file into its fields.

    A record is one line. Were quotes allowed to run over line ends, one forgotten quote would swallow the lines
    after it.

    Raises:
        RejectedError: a quote is not closed, or text follows a closing quote.
    """
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        if "field limit" in str(error):
            raise RejectedError(f"a field of more than {csv.field_size_limit():,} characters") from None
        raise RejectedError(f"broken quotes ({error}); a quoted field must open and close on one line") from None


def read_json(file: Path) -> Any:
    """Parse a JSON file.

    Raises:
        CaptionDataError: the file is empty, not UTF-8, or not JSON.
    """
    raw = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not raw.strip():
        raise CaptionDataError(f"{file}: the file is empty")
    try:
        return json.loads(_decode(raw))
    except RejectedError as rejected:
        raise CaptionDataError(f"{file}: {rejected}") from None
    except json.JSONDecodeError as error:
        raise CaptionDataError(f"{file}: line {error.lineno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise CaptionDataError(f"{file}: not caption data: the JSON is nested too deeply") from None


def clean_caption(value: object, if_blank: str = "blank caption") -> str:
    """Return the caption without white space at its ends.

    Raises:
        RejectedError: it is not text, is blank (with the reason `if_blank`), is longer than `LONGEST_CAPTION`, whose
            tokens would take gigabytes, or holds half of a surrogate pair, which
            JSON can spell (`\\ud83d`) and no UTF-8 file can hold.
    """
    if value is None:
        raise RejectedError(if_blank)
    if not isinstance(value, str):
        raise RejectedError(f"the caption is {value!r}, not text")
    caption = value.strip()
    if not caption:
        raise RejectedError(if_blank)
    if len(caption) > LONGEST_CAPTION:
        raise RejectedError(f"the caption has {len(caption):,} characters; {LONGEST_CAPTION:,} are the most")
    return valid_unicode(caption, "caption")


def valid_unicode(text: str, what: str) -> str:
    """Return the text.

    Raises:
        RejectedError: it holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RejectedError(f"the {what} {text!r} is not valid Unicode") from None
    return text


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RejectedError(f"not valid UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8") from None

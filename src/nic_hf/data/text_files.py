"""Read text, delimited rows, JSON and captions, with the place and reason of each error."""

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import CaptionDataError, ErrorCollector, NoCaptionsError, RejectedError, say_once

LONGEST_CAPTION = 131_072  # characters; also the limit of Python's csv for a field

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# At most a tenth of the bytes of Western text in Windows-1252 are accented letters; in other scripts nearly all are.
_MOST_ACCENTS = 0.2


def read_lines(file: Path, errors: ErrorCollector) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line that is not blank.

    UTF-8 and UTF-16 are supported, with or without a byte-order mark, and Windows-1252 if nothing in the file is
    UTF-8; the log says which. Lines end with LF or CR LF only, since captions may contain the other line separators
    of Unicode. If some lines are UTF-8, a line that is not is rejected.
    """
    # The whole file at once: a generator over an open file would keep it open as long as an error is kept.
    raw = file.read_bytes()
    text = _decode(file, raw)
    if text is not None:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, line.removesuffix("\r")
        return
    for number, part in enumerate(raw.split(b"\n"), start=1):
        line = ""
        with errors.at(file, line=number):
            line = _utf8(part)
        if line.strip():
            yield number, line.removesuffix("\r")


def first_line(file: Path) -> str:
    """Return the first line that is not blank, or ""; bytes in an unknown encoding are replaced."""
    with file.open("rb") as opened:
        raw = opened.read(65_536)
    encoding = _encoding(raw) or "utf-8"
    lines = raw.decode(encoding, errors="replace").lstrip("\ufeff").split("\n")
    return next((line.removesuffix("\r") for line in lines if line.strip()), "")


def fields_of(row: str, delimiter: str) -> list[str]:
    """Split a row of a delimited file into its fields, following the rules of CSV."""
    if delimiter == "|":  # Flickr30k, where quotes are part of the text
        return row.split("|")
    if len(row) > csv.field_size_limit():
        raise RejectedError(f"a field has more than {csv.field_size_limit():,} characters")
    try:
        return next(csv.reader([row], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise RejectedError(f"broken quotes ({error}); a quoted field must be closed") from None


def read_json(file: Path) -> Any:
    """Parse a JSON file."""
    raw = file.read_bytes()
    if not raw.strip():
        raise NoCaptionsError(f"{file}: the file is empty")
    try:
        text = _decode(file, raw)
        return json.loads(_utf8(raw) if text is None else text)
    except RejectedError as rejected:
        raise CaptionDataError(f"{file}: {rejected}") from None
    except json.JSONDecodeError as error:
        raise CaptionDataError(f"{file}: line {error.lineno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise CaptionDataError(f"{file}: not caption data: the JSON is nested too deeply") from None


def clean_caption(value: object, if_blank: str = "blank caption") -> str:
    """Return the caption in one line, stripped."""
    if value is None:
        raise RejectedError(if_blank)
    if not isinstance(value, str):
        raise RejectedError(f"the caption is {value!r}, not text")
    caption = value.strip()
    if not caption:
        raise RejectedError(if_blank)
    if len(caption) > LONGEST_CAPTION:
        raise RejectedError(f"the caption has {len(caption):,} characters; {LONGEST_CAPTION:,} are the most")
    if "\n" in caption or "\r" in caption:
        caption = re.sub(r"[ \t]*[\r\n]+[ \t]*", " ", caption)
    return valid_unicode(caption, "caption")


def valid_unicode(text: str, what: str) -> str:
    """Return the text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RejectedError(f"the {what} {text!r} is not valid Unicode") from None
    return text


def _encoding(raw: bytes) -> str | None:
    """Return the encoding according to a byte-order mark or the zeros of UTF-16; None if there are neither."""
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            return encoding
    start = raw[:4096]
    pairs = len(start) // 2
    if pairs and start.count(0) > 0.4 * pairs:
        return "utf-16-be" if start[::2].count(0) > start[1::2].count(0) else "utf-16-le"
    return None


def _decode(file: Path, raw: bytes) -> str | None:
    """Return the text of a file; None if some lines are UTF-8 and others are not."""
    encoding = _encoding(raw)
    try:
        text = raw.decode(encoding or "utf-8").removeprefix("\ufeff")
        if encoding not in (None, "utf-8"):
            say_once(f"{file}: read as {str(encoding).upper()}")
        return text
    except UnicodeDecodeError as error:
        if encoding not in (None, "utf-8"):
            raise CaptionDataError(f"{file}: not valid {str(encoding).upper()}; save the file as UTF-8") from error
        bad = raw[error.start]
    lines = raw.split(b"\n")
    if any(not line.isascii() and _is_utf8(line) for line in lines):
        return None
    accents = sum(byte > 127 for byte in raw)
    try:
        if accents > _MOST_ACCENTS * len(raw):
            raise CaptionDataError(f"{file}: not UTF-8 (byte 0x{bad:02x}); save the file as UTF-8")
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return None
    say_once(f"{file}: not UTF-8 (byte 0x{bad:02x}), read as Windows-1252 (cp1252)")
    return text


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RejectedError(f"not valid UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8") from None

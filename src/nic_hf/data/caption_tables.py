"""Captions in rows of text: CSV, TSV, Flickr30k's `|`, Flickr8k's `name.jpg#k<TAB>caption`, and JSON lines.

`load_dataset("csv")` gives one row per caption and cannot say which line is wrong.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..photo_files import is_photo_name
from .columns import Columns, cell_captions, listed, recognise
from .errors import CaptionDataError, ErrorCollector, NoCaptionsError, RejectedError, say_once
from .names import SPLITS, canonical_split, names_to_try, safe_name
from .photo_finder import PHOTO_FOLDERS, CaptionedPhoto, CaptionFile
from .splits import SplitList
from .text_files import clean_caption, fields_of, first_line, read_lines, valid_unicode

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".token")
DELIMITERS = {",": "comma", "\t": "tab", "|": "bar", ";": "semicolon"}

_TOKEN_LINE = re.compile(r"(?P<name>.+)#\d+\t(?P<caption>.*)", re.DOTALL)
# In one row of Flickr30k the bar after the caption's number is missing.
_FIRST_FIELD = re.compile(r"\s*\"?(?P<name>[^\",\t|;]+)\"?\s*(?P<delimiter>[,\t|;])")
_NUMBERED_CAPTION = re.compile(r"\s*(?P<number>\d+)\s+(?P<caption>\S.*)")
# What pandas and spreadsheets write for a missing value.
_MISSING = ("nan", "none", "null", "n/a", "#n/a", "<na>", "-")
_MOST_JOINED = 50  # lines that a quoted field may span
_HERE = PurePosixPath()


class Record(NamedTuple):
    """One row, entry or object, as it stands in the file.

    Attributes:
        place: line number (text files) or place (JSON).
        name: name of the photo.
        captions: its captions.
        split: its split, if there is one.
    """

    place: int | str
    name: Any
    captions: Sequence[Any]
    split: Any = None


class _Layout(NamedTuple):
    """Layout of a table.

    Attributes:
        delimiter: separates fields.
        header: names of the columns.
        columns: those that are read.
        has_header: whether the first line is the header.
    """

    delimiter: str
    header: list[str]
    columns: Columns
    has_header: bool


def read_table(
    file: Path,
    errors: ErrorCollector,
    image: str | None,
    caption: str | None,
    lists: Mapping[str, SplitList],
    below: PurePosixPath = _HERE,
) -> CaptionFile:
    """Read a delimited file, or lines `name.jpg#k<TAB>caption`.

    Args:
        file: a header names the columns; without one they are photo name and caption.
        errors: takes the lines that cannot be used.
        image, caption: names of the columns, if known; see [`columns.recognise`].
        lists: split lists, by split.
        below: see [`gather`].
    """
    lines = list(read_lines(file, errors))
    if lines and re.fullmatch(r"sep=.", lines[0][1]):  # Excel's
        lines = lines[1:]
    if not lines:
        raise NoCaptionsError(f"{file}: the file is empty; expected the header image,caption and one caption a line")
    if _TOKEN_LINE.fullmatch(lines[0][1]):
        records = _token_records(file, lines, errors)
    else:
        number, text = lines[0]
        try:
            layout = _layout(text, image, caption)
        except RejectedError as rejected:
            raise NoCaptionsError(f"{file}: line {number}: {rejected}") from None
        if not layout.has_header:
            say_once(f"{file}: no header; {text!r:.100} is read as a photo's name and its caption")
        records = _records(file, lines[layout.has_header :], layout, errors)
    found = gather(file, records, errors, below)
    if lists:
        _apply_lists(found, lists, errors)
    return found


def _apply_lists(found: CaptionFile, lists: Mapping[str, SplitList], errors: ErrorCollector) -> None:
    """Assign photos to the splits of lists of their names, with or without suffixes."""
    splits = {name: split for split, own in lists.items() for name in own.lines}
    for photo in found.photos.values():
        name = photo.image_id if photo.image_id in splits else photo.image_id.rpartition(".")[0]
        photo.split = splits.pop(name, None)
    for name, split in splits.items():
        own = lists[split]
        with errors.at(own.file, line=own.lines[name], name=name):
            found.photos.setdefault(name, CaptionedPhoto([name], name, line=own.lines[name], split=split))
            raise RejectedError(f"{name} has no caption in {found.file}")


def read_json_lines(
    file: Path, errors: ErrorCollector, image: str | None, caption: str | None, below: PurePosixPath = _HERE
) -> CaptionFile:
    """Read a file with one JSON object per line."""
    lines = list(read_lines(file, errors))
    if not lines:
        raise NoCaptionsError(f"{file}: the file is empty; expected one object a line")
    return gather(file, _json_records(file, lines, errors, image, caption), errors, below)


def gather(file: Path, records: Iterable[Record], errors: ErrorCollector, below: PurePosixPath = _HERE) -> CaptionFile:
    """Collect the captions of each photo, in the order of the file.

    The image id is the photo's path. Its split is what the record says, or else a folder in its path that is named
    after a split, as in `train/dog.jpg`.

    Args:
        file: the file of the records.
        records: in the order of the file.
        errors: takes what cannot be used.
        below: folder that the photos' names start from, relative to the root of the dataset.
    """
    parent = file.parent
    beside = [folder / name for folder in (parent, parent.parent) for name in PHOTO_FOLDERS]
    found = CaptionFile(file, [*beside[: len(PHOTO_FOLDERS)], parent, *beside[len(PHOTO_FOLDERS) :]])
    said: dict[str, str] = {}  # splits named by records
    for record in records:
        place: dict[str, Any] = {"line" if isinstance(record.place, int) else "entry": record.place}
        with errors.at(file, **place):
            name = (below / valid_unicode(safe_name(_text(record.name)), "name")).as_posix()
            photo = found.photos.get(name)
            if photo is None:
                photo = found.photos[name] = CaptionedPhoto(names_to_try(name), name, split=_split_of(name), **place)
            if isinstance(record.split, str) and record.split.strip():
                split = canonical_split(record.split)
                if said.setdefault(name, split) != split:
                    at = f"line {record.place}" if isinstance(record.place, int) else record.place
                    raise CaptionDataError(f"{file}: {at}: {name} is in two splits: {said[name]} and {split}")
            for value in record.captions:
                with errors.at(file, **place, name=name):
                    photo.captions.append(clean_caption(value))
    if set(said.values()) & set(SPLITS):  # otherwise the column has another meaning
        for name, photo in found.photos.items():
            photo.split = said.get(name)
    return found


def object_record(place: int | str, value: Any, image: str | None, caption: str | None) -> Record:
    """Make a record of a JSON object."""
    if not isinstance(value, Mapping):
        raise RejectedError(f"expected an object and found {value!r:.200}")
    columns = recognise(tuple(value), image, caption)
    cells = [value[name] for name in columns.captions]
    split = None if columns.split is None else value[columns.split]
    return Record(place, value[columns.image], list(cell_captions(cells)), split)


def is_table(file: Path, image: str | None = None, caption: str | None = None) -> bool:
    """Whether the first line of a text file is a recognised header, or a photo's name and its caption."""
    line = first_line(file)
    try:
        return _TOKEN_LINE.fullmatch(line) is not None or bool(_layout(line, image, caption))
    except RejectedError:
        return False


def _layout(text: str, image: str | None, caption: str | None) -> _Layout:
    delimiters = sorted(DELIMITERS, key=text.count, reverse=True)
    reasons = []
    for delimiter in delimiters:
        if delimiter in text:
            try:
                header = [name.strip().lstrip("\ufeff") for name in fields_of(text, delimiter)]
                return _Layout(delimiter, header, recognise(tuple(header), image, caption), True)
            except RejectedError as rejected:
                reasons.append(str(rejected))
    match = _photo_field(text)
    if match is not None and image is None and caption is None:
        return _Layout(match["delimiter"], ["image", "caption"], Columns("image", ("caption",), None), False)
    if reasons:
        raise RejectedError(reasons[0])
    raise RejectedError(
        f"expected a header with an image and a caption column, such as image,caption, and found {text!r:.200}"
    )


def _token_records(file: Path, lines: Sequence[tuple[int, str]], errors: ErrorCollector) -> Iterator[Record]:
    for number, text in lines:
        match = _TOKEN_LINE.fullmatch(text)
        if match is not None:
            yield Record(number, match["name"], [match["caption"]])
            continue
        with errors.at(file, line=number):
            raise RejectedError(f"expected name.jpg#number, a tab and a caption, and found {text!r:.200}")


def _records(
    file: Path, lines: Sequence[tuple[int, str]], layout: _Layout, errors: ErrorCollector
) -> Iterator[Record]:
    header, columns = layout.header, layout.columns
    assert columns.image is not None
    image = header.index(columns.image)
    captions = [header.index(name) for name in columns.captions]
    split = None if columns.split is None else header.index(columns.split)
    last = captions == [len(header) - 1]
    position = 0
    while position < len(lines):
        number, text = lines[position]
        position += 1
        try:
            fields, more = _fields(text, lines[position : position + _MOST_JOINED], layout, last)
        except RejectedError as rejected:
            with errors.at(file, line=number, name=_name_of(text, layout, image)):
                raise rejected
            continue
        position += more
        if layout.delimiter == "|" and text.count("|") < len(header) - 1:
            say_once(f"{file}: line {number}: no bar after the caption's number; read as if there were one")
        with errors.at(file, line=number, name=fields[image].strip()):
            cells: list[Any] = [None if fields[c].strip().lower() in _MISSING else listed(fields[c]) for c in captions]
            own_split = None if split is None else fields[split]
            yield Record(number, fields[image].strip(), list(cell_captions(cells)), own_split)


def _fields(
    text: str, following: Sequence[tuple[int, str]], layout: _Layout, caption_last: bool
) -> tuple[list[str], int]:
    """Return the fields of a row, and how many of the following lines belong to it."""
    number, delimiter = len(layout.header), layout.delimiter
    # CSV requires quotes around a caption that contains the delimiter. Many files lack them.
    plain = text.split(delimiter, number - 1) if caption_last else []
    unquoted = len(plain) == number and not any(field.lstrip().startswith('"') for field in plain)
    try:
        fields = fields_of(text, delimiter)
    except RejectedError:
        joined = _joined(text, following, delimiter)
        if joined is not None:
            return joined
        if unquoted:
            return plain, 0
        raise
    if len(fields) == number:
        return fields, 0
    if unquoted or (delimiter == "|" and len(plain) == number):
        return plain, 0
    numbered = _NUMBERED_CAPTION.fullmatch(fields[-1])
    if delimiter == "|" and caption_last and len(fields) == number - 1 and numbered is not None:
        return [*fields[:-1], numbered["number"], numbered["caption"]], 0
    if len(fields) == 1:
        raise RejectedError(f"no {DELIMITERS[delimiter]} between photo name and caption: {text!r:.200}")
    quotes = "; a caption with a comma in it must stand in quotes" if len(fields) > number else ""
    raise RejectedError(f"{len(fields)} fields where {number} are expected{quotes}")


def _joined(text: str, following: Sequence[tuple[int, str]], delimiter: str) -> tuple[list[str], int] | None:
    """Return the fields of a row with a quoted field that spans lines, and the number of lines after the first.

    The search ends at a line that looks like a new row, so that a missing quote does not swallow the rows after it.
    """
    for more, (_, line) in enumerate(following, start=1):
        if text.count('"') % 2 == 0 or _photo_field(line):
            return None
        text += "\n" + line
        if text.count('"') % 2 == 0:
            try:
                return fields_of(text, delimiter), more
            except RejectedError:
                return None
    return None


def _photo_field(row: str) -> re.Match[str] | None:
    """Match the first field of a row if it is the name of a photo."""
    match = _FIRST_FIELD.match(row)
    return match if match is not None and is_photo_name(match["name"].strip()) else None


def _name_of(text: str, layout: _Layout, image: int) -> str | None:
    """Return the photo's name in a row that is broken after it."""
    if image != 0:
        return None
    name = text.split(layout.delimiter, 1)[0].strip(' "')
    try:
        return safe_name(name) if layout.delimiter in text else None
    except RejectedError:
        return None


def _json_records(
    file: Path, lines: Sequence[tuple[int, str]], errors: ErrorCollector, image: str | None, caption: str | None
) -> Iterator[Record]:
    for number, text in lines:
        record = None
        with errors.at(file, line=number):
            try:
                value = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise RejectedError(f"not valid JSON: {error}") from None
            record = object_record(number, value, image, caption)
        if record is not None:
            yield record


def parquet_records(file: Path, errors: ErrorCollector, image: str | None, caption: str | None) -> Iterator[Record]:
    """Yield the rows of a parquet file of names and captions, as `nic caption --output x.parquet` writes it."""
    import pyarrow.parquet as pq

    row = 0
    for batch in pq.ParquetFile(file).iter_batches():
        for value in batch.to_pylist():
            record = None
            with errors.at(file, entry=f"row {row}"):
                record = object_record(f"row {row}", value, image, caption)
            if record is not None:
                yield record
            row += 1


def _text(name: Any) -> Any:
    """Convert a number to text; return anything else unchanged."""
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


def _split_of(name: str) -> str | None:
    """Return the split that a folder in a photo's path is named after."""
    folders = name.split("/")[:-1]
    named = {canonical_split(folder) for folder in folders} & set(SPLITS) if folders else set()
    return named.pop() if len(named) == 1 else None

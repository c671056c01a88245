"""Formats for captions: JSON lines, CSV, Parquet and COCO results, written and read as streams."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_COCO_NAME = re.compile(r"(?:.*/)?(?:COCO_\w+_)?0*(\d+)(?:\.\w+)?")
_ROWS_A_GROUP = 10_000
_LONGEST_CELL = 2**30  # characters; Python's default is 131072
# Including apostrophes, so that reading can remove the one that writing added.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


class CaptionRecord(NamedTuple):
    """The captions of one photo, best first, and the confidence of each, if it is known."""

    image_id: str
    captions: list[str]
    confidences: list[float] | None = None

    def to_json(self) -> dict:
        """Return `image_id` and `caption`, which `nic evaluate` reads, and `captions` if there are several; likewise
        `confidence` and `confidences`, if they are known."""
        row: dict = {"image_id": self.image_id, "caption": self.captions[0]}
        row |= {} if self.confidences is None else {"confidence": self.confidences[0]}
        if len(self.captions) == 1:
            return row
        return row | {"captions": self.captions} | ({"confidences": self.confidences} if self.confidences else {})

    @classmethod
    def from_json(cls, row: Any) -> "CaptionRecord":
        """Parse the result of `to_json`."""
        try:
            captions = row.get("captions") or [row["caption"]]
            confidences = row.get("confidences") or [row.get("confidence")]
            if isinstance(captions, list) and all(isinstance(caption, str) for caption in captions):
                return cls(str(row["image_id"]), captions, None if confidences[0] is None else confidences)
        except (AttributeError, KeyError, TypeError):
            pass
        raise ValueError(f"holds no caption: {row!r:.100}")


class CaptionFormat(NamedTuple):
    """Functions for one format.

    Attributes:
        write: writes records, which may be iterated over twice, with a given number of captions per photo. If the
            first record has confidences, all have.
        read: yields the records of a file.
    """

    write: Callable[[Iterable[CaptionRecord], Path, int], None]
    read: Callable[[Path], Iterator[CaptionRecord]]


def caption_format(path: Path) -> CaptionFormat:
    """Return the format for the suffix of a file."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name of a file of captions has to end in {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def json_line(row: dict) -> bytes:
    """Serialise a row as a line of JSON."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can encode and UTF-8 cannot
        return json.dumps(row).encode() + b"\n"


def parsed(text: bytes) -> Any:
    """Parse a JSON value."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _write_jsonl(records: Iterable[CaptionRecord], path: Path, number: int) -> None:
    with path.open("wb") as file:
        for record in records:
            file.write(json_line(record.to_json()))


def _read_jsonl(path: Path) -> Iterator[CaptionRecord]:
    with path.open("rb") as file:
        for line in file:
            yield CaptionRecord.from_json(parsed(line))


def _write_csv(records: Iterable[CaptionRecord], path: Path, number: int) -> None:
    names = ["caption"] if number == 1 else [f"caption_{place}" for place in range(number)]
    sure = [name.replace("caption", "confidence") for name in names] if _have_confidences(records) else []
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        # Python's writer does not quote a bare CR, which its reader takes for the end of the line.
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["image_id", *names, *sure])
        for record in records:
            missing = [""] * (number - len(record.captions))  # captions that were left out
            cells = [_no_formula(cell) for cell in (record.image_id, *record.captions)] + missing
            cells += [str(confidence) for confidence in record.confidences or ()] + missing if sure else []
            (quoting if any("\r" in cell for cell in cells) else writer).writerow(cells)


def _no_formula(cell: str) -> str:
    """Prefix a cell with an apostrophe if a spreadsheet would take it for a formula.

    Source: OWASP, "CSV Injection" (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _read_csv(path: Path) -> Iterator[CaptionRecord]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        limit = csv.field_size_limit(_LONGEST_CELL)
        try:
            header = next(rows, None) or []
            number = sum(name.startswith("confidence") for name in header)
            for row in rows:
                if len(row) < 2 + number:
                    raise ValueError(f"line {rows.line_num} holds no caption: {row!r:.100}")
                sure = [float(cell) for cell in row[len(row) - number :] if cell] if number else None
                cells = [cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell for cell in row]
                yield CaptionRecord(cells[0], cells[1:] if sure is None else cells[1 : 1 + len(sure)], sure)
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num}: {error}") from None
        finally:
            csv.field_size_limit(limit)


def _write_parquet(records: Iterable[CaptionRecord], path: Path, number: int) -> None:
    pa, pq = _arrow()
    fields = [("image_id", pa.string()), ("caption", pa.string())]
    fields += [("captions", pa.list_(pa.string()))] if number > 1 else []
    if _have_confidences(records):
        fields += [("confidence", pa.float64())]
        fields += [("confidences", pa.list_(pa.float64()))] if number > 1 else []
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema) as writer:
        rows: list[dict] = []
        for record in records:
            rows.append(record.to_json())
            if len(rows) == _ROWS_A_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))


def _read_parquet(path: Path) -> Iterator[CaptionRecord]:
    _, pq = _arrow()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield CaptionRecord.from_json(row)


def _have_confidences(records: Iterable[CaptionRecord]) -> bool:
    first = next(iter(records), None)
    return first is not None and first.confidences is not None


def _arrow() -> tuple:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ImportError('Parquet files need pyarrow: pip install "nic_hf[train]"') from error
    return pyarrow, pyarrow.parquet


def _write_coco(records: Iterable[CaptionRecord], path: Path, number: int) -> None:
    if number != 1:
        raise ValueError(
            f"{path.name}: COCO results hold one caption per photo, not {number}; write .jsonl or .parquet"
        )
    numbers = [coco_number(record.image_id) for record in records]
    # All or none: an id that may be a number or a path could not be matched with references.
    numbered = None not in numbers and len(set(numbers)) == len(numbers)
    with path.open("wb") as file:
        for place, record in enumerate(records):
            row = record._replace(confidences=None).to_json()  # a field that the format does not have
            if numbered:
                row = {"image_id": numbers[place], "caption": record.captions[0], "file_name": record.image_id}
            file.write((b",\n" if place else b"[\n") + json_line(row).rstrip(b"\n"))
        file.write(b"\n]\n" if numbers else b"[]\n")


def _read_coco(path: Path) -> Iterator[CaptionRecord]:
    rows = parsed(path.read_bytes())
    if not isinstance(rows, list):
        raise ValueError("it is not a list of captions")
    for row in rows:
        record = CaptionRecord.from_json(row)
        yield record._replace(image_id=str(row.get("file_name", record.image_id)))


def coco_number(image_id: str) -> int | None:
    """Return the number of a photo in COCO: 42 for `COCO_val2014_000000000042.jpg`, `42.jpg` and `42`."""
    match = _COCO_NAME.fullmatch(image_id)
    return int(match[1]) if match else None


FORMATS = {
    ".jsonl": CaptionFormat(_write_jsonl, _read_jsonl),
    ".csv": CaptionFormat(_write_csv, _read_csv),
    ".parquet": CaptionFormat(_write_parquet, _read_parquet),
    ".json": CaptionFormat(_write_coco, _read_coco),
}

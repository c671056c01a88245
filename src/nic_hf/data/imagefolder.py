"""A folder of photos with `metadata.csv` or `metadata.jsonl`: the imagefolder form of Hugging Face Datasets.

It is read here and not through `load_dataset`, which gives one row a metadata line (so five rows for a photo with five
captions) and cannot say which line is at fault.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .columns import caption_columns, cell_captions
from .photos import CaptionedPhoto, Row, find_photos, photo_folder, safe_name
from .problems import CaptionDataError, Problems, RejectedError
from .splits import canonical_split, check_split
from .text import clean_caption, csv_fields, read_lines

METADATA_FILES = ("metadata.csv", "metadata.jsonl")

_SPLITS = ("train", "validation", "test")


def metadata_files(folder: Path) -> list[Path]:
    """Return the metadata file of `folder`, or else those of its split folders (train, validation, test).

    Raises:
        CaptionDataError: a folder holds both kinds of metadata file.
    """
    own = _metadata_file(folder)
    if own is not None:
        return [own]
    subfolders = sorted(path for path in folder.iterdir() if canonical_split(path.name) in _SPLITS and path.is_dir())
    return [file for file in map(_metadata_file, subfolders) if file is not None]


def read_imagefolder(folder: Path, split: str | None, images: Path | None, problems: Problems) -> list[Row]:
    """Read all metadata files of `folder`; rows with one `file_name` are gathered.

    The image id is the photo's path below `folder`, the same whichever split is asked for. The first part of that
    path is the split where it is the name of one.

    Raises:
        CaptionDataError: no caption column, unknown split, or an item that cannot be used.
    """
    root = photo_folder(images, [folder])
    rows: list[Row] = []
    splits: set[str] = set()
    for file in metadata_files(folder):
        photos: dict[str, CaptionedPhoto] = {}
        for number, name, record in _named_records(file, folder, problems):
            part = _split_of(name)
            splits.update([part] if part else [])
            # Faults of photos in other splits do not concern who asked for this one.
            if split is None or part == split:
                photo = photos.setdefault(name, CaptionedPhoto([name], name, line=number))
                _add_captions(photo, number, record, file, problems)
        rows += find_photos(file, photos.values(), root, problems)
    if split is not None:
        check_split(split, splits, str(folder))
    return rows


def _named_records(file: Path, folder: Path, problems: Problems) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Yield line, photo path below `folder` and the fields of each record of a metadata file."""
    subfolder = file.parent.relative_to(folder)
    for number, record in _csv_records(file, problems) if file.suffix == ".csv" else _json_records(file, problems):
        name = None
        with problems.at(file, line=number):
            name = (subfolder / safe_name(record.get("file_name"))).as_posix()
        if name is not None:
            yield number, name, record


def _add_captions(photo: CaptionedPhoto, line: int, record: Mapping[str, Any], file: Path, problems: Problems) -> None:
    with problems.at(file, line=line, name=photo.image_id):
        for value in cell_captions([record[column] for column in caption_columns(record)]):
            with problems.at(file, line=line, name=photo.image_id):
                photo.captions.append(clean_caption(value))


def _csv_records(file: Path, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = read_lines(file, problems)
    number, text = next(lines, (0, ""))
    if not text:
        raise CaptionDataError(f"{file}: the file is empty; expected a header with file_name and a caption column")
    try:
        header = csv_fields(text)
        if "file_name" not in header:
            raise RejectedError(f"expected a header with file_name and found {text!r}")
        caption_columns(header)
    except RejectedError as rejected:
        raise CaptionDataError(f"{file}: line {number}: {rejected}") from None
    for number, text in lines:
        fields: list[str] = []
        with problems.at(file, line=number):
            fields = csv_fields(text)
            if len(fields) != len(header):
                raise RejectedError(f"{len(fields)} fields where the header has {len(header)}")
        if len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))


def _json_records(file: Path, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    empty = True
    for number, text in read_lines(file, problems):
        empty = False
        record = None
        with problems.at(file, line=number):
            try:
                record = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise RejectedError(f"not valid JSON: {error}") from None
            if not isinstance(record, Mapping):
                raise RejectedError(f"expected an object and found {text!r}")
        if isinstance(record, Mapping):
            yield number, record
    if empty:
        raise CaptionDataError(f"{file}: the file is empty; expected one object a line")


def _metadata_file(folder: Path) -> Path | None:
    files = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(files) > 1:
        raise CaptionDataError(f"{folder}: holds both {' and '.join(METADATA_FILES)}; keep one")
    return files[0] if files else None


def _split_of(name: str) -> str | None:
    first, slash, _ = name.partition("/")
    split = canonical_split(first)
    return split if slash and split in _SPLITS else None

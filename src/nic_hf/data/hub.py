"""Anything Hugging Face Datasets opens: a Hub id, a local folder of parquet files, a data set already in memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from .columns import caption_columns, cell_captions
from .problems import SUPPORTED, CaptionDataError, Problems, RejectedError
from .splits import canonical_split, check_split
from .storage import dataset_of_captions
from .text import clean_caption

ID_COLUMNS = ("image_id", "id", "filename", "file_name", "image_name")
_ROWS_A_BATCH = 1000


def open_data(source: str, cache_dir: Path | None) -> Dataset | DatasetDict:
    """Open a Hub id or a local folder (also one made by `save_to_disk`).

    Raises:
        CaptionDataError: Datasets cannot open it; its own reason is in the message.
    """
    saved = [Path(source, name) for name in ("dataset_dict.json", "state.json")]
    try:
        if any(path.is_file() for path in saved):
            return load_from_disk(source)
        return load_dataset(source, cache_dir=None if cache_dir is None else os.fspath(cache_dir))
    except (DatasetsError, OSError, ValueError) as error:
        what = "Hugging Face Datasets cannot open it" if Path(source).exists() else "no such file, folder or Hub id"
        raise CaptionDataError(f"{source}: {what} ({error}); supported: {SUPPORTED}") from error


def read_dataset(
    data: Dataset | DatasetDict, split: str | None, problems: Problems, cache_dir: Path | None, label: str
) -> Dataset:
    """Bring a data set into the form image, image_id, captions; image bytes stay where they are, uncopied.

    The image id is the first of the columns image_id, id, filename, file_name, image_name, or else the row number.
    Rows with one id are one image: the first row's image with the captions of all. Without a split, all splits are
    put together in their order.

    Args:
        data: A data set, or several by split.
        split: Canonical name of the split, or None for all.
        problems: Takes the rows that cannot be used.
        cache_dir: Where the gathered captions are written.
        label: Name of the data set in messages.

    Raises:
        CaptionDataError: unknown split, no image or caption column, or a row that cannot be used.
    """
    table = _chosen(data, split, label).with_format(None)
    try:
        image_column = _image_column(table)
        columns = caption_columns(name for name in table.column_names if name != image_column)
    except RejectedError as rejected:
        raise CaptionDataError(f"{label}: {rejected}") from None
    images = table.select_columns([image_column]).cast_column(image_column, Image())
    if image_column != "image":
        images = images.rename_column(image_column, "image")

    unusable = dict(_unusable_images(images))
    captions: list[list[str]] = [[] for _ in range(len(table))]
    image_ids = [""] * len(table)
    first_row: dict[str, int] = {}
    for row, image_id, cells in _caption_cells(table, columns):
        place = f"row {row}"
        with problems.at(label, entry=place, name=image_id):
            if row in unusable:
                raise RejectedError(unusable[row])
            if image_id is None:
                raise RejectedError("no image id")
            image_ids[row] = image_id
            gathered = captions[first_row.setdefault(image_id, row)]
            for value in cell_captions(cells):
                with problems.at(label, entry=place, name=image_id):
                    gathered.append(clean_caption(value))

    kept = []
    for image_id, row in first_row.items():
        with problems.at(label, entry=f"row {row}", name=image_id):
            if not captions[row]:
                raise RejectedError("the photo has no caption that can be used")
            kept.append(row)
    dataset = concatenate_datasets([images, dataset_of_captions(image_ids, captions, cache_dir)], axis=1)
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


def _chosen(data: Dataset | DatasetDict, split: str | None, label: str) -> Dataset:
    if isinstance(data, Dataset):
        own = None if data.split is None else canonical_split(str(data.split))
        if split is not None:
            check_split(split, [] if own is None else [own], label)
        return data
    if split is not None:
        check_split(split, map(canonical_split, data), label)
    parts = [part for name, part in data.items() if split is None or canonical_split(name) == split]
    try:
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    except ValueError as error:
        raise CaptionDataError(f"{label}: the splits do not fit together: {error}; name one split") from error


def _image_column(table: Dataset) -> str:
    if "image" in table.column_names:
        return "image"
    typed = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    if len(typed) != 1:
        raise RejectedError(
            f"no image column: expected image and found {', '.join(table.column_names) or 'no columns'}"
        )
    return typed[0]


def _caption_cells(table: Dataset, columns: list[str]) -> Iterator[tuple[int, str | None, list[object]]]:
    """Yield row number, image id and caption cells; the image column is never read."""
    id_column = next((name for name in ID_COLUMNS if name in table.column_names), None)
    read = [*columns, id_column] if id_column is not None else columns
    row = 0
    for batch in table.select_columns(read).iter(_ROWS_A_BATCH):
        ids = batch[id_column] if id_column is not None else range(row, row + len(batch[columns[0]]))
        for image_id, *cells in zip(ids, *(batch[name] for name in columns), strict=True):
            yield row, None if image_id is None else str(image_id), cells
            row += 1


def _unusable_images(images: Dataset) -> Iterator[tuple[int, str]]:
    """Yield row number and reason for images that are missing or empty.

    Lengths come from Arrow's offsets, so the bytes themselves are not read.
    """
    row = 0
    for batch in images.with_format("arrow").iter(_ROWS_A_BATCH):
        column = batch.column("image")
        sizes = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
        for size, path in zip(sizes, pc.struct_field(column, "path").to_pylist(), strict=True):
            reason = _why_unusable(size, path)
            if reason is not None:
                yield row, reason
            row += 1


def _why_unusable(size: int | None, path: str | None) -> str | None:
    if size is None and path is None:
        return "no photo"
    if size is None and path is not None and "://" not in path:
        try:
            size = Path(path).stat().st_size
        except OSError:
            return f"photo not found: {path}"
    return "the photo is empty (0 bytes)" if size == 0 else None

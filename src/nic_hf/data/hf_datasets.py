"""Read captions from Hugging Face Datasets: a Hub id, a local folder, or a dataset in memory."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from ..digests import raw_digest
from ..lookup import look_up
from .arrow_files import dataset_of_captions, dataset_of_shards
from .caption_folders import SourceOptions
from .columns import caption_columns, cell_captions, split_column
from .errors import SUPPORTED, CaptionDataError, ErrorCollector, RejectedError, SkippedItem
from .names import SPLITS, canonical_split
from .splits import check_split, choose_split
from .tar_shards import splits_named
from .text_files import clean_caption

ID_COLUMNS = ("image_id", "id", "filename", "file_name", "image_name")
_ROWS_A_BATCH = 1000


def look_up_data(source: str, supported: str = SUPPORTED) -> None:
    """Refuse what is neither here nor on the Hub (see [`nic_hf.lookup.look_up`])."""
    try:
        look_up(source, "data")
    except OSError as error:
        raise CaptionDataError(f"{error}; supported: {supported}") from error


def open_data(source: str, cache_dir: Path | None) -> Dataset | DatasetDict:
    """Open a Hub id or a local folder (also one written by `save_to_disk`)."""
    look_up_data(source)
    saved = [Path(source, name) for name in ("dataset_dict.json", "state.json")]
    try:
        if any(path.is_file() for path in saved):
            return load_from_disk(source)
        if Path(source).suffix == ".parquet":
            return load_dataset(
                "parquet", data_files=source, cache_dir=None if cache_dir is None else os.fspath(cache_dir)
            )
        return load_dataset(source, cache_dir=None if cache_dir is None else os.fspath(cache_dir))
    except (DatasetsError, OSError, ValueError) as error:
        raise CaptionDataError(
            f"{source}: Hugging Face Datasets cannot open it ({error}); supported: {SUPPORTED}"
        ) from error


def open_shards(shards: Sequence[str], cache_dir: Path | None) -> Dataset | DatasetDict:
    """Convert local tar files to Arrow files, one per split if each file is named after a split."""
    remote = next((shard for shard in shards if "://" in shard), None)
    if remote is not None:
        raise CaptionDataError(f"{remote}: not on this machine; use stream_captions")
    data = dataset_of_shards(shards, cache_dir)
    named = {shard: splits_named(shard) for shard in shards}
    if any(len(names) != 1 for names in named.values()):
        return data
    rows: dict[str, list[int]] = {}
    paths = data.with_format("arrow").data.column("image").combine_chunks().field("path").to_pylist()
    for row, path in enumerate(paths):
        if path is not None:  # a damaged part of a shard
            (split,) = named[path.rpartition("::")[2]]
            rows.setdefault(split, []).append(row)
    return DatasetDict({split: data.select(own) for split, own in rows.items()})


def read_dataset(
    data: Dataset | DatasetDict,
    split: str | None,
    options: SourceOptions,
    errors: ErrorCollector,
    cache_dir: Path | None,
    label: str,
) -> tuple[Dataset, str | None, str]:
    """Convert a dataset to the columns image, image_id and captions, without copying the images.

    The image id is the first of the columns image_id, id, filename, file_name and image_name, or else the row number.
    Rows with the same id are one image: the first row's image with the captions of all. Without `split`, all splits
    are concatenated. A column `split` is used if the dataset itself has one split at most.

    Args:
        data: A dataset, or several by split.
        split: Canonical name of the split, or None for all.
        options: Names of columns, and how to split.
        errors: Takes the rows that cannot be used.
        cache_dir: Where the captions are written.
        label: Name of the dataset in messages.

    Returns:
        The dataset, how it was split (see [`splits.Choice`]), and `label`.
    """
    parts: dict[str | None, Dataset] = {}
    if isinstance(data, Dataset):
        parts[None if data.split is None else canonical_split(str(data.split))] = data
    else:
        for name, part in data.items():
            split_name = canonical_split(str(name))
            own = parts.get(split_name)
            parts[split_name] = part if own is None else _together([own, part], label)
    names, wanted = list(parts), split
    _check_disjoint(parts, label)
    if wanted is not None and len(names) > 1:
        held_out = {"train", "validation"} if "train" in names else set()
        check_split(wanted, {*names, *held_out}, label)  # type: ignore[arg-type]
        # A validation split that is held out comes from the rows of train.
        whole = wanted in names and (wanted != "train" or "validation" in names)
        parts = {wanted: parts[wanted]} if whole else {"train": parts["train"]}
        wanted = None if whole else wanted
    table = _together(list(parts.values()), label).with_format(None)
    try:
        photos = image_column(table.column_names, table.features, options.image_column)
        others = [name for name in table.column_names if name != photos]
        columns = caption_columns(others, options.caption_column)
    except RejectedError as rejected:
        raise CaptionDataError(f"{label}: {rejected}") from None
    images = table.select_columns([photos]).cast_column(photos, Image())
    if photos != "image":
        images = images.rename_column(photos, "image")

    unusable = dict(_unusable_images(images))
    captions: list[list[str]] = [[] for _ in range(len(table))]
    image_ids = [""] * len(table)
    first_row: dict[str, int] = {}
    copies = {} if _id_column(table) else _copies(images)
    for row, image_id, cells in _caption_cells(table, columns):
        place = f"row {row}"
        image_id = str(copies[row]) if row in copies else image_id
        with errors.at(label, entry=place, name=image_id):
            if row in unusable:
                raise RejectedError(unusable[row])
            if image_id is None:
                raise RejectedError("no image id")
            image_ids[row] = image_id
            gathered = captions[first_row.setdefault(image_id, row)]
            for value in cell_captions(cells):
                with errors.at(label, entry=place, name=image_id):
                    gathered.append(clean_caption(value))
    if "problem" in table.column_names:  # of tar shards
        for row, problem in enumerate(table["problem"]):
            if problem:
                errors.add(SkippedItem(label, None, None, problem.removeprefix(f"{label}: ")), image_ids[row])

    rule, chosen = None, set(first_row)
    if wanted is not None:
        by_split = _by_split(table, first_row) if len(names) == 1 else None
        by_split = by_split or {name: list(first_row) if name in parts else [] for name in names}
        chosen, rule = choose_split(by_split, wanted, options.shares, label)
    kept = []
    for image_id, row in first_row.items():
        if image_id not in chosen:
            continue
        with errors.at(label, entry=f"row {row}", name=image_id):
            if not captions[row]:
                raise RejectedError("the photo has no caption that can be used")
            kept.append(row)
    errors.settle(elsewhere=first_row.keys() - chosen)
    dataset = concatenate_datasets([images, dataset_of_captions(image_ids, captions, cache_dir)], axis=1)
    return (dataset if len(kept) == len(dataset) else dataset.select(kept)), rule, label


def _together(parts: list[Dataset], label: str) -> Dataset:
    try:
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    except ValueError as error:
        raise CaptionDataError(f"{label}: the splits have different columns: {error}; name one split") from error


def _id_column(table: Dataset) -> str | None:
    return next((name for name in ID_COLUMNS if name in table.column_names), None)


def _check_disjoint(parts: Mapping[str | None, Dataset], label: str) -> None:
    """Refuse splits that share an image id."""
    owner: dict[Any, str | None] = {}
    for split, part in parts.items():
        column = _id_column(part)
        # Numbers may restart in each split.
        if column is not None and part.features[column].dtype == "string":
            for image_id in set(part.select_columns([column])[column][:]) - {None}:
                if owner.setdefault(image_id, split) != split:
                    both = f"{owner[image_id]} and {split}"
                    raise CaptionDataError(
                        f"{label}: {image_id} is in two splits: {both}; a photo must be in one only"
                    )


def _copies(images: Dataset) -> dict[int, int]:
    """Map rows to an earlier row with the same photo: a table may have one row per caption.

    The content is only compared if the sizes are equal.
    """
    by_size: dict[tuple[Any, Any], list[int]] = {}
    row = 0
    for batch in images.with_format("arrow").iter(_ROWS_A_BATCH):
        column = batch.column("image")
        sizes = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
        paths = pc.struct_field(column, "path").to_pylist()
        for size, path in zip(sizes, paths, strict=True):
            by_size.setdefault((size, path if size is None else None), []).append(row)
            row += 1
    copies: dict[int, int] = {}
    undecoded = images.cast_column("image", Image(decode=False))
    for (size, path), rows in by_size.items():
        if len(rows) == 1 or (size is None and path is None):
            continue
        first: dict[Any, int] = {}
        for row in rows:
            key = path if size is None else raw_digest(undecoded[row]["image"]["bytes"])
            if first.setdefault(key, row) != row:
                copies[row] = first[key]
    return copies


def _by_split(table: Dataset, first_row: Mapping[str, int]) -> dict[str | None, list[str]] | None:
    """Group image ids by a column `split`; None if there is no such column of strings."""
    column = split_column(table.column_names)
    if column is None:
        return None
    names = table.select_columns([column])[column][:]
    if not any(isinstance(name, str) and canonical_split(name) in SPLITS for name in names):
        return None
    found: dict[str | None, list[str]] = {}
    for image_id, row in first_row.items():
        name = names[row]
        found.setdefault(canonical_split(name) if isinstance(name, str) else None, []).append(image_id)
    return found


def image_column(names: Sequence[str], features: Mapping[str, Any], named: str | None = None) -> str:
    """Return the image column: the given one, else `image`, else the only one of type `datasets.Image`."""
    if named is not None:
        if named not in names:
            raise RejectedError(f"no column {named!r}: the columns are {', '.join(names) or 'none'}")
        return named
    if "image" in names:
        return "image"
    typed = [name for name, feature in features.items() if isinstance(feature, Image)]
    if len(typed) != 1:
        raise RejectedError(f"no image column: expected image and found {', '.join(names) or 'no columns'}")
    return typed[0]


def _caption_cells(table: Dataset, columns: list[str]) -> Iterator[tuple[int, str | None, list[object]]]:
    """Yield row number, image id and caption cells without reading the images."""
    id_column = _id_column(table)
    read = [*columns, id_column] if id_column is not None else columns
    row = 0
    for batch in table.select_columns(read).iter(_ROWS_A_BATCH):
        ids = batch[id_column] if id_column is not None else range(row, row + len(batch[columns[0]]))
        for image_id, *cells in zip(ids, *(batch[name] for name in columns), strict=True):
            yield row, None if image_id is None else str(image_id), cells
            row += 1


def _unusable_images(images: Dataset) -> Iterator[tuple[int, str]]:
    """Yield row number and reason for images that are missing or empty, without reading their bytes."""
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

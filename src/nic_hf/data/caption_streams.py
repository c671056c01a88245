"""`stream_captions`: captioned photos that are read while they are used."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from datasets import Image
from datasets.exceptions import DatasetsError

from .arrow_files import SHARD_FEATURES
from .columns import caption_columns, cell_captions
from .errors import SUPPORTED, CaptionDataError, ErrorCollector, OnError, RejectedError
from .hf_datasets import ID_COLUMNS, image_column, look_up_data
from .names import canonical_split
from .splits import check_split
from .tar_shards import clean_captions, find_shards, tar_rows


def stream_captions(
    source: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | datasets.IterableDataset",
    split: str | None = None,
    *,
    on_error: OnError = "raise",
) -> datasets.IterableDataset:
    """Stream photos with their captions, for datasets that do not fit on a disk.

    Nothing is downloaded in advance and nothing is cached. The dataset has as many shards as the source has files.

    Args:
        source: One of

            - WebDataset tar files with `key.jpg` (or another image suffix) and `key.txt`, one caption per line, or
              `key.json`, with captions named as in [`load_captions`]: a file, a folder of them, a pattern such as
              `shards/train-*.tar` or `https://host/train-{000..099}.tar`, or a list of such;
            - a Hub id or a local folder that `datasets.load_dataset(streaming=True)` opens;
            - a `datasets.IterableDataset` with an image column and caption columns.
        split: "train", "validation" (also "dev" or "val") or "test". The split of a tar file is in its name or that of
            its folder. None takes all tar files, and the only split of other sources.
        on_error: "raise" stops at the first error in a row. "skip" leaves out the caption, photo or rest of the shard
            and describes the error in the row's `problem`; [`StreamingCaptionDataset`] counts and logs them.

    Returns:
        A `datasets.IterableDataset` with `image` (decoded when accessed), `image_id`, `captions` (empty if none can be
        used) and `problem` (usually None).

    Raises:
        CaptionDataError: the source is not supported or has no such split; while reading, the first error, with shard
            and key.
    """
    ErrorCollector(on_error)  # validates the argument
    if isinstance(source, datasets.IterableDataset):
        return _normalised(source, on_error, "IterableDataset")
    shards = find_shards(source, split)
    if shards:
        return datasets.IterableDataset.from_generator(
            tar_rows, features=SHARD_FEATURES, gen_kwargs={"shards": shards, "on_error": on_error}
        )
    if not isinstance(source, (str, os.PathLike)):
        raise CaptionDataError(f"cannot stream captions from {source!r}: no tar files among them")
    label = os.fspath(source)
    look_up_data(label, f"tar files, {SUPPORTED}")
    try:
        parts = datasets.load_dataset(label, streaming=True)
    except (DatasetsError, OSError, ValueError) as error:
        raise CaptionDataError(
            f"{label}: Hugging Face Datasets cannot stream it ({error}); supported: tar files, {SUPPORTED}"
        ) from error
    by_split = {canonical_split(name): part for name, part in parts.items()}
    if split is None and len(by_split) > 1:
        raise CaptionDataError(f"{label}: name one of the splits {', '.join(sorted(by_split))}")
    wanted = next(iter(by_split)) if split is None else canonical_split(split)
    check_split(wanted, by_split, label)
    return _normalised(by_split[wanted], on_error, label)


def _normalised(stream: datasets.IterableDataset, on_error: OnError, label: str) -> datasets.IterableDataset:
    """Convert a stream with any columns to `SHARD_FEATURES`."""
    names = stream.column_names or list(next(iter(stream), {}))
    if stream.features is not None and set(SHARD_FEATURES) <= set(names):
        return stream
    try:
        image = image_column(names, stream.features or {})
        columns = _caption_columns([name for name in names if name != image])
    except RejectedError as rejected:
        raise CaptionDataError(f"{label}: {rejected}") from None
    key = next((name for name in (*ID_COLUMNS, "__key__") if name in names), None)
    reader = _RowReader(image, columns, key, on_error, label)
    if stream.features is not None:  # unknown for a mapped stream, whose photos are decoded already
        stream = stream.cast_column(image, Image(decode=False))
    return stream.map(reader, with_indices=True, remove_columns=names, features=SHARD_FEATURES)


def _caption_columns(names: list[str]) -> list[str]:
    """Return the caption columns, or the `txt` or `json` of a WebDataset on the Hub."""
    try:
        return caption_columns(names)
    except RejectedError:
        texts: list[str] = [name for name in ("txt", "json") if name in names]
        if not texts:
            raise
        return texts[:1]


class _RowReader:
    """Converts a row to `SHARD_FEATURES`; a class, so that spawned workers can unpickle it."""

    def __init__(self, image: str, columns: list[str], key: str | None, on_error: OnError, label: str) -> None:
        self.image, self.columns, self.key, self.on_error, self.label = image, columns, key, on_error, label

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        image = row[self.image]
        file = image if isinstance(image, dict) else {}
        image_id = row[self.key] if self.key else file.get("path") or f"row {index}"
        problems: list[str] = []
        captions: list[str] = []
        if row.get("problem"):
            return {"image": None, "image_id": str(image_id), "captions": [], **row}
        try:
            if image is None or (file and not file.get("path") and not file.get("bytes")):
                raise RejectedError("no photo" if image is None else "the photo is empty (0 bytes)")
            captions = clean_captions(cell_captions([row[name] for name in self.columns]), problems)
        except RejectedError as rejected:
            problems.append(str(rejected))
        problem = f"{self.label}: {image_id}: {'; '.join(problems)}" if problems else None
        if problem and self.on_error == "raise":
            raise CaptionDataError(problem)
        return {"image": image, "image_id": str(image_id), "captions": captions, "problem": problem}

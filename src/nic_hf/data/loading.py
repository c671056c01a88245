"""`load_captions`: read captioned photos from any supported source."""

import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .caption_folders import (
    CAPTION_SUFFIXES,
    METADATA_FILES,
    Part,
    SourceOptions,
    find_parts,
    holds_photos,
    is_for_datasets,
    read_part,
    what_is_there,
)
from .errors import SUPPORTED, CaptionDataError, ErrorCollector, NoSplitError, OnError, SkippedItem, say_once
from .names import ALL, SPLITS, canonical_split
from .photo_finder import PhotoFinder, Row
from .splits import Choice, SplitShares, choose_split
from .tar_shards import TAR_SUFFIXES, find_shards

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset, DatasetDict

    from .photo_finder import CaptionedPhoto, CaptionFile

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_captions(
    source: "str | os.PathLike[str] | Dataset | DatasetDict",
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    dev_share: float = 0.1,
    test_share: float = 0.1,
    split_seed: int = 0,
    on_error: OnError = "raise",
    skipped: list[SkippedItem] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> "Dataset":
    """Load photos with their captions, one row per photo.

    Photos are checked for existence but not opened until their row is accessed. The rows are in a memory-mapped Arrow
    file in `cache_dir`, so memory does not grow with the dataset. An edited source gives a new file; equal sources
    share one.

    Args:
        source: One of

            - a folder or file of captions in the format of Kaggle, Flickr8k or Flickr30k: `captions.txt`,
              `Flickr8k.token.txt` (lines `name.jpg#k<TAB>caption`), `results.csv` (rows `name| number| caption`). The
              official lists `Flickr_8k.trainImages.txt`, `.devImages.txt` and `.testImages.txt` are used if they are
              in the same folder;
            - any CSV, TSV, JSON or JSONL file, or a folder with one, that has an image and a caption column (`image`,
              `file_name`, ... and `caption`, `captions`, `text`, ..., or `caption_0`, `caption_1`, ...), with one
              caption or a list of captions per row. Files named after splits (`train.json`, `val.json`) are these
              splits, and a column `split` names the split of each row;
            - a Karpathy JSON file (`dataset_coco.json`), where "restval" counts as "train"; a COCO captions JSON file,
              or COCO's folder with `annotations/captions_train2017.json` and so on;
            - a folder with `metadata.csv` or `metadata.jsonl`, or with a text file per photo, one caption per line;
              folders `train`, `validation`, `test` in it are the splits;
            - tar shards of `key.jpg` and `key.txt` or `key.json`: a file, a folder of them or a pattern;
            - a Hub id or a local folder that `datasets.load_dataset` opens, or a `Dataset` or `DatasetDict`, with an
              image column and caption columns named as above.

            Photos are looked for in the usual places near the captions.
        split: "train", "validation" (or "dev", "val"), "test", or another split of the source. None and "all" take
            all photos, including those in no split.
        images: Folder of the photos, if it is not found.
        image_column: Name of the column of photo names, if it is not recognised.
        caption_column: Name of the column of captions, or several separated by commas, if it is not recognised.
        dev_share: Share of the validation split if the source has none. A source without splits, or with train alone,
            is split by a hash of its image ids; if it has train and test, validation is held out of train. Flickr8k is
            recognised by its photos and split by its official lists. The log says which.
        test_share: Share of the test split if the source has no splits, or train alone.
        split_seed: Seed of that hash.
        on_error: "raise" stops at the first error. "skip" leaves out the line, caption or photo concerned, and logs
            a warning with the first of them. A photo without any caption left is left out as well.
        skipped: List to which a `SkippedItem` is appended for each item left out.
        cache_dir: Folder for the Arrow files; by default `nic_hf` in the cache of Hugging Face Datasets.

    Returns:
        A `datasets.Dataset` in the order of the source, with `image` (`datasets.Image`), `image_id` (str, unique) and
        `captions` (list of stripped strings, in the order of the source). `info.description` says how a source without
        splits was split.

    Raises:
        CaptionDataError: the source is not supported, or something in it cannot be used; the message names the file,
            line or entry, and what was expected. A photo in two splits is never skipped.
        ValueError: the shares leave nothing to train on.
        ImportError: the package `datasets` is not installed.

    Example:
        ```python
        train = load_captions("flickr8k", "train")
        skipped: list[SkippedItem] = []
        everything = load_captions("flickr8k/Flickr8k.token.txt", on_error="skip", skipped=skipped)
        ```
    """
    try:
        from datasets import Dataset, DatasetDict
    except ModuleNotFoundError as error:
        raise ImportError('load_captions needs the package datasets: pip install "nic_hf[train]"') from error
    from . import arrow_files, hf_datasets

    errors = ErrorCollector(on_error, skipped)
    wanted = None if split is None or split == ALL else canonical_split(split)
    options = SourceOptions(
        None if images is None else Path(images).expanduser(),
        image_column,
        caption_column,
        SplitShares(dev_share, test_share, split_seed),
    )
    cache = None if cache_dir is None else Path(cache_dir).expanduser()
    if isinstance(source, (Dataset, DatasetDict)):
        _refuse_images(images, type(source).__name__)
        return _checked(*hf_datasets.read_dataset(source, wanted, options, errors, cache, type(source).__name__))
    if not isinstance(source, (str, os.PathLike)):
        raise CaptionDataError(f"cannot load captions from a {type(source).__name__}; supported: {SUPPORTED}")
    path = Path(source).expanduser()
    label = os.fspath(path if path.exists() else source)
    if path.is_dir():
        options = replace(options, root=path)
    parts = _parts(path, label, options)
    if parts:
        rows, rule = rows_of(parts, wanted, options, errors, label)
        return _checked(arrow_files.dataset_of_photos(rows, cache), rule, label) if rows else _empty(label)
    _refuse_images(images, label)
    shards = find_shards(label, None)
    if not shards and path.is_dir() and not is_for_datasets(path):
        raise CaptionDataError(f"{label}: no captions found; {what_is_there(path)}; supported: {SUPPORTED}")
    data = hf_datasets.open_shards(shards, cache) if shards else hf_datasets.open_data(label, cache)
    return _checked(*hf_datasets.read_dataset(data, wanted, options, errors, cache, label))


def _parts(path: Path, label: str, options: SourceOptions) -> list[Part]:
    """Return the files to read here; none for tar files and for what Hugging Face Datasets opens."""
    if path.is_dir():
        return find_parts(path, options)
    if path.is_file():
        if path.name in METADATA_FILES:
            return [Part(path, root=path.parent)]
        if path.name.lower().endswith(TAR_SUFFIXES) or (path.suffix == ".parquet" and holds_photos(path)):
            return []
        return [Part(path)]
    is_hub_id = _HUB_ID.fullmatch(label) and path.suffix not in (*CAPTION_SUFFIXES, ".zip")
    if is_hub_id or label.lower().endswith(TAR_SUFFIXES):
        return []
    raise CaptionDataError(f"{label}: no such file or folder; supported: {SUPPORTED}")


def rows_of(
    parts: list[Part], wanted: str | None, options: SourceOptions, errors: ErrorCollector, label: str
) -> tuple[list[Row], str | None]:
    """Read the photos of a split from files of captions.

    Returns:
        The photos, and how the source was split (see [`splits.Choice`]).
    """
    splits = {part.split for part in parts}
    if wanted is not None and {wanted, "train", "validation"} <= splits:
        parts = [part for part in parts if part.split == wanted or not part.whole]
    files = [(part, read_part(part, options, errors)) for part in parts]
    finders = _find_photos(files, options)
    ids: dict[str | None, list[str]] = defaultdict(list, {split: [] for split in splits if split in SPLITS})
    for finder in finders:
        for image_id, photo in finder.captions.photos.items():
            ids[photo.split].append(image_id)
    every = {image_id for own in ids.values() for image_id in own}
    choice = Choice(every)
    if wanted is not None:
        try:
            choice = choose_split(ids, wanted, options.shares, label)
        except NoSplitError:
            errors.settle()  # an error in the photos explains more
            raise
        _say_others(ids, label)
    rows: list[Row] = []
    for finder in finders:
        file = finder.captions.file
        for photo in finder.captions.photos.values():
            if photo.image_id in choice.ids:
                place = {"line": photo.line, "entry": photo.entry, "name": photo.names[0], "photo": photo.image_id}
                with errors.at(file, **place):  # type: ignore[arg-type]
                    rows.append(finder.row(photo))
    errors.settle(elsewhere=every - choice.ids)
    return rows, choice.rule


def _find_photos(files: "Sequence[tuple[Part, CaptionFile]]", options: SourceOptions) -> list[PhotoFinder]:
    """Find the file of each photo; names of one file are one photo, and equal names of several files get other ids."""
    finders = []
    by_path: dict[str, tuple[CaptionFile, CaptionedPhoto]] = {}
    ids: set[str] = set()
    repeated = 0
    for part, found in files:
        if not found.photos:
            continue
        finder = PhotoFinder(found, options.images, options.root or part.path.parent)
        finders.append(finder)
        photos = list(found.photos.values())
        found.photos = {}
        for photo in photos:
            photo.found = finder.find(photo)
            path = f"{found.file}: {photo.image_id}" if photo.found is None else photo.found.path
            if path in by_path:
                _merge(photo, found, *by_path[path])
                repeated += 1
                continue
            by_path[path] = found, photo
            if photo.image_id in ids:
                photo.image_id = f"{photo.split or part.path.stem}/{photo.image_id}"
            ids.add(photo.image_id)
            found.photos[photo.image_id] = photo
    if repeated:
        say_once(f"{files[0][1].file}: {repeated:,} photos have two names; their captions are merged")
    return finders


def _merge(photo: "CaptionedPhoto", found: "CaptionFile", file: "CaptionFile", first: "CaptionedPhoto") -> None:
    """Add the captions of a photo to the same photo under another name."""
    if None not in (photo.split, first.split) and photo.split != first.split:
        raise CaptionDataError(
            f"{photo.image_id} is in two splits: {file.file} ({first.split}) and {found.file} ({photo.split}); "
            "a photo must be in one only"
        )
    first.split = first.split or photo.split
    first.captions += photo.captions


def _say_others(ids: "Mapping[str | None, Sequence[str]]", label: str) -> None:
    """Log which photos are in none of the usual splits, if others are."""
    if not set(ids) & set(SPLITS):
        return
    for split in sorted(set(ids) - set(SPLITS), key=str):
        if ids[split]:
            say_once(
                f"{label}: {len(ids[split]):,} photos are in {'no split' if split is None else f'split {split!r}'}"
            )


def _checked(dataset: "Dataset", rule: str | None, label: str) -> "Dataset":
    if not len(dataset):
        _empty(label)
    dataset.info.description = rule or ""
    return dataset


def _refuse_images(images: object, label: str) -> None:
    if images is not None:
        raise CaptionDataError(f"{label}: images= cannot be used: this dataset contains its photos")


def _empty(label: str) -> "Dataset":
    raise CaptionDataError(f"{label}: no photo with a caption that can be used")

"""`load_captions`: one door to every form in which captioned photos are kept."""

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from .photos import Row, find_photos
from .problems import SUPPORTED, CaptionDataError, OnError, Problems, SkippedItem, say_once
from .sources import CAPTION_SUFFIXES, METADATA_FILES, Part, SourceOptions, find_parts, holds_photos, read_part
from .splits import ALL, Choice, SplitShares, canonical_split, choose_split
from .tar_shards import TAR_SUFFIXES, find_shards

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from .photos import CaptionedPhoto, CaptionFile

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

    Photos are not opened here: that each is there and is not empty is checked, and it is decoded when its row is read.
    The rows live in a memory-mapped Arrow file under `cache_dir`, so the data set takes the same memory whatever its
    length. An edited source gives a new file; equal sources share one.

    Args:
        source: One of

            - a folder or file of captions as Kaggle, Flickr8k and Flickr30k have it: `captions.txt`,
              `Flickr8k.token.txt` (lines `name.jpg#k<TAB>caption`), `results.csv` (rows `name| number| caption`). The
              official lists `Flickr_8k.trainImages.txt`, `.devImages.txt` and `.testImages.txt` are used where they
              are in the same folder;
            - any CSV, TSV, JSON or JSONL file, or a folder with one, that has an image and a caption column (`image`,
              `file_name`, ... and `caption`, `captions`, `text`, ..., or `caption_0`, `caption_1`, ...), one caption
              or a list of them in a row. Files named after splits (`train.json`, `val.json`) are those splits, and a
              column `split` names each row's;
            - a Karpathy JSON file (`dataset_coco.json`), its "restval" counting as "train"; a COCO captions JSON file,
              or COCO's folder with `annotations/captions_train2017.json` and so on;
            - a folder with `metadata.csv` or `metadata.jsonl`, or with a text file for each photo, a caption a line;
              folders `train`, `validation`, `test` in it are the splits;
            - tar shards of `key.jpg` and `key.txt` or `key.json`: a file, a folder of them or a pattern;
            - a Hub id or a local folder that `datasets.load_dataset` opens, or a `Dataset` or `DatasetDict`, with an
              image column and caption columns named as above.

            Photos are looked for in the usual places near the captions.
        split: "train", "validation" (also spelled "dev" or "val"), "test", or another that the source has. None and
            "all" take all photos, those in no split too.
        images: Folder of the photos, where it is not found.
        image_column: Name of the column of photo names, where it is not recognised.
        caption_column: Name of the column of captions, or several with commas between, where it is not recognised.
        dev_share: Share of the validation split where the source has none. A source without splits is split by a hash
            of its image ids, and one with train alone likewise; of a source with train and test, validation is held
            out of train. Photos known to be Flickr8k's are split as its official lists have it. The log says which.
        test_share: Share of the test split where the source has no splits, or train alone.
        split_seed: Seed of that hash.
        on_error: "raise" stops at the first fault. "skip" leaves out the line, caption or photo at fault, and nothing
            else, and logs a warning with the first of them. A photo left without captions is left out as well.
        skipped: List that takes a `SkippedItem` for each item left out.
        cache_dir: Folder for the Arrow files; by default `nic_hf` in the cache of Hugging Face Datasets.

    Returns:
        A `datasets.Dataset` in the order of the source, with `image` (`datasets.Image`), `image_id` (str, unique) and
        `captions` (list of str in the order of the source, without white space at their ends). `info.description` says
        how a source without splits was split.

    Raises:
        CaptionDataError: the source is in no supported form, or something in it cannot be used; the message says which
            file, line or entry, and what was expected. A photo in two splits is never skipped.
        ValueError: the shares leave nothing to train on.
        ImportError: the package `datasets` is not installed.

    Example:
        ```python
        train = load_captions("flickr8k", "train")
        faults: list[SkippedItem] = []
        everything = load_captions("flickr8k/Flickr8k.token.txt", on_error="skip", skipped=faults)
        ```
    """
    try:
        from datasets import Dataset, DatasetDict
    except ModuleNotFoundError as error:
        raise ImportError('load_captions needs the package datasets: pip install "nic_hf[train]"') from error
    from . import hub, storage

    problems = Problems(on_error, skipped)
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
        return _checked(*hub.read_dataset(source, wanted, options, problems, cache, type(source).__name__))
    if not isinstance(source, (str, os.PathLike)):
        raise CaptionDataError(f"cannot load captions from a {type(source).__name__}; supported: {SUPPORTED}")
    path = Path(source).expanduser()
    label = os.fspath(path if path.exists() else source)
    parts = _parts(path, label, options)
    if parts:
        rows, rule = rows_of(parts, wanted, options, problems, label)
        return _checked(storage.dataset_of_photos(rows, cache), rule, label) if rows else _empty(label)
    _refuse_images(images, label)
    shards = find_shards(label, None)
    data = hub.open_shards(shards, cache) if shards else hub.open_data(label, cache)
    return _checked(*hub.read_dataset(data, wanted, options, problems, cache, label))


def _parts(path: Path, label: str, options: SourceOptions) -> list[Part]:
    """The files that are read here; none where it is tar files, or for Hugging Face Datasets to open."""
    if path.is_dir():
        return find_parts(path, options)
    if path.is_file():
        if path.name in METADATA_FILES:
            return [Part(path, root=path.parent)]
        if path.name.lower().endswith(TAR_SUFFIXES) or (path.suffix == ".parquet" and holds_photos(path)):
            return []
        return [Part(path)]
    is_hub_id = _HUB_ID.fullmatch(label) and path.suffix not in (*CAPTION_SUFFIXES, ".parquet", ".zip")
    if is_hub_id or label.lower().endswith(TAR_SUFFIXES):
        return []
    raise CaptionDataError(f"{label}: no such file or folder; supported: {SUPPORTED}")


def rows_of(
    parts: list[Part], wanted: str | None, options: SourceOptions, problems: Problems, label: str
) -> tuple[list[Row], str | None]:
    """Read the photos of a split from files of captions.

    Returns:
        The photos, and how the source was split (see [`splits.Choice`]).

    Raises:
        CaptionDataError: as `load_captions`.
    """
    ids: dict[str | None, list[str]] = defaultdict(list)
    if wanted is not None and {wanted, "train", "validation"} <= (splits := {part.split for part in parts}):
        ids |= {split: [] for split in splits}
        parts = [part for part in parts if part.split == wanted or not part.whole]
    files = [read_part(part, options, problems) for part in parts]
    owners: dict[str, tuple[CaptionFile, CaptionedPhoto]] = {}
    for part, found in zip(parts, files, strict=True):
        for image_id, photo in found.photos.items():
            if image_id in owners:
                image_id = photo.image_id = _other_id(image_id, part, found, photo, *owners[image_id])
            owners[image_id] = found, photo
            ids[photo.split].append(image_id)
    if wanted is None:
        choice = Choice(set(owners))
    else:
        choice = choose_split(ids, wanted, options.shares, label)
        if len(ids) > 1 and ids.get(None):
            say_once(f"{label}: {len(ids[None]):,} photos are in no split")
    rows: list[Row] = []
    for found in files:
        photos = [photo for photo in found.photos.values() if photo.image_id in choice.ids]
        if photos:
            rows += find_photos(found, photos, options.images, problems)
    problems.settle(elsewhere=owners.keys() - choice.ids)
    return rows, choice.rule


def _other_id(
    image_id: str,
    part: Part,
    found: "CaptionFile",
    photo: "CaptionedPhoto",
    file: "CaptionFile",
    first: "CaptionedPhoto",
) -> str:
    """An id for a photo of a file, where a photo of another file has the same.

    Raises:
        CaptionDataError: it is the same photo, in two splits.
    """
    if photo.split != first.split and (photo.names, list(found.folders)) == (first.names, list(file.folders)):
        raise CaptionDataError(
            f"{image_id} is in two splits: {file.file} ({first.split}) and {found.file} ({photo.split}); "
            "a photo may be in one only"
        )
    return f"{photo.split or part.path.stem}/{image_id}"


def _checked(dataset: "Dataset", rule: str | None, label: str) -> "Dataset":
    if not len(dataset):
        _empty(label)
    dataset.info.description = rule or ""
    return dataset


def _refuse_images(images: object, label: str) -> None:
    if images is not None:
        raise CaptionDataError(f"{label}: images= has no meaning here: this data set brings its own photos")


def _empty(label: str) -> "Dataset":
    raise CaptionDataError(f"{label}: no photo with a caption that can be used")

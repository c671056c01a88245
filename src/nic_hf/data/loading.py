"""`load_captions`: one door to every form in which captioned photos are kept."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .coco import read_coco
from .flickr import KAGGLE_FILE, TOKEN_FILES, is_token_file, read_kaggle, read_token
from .imagefolder import METADATA_FILES, metadata_files, read_imagefolder
from .karpathy import KARPATHY_FILES, read_karpathy
from .photos import Row
from .problems import SUPPORTED, CaptionDataError, OnError, Problems, SkippedItem
from .splits import canonical_split
from .text import read_json

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_FILE_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".token", ".txt", ".zip")


def load_captions(
    source: "str | os.PathLike[str] | Dataset | DatasetDict",
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    on_error: OnError = "raise",
    skipped: list[SkippedItem] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> "Dataset":
    """Load photos with their captions, one row a photo.

    Photos are not opened here: that each is there and is not empty is checked, and it is decoded when its row is read.
    The rows live in a memory-mapped Arrow file under `cache_dir`, so the data set takes the same memory whatever its
    length. An edited source gives a new file; equal sources share one.

    Args:
        source: One of

            - a folder with `captions.txt` (Kaggle's Flickr8k: CSV, header `image,caption`), or that file;
            - a folder with `Flickr8k.token.txt` (lines `name.jpg#k<TAB>caption`), or such a file. Both forms look for
              photos beside the file, in `Images/`, `Flicker8k_Dataset/` and the like, and for the official split
              lists `Flickr_8k.trainImages.txt`, `.devImages.txt`, `.testImages.txt`;
            - a Karpathy JSON file (`dataset_coco.json`), its "restval" counting as "train", or a folder with one;
            - a COCO captions JSON file (`captions_val2017.json`), which is one split by itself;
            - a folder with `metadata.csv` or `metadata.jsonl`: `file_name`, and `caption`, `captions`, `sentences` or
              `text`, or `caption_0`, `caption_1`, ...; folders `train`, `validation`, `test` in it are the splits;
            - a Hub id or a local folder that `datasets.load_dataset` opens, or a `Dataset` or `DatasetDict`, with an
              image column and caption columns named as above.
        split: "train", "validation" (also spelled "dev" or "val"), "test", or another that the source has. None takes
            all photos, those in no split too.
        images: Folder of the photos, where it is not beside the captions.
        on_error: "raise" stops at the first fault. "skip" leaves out the line, caption or photo at fault, and nothing
            else, and logs a warning with the first of them. A photo left without captions is left out as well.
        skipped: List that takes a `SkippedItem` for each item left out.
        cache_dir: Folder for the Arrow files; by default `nic_hf` in the cache of Hugging Face Datasets.

    Returns:
        A `datasets.Dataset` in the order of the source, with `image` (`datasets.Image`), `image_id` (str, unique) and
        `captions` (list of str in the order of the source, without white space at their ends).

    Raises:
        CaptionDataError: the source is in no supported form, or something in it cannot be used; the message says which
            file, line or entry, and what was expected. Two split lists that share a photo are never skipped.
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
    split = None if split is None else canonical_split(split)
    photos = None if images is None else Path(images).expanduser()
    cache = None if cache_dir is None else Path(cache_dir).expanduser()

    if isinstance(source, (str, os.PathLike)):
        label = os.fspath(Path(source).expanduser()) if Path(source).expanduser().exists() else os.fspath(source)
        rows = _read_rows(label, split, photos, problems)
    elif isinstance(source, (Dataset, DatasetDict)):
        label = type(source).__name__
        rows = None
    else:
        raise CaptionDataError(f"cannot load captions from a {type(source).__name__}; supported: {SUPPORTED}")

    if rows is not None:
        _check_not_empty(len(rows), label, problems)
        dataset = storage.dataset_of_photos(rows, cache)
    else:
        if photos is not None:
            raise CaptionDataError(f"{label}: images= has no meaning here: this data set brings its own photos")
        data = source if isinstance(source, (Dataset, DatasetDict)) else hub.open_data(label, cache)
        dataset = hub.read_dataset(data, split, problems, cache, label)
        _check_not_empty(len(dataset), label, problems)
    problems.report()
    return dataset


def _read_rows(source: str, split: str | None, images: Path | None, problems: Problems) -> list[Row] | None:
    """Return the rows of a form that is read here, or None where Hugging Face Datasets has to open the source."""
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, split, images, problems)
    if path.is_file():
        return _read_file(path, split, images, problems)
    if _HUB_ID.fullmatch(source) and path.suffix not in _FILE_SUFFIXES:
        return None
    raise CaptionDataError(f"{source}: no such file or folder; supported: {SUPPORTED}")


def _read_folder(folder: Path, split: str | None, images: Path | None, problems: Problems) -> list[Row] | None:
    for name in (KAGGLE_FILE, *TOKEN_FILES, *KARPATHY_FILES):
        if (folder / name).is_file():
            return _read_file(folder / name, split, images, problems)
    if metadata_files(folder):
        return read_imagefolder(folder, split, images, problems)
    return None


def _read_file(file: Path, split: str | None, images: Path | None, problems: Problems) -> list[Row]:
    if file.suffix == ".json":
        return _read_json(file, split, images, problems)
    if file.name in METADATA_FILES:
        return read_imagefolder(file.parent, split, images, problems)
    if file.suffix not in (".csv", ".token", ".txt"):
        raise CaptionDataError(f"{file}: not a captions file; supported: {SUPPORTED}")
    read = read_token if is_token_file(file) else read_kaggle
    return read(file, split, images, problems)


def _read_json(file: Path, split: str | None, images: Path | None, problems: Problems) -> list[Row]:
    document = read_json(file)
    entries = document.get("images") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        found = f"the keys {', '.join(document)}" if isinstance(document, dict) else f"a {type(document).__name__}"
        raise CaptionDataError(f'{file}: expected a JSON object with a list "images" and found {found}')
    if not entries:
        raise CaptionDataError(f'{file}: the list "images" is empty')
    if isinstance(document.get("annotations"), list):
        return read_coco(file, document, split, images, problems)
    if any(isinstance(entry, dict) and "sentences" in entry for entry in entries):
        return read_karpathy(file, document, split, images, problems)
    raise CaptionDataError(
        f'{file}: expected "sentences" in each image (Karpathy) or a list "annotations" beside "images" (COCO) and '
        f"found neither; the keys are {', '.join(document)}"
    )


def _check_not_empty(rows: int, label: str, problems: Problems) -> None:
    if not rows:
        problems.report()
        raise CaptionDataError(f"{label}: no photo with a caption that can be used")

"""Find the files of a folder that hold captions, and read each with the reader of its format."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..photo_files import is_photo_name
from .caption_json import read_json_file
from .caption_tables import (
    TABLE_SUFFIXES,
    Record,
    gather,
    is_table,
    parquet_records,
    read_json_lines,
    read_table,
)
from .columns import recognise
from .errors import SUPPORTED, CaptionDataError, ErrorCollector, RejectedError, say_once
from .names import SPLITS, canonical_split, split_words
from .photo_finder import CaptionFile
from .splits import SplitShares, read_split_lists
from .text_files import read_lines

CAPTION_SUFFIXES = (*TABLE_SUFFIXES, ".json", ".jsonl", ".parquet")
KAGGLE_FILE = "captions.txt"
TOKEN_FILES = ("Flickr8k.token.txt", "results_20130124.token")
KARPATHY_FILES = ("dataset_flickr8k.json", "dataset_flickr30k.json", "dataset_coco.json")
METADATA_FILES = ("metadata.csv", "metadata.jsonl")

# If one of these exists, other files of the folder are not considered.
_KNOWN_FILES = (KAGGLE_FILE, *TOKEN_FILES, "results.csv")
_SIDECAR_SUFFIXES = (".txt", ".caption")
_NUMBERS = re.compile(r"[\d\s.+-]+")
_COCO_FILE = re.compile(r"captions_(train|val|test)(\d{4})\.json")
_ANNOTATIONS = ("annotations", "captions")  # folders next to those of the photos
_OF_DATASETS = ("dataset_dict.json", "state.json")  # written by `save_to_disk`
_KINDS_SHOWN = 5
_DEEPEST = 2  # levels of folders that are searched, as unpacking creates them


@dataclass(frozen=True)
class SourceOptions:
    """Options for reading a source.

    Attributes:
        images: folder of the photos, if it is not near the captions.
        image_column: name of the column with photo names.
        caption_column: name of the column with captions, or several separated by commas.
        shares: sizes of splits for photos without one.
        root: the folder that the user named, in which photos are searched for.
    """

    images: Path | None = None
    image_column: str | None = None
    caption_column: str | None = None
    shares: SplitShares = field(default_factory=SplitShares)
    root: Path | None = None


class Part(NamedTuple):
    """A file of captions, or a folder with a text file per photo.

    Attributes:
        path: the file or folder.
        split: canonical name of its split; None if the content tells the split, or nothing does.
        root: the folder that photo paths start from, if it is not that of the file.
        whole: whether the photos of its split are all in this part, as in COCO's large files.
    """

    path: Path
    split: str | None = None
    root: Path | None = None
    whole: bool = False


def find_parts(source: Path, options: SourceOptions) -> list[Part]:
    """Return the files with the captions of a folder; none if it is for Hugging Face Datasets or holds tar files."""
    found = _parts_of(source, options)
    if found or is_for_datasets(source):
        return found
    below = dict(_below(source, options, _DEEPEST))
    splits = [canonical_split(folder.name) for folder in below]
    if len(below) > 1 and set(splits) <= set(SPLITS) and len(set(splits)) == len(splits):
        return [part._replace(split=split) for split, own in zip(splits, below.values(), strict=True) for part in own]
    if len(below) > 1:
        listed = ", ".join(map(str, below))
        raise CaptionDataError(f"{source}: captions in several folders: {listed}; name one of them")
    for folder, parts in below.items():
        say_once(f"{source}: captions found in {folder}")
        return parts
    return []


def read_part(part: Part, options: SourceOptions, errors: ErrorCollector) -> CaptionFile:
    """Read all captions of a part."""
    file, columns = part.path, (options.image_column, options.caption_column)
    below = PurePosixPath() if part.root is None else PurePosixPath(file.parent.relative_to(part.root).as_posix())
    if file.is_dir():
        found = _read_sidecars(file, errors)
    elif file.suffix == ".json":
        found = read_json_file(file, errors, *columns)
    elif file.suffix == ".jsonl":
        found = read_json_lines(file, errors, *columns, below)
    elif file.suffix == ".parquet":
        found = gather(file, parquet_records(file, errors, *columns), errors, below)
    elif file.suffix in TABLE_SUFFIXES:
        found = read_table(file, errors, *columns, read_split_lists(file.parent, errors), below)
    else:
        raise CaptionDataError(f"{file}: not a captions file; supported: {SUPPORTED}")
    if part.root is not None:
        found.folders = [part.root]
    for photo in found.photos.values():
        photo.split = photo.split or part.split
    return found


def holds_photos(file: Path) -> bool:
    """Whether a parquet file holds the photos themselves instead of their names."""
    import pyarrow.parquet as pq
    from pyarrow import types

    kinds = [field.type for field in pq.read_schema(file)]
    return any(types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind) for kind in kinds)


def _parts_of(folder: Path, options: SourceOptions) -> list[Part]:
    """Return the caption files in a folder itself or in its `annotations`."""
    if is_for_datasets(folder):
        return []
    coco = _coco_files(folder)
    if coco:
        return coco
    names = _files(folder)
    for name in _KNOWN_FILES:
        if name in names:
            return [Part(folder / name)]
    karpathy = [folder / name for name in KARPATHY_FILES if name in names]
    if karpathy:
        return [Part(_only(karpathy, folder))]
    metadata = _metadata_files(folder)
    if metadata:
        return metadata
    for place in (folder, *(folder / name for name in _ANNOTATIONS if (folder / name).is_dir())):
        parts = _other_files(place, options)
        if parts:
            return parts
    if next(_sidecars(folder), None) is not None:
        return [Part(folder)]
    return []


def is_for_datasets(folder: Path) -> bool:
    """Whether Hugging Face Datasets has to open a folder: it wrote it, or photos are in parquet or Arrow files."""
    if any((folder / name).is_file() for name in _OF_DATASETS):
        return True
    files = (next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet"))
    return any(holds_photos(file) for file in files if file is not None)


def _coco_files(folder: Path) -> list[Part]:
    """Return COCO's caption files of the latest year, one per split."""
    places = [folder / "annotations", folder]
    found: dict[str, list[Part]] = {}
    for place in places:
        for name in sorted(_files(place)):
            match = _COCO_FILE.fullmatch(name)
            if match:
                found.setdefault(match[2], []).append(Part(place / name, canonical_split(match[1]), whole=True))
        if found:
            break
    if len(found) > 1:
        say_once(f"{folder}: captions of {' and '.join(sorted(found))}; those of {max(found)} are read")
    return found[max(found)] if found else []


def _metadata_files(folder: Path) -> list[Part]:
    """Return the metadata file of a folder, or those of its split folders (the imagefolder layout of Datasets)."""
    parts = []
    subfolders = sorted(path for path in folder.iterdir() if canonical_split(path.name) in SPLITS and path.is_dir())
    for place in (folder, *subfolders):
        files = [place / name for name in METADATA_FILES if (place / name).is_file()]
        if len(files) > 1:
            raise CaptionDataError(f"{place}: holds both {' and '.join(METADATA_FILES)}; keep one")
        if files and place == folder:
            return [Part(files[0], root=folder)]
        parts += [Part(file, root=folder) for file in files]
    return parts


def _other_files(folder: Path, options: SourceOptions) -> list[Part]:
    """Return files that are named after splits, or else the only one that may hold captions."""
    photos = {_stem(name) for name in _files(folder) if is_photo_name(name)}
    files = [
        folder / name
        for name in sorted(_files(folder))
        if name.endswith(CAPTION_SUFFIXES) and _stem(name) not in photos and not name.endswith(".caption")
    ]
    columns = (options.image_column, options.caption_column)
    files = [file for file in files if _may_hold_captions(file, *columns)]
    if len(files) > 1:
        files = [file for file in files if file.suffix != ".json" or _holds_captions(file, options)]
    by_split: dict[str, list[Path]] = {}
    for file in files:
        named = split_words(file.stem) & set(SPLITS)
        if len(named) == 1:
            by_split.setdefault(named.pop(), []).append(file)
    if by_split:
        return [Part(_only(own, folder), split) for split, own in by_split.items()]
    return [Part(_only(files, folder))] if files else []


def _may_hold_captions(file: Path, image: str | None, caption: str | None) -> bool:
    """Whether a table's header has a caption column. JSON files would have to be read for that."""
    if file.suffix in TABLE_SUFFIXES:
        return is_table(file, image, caption)
    if file.suffix != ".parquet":
        return True
    import pyarrow.parquet as pq

    try:
        recognise(tuple(pq.read_schema(file).names), image, caption)
    except RejectedError:  # such as the download log of img2dataset
        return False
    return True


def _holds_captions(file: Path, options: SourceOptions) -> bool:
    try:
        read_json_file(file, ErrorCollector("skip"), options.image_column, options.caption_column)
    except CaptionDataError:
        return False
    return True


def what_is_there(folder: Path) -> str:
    """Describe the kinds of files in a folder without captions, for a message."""
    kinds = Counter(path.suffix.lower() or "no suffix" for path in folder.rglob("*") if path.is_file())
    shown = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(_KINDS_SHOWN))
    return f"it holds {shown}" if shown else "it is empty"


def _only(files: Sequence[Path], folder: Path) -> Path:
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise CaptionDataError(f"{folder}: several files may hold the captions: {listed}; name one of them")
    return files[0]


def _below(folder: Path, options: SourceOptions, depth: int) -> Iterator[tuple[Path, list[Part]]]:
    """Yield folders in `folder` that hold captions, without looking inside them."""
    for name in sorted(_folders(folder)):
        parts = _parts_of(folder / name, options)
        if parts:
            yield folder / name, parts
        elif depth > 1:
            yield from _below(folder / name, options, depth - 1)


def _read_sidecars(folder: Path, errors: ErrorCollector) -> CaptionFile:
    """Read the text file of each photo, one caption per line; `train`, `val` and `test` in its path are the splits."""
    records = []
    without = 0
    for photo, sidecar in _sidecars(folder, every=True):
        if sidecar is None:
            without += 1
            continue
        lines = [text for _, text in read_lines(sidecar, errors)]
        place = sidecar.relative_to(folder).as_posix()
        if lines and all(map(_NUMBERS.fullmatch, lines)):
            name = photo.relative_to(folder).as_posix()
            with errors.at(folder, entry=place, name=name):
                raise RejectedError(f"numbers in place of captions: {lines[0]!r:.60}; are these boxes of YOLO?")
            continue
        records.append(Record(place, photo.relative_to(folder).as_posix(), lines))
    if without:
        errors.leave_out(folder, "photos without a text file", without)
    found = gather(folder, records, errors)
    found.folders = [folder]
    return found


def _sidecars(folder: Path, every: bool = False) -> Iterator[tuple[Path, Path | None]]:
    """Yield photos with the text file of the same name; with `every`, photos without one too."""
    for place, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        texts = {_stem(name): name for name in sorted(files) if name.lower().endswith(_SIDECAR_SUFFIXES)}
        for name in sorted(files):
            if is_photo_name(name) and not name.startswith("."):
                text = texts.get(_stem(name))
                if text is not None or every:
                    yield Path(place, name), None if text is None else Path(place, text)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")}
    except OSError:
        return set()


def _folders(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}

"""Names of splits, and the official split lists of Flickr8k."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from .photos import safe_name
from .problems import CaptionDataError, Problems, RejectedError
from .text import read_lines

_SYNONYMS = {"dev": "validation", "val": "validation", "valid": "validation"}

FLICKR8K_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


@dataclass(frozen=True)
class SplitList:
    """A file with one photo name a line.

    Attributes:
        file: The list.
        lines: The line, counted from 1, of each photo name.
    """

    file: Path
    lines: dict[str, int]


def canonical_split(split: str) -> str:
    """Return "validation" for its other spellings, and any other name as it is.

    >>> canonical_split("dev"), canonical_split("train")
    ('validation', 'train')
    """
    return _SYNONYMS.get(split, split)


def check_split(split: str, available: Iterable[str], where: str) -> None:
    """Check that a canonical split name is among those that the data has.

    Raises:
        CaptionDataError: it is not; the message lists those there are.
    """
    names = sorted(set(available))
    if not names:
        raise CaptionDataError(f"{where}: no split {split!r}: there are no splits here; leave split out to load all")
    if split not in names:
        raise CaptionDataError(f"{where}: no split {split!r}; available: {', '.join(names)}")


def read_flickr8k_lists(folder: Path, problems: Problems) -> dict[str, SplitList]:
    """Read the split lists that are in `folder`.

    Raises:
        CaptionDataError: two lists share a photo. That is never skipped: whichever list kept the photo, scores on the
            other could no longer be trusted.
    """
    lists = {
        split: _read_list(folder / name, problems)
        for split, name in FLICKR8K_LISTS.items()
        if (folder / name).is_file()
    }
    for one, other in combinations(lists.values(), 2):
        for name in one.lines:
            if name in other.lines:
                raise CaptionDataError(
                    f"{name} is in two splits: {one.file} (line {one.lines[name]}) and "
                    f"{other.file} (line {other.lines[name]}); a photo may be in one only"
                )
    return lists


def _read_list(file: Path, problems: Problems) -> SplitList:
    lines: dict[str, int] = {}
    for number, text in read_lines(file, problems):
        with problems.at(file, line=number):
            name = safe_name(text.strip())
            if name in lines:
                raise RejectedError(f"{name} is already on line {lines[name]}")
            lines[name] = number
    return SplitList(file, lines)

"""Names of photos and splits, normalised."""

import posixpath
import re
from pathlib import PureWindowsPath

from ..photo_files import is_photo_name
from .errors import RejectedError

SPLITS = ("train", "validation", "test")
ALL = "all"

_SYNONYMS = {
    **dict.fromkeys(("training", "restval"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "devel", "development", "eval"), "validation"),
    "testing": "test",
}

_USUAL_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".JPG")
_PLAIN_NAME = re.compile(r"\w[\w.-]*")


def safe_name(name: object) -> str:
    r"""Return a photo's relative path with "/" as separator.

    >>> safe_name(r"train\dog.jpg")
    'train/dog.jpg'

    An absolute path is taken relative to the photo folder: `/data/flickr8k/Images/x.jpg` is looked for as
    `data/flickr8k/Images/x.jpg`, ..., `x.jpg` (see [`names_to_try`]).

    Raises:
        RejectedError: there is no name, or it leads out of the photo folder (`../x.jpg`).
    """
    if not isinstance(name, str) or not name.strip():
        raise RejectedError(f"no photo name (found {name!r})")
    # Nearly all names are of this kind, and pathlib takes ten times as long.
    if _PLAIN_NAME.fullmatch(name):
        return name
    windows = PureWindowsPath(name)
    below = posixpath.normpath(windows.relative_to(windows.anchor).as_posix())
    if below.split("/")[0] in ("..", ".") or "\0" in name:
        raise RejectedError(f"photo name {name!r} leads out of the photo folder; give a path inside it")
    return below


def names_to_try(name: str) -> list[str]:
    """Return possible paths of a photo: as named, with fewer folders, and with a usual suffix if it has none.

    >>> names_to_try("coco/val2014/x.jpg"), names_to_try("x")[:3]
    (['coco/val2014/x.jpg', 'val2014/x.jpg', 'x.jpg'], ['x', 'x.jpg', 'x.jpeg'])
    """
    names = [name]
    while "/" in names[-1]:
        names.append(names[-1].partition("/")[2])
    if not is_photo_name(name):
        names += [base + suffix for base in names for suffix in _USUAL_SUFFIXES]
        if name.isdecimal():  # COCO's ids
            names.append(f"{name.zfill(12)}.jpg")
    return names


def canonical_split(split: str) -> str:
    """Return "train", "validation" or "test" for their other spellings, and any other name unchanged.

    >>> canonical_split("dev"), canonical_split("Train"), canonical_split("extra")
    ('validation', 'train', 'extra')
    """
    lower = split.strip().lower()
    return _SYNONYMS.get(lower, lower if lower in SPLITS else split)


def split_words(name: str) -> set[str]:
    """Return the words of a name, with names of splits in canonical form.

    >>> sorted(split_words("TextCaps_0.1_val.json") & set(SPLITS)), split_words("val2017")
    (['validation'], {'', 'validation'})
    """
    return {canonical_split(word) for word in re.split(r"[^A-Za-z]+", name)}

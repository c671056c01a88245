"""Splits: lists of photo names, official splits, and splits by hash."""

import hashlib
import math
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from .errors import CaptionDataError, ErrorCollector, NoSplitError, RejectedError, say_once
from .names import ALL, SPLITS, safe_name
from .text_files import first_line, read_lines

FLICKR8K_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
# Names of the lists of a split, in order of preference; names in Flickr30k's have no suffix.
_LISTS = {
    split: (name, *(f"{word}.txt" for word in words), *(f"flickr30k_{word}.txt" for word in words))
    for (split, name), words in zip(FLICKR8K_LISTS.items(), (("train",), ("val", "dev"), ("test",)), strict=True)
}
# CRC-32 of the photo names in each official split of Flickr8k; written by `benchmarks/flickr8k_split.py`.
_FLICKR8K_NAMES = Path(__file__).with_name("flickr8k_split.safetensors")
# 91 of its 8,091 photos are in no split.
_KNOWN_SHARE = 0.95


@dataclass(frozen=True)
class SplitShares:
    """Sizes of splits for photos without one.

    Attributes:
        dev: share of the validation split, from 0 to below 1.
        test: share of the test split.
        seed: seed of the hash.
    """

    dev: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.dev, self.test) < 0 or self.dev + self.test >= 1:
            raise ValueError(
                f"dev_share {self.dev} and test_share {self.test} must be 0 or more, and together less than 1"
            )


class Choice(NamedTuple):
    """The photos of a split.

    Attributes:
        ids: their ids.
        rule: how the source was split, for logs and model cards; None if it has this split itself.
    """

    ids: set[str]
    rule: str | None = None


@dataclass(frozen=True)
class SplitList:
    """A file with one photo name per line.

    Attributes:
        file: The list.
        lines: Line, counted from 1, of each photo name.
    """

    file: Path
    lines: dict[str, int]


def check_split(split: str, available: Iterable[str], where: str) -> None:
    """Check that a canonical split name is available."""
    names = sorted(set(available))
    if not names:
        raise NoSplitError(f"{where}: no split {split!r}: there are no splits; omit split to load all")
    if split not in names:
        raise NoSplitError(f"{where}: no split {split!r}; available: {', '.join(names)}")


def choose_split(parts: Mapping[str | None, Sequence[str]], wanted: str, shares: SplitShares, where: str) -> Choice:
    """Choose the photos of a split from a source that may have splits, some of them, or none.

    - A source with splits keeps them. If it has no validation split, or train alone, the missing ones are held out of
      train; if it has one other split alone, that one is split.
    - Flickr8k's photos without split lists are split by the official lists.
    - All other photos are split by a hash of their ids.

    Args:
        parts: ids of photos by their split in the source; None for those in no split.
        wanted: canonical name of a split.
        shares: for the hash.
        where: the source, for messages.
    """
    named = {split: ids for split, ids in parts.items() if split is not None}
    if len(named) == 1 and "train" not in named and parts.get(None):  # such as a list of test photos and all others
        named["train"] = parts[None]
    names = set(named)
    # Validation alone is split like train alone: as a whole, it would contain the photos that are trained on.
    shared_out = (wanted == "train" and "validation" not in names) or names == {wanted} == {"validation"}
    if wanted in names and not shared_out:
        return Choice(set(named[wanted]))
    if len(names) > 1:
        held_out = {"train", "validation"} if "train" in names else set()
        check_split(wanted, names | held_out if wanted in held_out else names, where)
        pool, shares = named["train"], SplitShares(shares.dev, 0, shares.seed)
    else:
        check_split(wanted, SPLITS, where)
        pool = next(iter(named.values()), parts.get(None, ()))
        official = _official(pool)
        if official is not None:
            others = len(pool) - sum(map(len, official.values()))
            rule = "Flickr8k's official split, by the photos' names" + (f" ({others:,} in no split)" if others else "")
            return _said(where, official, wanted, rule)
    if len(names) > 1:
        reason = "no validation split: train"
    elif names:
        only = next(iter(names))
        reason = f"no split but {only!r}" + (", which holds training photos then:" if only == "test" else ": photos")
    else:
        reason = "no splits: photos"
    rule = f"{reason} split by a hash of their ids (seed {shares.seed})"
    return _said(where, hashed_splits(pool, shares), wanted, rule)


def hashed_splits(image_ids: Iterable[str], shares: SplitShares) -> dict[str, list[str]]:
    """Split photos by a hash of their ids, independent of the machine and of their order.

    A photo keeps its split when others are added or removed. Only if validation or test gets less than half or more
    than twice its share by chance, photos near the border are moved.

    >>> {name: len(ids) for name, ids in hashed_splits(map(str, range(1000)), SplitShares()).items()}
    {'train': 789, 'validation': 110, 'test': 101}
    """
    place = {image_id: _place(image_id, shares.seed) for image_id in image_ids}
    order = sorted(place, key=lambda image_id: (place[image_id], image_id))
    counts = {}
    left = len(order) - 1
    for split, share, number in (
        ("validation", shares.dev, sum(value < shares.dev for value in place.values())),
        ("test", shares.test, sum(value >= 1 - shares.test for value in place.values())),
    ):
        least, most = math.ceil(share * len(order) / 2), math.ceil(share * len(order) * 2)
        counts[split] = max(0, min(left, most, max(number, least)))
        left -= counts[split]
    first, last = counts["validation"], len(order) - counts["test"]
    return {"train": order[first:last], "validation": order[:first], "test": order[last:]}


def is_flickr8k_split(image_ids: Iterable[str], split: str) -> bool:
    """Whether the photos are exactly those of an official split of Flickr8k, by their names."""
    keys = np.asarray([name_key(image_id) for image_id in image_ids], dtype=np.uint32)
    return np.array_equal(np.sort(keys), load_file(_FLICKR8K_NAMES)[split])  # which is sorted


def read_split_lists(folder: Path, errors: ErrorCollector) -> dict[str, SplitList]:
    """Read the split lists in `folder`: Flickr8k's, or `train.txt`, `val.txt` and `test.txt` with photo names."""
    lists = {}
    for split, names in _LISTS.items():
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is not None and (file.name in FLICKR8K_LISTS.values() or _is_list(file)):
            lists[split] = _read_list(file, errors)
    for one, other in combinations(lists.values(), 2):
        for name in one.lines:
            if name in other.lines:
                raise CaptionDataError(
                    f"{name} is in two splits: {one.file} (line {one.lines[name]}) and "
                    f"{other.file} (line {other.lines[name]}); a photo must be in one only"
                )
    return lists


def name_key(name: str) -> int:
    """Return the key of a photo's name in the table of Flickr8k's official splits."""
    return zlib.crc32(PurePosixPath(name).name.encode())


def _said(where: str, splits: Mapping[str, Sequence[str]], wanted: str, rule: str) -> Choice:
    counts = ", ".join(f"{len(splits[name]):,} {name}" for name in SPLITS)
    text = f"{rule}: {counts}"
    say_once(f"{where}: {text}; split={ALL!r} takes all photos")
    if not splits[wanted]:
        raise NoSplitError(f"{where}: split {wanted!r} holds no photos ({text}); more photos or a larger share")
    return Choice(set(splits[wanted]), text)


def _official(image_ids: Sequence[str]) -> dict[str, list[str]] | None:
    """Return Flickr8k's official splits of these photos; None if they are others, or too few for three splits."""
    if len(image_ids) < len(SPLITS):
        return None
    keys = np.asarray([name_key(image_id) for image_id in image_ids], dtype=np.uint32)
    table = load_file(_FLICKR8K_NAMES)
    members = {split: np.isin(keys, table[split]) for split in SPLITS}
    if sum(map(np.count_nonzero, members.values())) < _KNOWN_SHARE * len(keys):
        return None
    found = {split: [image_ids[row] for row in np.flatnonzero(members[split]).tolist()] for split in SPLITS}
    return found if all(found.values()) else None


def _place(image_id: str, seed: int) -> float:
    """Map an id to a number in [0, 1)."""
    text = f"{seed}\0{unicodedata.normalize('NFC', image_id)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def _is_list(file: Path) -> bool:
    """Whether the lines of a file are one word each, like names and unlike captions."""
    line = first_line(file).strip()
    return bool(line) and not set(" \t,;|").intersection(line)


def _read_list(file: Path, errors: ErrorCollector) -> SplitList:
    lines: dict[str, int] = {}
    for number, text in read_lines(file, errors):
        with errors.at(file, line=number):
            name = safe_name(text.strip())
            if name in lines:
                raise RejectedError(f"{name} is already on line {lines[name]}")
            lines[name] = number
    return SplitList(file, lines)

"""Recognise photo files by their suffix."""

from collections import Counter
from functools import cache
from os import PathLike
from pathlib import PurePath

# Formats that Pillow recognises but cannot decode by itself: data of other programs, vector graphics, videos.
_NOT_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_FIRST = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")
_HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")  # read by pillow-heif
_MOST_SHOWN = 6


@cache
def photo_suffixes() -> tuple[str, ...]:
    """Return suffixes of photo formats in lower case: those that Pillow opens, the usual ones first.

    HEIC is included even without `pillow-heif`: reading such a file then says what to install.
    """
    from PIL import Image  # imported here because loading all its formats takes 50 ms

    Image.init()
    registered = Image.registered_extensions()
    # Pillow opens MPO as JPEG, without an entry of its own.
    opened = {*Image.OPEN, "MPO"} - _NOT_PHOTOS
    others = sorted({suffix for suffix, kind in registered.items() if kind in opened} | {*_HEIF})
    return tuple(dict.fromkeys([*_FIRST, *others]))


def is_photo_name(name: str | PathLike[str]) -> bool:
    """Whether the suffix of a file is one of a photo."""
    return suffix_of(name) in photo_suffixes()


def suffix_of(name: str | PathLike[str]) -> str:
    """Return the suffix in lower case, or ""."""
    return PurePath(name).suffix.lower()


def left_out_line(left_out: Counter[str]) -> str:
    """Describe files that are not photos: "3 other files left out (.txt: 2, .mp4: 1)", or ""."""
    total = left_out.total()
    if not total:
        return ""
    kinds = [f"{suffix or 'no suffix'}: {number:,}" for suffix, number in left_out.most_common(_MOST_SHOWN)]
    more = ", ..." if len(left_out) > _MOST_SHOWN else ""
    return f"{total:,} other file{'s' if total > 1 else ''} left out ({', '.join(kinds)}{more})"

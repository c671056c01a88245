"""Which files are photos by their names, and what to say of those that are not."""

from collections import Counter
from functools import cache
from os import PathLike
from pathlib import PurePath

# Formats that Pillow finds and does not draw: other programs' data, programs that draw, videos.
_NOT_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_FIRST = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")
_HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")  # read by pillow-heif
_MOST_SHOWN = 6


@cache
def photo_suffixes() -> tuple[str, ...]:
    """Suffixes of files that can be read, in lower case: of all formats that Pillow opens, the usual ones first.

    HEIC's are among them, also where `pillow-heif` is missing: reading one then says what to install.
    """
    from PIL import Image  # here, with all its formats, because they take 50 ms

    Image.init()
    registered = Image.registered_extensions()
    # Pillow opens MPO as JPEG, and has no entry for it.
    opened = {*Image.OPEN, "MPO"} - _NOT_PHOTOS
    others = sorted({suffix for suffix, kind in registered.items() if kind in opened} | {*_HEIF})
    return tuple(dict.fromkeys([*_FIRST, *others]))


def is_photo_name(name: str | PathLike[str]) -> bool:
    """Whether a file is a photo by its suffix."""
    return suffix_of(name) in photo_suffixes()


def suffix_of(name: str | PathLike[str]) -> str:
    """The suffix in lower case; empty where there is none."""
    return PurePath(name).suffix.lower()


def left_out_line(left_out: Counter[str]) -> str:
    """What to say of files that are no photos: "3 other files left out (.txt: 2, .mp4: 1)"; nothing of no files."""
    total = left_out.total()
    if not total:
        return ""
    kinds = [f"{suffix or 'no suffix'}: {number:,}" for suffix, number in left_out.most_common(_MOST_SHOWN)]
    more = ", ..." if len(left_out) > _MOST_SHOWN else ""
    return f"{total:,} other file{'s' if total > 1 else ''} left out ({', '.join(kinds)}{more})"

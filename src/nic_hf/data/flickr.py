"""Flickr8k as a text file beside a folder of photos, in its two forms.

Kaggle's `captions.txt` is CSV with the header `image,caption`; the original `Flickr8k.token.txt` has lines
`name.jpg#k<TAB>caption` (so has Flickr30k's `results_20130124.token`). The official split lists are used where they
lie in the same folder (Hodosh, Young and Hockenmaier 2013: 6,000 / 1,000 / 1,000 photos).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .photos import PHOTO_FOLDERS, CaptionedPhoto, Row, find_photos, photo_folder, safe_name
from .problems import CaptionDataError, Problems, RejectedError
from .splits import FLICKR8K_LISTS, SplitList, check_split, read_flickr8k_lists
from .text import clean_caption, csv_fields, read_lines

KAGGLE_FILE = "captions.txt"
TOKEN_FILES = ("Flickr8k.token.txt", "results_20130124.token")

_KAGGLE_HEADER = ["image", "caption"]
_TOKEN_LINE = re.compile(r"(?P<name>.+)#\d+\t(?P<caption>.*)", re.DOTALL)


@dataclass(frozen=True)
class _Form:
    """How one line is read. Name and caption apart, so that a faulty caption can still be laid to its photo.

    Attributes:
        expected: What the file should hold, for messages.
        separator: What stands between name and caption, for messages.
        photo_name: Takes a line, returns the name as it stands there; raises RejectedError.
        caption: Takes a line, returns the caption as it stands there; raises RejectedError.
    """

    expected: str
    separator: str
    photo_name: Callable[[str], str]
    caption: Callable[[str], str]


def read_kaggle(file: Path, split: str | None, images: Path | None, problems: Problems) -> list[Row]:
    """Read a CSV file with the header `image,caption`, one caption a line.

    Raises:
        CaptionDataError: wrong header, unknown split, no photo folder, or an item that cannot be used.
    """
    return _read(file, _KAGGLE, _without_header(file, _lines(file, _KAGGLE, problems)), split, images, problems)


def read_token(file: Path, split: str | None, images: Path | None, problems: Problems) -> list[Row]:
    """Read a file of lines `name.jpg#k<TAB>caption`.

    Raises:
        CaptionDataError: unknown split, no photo folder, or an item that cannot be used.
    """
    return _read(file, _TOKEN, _lines(file, _TOKEN, problems), split, images, problems)


def is_token_file(file: Path) -> bool:
    """Whether the first line that is not blank has the token form; a file with no such line goes by its name."""
    for _, line in read_lines(file, Problems("skip")):
        return _TOKEN_LINE.fullmatch(line) is not None
    return file.name in TOKEN_FILES


def _read(
    file: Path,
    form: _Form,
    lines: list[tuple[int, str]],
    split: str | None,
    images: Path | None,
    problems: Problems,
) -> list[Row]:
    folder = photo_folder(images, [file.parent / name for name in PHOTO_FOLDERS])
    wanted = _split_list(file.parent, split, problems)

    photos: dict[str, CaptionedPhoto] = {}
    for number, text in lines:
        with problems.at(file, line=number):
            name = safe_name(form.photo_name(text))
            # Faults of photos in other splits do not concern who asked for this one.
            if wanted is not None and name not in wanted.lines:
                continue
            photo = photos.setdefault(name, CaptionedPhoto([name], name, line=number))
            with problems.at(file, line=number, name=name):
                photo.captions.append(clean_caption(form.caption(text), f"no caption after the {form.separator}"))

    if wanted is not None:
        for name in sorted(wanted.lines.keys() - photos.keys(), key=wanted.lines.__getitem__):
            with problems.at(wanted.file, line=wanted.lines[name], name=name):
                raise RejectedError(f"{name} has no caption in {file}")
    return find_photos(file, photos.values(), folder, problems)


def _split_list(folder: Path, split: str | None, problems: Problems) -> SplitList | None:
    # Read even when no split is asked for: lists that share a photo are a fault of the data whoever reads it.
    lists = read_flickr8k_lists(folder, problems)
    if split is None:
        return None
    if not lists:
        looked_for = ", ".join(FLICKR8K_LISTS.values())
        raise CaptionDataError(
            f"no split {split!r}: none of {looked_for} is in {folder}; leave split out to load all photos"
        )
    check_split(split, lists, str(folder))
    return lists[split]


def _lines(file: Path, form: _Form, problems: Problems) -> list[tuple[int, str]]:
    lines = list(read_lines(file, problems))
    if not lines:
        raise CaptionDataError(f"{file}: the file is empty; expected {form.expected}")
    return lines


def _without_header(file: Path, lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    number, text = lines[0]
    if [name.strip(' "').lower() for name in text.split(",")] != _KAGGLE_HEADER:
        raise CaptionDataError(f"{file}: line {number}: expected the header image,caption and found {text!r}")
    return lines[1:]


def _kaggle_name(text: str) -> str:
    if text.startswith('"'):
        return csv_fields(text)[0]
    name, comma, _ = text.partition(",")
    if not comma:
        raise RejectedError(f"no comma between photo name and caption: {text!r}")
    return name.strip()


def _kaggle_caption(text: str) -> str:
    fields = csv_fields(text)
    if len(fields) != 2:
        raise RejectedError(f"{len(fields)} fields where 2 are expected; a caption with a comma must stand in quotes")
    return fields[1]


def _token_match(text: str) -> re.Match[str]:
    match = _TOKEN_LINE.fullmatch(text)
    if match is None:
        raise RejectedError(f"expected name.jpg#number, a tab and a caption, and found {text!r}")
    return match


_KAGGLE = _Form("the header image,caption and one caption a line", "comma", _kaggle_name, _kaggle_caption)
_TOKEN = _Form(
    "lines name.jpg#number<TAB>caption",
    "tab",
    lambda text: _token_match(text)["name"],
    lambda text: _token_match(text)["caption"],
)

"""Finding photo files: which folder, which file, and whether anything is in it. No photo is opened here."""

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from ..photo_files import is_photo_name
from .problems import CaptionDataError, Problems, RejectedError, say_once

# "Flicker8k_Dataset" is the spelling of the original Flickr8k archive.
PHOTO_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images", "flickr30k-images")

_USUAL_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".JPG")
_PLAIN_NAME = re.compile(r"\w[\w.-]*")
_SAMPLE = 20  # photos that tell which folder is meant
_MOST_FOLDERS = 2000  # that are looked through for them


class Row(NamedTuple):
    """One image of the data set to be.

    Attributes:
        path: Absolute path of the photo.
        image_id: Unique in its data set.
        captions: In the order of their file.
        size: Bytes of the photo.
        modified: Nanoseconds since 1970 at the photo's last change.
    """

    path: str
    image_id: str
    captions: list[str]
    size: int
    modified: int


@dataclass
class CaptionedPhoto:
    """Captions gathered for one photo, before the photo itself is looked for.

    Attributes:
        names: Where it may be, as safe paths below the photo folder; the first that exists is taken.
        image_id: Unique in its data set.
        captions: In the order of their file.
        line: First line that names it (text files).
        entry: Its place (JSON files).
        split: Canonical name of its split, where the source tells it.
    """

    names: Sequence[str]
    image_id: str
    captions: list[str] = field(default_factory=list)
    line: int | None = None
    entry: str | None = None
    split: str | None = None


@dataclass
class CaptionFile:
    """What a file of captions holds.

    Attributes:
        file: The file.
        folders: Where its photos may be, the likeliest first.
        photos: By their ids, in the order of the file.
    """

    file: Path
    folders: Sequence[Path]
    photos: dict[str, CaptionedPhoto] = field(default_factory=dict)


def safe_name(name: object) -> str:
    r"""Return a photo's relative path with "/" between its parts.

    >>> safe_name(r"train\dog.jpg")
    'train/dog.jpg'

    Raises:
        RejectedError: no name, or one that could lead out of the photo folder on any operating system (`../x.jpg`,
            `/x.jpg`, `C:x.jpg`).
    """
    if not isinstance(name, str) or not name.strip():
        raise RejectedError(f"no photo name (found {name!r})")
    # Nearly all names are of this kind, and the classes of pathlib take ten times as long.
    if _PLAIN_NAME.fullmatch(name):
        return name
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or ".." in windows.parts or "\0" in name:
        raise RejectedError(f"photo name {name!r} leads out of the photo folder; give a path below it")
    return windows.as_posix()


def names_to_try(name: str) -> list[str]:
    """Where a photo of that name may be: there, or in the photo folder itself; without a suffix, with a usual one.

    >>> names_to_try("val2014/x.jpg"), names_to_try("x")[:3]
    (['val2014/x.jpg', 'x.jpg'], ['x', 'x.jpg', 'x.jpeg'])
    """
    names = [name, name.rpartition("/")[2]] if "/" in name else [name]
    if not is_photo_name(name):
        names += [base + suffix for base in names for suffix in _USUAL_SUFFIXES]
        if name.isdecimal():  # COCO's ids
            names.append(f"{name.zfill(12)}.jpg")
    return names


def photo_folder(images: Path | None, captions: CaptionFile) -> Path:
    """Return `images` where it is given, else the folder in which the photos of a file are.

    Raises:
        CaptionDataError: there is no such folder.
    """
    if images is not None:
        if not images.is_dir():
            raise CaptionDataError(f"images={os.fspath(images)!r} is not a folder")
        return images
    if len(captions.folders) == 1:
        return captions.folders[0]
    photos = captions.photos
    sample = [photo.names for photo in islice(photos.values(), 0, None, max(1, len(photos) // _SAMPLE))]
    candidates = [folder for folder in captions.folders if folder.is_dir()]
    parent = captions.file.parent
    best = _most(candidates, sample)
    if best is None:
        best = _most(_folders_below(parent), sample) or _elsewhere(captions, sample)
        if best is not None:
            say_once(f"{captions.file}: photos found in {best}")
    if best is None:
        # Each photo that is not there is then named.
        best = next((folder for folder in candidates if folder != parent), None)
    if best is None:
        looked_for = ", ".join(map(str, captions.folders))
        raise CaptionDataError(f"{captions.file}: no photo folder; looked for {looked_for}; name it with images=")
    return best


def _elsewhere(captions: CaptionFile, sample: Sequence[Sequence[str]]) -> Path | None:
    """The folder beside that of the captions, or below it, that has all photos of a sample; others may have some.

    Raises:
        CaptionDataError: several have.
    """
    above = captions.file.absolute().parent.parent
    if above in (Path.home(), Path(above.anchor)):
        return None
    folders = [folder for folder in _folders_below(above) if _hits(folder, sample) == len(sample)]
    if len(folders) > 1:
        listed = ", ".join(map(str, folders))
        raise CaptionDataError(f"{captions.file}: its photos may be in {listed}; name one of them with images=")
    return folders[0] if folders else None


def find_photos(
    captions: CaptionFile, photos: Iterable[CaptionedPhoto], images: Path | None, problems: Problems
) -> list[Row]:
    """Look up each of some photos; those without a caption, missing or empty (zero bytes) are rejected.

    Raises:
        CaptionDataError: there is no photo folder.
    """
    index = _PhotoIndex(photo_folder(images, captions))
    rows = []
    for photo in photos:
        place = {"line": photo.line, "entry": photo.entry, "name": photo.names[0], "photo": photo.image_id}
        with problems.at(captions.file, **place):  # type: ignore[arg-type]
            if not photo.captions:
                raise RejectedError("the photo has no caption that can be used")
            path, size, modified = index.find(photo.names)
            rows.append(Row(path, photo.image_id, photo.captions, size, modified))
    return rows


def _most(folders: Iterable[Path], sample: Sequence[Sequence[str]]) -> Path | None:
    """The folder that has the most photos of a sample, the first of several; None where none has any."""
    best, most = None, 0
    for folder in folders:
        found = _hits(folder, sample)
        if found > most:
            best, most = folder, found
        if most == len(sample):
            break
    return best


def _hits(folder: Path, sample: Sequence[Sequence[str]]) -> int:
    index = _PhotoIndex(folder)
    return sum(index.has(names) for names in sample)


def _folders_below(root: Path) -> Iterator[Path]:
    """A folder and those below it, level by level, hidden ones left out."""
    level, number = [root], 0
    while level and number < _MOST_FOLDERS:
        below = []
        for folder in level:
            yield folder
            number += 1
            try:
                with os.scandir(folder) as entries:
                    below += sorted(
                        Path(entry.path)
                        for entry in entries
                        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
                    )
            except OSError:  # not ours to read
                continue
        level = below


class _PhotoIndex:
    """The files below a photo folder, each subfolder listed once: far fewer system calls than a test of each path."""

    def __init__(self, root: Path):
        # Absolute, so that the data set still opens its photos after a change of working directory.
        self._root = os.path.abspath(root)  # noqa: PTH100 - Path.resolve would also follow links
        self._folders: dict[str, dict[str, os.DirEntry[str]]] = {}

    def has(self, names: Sequence[str]) -> bool:
        """Whether one of `names` is there; unlike `find` it lists no folder."""
        return any(
            Path(self._root, spelled).is_file()
            for name in names
            for spelled in dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))])
        )

    def find(self, names: Sequence[str]) -> tuple[str, int, int]:
        """Return path, size in bytes and time of last change of the first of `names` that is a file.

        Raises:
            RejectedError: none is, or it holds zero bytes.
        """
        for name in names:
            entry = self._entry(PurePosixPath(name))
            try:
                status = entry.stat() if entry is not None else None
            except OSError:  # a link to nothing
                status = None
            if entry is None or status is None or not stat.S_ISREG(status.st_mode):
                continue
            if status.st_size == 0:
                raise RejectedError(f"photo {entry.path} is empty (0 bytes)")
            return entry.path, status.st_size, status.st_mtime_ns
        raise RejectedError(f"photo not found: {Path(self._root, names[0])}")

    def _entry(self, name: PurePosixPath) -> os.DirEntry[str] | None:
        entries = self._entries(name.parent)
        # macOS spells accents as letter and mark, where captions written elsewhere have one character.
        return entries.get(name.name) or entries.get(unicodedata.normalize("NFC", name.name))

    def _entries(self, subfolder: PurePosixPath) -> dict[str, os.DirEntry[str]]:
        key = str(subfolder)
        if key not in self._folders:
            try:
                with os.scandir(Path(self._root, *subfolder.parts)) as entries:
                    found = {entry.name: entry for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                found = {}
            self._folders[key] = {**{unicodedata.normalize("NFC", n): e for n, e in found.items()}, **found}
        return self._folders[key]

"""Find photo files and check that they are not empty, without opening them."""

import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from .errors import CaptionDataError, RejectedError, say_once
from .names import split_words

# "Flicker8k_Dataset" is how the original Flickr8k archive spells it.
PHOTO_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images", "flickr30k-images")

_SAMPLE = 20  # photos that are used to choose the folder
_MOST_FOLDERS = 2000  # that are searched
_FOLDERS_SHOWN = 3


class Row(NamedTuple):
    """One row of the dataset.

    Attributes:
        path: Absolute path of the photo.
        image_id: Unique in its dataset.
        captions: In the order of their file.
        size: Size of the photo in bytes.
        modified: Modification time of the photo in nanoseconds.
    """

    path: str
    image_id: str
    captions: list[str]
    size: int
    modified: int


@dataclass
class CaptionedPhoto:
    """Captions of one photo, before its file is looked for.

    Attributes:
        names: Possible paths relative to the photo folder; the first that exists is used.
        image_id: Unique in its dataset.
        captions: In the order of their file.
        line: First line that names it (text files).
        entry: Its place (JSON files).
        split: Canonical name of its split, if the source tells it.
        found: The photo's file, if it was found.
    """

    names: Sequence[str]
    image_id: str
    captions: list[str] = field(default_factory=list)
    line: int | None = None
    entry: str | None = None
    split: str | None = None
    found: os.DirEntry[str] | None = None


@dataclass
class CaptionFile:
    """Content of a file of captions.

    Attributes:
        file: The file.
        folders: Possible photo folders, in order of preference.
        photos: By id, in the order of the file.
    """

    file: Path
    folders: Sequence[Path]
    photos: dict[str, CaptionedPhoto] = field(default_factory=dict)


class PhotoFinder:
    """Finds the photos of a file of captions: in the given folder, near the captions, or in a folder of the dataset.

    Args:
        captions: the file, completely read.
        images: the folder that the user named.
        root: the folder of the dataset, in which photos are searched for.
    """

    def __init__(self, captions: CaptionFile, images: Path | None, root: Path) -> None:
        self.captions = captions
        self._root = os.path.abspath(root)  # noqa: PTH100 - as in the paths of the photos
        if images is not None and not images.is_dir():
            raise CaptionDataError(f"images={os.fspath(images)!r} is not a folder")
        photos = captions.photos
        sample = [photo.names for photo in islice(photos.values(), 0, None, max(1, len(photos) // _SAMPLE))]
        self._far: list[_PhotoIndex] = []
        if images is not None or len(captions.folders) == 1:
            self._near = [_PhotoIndex(images or captions.folders[0])]
            return
        near = [_PhotoIndex(folder) for folder in captions.folders if folder.is_dir()]
        hits = {index: index.hits(sample) for index in near}
        # The sort is stable: folders with equally many photos stay in order of preference.
        self._near = sorted((index for index in near if hits[index]), key=hits.__getitem__, reverse=True)
        if not self._near or hits[self._near[0]] < len(sample):
            below = (_PhotoIndex(folder) for folder in _folders_below(root) if folder not in captions.folders)
            self._far = [index for index in below if index.hits(sample)]
            for index in self._far:
                say_once(f"{captions.file}: photos found in {index.root}")
        if not self._near and not self._far:
            # The errors will then name each missing photo.
            self._near = [index for index in near if index.root != str(captions.file.parent)][:1]
        if not self._near and not self._far:
            raise CaptionDataError(self._nowhere(sample))

    def find(self, photo: CaptionedPhoto) -> os.DirEntry[str] | None:
        """Return the file of a photo, or None."""
        for name in photo.names:
            for index in self._near:
                entry = index.entry(name)
                if entry is not None:
                    return entry
            found = [(index, entry) for index in self._far if (entry := index.entry(name)) is not None]
            if len(found) > 1:
                below = len(self._root)
                found = [each for each in found if _is_of_split(each[0].root[below:], photo.split)] or found
            if len(found) > 1:
                folders = ", ".join(index.root for index, _ in found)
                raise CaptionDataError(
                    f"{self.captions.file}: {name} is in several folders: {folders}; name one of them with images=, or"
                    " give paths in place of names"
                )
            if found:
                return found[0][1]
        return None

    def row(self, photo: CaptionedPhoto) -> Row:
        """Return the row of a photo."""
        if not photo.captions:
            raise RejectedError("the photo has no caption that can be used")
        try:
            status = None if photo.found is None else photo.found.stat()
        except OSError:  # a broken link
            status = None
        if photo.found is None or status is None or not stat.S_ISREG(status.st_mode):
            folders = [index.root for index in (*self._near, *self._far)]
            raise RejectedError(f"photo not found: {Path(folders[0], photo.names[0])}")
        if status.st_size == 0:
            raise RejectedError(f"photo {photo.found.path} is empty (0 bytes)")
        return Row(photo.found.path, photo.image_id, photo.captions, status.st_size, status.st_mtime_ns)

    def _nowhere(self, sample: Sequence[Sequence[str]]) -> str:
        looked_for = ", ".join(map(str, self.captions.folders[:_FOLDERS_SHOWN]))
        more = ", ..." if len(self.captions.folders) > _FOLDERS_SHOWN else ""
        text = f"{self.captions.file}: no photo folder; looked for {looked_for}{more}; name it with images="
        above = self.captions.file.absolute().parent.parent
        if above not in (Path.home(), Path(above.anchor)):
            for folder in _folders_below(above):
                if _PhotoIndex(folder).hits(sample) == len(sample):
                    return f"{text} (photos of these names are in {folder})"
        return text


def _is_of_split(folder: str, split: str | None) -> bool:
    """Whether a folder is named after a split, such as `val`, `val_images` and `val2017`."""
    return split in split_words(folder)


def _folders_below(root: Path) -> Iterator[Path]:
    """Yield a folder and those below it, level by level, without hidden ones."""
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
            except OSError:  # no permission
                continue
        level = below


class _PhotoIndex:
    """Files in a photo folder. Each subfolder is listed once: fewer system calls than testing each path."""

    def __init__(self, root: Path):
        # Absolute, so that photos can still be opened after a change of the working directory.
        self.root = os.path.abspath(root)  # noqa: PTH100 - Path.resolve would also follow links
        self._folders: dict[str, dict[str, os.DirEntry[str]]] = {}

    def hits(self, sample: Sequence[Sequence[str]]) -> int:
        """Count the photos of a sample that exist, without listing folders."""
        return sum(any(Path(self.root, name).is_file() for name in _spellings(names)) for names in sample)

    def entry(self, name: str) -> os.DirEntry[str] | None:
        """Return the file of that name, or None."""
        folder, _, base = name.rpartition("/")
        entries = self._entries(folder)
        # macOS decomposes accented characters, captions written elsewhere usually do not.
        return entries.get(base) or entries.get(unicodedata.normalize("NFC", base))

    def _entries(self, subfolder: str) -> dict[str, os.DirEntry[str]]:
        if subfolder not in self._folders:
            try:
                with os.scandir(Path(self.root, subfolder)) as entries:
                    found = {entry.name: entry for entry in entries if not entry.is_dir()}
            except (FileNotFoundError, NotADirectoryError):
                found = {}
            self._folders[subfolder] = {**{unicodedata.normalize("NFC", n): e for n, e in found.items()}, **found}
        return self._folders[subfolder]


def _spellings(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield from dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))])

"""Finding photo files: which folder, which file, and whether anything is in it. No photo is opened here."""

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from .problems import CaptionDataError, Problems, RejectedError

# "Flicker8k_Dataset" is the spelling of the original Flickr8k archive.
PHOTO_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images", "flickr30k-images")

_PLAIN_NAME = re.compile(r"\w[\w.-]*")


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
    """

    names: Sequence[str]
    image_id: str
    captions: list[str] = field(default_factory=list)
    line: int | None = None
    entry: str | None = None


def safe_name(name: object) -> str:
    """Return a photo's relative path with "/" between its parts.

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
        raise RejectedError(f"photo name {name!r} leads out of the photo folder")
    return str(PurePosixPath(name))


def photo_folder(images: Path | None, candidates: Sequence[Path]) -> Path:
    """Return `images` where it is given, else the first of `candidates` that is a folder.

    Raises:
        CaptionDataError: there is no such folder.
    """
    if images is not None:
        if not images.is_dir():
            raise CaptionDataError(f"images={os.fspath(images)!r} is not a folder")
        return images
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    looked_for = ", ".join(map(str, candidates))
    raise CaptionDataError(f"no photo folder; looked for {looked_for}; name it with images=")


def find_photos(file: Path, photos: Iterable[CaptionedPhoto], folder: Path, problems: Problems) -> list[Row]:
    """Look up each photo below `folder`; those without a caption, missing or empty (zero bytes) are rejected."""
    index = _PhotoIndex(folder)
    rows = []
    for photo in photos:
        with problems.at(file, line=photo.line, entry=photo.entry, name=photo.names[0]):
            if not photo.captions:
                raise RejectedError("the photo has no caption that can be used")
            path, size, modified = index.find(photo.names)
            rows.append(Row(path, photo.image_id, photo.captions, size, modified))
    return rows


class _PhotoIndex:
    """The files below a photo folder, each subfolder listed once: far fewer system calls than a test of each path."""

    def __init__(self, root: Path):
        # Absolute, so that the data set still opens its photos after a change of working directory.
        self._root = os.path.abspath(root)  # noqa: PTH100 - Path.resolve would also follow links
        self._folders: dict[str, dict[str, os.DirEntry[str]]] = {}

    def find(self, names: Sequence[str]) -> tuple[str, int, int]:
        """Return path, size in bytes and time of last change of the first of `names` that is a file.

        Raises:
            RejectedError: none is, or it holds zero bytes.
        """
        for name in names:
            entry = self._entries(PurePosixPath(name).parent).get(PurePosixPath(name).name)
            try:
                status = entry.stat() if entry is not None else None
            except OSError:  # a link to nothing
                status = None
            if entry is None or status is None or not stat.S_ISREG(status.st_mode):
                continue
            if status.st_size == 0:
                raise RejectedError(f"photo {entry.path} is empty (0 bytes)")
            return entry.path, status.st_size, status.st_mtime_ns
        looked_at = " or ".join(str(Path(self._root, name)) for name in names)
        raise RejectedError(f"photo not found: {looked_at}")

    def _entries(self, subfolder: PurePosixPath) -> dict[str, os.DirEntry[str]]:
        key = str(subfolder)
        if key not in self._folders:
            try:
                with os.scandir(Path(self._root, *subfolder.parts)) as entries:
                    self._folders[key] = {entry.name: entry for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                self._folders[key] = {}
        return self._folders[key]

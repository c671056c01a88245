"""COCO's caption files: `captions_train2017.json` and the like.

Source: Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server" (2015).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .photos import PHOTO_FOLDERS, CaptionedPhoto, Row, find_photos, photo_folder, safe_name
from .problems import CaptionDataError, Problems, RejectedError
from .text import clean_caption, valid_unicode


def read_coco(
    file: Path, document: Mapping[str, Any], split: str | None, images: Path | None, problems: Problems
) -> list[Row]:
    """Read `document`, the parsed content of `file`; the image id is COCO's, as text.

    Photos are looked for in COCO's own places too: `annotations/captions_val2017.json` belongs to `val2017/`.

    Raises:
        CaptionDataError: a split is asked for (each file is one), no photo folder, or an entry that cannot be used.
    """
    if split is not None:
        raise CaptionDataError(
            f"{file}: no split {split!r}: a COCO captions file is one split by itself; "
            "name the file of the split and leave split out"
        )
    year = file.stem.removeprefix("captions_")
    beside = [file.parent.parent / year, file.parent / year, *(file.parent / name for name in PHOTO_FOLDERS)]
    folder = photo_folder(images, [*beside, file.parent])

    photos: dict[str, CaptionedPhoto] = {}
    for number, entry in enumerate(document["images"]):
        place = f"images[{number}]"
        with problems.at(file, entry=place):
            image_id = _image_id(entry, "id")
            if image_id in photos:
                raise RejectedError(f"image {image_id} is already at {photos[image_id].entry}")
            photos[image_id] = CaptionedPhoto([safe_name(entry.get("file_name"))], image_id, entry=place)

    for number, annotation in enumerate(document["annotations"]):
        with problems.at(file, entry=f"annotations[{number}]"):
            image_id = _image_id(annotation, "image_id")
            photo = photos.get(image_id)
            if photo is None:
                raise RejectedError(f'image {image_id} is not in the list "images"')
            with problems.at(file, entry=f"annotations[{number}]", name=photo.names[0]):
                photo.captions.append(clean_caption(annotation.get("caption")))
    return find_photos(file, photos.values(), folder, problems)


def _image_id(entry: Any, key: str) -> str:
    if not isinstance(entry, Mapping):
        raise RejectedError(f"expected an object and found {entry!r}")
    image_id = entry.get(key)
    if not isinstance(image_id, int | str):
        raise RejectedError(f'"{key}" is neither a number nor text (found {image_id!r})')
    return valid_unicode(str(image_id), "id")

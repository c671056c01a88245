"""Karpathy's JSON files: `dataset_flickr8k.json`, `dataset_flickr30k.json`, `dataset_coco.json`.

Source: Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions" (CVPR 2015).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .photos import PHOTO_FOLDERS, CaptionedPhoto, Row, find_photos, photo_folder, safe_name
from .problems import Problems, RejectedError
from .splits import canonical_split, check_split
from .text import clean_caption, valid_unicode

KARPATHY_FILES = ("dataset_flickr8k.json", "dataset_flickr30k.json", "dataset_coco.json")


def read_karpathy(
    file: Path, document: Mapping[str, Any], split: str | None, images: Path | None, problems: Problems
) -> list[Row]:
    """Read `document`, the parsed content of `file`.

    "restval" (the part of COCO val2014 that is in neither validation nor test) counts as "train", as is usual in the
    literature. The image id is `cocoid` where there is one, so that predictions can be scored by COCO's tools, else
    the file name.

    Raises:
        CaptionDataError: unknown split, no photo folder, or an entry that cannot be used.
    """
    folder = photo_folder(images, [*(file.parent / name for name in PHOTO_FOLDERS), file.parent])
    entries = document["images"]
    if split is not None:
        check_split(split, filter(None, map(_split_of, entries)), os.fspath(file))

    photos: dict[str, CaptionedPhoto] = {}
    for number, entry in enumerate(entries):
        place = f"images[{number}]"
        with problems.at(file, entry=place):
            if not isinstance(entry, Mapping):
                raise RejectedError(f"expected an object and found {entry!r}")
            if split is not None and _split_of(entry) is None:
                raise RejectedError(f"no split name (found {entry.get('split')!r})")
            if split is not None and _split_of(entry) != split:
                continue
            photo = _photo(entry, place)
            if photo.image_id in photos:
                raise RejectedError(f"image {photo.image_id} is already at {photos[photo.image_id].entry}")
            photos[photo.image_id] = photo
            _add_captions(photo, entry.get("sentences"), file, problems)
    return find_photos(file, photos.values(), folder, problems)


def _split_of(entry: Any) -> str | None:
    split = entry.get("split") if isinstance(entry, Mapping) else None
    if not isinstance(split, str):
        return None
    return "train" if split == "restval" else canonical_split(split)


def _photo(entry: Mapping[str, Any], place: str) -> CaptionedPhoto:
    filename = safe_name(entry.get("filename"))
    # COCO's entries name their folder (val2014); photos gathered in one folder have no such level.
    filepath = entry.get("filepath")
    names = [f"{safe_name(filepath)}/{filename}", filename] if filepath else [filename]
    cocoid = entry.get("cocoid")
    image_id = valid_unicode(str(cocoid) if cocoid is not None else filename, "id")
    return CaptionedPhoto(names, image_id, entry=place)


def _add_captions(photo: CaptionedPhoto, sentences: Any, file: Path, problems: Problems) -> None:
    if not isinstance(sentences, list):
        raise RejectedError(f'"sentences" is not a list (found {sentences!r})')
    for number, sentence in enumerate(sentences):
        with problems.at(file, entry=f"{photo.entry}.sentences[{number}]", name=photo.names[-1]):
            if not isinstance(sentence, Mapping) or "raw" not in sentence:
                raise RejectedError(f'expected an object with "raw" and found {sentence!r}')
            photo.captions.append(clean_caption(sentence["raw"]))

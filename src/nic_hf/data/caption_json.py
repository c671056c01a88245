"""Captions in JSON files: COCO, Karpathy, lists of objects, and objects of photo names with their captions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..photo_files import is_photo_name
from .caption_tables import Record, gather, object_record
from .errors import CaptionDataError, ErrorCollector, NoCaptionsError, RejectedError
from .names import SPLITS, canonical_split, names_to_try, safe_name
from .photo_finder import PHOTO_FOLDERS, CaptionedPhoto, CaptionFile
from .text_files import clean_caption, read_json, valid_unicode


def read_json_file(file: Path, errors: ErrorCollector, image: str | None, caption: str | None) -> CaptionFile:
    """Read a JSON file in any of these formats:

    - COCO (`images` and `annotations`), also used by VizWiz and nocaps;
    - Karpathy (`images`, each with its `sentences`);
    - a list of objects with an image and a caption key (BLIP, LAVIS, COCO results), also under a key such as `data`
      (TextCaps);
    - an object of photo names with a caption or a list of captions each.
    """
    document = read_json(file)
    entries = document.get("images") if isinstance(document, dict) else None
    if entries == []:
        raise NoCaptionsError(f'{file}: the list "images" is empty')
    if isinstance(entries, list) and entries:
        if isinstance(document.get("annotations"), list):
            return _read_coco(file, document, errors)
        if any(isinstance(entry, dict) and "sentences" in entry for entry in entries):
            return _read_karpathy(file, entries, errors)
    try:
        records = _records_of(document, image, caption)
    except CaptionDataError as error:
        raise CaptionDataError(f"{file}: {error}") from None
    if records is not None:
        return gather(file, _checked(file, *records, errors, image, caption), errors)
    found = f"the keys {', '.join(document)[:200]}" if isinstance(document, dict) else f"a {type(document).__name__}"
    raise NoCaptionsError(
        f"{file}: expected a list of objects with an image and a caption key, or a JSON object with a list "
        f'"images" and captions in a list "annotations" (COCO) or in the "sentences" of each image (Karpathy), and '
        f"found {found}"
    )


def _records_of(document: Any, image: str | None, caption: str | None) -> tuple[str, list[Any]] | None:
    """Return the objects that hold a photo's name and captions, and the name of their list."""
    lists = {"": document} if isinstance(document, list) else document if isinstance(document, dict) else {}
    usable = {name: value for name, value in lists.items() if _has_records(value, image, caption)}
    if len(usable) > 1 and {canonical_split(name) for name in usable} <= set(SPLITS):
        # Each object gets the split that its list is named after.
        merged = [{**entry, "split": name} for name, own in usable.items() for entry in own if isinstance(entry, dict)]
        return "", merged
    if len(usable) > 1:
        raise CaptionDataError(f"captions under several keys: {', '.join(usable)}; keep one")
    for name, value in usable.items():
        return name, value
    if isinstance(document, dict) and any(map(_is_photo, document)) and all(map(_are_captions, document.values())):
        return "", [{"image": name, "captions": captions} for name, captions in document.items()]
    return None


def _has_records(value: Any, image: str | None, caption: str | None) -> bool:
    for entry in value if isinstance(value, list) else ():
        try:
            object_record(0, entry, image, caption)
        except RejectedError:
            continue
        return True
    return False


def _is_photo(name: str) -> bool:
    return name.isdecimal() or is_photo_name(name)


def _are_captions(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def _checked(
    file: Path, name: str, entries: list[Any], errors: ErrorCollector, image: str | None, caption: str | None
) -> Iterator[Record]:
    for number, entry in enumerate(entries):
        place = f"{name}[{number}]"
        record = None
        with errors.at(file, entry=place):
            record = object_record(place, entry, image, caption)
        if record is not None:
            yield record


def _read_coco(file: Path, document: Mapping[str, Any], errors: ErrorCollector) -> CaptionFile:
    """Read COCO captions: ids are COCO's, as text; captions that VizWiz's annotators rejected are left out.

    Source: Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server" (2015).
    """
    parent, year = file.parent, file.stem.removeprefix("captions_")
    near = [folder / name for folder in (parent.parent, parent) for name in (year, f"images/{year}", *PHOTO_FOLDERS)]
    found = CaptionFile(file, [*near, parent])
    for number, entry in enumerate(document["images"]):
        place = f"images[{number}]"
        with errors.at(file, entry=place):
            image_id = _image_id(entry, "id")
            if image_id in found.photos:
                raise RejectedError(f"image {image_id} is already at {found.photos[image_id].entry}")
            name = safe_name(entry.get("file_name"))
            found.photos[image_id] = CaptionedPhoto(names_to_try(name), image_id, entry=place)

    rejected = set()
    for number, annotation in enumerate(document["annotations"]):
        place = f"annotations[{number}]"
        with errors.at(file, entry=place):
            image_id = _image_id(annotation, "image_id")
            photo = found.photos.get(image_id)
            if photo is None:
                raise RejectedError(f'image {image_id} is not in the list "images"')
            if annotation.get("is_rejected"):
                errors.leave_out(file, "captions that annotators rejected")
                rejected.add(image_id)
                continue
            with errors.at(file, entry=place, name=photo.names[0], photo=image_id):
                photo.captions.append(clean_caption(annotation.get("caption")))
    for image_id in rejected:
        if not found.photos[image_id].captions:
            errors.leave_out(file, "photos all of whose captions annotators rejected")
            del found.photos[image_id]
    return found


def _read_karpathy(file: Path, entries: list[Any], errors: ErrorCollector) -> CaptionFile:
    """Read Karpathy's splits of Flickr8k, Flickr30k or COCO.

    The image id is `cocoid` if there is one, so that COCO's tools can score predictions, else the file name.

    Source: Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions" (CVPR 2015).
    """
    beside = [folder / name for folder in (file.parent, file.parent.parent) for name in PHOTO_FOLDERS]
    found = CaptionFile(file, [*beside, file.parent])
    for number, entry in enumerate(entries):
        place = f"images[{number}]"
        with errors.at(file, entry=place):
            if not isinstance(entry, Mapping):
                raise RejectedError(f"expected an object and found {entry!r:.200}")
            photo = _karpathy_photo(entry, place)
            if photo.image_id in found.photos:
                raise RejectedError(f"image {photo.image_id} is already at {found.photos[photo.image_id].entry}")
            found.photos[photo.image_id] = photo
            with errors.at(file, entry=place, name=photo.names[0], photo=photo.image_id):
                _add_sentences(photo, entry.get("sentences"), file, errors)
    return found


def _karpathy_photo(entry: Mapping[str, Any], place: str) -> CaptionedPhoto:
    filename = safe_name(entry.get("filename"))
    # COCO's entries name their folder (val2014), which does not exist where all photos are in one folder.
    filepath = entry.get("filepath")
    name = f"{safe_name(filepath)}/{filename}" if filepath else filename
    cocoid = entry.get("cocoid")
    image_id = valid_unicode(str(cocoid) if cocoid is not None else filename, "id")
    split = entry.get("split")
    own = canonical_split(split) if isinstance(split, str) else None
    return CaptionedPhoto(names_to_try(name), image_id, entry=place, split=own)


def _add_sentences(photo: CaptionedPhoto, sentences: Any, file: Path, errors: ErrorCollector) -> None:
    if not isinstance(sentences, list):
        raise RejectedError(f'"sentences" is not a list (found {sentences!r:.200})')
    for number, sentence in enumerate(sentences):
        place = f"{photo.entry}.sentences[{number}]"
        with errors.at(file, entry=place, name=photo.names[-1], photo=photo.image_id):
            if not isinstance(sentence, Mapping) or "raw" not in sentence:
                raise RejectedError(f'expected an object with "raw" and found {sentence!r:.200}')
            photo.captions.append(clean_caption(sentence["raw"]))


def _image_id(entry: Any, key: str) -> str:
    if not isinstance(entry, Mapping):
        raise RejectedError(f"expected an object and found {entry!r:.200}")
    image_id = entry.get(key)
    if not isinstance(image_id, int | str):
        raise RejectedError(f'"{key}" is neither a number nor text (found {image_id!r:.200})')
    return valid_unicode(str(image_id), "id")

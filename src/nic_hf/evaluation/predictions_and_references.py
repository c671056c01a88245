"""Read predictions and references from files. Ids are returned as text."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PREDICTION_FORMATS = (
    'JSON lines or a JSON list of {"image_id": ..., "caption": ...} (COCO results), or one JSON object {id: caption}'
)
REFERENCE_FORMATS = (
    'a COCO captions file (an object with "annotations"), JSON lines or a JSON list of '
    '{"image_id": ..., "caption": ...}, or one JSON object {id: [captions]}'
)


class EvaluationDataError(ValueError):
    """Predictions or references cannot be scored; the message names the id and, for a file, the line or entry."""


def check_text(caption: Any, what: str, place: Any) -> None:
    """Raise an `EvaluationDataError` if a caption is not text; `what` is a format such as "caption of {!r}"."""
    if not isinstance(caption, str):
        raise EvaluationDataError(f"{what.format(place)} is not text: {caption!r:.200}")


def check_captions(captions: Any, of: str, place: Any) -> None:
    """Raise an `EvaluationDataError` unless the references are a list of at least one caption."""
    if isinstance(captions, str | bytes) or not isinstance(captions, Sequence):
        raise EvaluationDataError(f"references {of.format(place)} must be a list of captions, not {captions!r:.200}")
    if not captions:
        raise EvaluationDataError(f"references {of.format(place)} are an empty list")
    for caption in captions:
        check_text(caption, f"reference {of}", place)


def load_predictions(file: str | os.PathLike[str]) -> dict[str, str]:
    """Read one caption per photo.

    Args:
        file: JSON lines or a JSON list of `{"image_id": ..., "caption": ...}` (COCO results), or one JSON object
            `{id: caption}`; gzipped if the name ends in `.gz`.

    Returns:
        Captions by image id, with ids as text.

    Raises:
        EvaluationDataError: if the format is unknown, a line or entry is malformed, a caption is not text, an id
            appears twice, or there are no captions.
        OSError: if the file cannot be read.
    """
    predictions: dict[str, str] = {}
    places: dict[str, str] = {}
    for place, image_id, caption in _entries(Path(file), PREDICTION_FORMATS):
        if not isinstance(caption, str):
            raise EvaluationDataError(f"{place}: the caption of {image_id} is not text: {caption!r}")
        if image_id in predictions:
            raise EvaluationDataError(f"{place}: {image_id} has a caption already, at {places[image_id]}")
        predictions[image_id], places[image_id] = caption, place
    if not predictions:
        raise EvaluationDataError(f"{file}: contains no captions")
    return predictions


def load_references(file: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read the reference captions of each photo.

    Args:
        file: a COCO captions file, JSON lines or a JSON list of `{"image_id": ..., "caption": ...}` (one entry per
            caption, or a list of captions as `caption`), or one JSON object `{id: [captions]}`; gzipped if the name
            ends in `.gz`.

    Returns:
        Lists of captions by image id, with ids as text.

    Raises:
        EvaluationDataError: if the format is unknown, a line or entry is malformed, a caption is not text, an object
            has the same id twice, or there are no captions.
        OSError: if the file cannot be read.
    """
    references: dict[str, list[str]] = {}
    for place, image_id, captions in _entries(Path(file), REFERENCE_FORMATS):
        listed = captions if isinstance(captions, list) else [captions]
        if not listed:
            raise EvaluationDataError(f"{place}: {image_id} has no captions")
        for caption in listed:
            if not isinstance(caption, str):
                raise EvaluationDataError(f"{place}: a caption of {image_id} is not text: {caption!r}")
        references.setdefault(image_id, []).extend(listed)
    if not references:
        raise EvaluationDataError(f"{file}: contains no captions")
    return references


def _entries(file: Path, formats: str) -> Iterator[tuple[str, str, Any]]:
    """Place, image id and caption (of any type) of each entry of the file."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise EvaluationDataError(f"{file}: cannot be read as text: {error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise EvaluationDataError(f"{file}: line {line}: cannot be read as text: {error}") from error
    # Not splitlines(): a caption may contain U+2028 and the like, which do not end a line of JSON.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise EvaluationDataError(f"{file}: contains no captions")
    if _are_json_lines(lines):
        yield from _json_lines(file, lines)
        return
    try:
        document = _parsed(text)
    except ValueError as error:
        if not isinstance(error, _DuplicateKeyError) and ".jsonl" in file.suffixes and lines[0][1].startswith("{"):
            yield from _json_lines(file, lines)
        wanted = "" if isinstance(error, _DuplicateKeyError) else f"; expected {formats}"
        raise EvaluationDataError(f"{file}: {error}{wanted}") from None
    if isinstance(document, dict) and {"image_id", "caption"} & document.keys():
        document = [document]
    if isinstance(document, dict) and isinstance(document.get("annotations"), list):
        document, name = document["annotations"], "annotations"
    else:
        name = "entry "
    if isinstance(document, dict):
        for image_id, caption in document.items():
            yield str(file), image_id, caption
    elif isinstance(document, list):
        for number, entry in enumerate(document):
            yield _entry(f"{file}: {name}[{number}]" if name != "entry " else f"{file}: entry {number}", entry)
    else:
        raise EvaluationDataError(f"{file}: contains {type(document).__name__}; expected {formats}")


def _are_json_lines(lines: list[tuple[int, str]]) -> bool:
    """Whether there are several lines and the first one is a JSON object."""
    try:
        return len(lines) > 1 and isinstance(json.loads(lines[0][1]), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(text: str) -> Any:
    """Parse JSON; raises a `ValueError` with the reason."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _DuplicateKeyError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def _json_lines(file: Path, lines: list[tuple[int, str]]) -> Iterator[tuple[str, str, Any]]:
    for number, line in lines:
        place = f"{file}: line {number}"
        try:
            entry = _parsed(line)
        except ValueError as error:
            raise EvaluationDataError(f"{place}: {error}") from None
        yield _entry(place, entry)


def _entry(place: str, entry: Any) -> tuple[str, str, Any]:
    if not isinstance(entry, Mapping) or not {"image_id", "caption"} <= entry.keys():
        raise EvaluationDataError(f'{place}: expected {{"image_id": ..., "caption": ...}} and found {entry!r:.200}')
    image_id = entry["image_id"]
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        raise EvaluationDataError(f'{place}: "image_id" is neither a number nor text: {image_id!r}')
    return place, str(image_id), entry["caption"]


class _DuplicateKeyError(ValueError):
    """A JSON object has the same key twice, of which `json.loads` alone would keep the last."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(f"the key {key} appears twice")
            seen.add(key)
    return document

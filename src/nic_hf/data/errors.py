"""Errors in caption data: raised, or collected and reported as skipped items."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

ITEMS_IN_WARNING = 20

SUPPORTED = (
    "a folder or file of captions as Kaggle, Flickr8k and Flickr30k have it (captions.txt, Flickr8k.token.txt, "
    "results.csv); any CSV, TSV, JSON or JSONL file with an image and a caption column; Karpathy or COCO JSON, or "
    "COCO's own folder; a folder of photos with metadata.csv or metadata.jsonl, or with a .txt file for each photo; "
    "tar shards; a folder or Hub id that datasets.load_dataset opens; a Dataset or DatasetDict"
)


class CaptionDataError(ValueError):
    """Caption data that cannot be used; the message names the file, the place and what was expected there."""


class NoSplitError(CaptionDataError):
    """The data lacks the requested split; the message lists the available ones."""


class NoCaptionsError(CaptionDataError):
    """A file without captions."""


@dataclass(frozen=True)
class SkippedItem:
    """A line, entry, caption or photo that `load_captions(..., on_error="skip")` left out.

    Attributes:
        file: Path of the file, or name of the dataset.
        line: Line in a text file, counted from 1, or None.
        name: Photo concerned, if known.
        reason: Why it was left out.
        entry: Place in a JSON file (`images[3].sentences[0]`) or in a dataset (`row 5`, counted from 0).
    """

    file: str
    line: int | None
    name: str | None
    reason: str
    entry: str | None = None

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line is not None else self.entry
        text = ": ".join(part for part in (self.file, place, self.reason) if part)
        return text if self.name is None or self.name in self.reason else f"{text} ({self.name})"


class RejectedError(Exception):
    """The current item cannot be used; `ErrorCollector.at` adds where it is."""


@functools.lru_cache(maxsize=1000)
def say_once(text: str) -> None:
    """Log a warning once per process: train, validation and test are often loaded one after another."""
    logger.warning("%s", text)


class ErrorCollector:
    """Collects errors; `settle` raises the first (`on_error="raise"`) or reports them as skipped items (`"skip"`).

    Errors are held back until it is known which photos are wanted: those of other splits do not matter.
    """

    def __init__(self, on_error: OnError = "raise", skipped: list[SkippedItem] | None = None):
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error is {on_error!r}; it must be "raise" or "skip"')
        self._on_error = on_error
        self._skipped = skipped
        self._items: list[tuple[SkippedItem, str | None]] = []
        self._left_out: Counter[tuple[str, str]] = Counter()

    def at(
        self,
        file: str | os.PathLike[str],
        *,
        line: int | None = None,
        name: str | None = None,
        entry: str | None = None,
        photo: str | None = None,
    ) -> "_Place":
        """Name the item that the body of a `with` statement reads; a `RejectedError` ends the body and is collected.

        Args:
            file, line, name, entry: see [`SkippedItem`].
            photo: id of the photo concerned, if it is not `name`.
        """
        return _Place(self, file, line, name, entry, photo)

    def add(self, item: SkippedItem, photo: str | None = None) -> None:
        """Add an item that cannot be used, with the id of its photo."""
        self._items.append((item, photo))

    def leave_out(self, file: str | os.PathLike[str], what: str, number: int = 1) -> None:
        """Count items that are left out on purpose, such as captions rejected by the annotators."""
        self._left_out[os.fspath(file), what] += number

    def settle(self, elsewhere: Container[str] = ()) -> None:
        """Raise the first error, or log them all.

        Args:
            elsewhere: ids of photos that are not wanted, whose errors are dropped.
        """
        items = [item for item, photo in self._items if photo is None or photo not in elsewhere]
        self._items = []
        if items and self._on_error == "raise":
            more = f" (and {len(items) - 1:,} more errors)" if len(items) > 1 else ""
            raise CaptionDataError(f'{items[0]}{more}; on_error="skip" skips them')
        for (file, what), number in self._left_out.items():
            say_once(f"{file}: {number:,} {what} left out")
        if not items:
            return
        if self._skipped is not None:
            self._skipped.extend(items)
        shown = [f"  {item}" for item in items[:ITEMS_IN_WARNING]]
        if len(items) > ITEMS_IN_WARNING:
            shown.append(f"  ... and {len(items) - ITEMS_IN_WARNING:,} more")
        logger.warning("%d item(s) of the caption data skipped:\n%s", len(items), "\n".join(shown))


# A class rather than contextlib.contextmanager because it is entered once or twice per caption.
@dataclass(slots=True)
class _Place:
    collector: ErrorCollector
    file: str | os.PathLike[str]
    line: int | None
    name: str | None
    entry: str | None
    photo: str | None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, RejectedError):
            return False
        item = SkippedItem(os.fspath(self.file), self.line, self.name, str(error), self.entry)
        self.collector.add(item, self.photo or self.name)
        return True

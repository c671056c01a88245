"""What can be wrong with caption data, and what becomes of it: an error, or an item left out and reported."""

import logging
import os
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

ITEMS_IN_WARNING = 20

SUPPORTED = (
    "a folder with captions.txt (header image,caption) or Flickr8k.token.txt beside a folder of photos, or one of "
    "these files; a Karpathy or COCO captions JSON file; a folder of photos with metadata.csv or metadata.jsonl; a "
    "folder or Hub id that datasets.load_dataset opens; a Dataset or DatasetDict"
)


class CaptionDataError(ValueError):
    """Caption data that cannot be used; the message names the file, the place in it, and what was expected there."""


@dataclass(frozen=True)
class SkippedItem:
    """One line, entry, caption or photo that `load_captions(..., on_error="skip")` left out.

    Attributes:
        file: Full path of the file that holds it, or the name of the data set.
        line: Line in a text file, counted from 1; None elsewhere.
        name: Photo concerned, where it is known.
        reason: Why it was left out.
        entry: Place in a JSON file (`images[3].sentences[0]`) or in a data set (`row 5`, counted from 0).
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
    """Says why the item at hand cannot be used; `Problems.at` adds where that item is."""


class Problems:
    """Turns rejected items into an error (`on_error="raise"`) or into a list of skipped items (`"skip"`).

    Raises:
        ValueError: `on_error` is neither "raise" nor "skip".
    """

    def __init__(self, on_error: OnError = "raise", skipped: list[SkippedItem] | None = None):
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error is {on_error!r}; it must be "raise" or "skip"')
        self._on_error = on_error
        self._skipped = skipped
        self._items: list[SkippedItem] = []

    def at(
        self,
        file: str | os.PathLike[str],
        *,
        line: int | None = None,
        name: str | None = None,
        entry: str | None = None,
    ) -> "_Place":
        """Name the item that the body of a `with` works on; a `RejectedError` raised there ends the body only.

        Raises:
            CaptionDataError: on leaving the body, where it rejected the item and `on_error` is "raise".
        """
        return _Place(self, file, line, name, entry)

    def add(self, item: SkippedItem) -> None:
        """Take an item that cannot be used.

        Raises:
            CaptionDataError: `on_error` is "raise".
        """
        if self._on_error == "raise":
            raise CaptionDataError(str(item)) from None
        self._items.append(item)
        if self._skipped is not None:
            self._skipped.append(item)

    def report(self) -> None:
        """Log one warning with the number of skipped items and the first of them."""
        if not self._items:
            return
        shown = [f"  {item}" for item in self._items[:ITEMS_IN_WARNING]]
        if len(self._items) > ITEMS_IN_WARNING:
            shown.append(f"  ... and {len(self._items) - ITEMS_IN_WARNING} more")
        logger.warning("%d item(s) of the caption data skipped:\n%s", len(self._items), "\n".join(shown))


# A class and not a contextlib.contextmanager: it is entered once or twice for every caption.
class _Place:
    __slots__ = ("_entry", "_file", "_line", "_name", "_problems")

    def __init__(
        self,
        problems: Problems,
        file: str | os.PathLike[str],
        line: int | None,
        name: str | None,
        entry: str | None,
    ):
        self._problems = problems
        self._file = file
        self._line = line
        self._name = name
        self._entry = entry

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, RejectedError):
            return False
        item = SkippedItem(os.fspath(self._file), self._line, self._name, str(error), self._entry)
        self._problems.add(item)
        return True

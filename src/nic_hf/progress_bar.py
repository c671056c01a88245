"""Progress bars on terminals, which the program or `TQDM_DISABLE` can hide; elsewhere a line now and then."""

import os
import sys
import time
from typing import Any

from tqdm import tqdm as plain_tqdm
from tqdm.auto import tqdm

VARIABLE = "NIC_HF_PROGRESS_SECONDS"  # set by `nic` if standard error is no terminal


def seconds_a_line() -> float:
    """Seconds between lines of progress; 0 for bars.

    Raises:
        ValueError: if the environment variable is not a number.
    """
    text = os.environ.get(VARIABLE) or "0"
    try:
        return max(0.0, float(text))
    except ValueError:
        raise ValueError(f"{VARIABLE} is {text!r}; it must be a number of seconds") from None


def progress_bar(*args: Any, hidden: bool = False, **kwargs: Any) -> tqdm:
    """Return a tqdm bar, or what prints lines in its place.

    `disable` is only passed to hide it: `disable=False` would override `TQDM_DISABLE`.
    """
    seconds = 0.0 if hidden else seconds_a_line()
    if seconds:
        return ProgressLines(*args, seconds=seconds, **kwargs)
    return tqdm(*args, **kwargs, **({"disable": True} if hidden else {}))


class ProgressLines(plain_tqdm):
    """A tqdm that prints a line on standard error every so many seconds, for logs.

    Args:
        *args, **kwargs: as for tqdm.
        seconds: seconds between lines. Work that takes less prints none.
    """

    def __init__(self, *args: Any, seconds: float, **kwargs: Any) -> None:
        self._seconds, self._said = seconds, time.monotonic()
        # With `position`, tqdm writes no carriage return at the end; with `miniters`, it does not skip updates.
        of_lines = {"mininterval": seconds, "delay": seconds, "miniters": 1, "position": 1, "leave": False}
        super().__init__(*args, **{**kwargs, **of_lines, "file": sys.stderr, "disable": False})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print a line, if it is time to."""
        if msg is None and time.monotonic() - self._said >= self._seconds:
            self._said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)
        return True

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: a line that was printed stays, and messages between lines need no place."""

    def moveto(self, n: int) -> None:
        """Do nothing: there is no cursor to move."""

    def _line(self) -> str:
        facts = self.format_dict
        done, total, seconds = facts["n"], facts["total"], facts["elapsed"]
        name = self.desc.removesuffix(": ") if self.desc else "Progress"
        if not total:
            return f"{name}: {done:,} in {self.format_interval(seconds)}"
        left = f", {self.format_interval(seconds / done * (total - done))} left" if done else ""
        return f"{name}: {done:,} of {total:,}{left}"

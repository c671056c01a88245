"""What a check found, and what to do about it."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: its name.
        status: whether something is wrong.
        message: what was found, with its values.
        advice: what to do; empty where nothing is to be done.
    """

    check: str
    status: Status
    message: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "status": self.status.value}

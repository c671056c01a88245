"""Results of checks."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Outcome of a check."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of the check.
        status: whether there is a problem.
        message: what was found, with its values.
        advice: what to do; empty if there is nothing to do.
    """

    check: str
    status: Status
    message: str
    advice: str = ""

    @classmethod
    def judge(cls, check: str, is_good: bool, message: str, advice: str) -> "Finding":
        """Create a finding that is a problem, with advice, unless it is good."""
        return cls(check, Status.OK, message) if is_good else cls(check, Status.PROBLEM, message, advice)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {**asdict(self), "status": self.status.value}

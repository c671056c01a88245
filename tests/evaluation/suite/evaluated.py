"""What tests of the suite share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Evaluated:
    """A run, its data, and what `evaluate_captioner` made of it."""

    run: Path
    data: Path
    output: Path
    settings: dict[str, Any]
    results: dict[str, Any]

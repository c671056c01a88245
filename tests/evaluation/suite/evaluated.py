"""Shared by the tests of the suite."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKUP = "<img src=x onerror=alert(1)> & ![a](http://localhost/b.png)"  # in captions of the data


@dataclass
class Evaluated:
    """A run, its data, and its evaluation by `evaluate_captioner`."""

    run: Path
    data: Path
    output: Path
    settings: dict[str, Any]
    results: dict[str, Any]

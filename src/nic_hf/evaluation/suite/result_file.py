"""Parts of an evaluation in one JSON file: what is done is not done again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...writing import write_text


class ResultFile:
    """Results by name, each with the key of what it was computed from, in a file that is whole at any time.

    Args:
        path: the JSON file; read where it exists.

    Raises:
        ValueError: where the file is there and is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self.parts = json.loads(path.read_text("utf-8"))["parts"]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: not the results of an evaluation ({error}); move it away") from error

    def get(self, name: str, key: str, compute: Callable[[], Any]) -> Any:
        """The part of this name; computed, and kept, where there is none with this key."""
        part = self.parts.get(name)
        if part is None or part["key"] != key:
            part = {"key": key, "result": compute()}
            self.parts[name] = part
            write_text(self.path, json.dumps({"parts": self.parts}, indent=1, ensure_ascii=False, allow_nan=False))
        return part["result"]

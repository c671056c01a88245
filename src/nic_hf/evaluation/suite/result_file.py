"""A JSON file with the finished parts of an evaluation, so that they are not computed again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...writing import write_text


class ResultFile:
    """Results by name, each with a key of its inputs, in a file that is always complete.

    Args:
        path: the JSON file, which is read if it exists.

    Raises:
        ValueError: if the file exists and has another content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self.parts = json.loads(path.read_text("utf-8"))["parts"]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: not the results of an evaluation ({error}); move or delete it") from error

    def get(self, name: str, key: str, compute: Callable[[], Any]) -> Any:
        """Return the result of this name and key; if there is none, compute and save it."""
        part = self.parts.get(name)
        if part is None or part["key"] != key:
            part = {"key": key, "result": compute()}
            self.parts[name] = part
            write_text(self.path, json.dumps({"parts": self.parts}, indent=1, ensure_ascii=False, allow_nan=False))
        return part["result"]

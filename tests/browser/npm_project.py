"""The folder of the page, and a function to run its commands."""

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "examples" / "browser"


def run(command: list[str], folder: Path, timeout: int = 600, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "NO_COLOR": "1", "CI": "1", **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, env=variables)

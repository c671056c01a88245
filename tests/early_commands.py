"""Run `nic` in a process of its own, and see what it imported before it answered."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nic_hf

HEAVY = ("torch", "transformers", "datasets", "gradio")
COMMAND = f"""
import sys
from nic_hf.cli import app
try:
    app(prog_name="nic")
finally:
    print(*({set(HEAVY)} & sys.modules.keys()), file=sys.stderr)
"""


@dataclass
class Answer:
    code: int
    stdout: str
    stderr: str
    imported: str  # those of HEAVY, separated by spaces


def nic(arguments: list[str], folder: Path, endpoint: str = "http://127.0.0.1:9") -> Answer:
    """Run a command in a folder, with an address for the Hub, by default one where nothing listens."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(nic_hf.__file__).parents[1]),
    }
    command = [sys.executable, "-c", COMMAND, *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    *lines, imported = done.stderr.splitlines()
    return Answer(done.returncode, done.stdout, "\n".join(lines), imported)

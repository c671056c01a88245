"""Find complete checkpoints: a killed run may leave one that it was writing or removing."""

import json
import logging
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..lookup import CARD_FILE
from ..model.checkpoint import changed_weights

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
PROVENANCE_FILE = "provenance.json"
RECIPE_FILE = "recipe.yaml"

_NAME = re.compile(r"checkpoint-(\d+)")
_TORCH_FILES = (".pt", ".pth", ".bin")


def last_checkpoint(run: str | Path) -> str | None:
    """Return the path of the newest complete checkpoint of a run, or None; log the incomplete ones that are newer."""
    numbers = [(int(match[1]), path) for path in Path(run).glob("*") if (match := _NAME.fullmatch(path.name))]
    for _, path in sorted(numbers, reverse=True):
        problem = why_incomplete(path)
        if problem is None:
            return str(path)
        logger.warning("%s is skipped: it is incomplete or damaged (%s)", path, problem)
    return None


def why_incomplete(checkpoint: str | Path) -> str | None:
    """Return why a checkpoint cannot be resumed, or None if it is complete.

    Trainer writes `trainer_state.json` last. Weights are compared with their digests, and files of PyTorch with the
    checksums in them, which its loader ignores. All other recorded files must exist.
    """
    folder = Path(checkpoint)
    if read_json(folder / STATE_FILE) is None:
        return f"no readable {STATE_FILE}"
    record = read_json(folder / PROVENANCE_FILE) or {}
    for name, size in record.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.suffix in (".safetensors", *_TORCH_FILES) and path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes and had {size}"
    if "files" not in record and (folder / "rng_state_0.pth").is_file():
        # Killed while the other processes may still have been writing.
        for process in range(record.get("processes", 1)):
            if not (folder / f"rng_state_{process}.pth").is_file():
                return f"rng_state_{process}.pth is missing"
    for path in folder.iterdir():
        if path.suffix == ".safetensors" and not _opens(path):
            return f"{path.name} is damaged"
        if path.suffix in _TORCH_FILES and path.is_file() and not _is_sound_zip(path):
            return f"{path.name} is damaged"
    for name in changed_weights(folder):
        return f"{name} has changed since it was saved"
    if not any(_holds_weights(path) for path in folder.iterdir()):
        return "it has no weights"
    return None


def begin_checkpoint(checkpoint: Path) -> None:
    """Mark a checkpoint as incomplete before it is overwritten."""
    (checkpoint / STATE_FILE).unlink(missing_ok=True)


def files_of(checkpoint: Path) -> dict[str, int]:
    """Size in bytes of each file that resuming needs, by its path with slashes."""
    others = (PROVENANCE_FILE, CARD_FILE, RECIPE_FILE, STATE_FILE)
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name not in others)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it is missing or invalid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _holds_weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name.startswith("pytorch_model")


def _opens(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _is_sound_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError):
        return False

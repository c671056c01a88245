"""Checks of arguments before torch and Transformers are imported, which takes seconds."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..captioners import captioner_path
from ..lookup import check_captioner_folder, look_up, look_up_captioner, looks_like_path

_PATTERN = ("*", "?", "[", "{", "://")


def find_captioner(name_or_path: str | None) -> str:
    """Return the folder or Hub id of a captioner: without a name, the folder of the one that comes with the package.

    Raises:
        OSError: if the name leads nowhere, or to a folder without a captioner.
    """
    captioner = captioner_path(name_or_path)
    look_up_captioner(captioner)
    return captioner


def check_calibrated(captioner: str) -> None:
    """Refuse the folder of a captioner that has no confidence; one of the Hub is refused once it is loaded.

    Raises:
        ValueError: saying what to do.
    """
    folder = Path(captioner)
    if (folder / "nic_onnx.json").is_file():
        raise ValueError(f"{captioner}: ONNX captioners give no confidence: name the checkpoint it was exported from")
    if (folder / "config.json").is_file() and not json.loads((folder / "config.json").read_bytes()).get("confidence"):
        raise ValueError(
            f"{captioner}: not calibrated: run nic calibrate {captioner} --data DATA, with captioned photos like the"
            " training data"
        )


def check_data(source: str | None) -> None:
    """Refuse captioned photos that are neither here nor on the Hub; patterns and addresses are not expanded.

    Raises:
        OSError: naming them.
    """
    if source is not None and not any(part in source for part in _PATTERN):
        look_up(str(Path(source).expanduser()) if source.startswith("~") else source, "data")


def check_model(name: str, setting: str) -> None:
    """Refuse a backbone or word vectors (a setting of a recipe) that are neither here nor on the Hub.

    Raises:
        OSError: naming them.
    """
    if setting == "backbone":
        look_up(name, "backbone")
    elif Path(name).exists() or looks_like_path(name) or Path(name).suffix in (".gz", ".txt", ".vec"):
        if not Path(name).exists():
            raise FileNotFoundError(f"{name}: no such file or folder of word vectors; give one, or a Hub id")
    elif "/" in name:  # SentenceTransformers gives shorter names a namespace
        look_up(name)


def check_files(*paths: Path | Iterable[Path] | None) -> None:
    """Refuse files that do not exist.

    Raises:
        FileNotFoundError: naming the first of them.
    """
    for given in paths:
        for path in [given] if isinstance(given, Path) else given or ():
            if not path.is_file():
                raise FileNotFoundError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")


def check_own_captioner(folder: Path) -> None:
    """Refuse a path that is no folder with a captioner, for commands that take no Hub id.

    Raises:
        OSError: naming it.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder}: no such folder; give the folder of a captioner, such as a run of nic train"
        )
    check_captioner_folder(folder)

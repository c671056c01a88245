"""Checkpoints: saved whole or not at all, loaded whole or refused."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any


def check_all_weights_loaded(name: Any, loading_info: dict[str, Any]) -> None:
    """Refuse a checkpoint that left weights of the model at random.

    Raises:
        ValueError: naming the tensors that the checkpoint lacks.
    """
    missing = sorted(loading_info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"{name}: the checkpoint lacks {len(missing)} tensors: {', '.join(missing[:5])}{more}")


def custom_pipelines() -> dict[str, dict[str, Any]]:
    """What `pipeline("image-to-text", model=..., trust_remote_code=True)` reads in `config.json`.

    It is the one door to that name which every supported Transformers leaves open: 5.19 and later rewrite the name
    before they look in the pipeline registry.
    """
    # Here and not at the top: a relative import anywhere in this file makes the pipeline's code travel with the
    # model's, and only saving needs it.
    from .pipeline_nic import ImageToTextPipeline

    return {
        "image-to-text": {
            "impl": f"pipeline_nic.{ImageToTextPipeline.__name__}",
            "pt": ["AutoModelForImageTextToText"],
            "type": "multimodal",
        }
    }


@contextmanager
def staged_save(save_directory: str | PathLike, is_main_process: bool = True) -> Iterator[Path]:
    """Let a caller save into a temporary directory, then move its files into `save_directory` one rename each.

    Nothing in `save_directory` changes unless everything was written.

    Raises:
        OSError: naming `save_directory`, where it cannot be written or the disk is full.
    """
    target = Path(save_directory)
    if not is_main_process:
        yield target
        return
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"{target} is a file")
        target.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    except OSError as error:
        raise OSError(f"cannot save to {target}: {error}") from error
    try:
        yield staging
        _replace_files(staging, target)
    except Exception as error:
        # safetensors reports a full disk by an exception of its own.
        if isinstance(error, OSError) or "os error" in str(error):
            raise OSError(f"cannot save to {target}: {error}; what it held before is unchanged") from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace_files(staging: Path, target: Path) -> None:
    files = [file.relative_to(staging) for file in sorted(staging.rglob("*")) if file.is_file()]
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / file, target / file)  # noqa: PTH105 - replaces an existing file on Windows too
    # Shards of an earlier save would be read in place of a single file of this one.
    if any(file.suffix == ".safetensors" for file in files):
        for old in [*target.glob("model*.safetensors"), *target.glob("model*.safetensors.index.json")]:
            if old.relative_to(target) not in files:
                old.unlink()

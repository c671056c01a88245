"""The folder of an ONNX captioner: its files, and the manifest that tells whether they belong together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..digests import file_digest
from ..lookup import CARD_FILE, look_up
from ..writing import write_text

ENCODER, FIRST_STEP, DECODER_STEP = "encoder.onnx", "first_step.onnx", "decoder_step.onnx"
GRAPHS = (ENCODER, FIRST_STEP, DECODER_STEP)
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
PROCESSOR, TOKENIZER, TOKENIZER_CONFIG = "processor_config.json", "tokenizer.json", "tokenizer_config.json"
FILES = (*GRAPHS, CONFIG, GENERATION_CONFIG, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG)
MANIFEST = "nic_onnx.json"
FORMAT = 1
FLOAT32, INT8_STATIC, INT8_DYNAMIC = "float32", "int8, static", "int8, dynamic"
# Users may edit this as in any checkpoint: beam sizes, lengths and penalties do not depend on the weights.
_MAY_CHANGE = (GENERATION_CONFIG,)


def check_output_folder(folder: Path) -> None:
    """Refuse a folder in which an export would replace files that are not of an export.

    Raises:
        NotADirectoryError: if it is a file.
        ValueError: naming the files.
    """
    if folder.is_file():
        raise NotADirectoryError(f"cannot export to {folder}: it is a file; give a folder")
    if (folder / "model.safetensors").exists():
        raise ValueError(
            f"{folder} contains a PyTorch checkpoint, whose config.json would be replaced: give another folder"
        )
    if not (folder / MANIFEST).exists():
        others = [name for name in (*FILES, CARD_FILE) if (folder / name).exists()]
        if others:
            raise ValueError(
                f"{folder} is not an export (it has no {MANIFEST}) and contains {', '.join(others)}, which would be"
                " replaced: give another folder"
            )


def files_to_copy(folder: Path) -> list[str]:
    """Names of the files of an exported captioner, with its card but without the manifest."""
    return [*FILES, *([CARD_FILE] if (folder / CARD_FILE).is_file() else [])]


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `nic_onnx.json` with `facts` about the export and the SHA-256 of each file that must not change."""
    digests = {name: file_digest(folder / name) for name in FILES if name not in _MAY_CHANGE}
    text = json.dumps({"format": FORMAT, **facts, "files": digests}, indent=2) + "\n"
    write_text(folder / MANIFEST, text)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read `nic_onnx.json`, and check that all files exist and belong to this export.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file was changed, truncated, or is from another export.
    """
    if not (folder / MANIFEST).is_file():
        hint = ""
        if (folder / "model.safetensors").is_file():
            hint = f"; it is a PyTorch checkpoint, which `nic export onnx {folder} OUT` converts"
        raise FileNotFoundError(f"{folder}: not the folder of an ONNX captioner: it has no {MANIFEST}{hint}")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{folder / MANIFEST}: this version of nic_hf reads format {FORMAT}, not {manifest.get('format')!r}; "
            "export the checkpoint again, or install the version that wrote it"
        )
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: missing {', '.join(missing)}; copy the whole folder, or export it again")
    for name in FILES:
        if name not in _MAY_CHANGE and file_digest(folder / name) != manifest["files"].get(name):
            raise ValueError(
                f"{folder / name}: not the file that {MANIFEST} lists. It was changed, truncated, or is from another "
                "export; export the checkpoint again"
            )
    return manifest


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: if the file contains anything else; the message names the file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a JSON object")
    return content


def find_folder(name_or_path: Any, subfolder: str = "", **hub: Any) -> Path:
    """Return the folder of a captioner, downloading it if it is a repository of the Hub.

    Raises:
        FileNotFoundError: if the folder does not exist.
        OSError: if the repository does not exist or cannot be downloaded.
    """
    hub = look_up(name_or_path, "captioner", **hub)
    folder = Path(name_or_path)
    if not folder.is_dir():
        if folder.is_file():
            raise NotADirectoryError(f"{folder} is a file; give the folder that contains {MANIFEST}")
        from huggingface_hub import snapshot_download

        wanted = [f"{subfolder}/{name}" if subfolder else name for name in (*FILES, MANIFEST, CARD_FILE)]
        try:
            folder = Path(snapshot_download(str(name_or_path), allow_patterns=wanted, **hub))
        except ValueError as error:  # not the name of a repository
            raise FileNotFoundError(f"{name_or_path}: neither a folder nor the name of a Hub repository") from error
    return folder / subfolder

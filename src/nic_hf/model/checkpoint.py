"""Checkpoints: saved whole or not at all, loaded whole or refused."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..digests import file_digest
from ..writing import staging_folder, sync_file

DIGESTS = "weights.sha256"  # the file next to the weights
CORE = ("configuration_nic", "layers_nic", "modeling_nic", "processing_nic", "pipeline_nic")  # in each checkpoint

if TYPE_CHECKING:  # the ONNX captioner uses this file without torch
    from torch import nn


def check_local_files(name_or_path: Any, subfolder: str = "") -> None:
    """Refuse files of a local checkpoint that Transformers would answer by a bare `TypeError`, or take as they are.

    Raises:
        OSError: `config.json` is no JSON object, a list of shards leads elsewhere or to pickles, or a weight is
            stored as something that is no floating-point number.
    """
    folder = Path(name_or_path, subfolder)
    config = _json_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    for index in folder.glob("model.safetensors.index*.json"):
        shards = _json_object(index).get("weight_map")
        names = shards.values() if isinstance(shards, dict) else [shards]
        wrong = [name for name in names if not isinstance(name, str) or _weights_variant(name) is None]
        if wrong:
            raise OSError(f"{index}: {wrong[0]!r} is no file of weights next to it")
    if "quantization_config" in config or not folder.is_dir():
        return
    for file in sorted(folder.glob("model*.safetensors")):
        kinds = {name: entry.get("dtype") for name, entry in _header(file).items() if name != "__metadata__"}
        odd = [f"{name} is {kind}" for name, kind in kinds.items() if kind not in _FLOATS | _counters(name)]
        if odd:
            raise OSError(f"{file}: {len(odd)} tensors are no floating-point numbers: {_some(odd)}")


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise OSError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise OSError(f"{file}: holds {type(content).__name__}, not a JSON object")
    return content


def _header(file: Path) -> dict[str, Any]:
    """Header of a safetensors file; empty if it is damaged, which safetensors reports.

    Source: https://github.com/huggingface/safetensors, "Format": the length in 8 bytes, then JSON.
    """
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(length)) if length <= file.stat().st_size else {}
    except (ValueError, RecursionError):
        return {}
    entries = header.items() if isinstance(header, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}


_FLOATS = {"F16", "BF16", "F32", "F64"}


def _counters(name: str) -> set[str]:
    """What else a tensor of this name may be: BatchNorm counts its batches."""
    return {"I64"} if name.endswith("num_batches_tracked") else set()


def check_all_weights_loaded(name: Any, loading_info: dict[str, Any], allow_mismatched_sizes: bool = False) -> None:
    """Refuse a checkpoint that left weights of the model at random.

    Raises:
        ValueError: naming the tensors that the checkpoint lacks, or that have another shape than `config.json` says.
    """
    mismatched = sorted(tuple(entry) for entry in loading_info["mismatched_keys"])
    if mismatched and not allow_mismatched_sizes:
        shapes = [f"{key} is {tuple(is_)} and should be {tuple(should)}" for key, is_, should in mismatched]
        raise ValueError(
            f"{name}: {len(mismatched)} tensors of the checkpoint do not fit its config.json (`vocab_size`, "
            f"`hidden_size`, ...): {_some(shapes)}"
        )
    missing = sorted(set(loading_info["missing_keys"]) - {key for key, *_ in mismatched})
    if missing:
        raise ValueError(f"{name}: the checkpoint lacks {len(missing)} tensors: {_some(missing)}")


def _some(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


@contextmanager
def damaged_file_as_oserror(name: Any) -> Iterator[None]:
    """Name the checkpoint in errors of safetensors, for damaged files, and of torch, for sizes without memory.

    Raises:
        OSError: if a file is damaged.
        ValueError: if torch cannot build the model of `config.json`.
    """
    from safetensors import SafetensorError  # the ONNX captioner, which uses this file too, does without

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{name}: the weights cannot be read, perhaps a copy was interrupted: {error}") from error
    except (RuntimeError, MemoryError) as error:
        import torch

        if torch.get_default_device().type == "meta":  # which Transformers refuses
            raise
        raise ValueError(f"{name}: the model of its config.json cannot be built in memory: {error}") from error


class ChangedWeightsError(OSError):
    """A file of weights is not, bit for bit, the one that was saved."""


def check_digests(name_or_path: Any, subfolder: str = "", variant: str | None = None) -> None:
    """Refuse weights of a local checkpoint that are not those that were saved: safetensors sees no flipped bit.

    Called once they are loaded, when the system still holds the file in memory: hashing takes 2 ms a megabyte or less.

    Raises:
        ChangedWeightsError: naming the files and what to do.
    """
    folder = Path(name_or_path, subfolder)
    changed = [name for name in changed_weights(folder) if _weights_variant(name) == (variant or "")]
    if changed:
        raise ChangedWeightsError(
            f"{folder}: {', '.join(changed)}: changed since it was saved, by the SHA-256 in {DIGESTS}; copy the "
            f"checkpoint again, or, if the weights were changed on purpose, delete {folder / DIGESTS}"
        )


def own_weights(model: "nn.Module") -> None:
    """Copy weights out of the file that Transformers has mapped into memory.

    Their alignment in a file changes the last bits of results, and some systems refuse to save over a file in use.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def save_code(folder: Path | None) -> dict[str, str]:
    """Copy the core into `folder`, if given, and return the `auto_map` by which Transformers finds its classes."""
    source = Path(__file__).parents[1]
    if folder is not None:
        for name in CORE:
            shutil.copyfile(source / f"{name}.py", folder / f"{name}.py")
    return {
        "AutoConfig": "configuration_nic.NICConfig",
        "AutoModelForImageTextToText": "modeling_nic.NICForConditionalGeneration",
    }


@contextmanager
def staged_save(
    save_directory: str | PathLike, is_main_process: bool = True, push: dict[str, Any] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder to save into; then move its files to `save_directory`, one rename each.

    Nothing in `save_directory` changes unless everything was written.

    Args:
        save_directory: where the files are saved.
        is_main_process: of several processes that save the same, the one that writes.
        push: arguments of Transformers' `push_to_hub`, to push the saved files too, digests included.

    Raises:
        OSError: naming `save_directory`, if it cannot be written or the disk is full.
    """
    target = Path(save_directory)
    if not is_main_process:
        yield target
        return
    with staging_folder(target) as staging:
        try:
            yield staging
            _write_digests(staging, target)
            files = _replace_files(staging, target)
        except Exception as error:
            if not isinstance(error, OSError | _safetensors_error()):
                raise
            raise OSError(f"cannot save to {target}: {error}; what it held before is unchanged") from error
    if push is not None:
        _push(target, files, push)


def _safetensors_error() -> type[Exception]:
    """By which safetensors reports a full disk."""
    from safetensors import SafetensorError

    return SafetensorError


def _push(folder: Path, files: list[Path], options: dict[str, Any]) -> None:
    """Push files that were saved, in one commit."""
    from transformers.utils import PushToHubMixin

    class SavedFiles(PushToHubMixin):
        def save_pretrained(self, save_directory: str, **_: Any) -> None:
            for file in files:
                (Path(save_directory) / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, Path(save_directory) / file)
            _write_digests(Path(save_directory), Path(save_directory))  # not those of other files in the folder

    SavedFiles().push_to_hub(**{"repo_id": folder.name, **options})


def _write_digests(staging: Path, target: Path) -> None:
    """Write the SHA-256 of each file of weights, as `sha256sum -c` reads it: safetensors sees no flipped bit."""
    digests, recorded, record = {}, read_digests(target), target / DIGESTS
    for file in target.glob("*.safetensors"):
        if _weights_variant(file.name) is not None:
            # Trainer copies weights of a checkpoint next to the record of others, saves the processor, and pushes.
            is_known = file.name in recorded and file.stat().st_mtime_ns <= record.stat().st_mtime_ns
            digests[file.name] = recorded[file.name] if is_known else file_digest(file)
    saved = {file.name: file_digest(file) for file in staging.glob("*.safetensors")}
    digests |= saved
    if saved or digests != recorded:
        lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
        (staging / DIGESTS).write_bytes("".join(lines).encode())


def read_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights, as the last save wrote it; empty if there is no record."""
    try:
        lines = (folder / DIGESTS).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    matches = (re.fullmatch(r"([0-9a-f]{64})  ([^/\\]+)", line) for line in lines)
    return {match[2]: match[1] for match in matches if match}


def changed_weights(folder: Path) -> list[str]:
    """Names of the files of weights whose content is another than the last save recorded."""
    recorded = {name: digest for name, digest in read_digests(folder).items() if (folder / name).is_file()}
    return [name for name, digest in sorted(recorded.items()) if file_digest(folder / name) != digest]


def _replace_files(staging: Path, target: Path) -> list[Path]:
    files = [file.relative_to(staging) for file in sorted(staging.rglob("*")) if file.is_file()]
    if Path(DIGESTS) in files:
        # Removed before the weights change, and back after them: a save that is killed here must not leave weights
        # next to the digest of others.
        (target / DIGESTS).unlink(missing_ok=True)
        files.sort(key=lambda file: file == Path(DIGESTS))
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        sync_file(staging / file)
        os.replace(staging / file, target / file)  # noqa: PTH105 - replaces an existing file on Windows too
    # Transformers prefers a single file to shards; what an earlier save left of the other kind must not be found.
    kinds = {_weights_variant(file.name) for file in files} - {None}
    for old in list(target.iterdir()):
        if _weights_variant(old.name) in kinds and old.relative_to(target) not in files:
            old.unlink()
    return files


def _weights_variant(file_name: str) -> str | None:
    """The `variant` of a file of weights or of their index ("" for the usual one), `None` for any other file."""
    match = re.fullmatch(r"model(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors", file_name)
    match = match or re.fullmatch(r"model\.safetensors\.index(?:\.(\w+))?\.json", file_name)
    return match and (match[1] or "")

"""Push captioners to the Hub: one commit with the captioner, and without photos of the training data."""

import contextlib
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects

from .._version import __version__
from ..lookup import CARD_FILE, is_of_http
from .checkpoint_integrity import RECIPE_FILE
from .model_cards import CardFacts, write_model_card

# An output directory also has sample captions drawn over photos, and logs with the same, which may not be published.
PUBLISHED = (
    *("config.json", "generation_config.json", "weights.sha256", "*_nic.py"),
    *("model*.safetensors", "model*.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"),
    *("processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *(RECIPE_FILE, CARD_FILE),
)
NEEDED = ("config.json", "tokenizer.json")
ONNX = ("*.onnx", "*.onnx[._]data")


def published_files(folder: str | os.PathLike, onnx: bool = False) -> list[str]:
    """List the files of a captioner's folder that belong on the Hub, as paths with slashes.

    Args:
        folder: where it was saved, such as the output directory of a run.
        onnx: include exported ONNX files, in the folder or its subfolder `onnx/`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no captioner.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give the folder of a captioner, such as a run of nic train"
        )
    chosen = _matching(root, PUBLISHED)
    missing = [name for name in NEEDED if name not in chosen]
    if missing or not any(name.endswith(".safetensors") for name in chosen):
        raise ValueError(f"{folder}: not a captioner: there is no {', '.join(missing or ['model.safetensors'])}")
    if onnx:
        exported = _matching(root, ONNX) + [f"onnx/{name}" for name in _matching(root / "onnx", (*ONNX, "*.json"))]
        if not any(name.endswith(".onnx") for name in exported):
            raise ValueError(f"{folder}: no ONNX files; run nic export first")
        chosen += exported
    return chosen


def _matching(folder: Path, patterns: Sequence[str]) -> list[str]:
    files = (path.name for path in sorted(folder.glob("*")) if path.is_file())
    return list(filter_repo_objects(files, allow_patterns=list(patterns)))


def push_captioner(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload captioner",
    onnx: bool = False,
) -> CommitInfo:
    """Push a saved captioner to the Hub: weights, code, tokenizer, processor, generation config and model card.

    Everything is one commit, created after all files are uploaded: an interrupted push leaves the repository
    unchanged. If the folder has no model card, one is written.

    Args:
        folder: where the captioner was saved.
        repo_id: `"owner/name"`; it is created if it does not exist.
        private: create a private repository; by default it is public.
        token: access token; by default the one saved by `hf auth login`, or `HF_TOKEN`.
        revision: branch to push to, created if it does not exist; by default `main`.
        message: commit message.
        onnx: include exported ONNX files.

    Raises:
        ValueError: if the folder is not a captioner.
        OSError: if the Hub refuses or the connection is lost; the message says what to do.
    """
    files = published_files(folder, onnx)
    if CARD_FILE not in files:
        write_model_card(Path(folder), CardFacts(repo_id=repo_id))
        files.append(CARD_FILE)
    api = hub_api()
    with hub_errors(f"cannot push {folder} to {repo_id}"):
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            allow_patterns=[glob.escape(name) for name in files],
            commit_message=message,
            token=token,
            revision=revision,
        )


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn exceptions of huggingface_hub and its HTTP library into an `OSError` with a one-line message.

    Raises:
        OSError: "`what`: ..."
    """
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            advice = "the token is missing, invalid or has no write access; run `hf auth login` or set HF_TOKEN"
            raise PermissionError(f"{what}: {advice} (HTTP {status})") from error
        raise OSError(f"{what}: {_one_line(error)}") from error
    except Exception as error:
        # huggingface_hub uses different HTTP libraries in its versions (httpx, httpx2), with different exceptions.
        cause = _cause(error)
        if isinstance(error, ValueError | TypeError) or not (is_of_http(cause) or isinstance(cause, OSError)):
            raise
        raise ConnectionError(
            f"{what}: the connection was lost ({_one_line(cause)}). The repository is unchanged; push again, uploaded"
            " files are not sent twice"
        ) from error


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
        if is_of_http(error):
            return error
    return error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def hub_api() -> HfApi:
    """Return a client of the Hub that identifies this package."""
    return HfApi(library_name="nic_hf", library_version=__version__)

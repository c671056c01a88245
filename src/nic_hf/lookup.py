"""Whether a name leads to a model or to data: asked once, before anything heavy is imported or waited for."""

import os
import re
from contextlib import suppress
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal

Kind = Literal["captioner", "backbone", "model", "data"]

_ADVICE = {
    "captioner": "train one with `nic train --output_dir {name}`, or give the folder or the Hub id of another",
    "backbone": "give the folder or the Hub id of a vision model, such as google/mobilenet_v2_1.0_224",
    "model": "give a folder or a Hub id",
    "data": "give a folder or a file of captioned photos, or a Hub id",
}
# Files of which a captioner's folder has at least one: a checkpoint, an ONNX export, a PEFT adapter.
_OF_CAPTIONER = ("config.json", "nic_onnx.json", "adapter_config.json")
CARD_FILE = "README.md"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2")  # huggingface_hub uses different ones in its versions
_TIMEOUT = 10.0  # seconds, as in huggingface_hub


def looks_like_path(name_or_path: Any) -> bool:
    """Whether this can only be a path: a repository is called "name" or "owner/name"."""
    name = os.fspath(name_or_path)
    is_path = isinstance(name_or_path, PathLike) or name.startswith((".", "~", os.sep)) or Path(name).is_absolute()
    return is_path or not _HUB_ID.fullmatch(name)


def look_up(name_or_path: Any, kind: Kind = "model", **hub: Any) -> dict[str, Any]:
    """Refuse a name that is neither a local path nor known to the Hub, which is asked once.

    Transformers takes each name that is no folder for a Hub id, and tries six times for each file if it cannot reach
    the Hub.

    Args:
        name_or_path: a path or a Hub id.
        kind: what it should be, for the advice.
        **hub: options of `from_pretrained` that say where files are (`token`, `revision`, `cache_dir`, ...).

    Returns:
        The options, with `local_files_only` if the Hub cannot be reached and the repository is in its cache.

    Raises:
        FileNotFoundError: if there is no such path, and no such repository.
        ConnectionError: if there is no such path, the Hub cannot be reached, and its cache lacks the repository.
    """
    name = os.fspath(name_or_path)
    if Path(name).exists():
        return hub
    what = "no such file or folder" if kind == "data" else "no such folder"
    advice = _ADVICE[kind].format(name=name)
    if looks_like_path(name_or_path):
        raise FileNotFoundError(f"{name}: {what}; {advice}")
    if hub.get("local_files_only"):
        return hub  # the caller knows where it is
    try:
        _ask_hub(_file_on_hub(name, kind, hub.get("revision")), hub.get("token"))
    except ConnectionError as error:
        if _is_cached(name, kind, hub.get("cache_dir")):
            return {**hub, "local_files_only": True}
        raise ConnectionError(f"{name}: {what}, and {error}; {advice}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: {what}, and no such repository on the Hub (a private one needs a token); {advice}"
        ) from error
    return hub


def look_up_captioner(name_or_path: Any) -> None:
    """Refuse the name of a captioner that leads nowhere, or to a folder without one.

    Raises:
        OSError: naming it, and a captioner in a subfolder if there is one.
    """
    look_up(name_or_path, "captioner")
    check_captioner_folder(name_or_path)


def check_captioner_folder(name_or_path: Any) -> None:
    """Refuse a file, or a folder that holds no captioner.

    Raises:
        OSError: naming it.
    """
    folder = Path(name_or_path)
    if folder.is_file():
        raise NotADirectoryError(f"{folder}: a file; give the folder of a captioner")
    if not folder.is_dir() or holds_captioner(folder):
        return
    found = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json"))
    near = f"; there is one in {found[0]}" if found else ""
    raise FileNotFoundError(f"{folder}: holds no captioner, as there is no config.json{near}")


def card_of(name_or_path: Any) -> Path | None:
    """The model card of a captioner: of its folder, or downloaded from the Hub. None if it has none."""
    card = Path(name_or_path) / CARD_FILE
    if not Path(name_or_path).is_dir():
        from huggingface_hub import hf_hub_download

        with suppress(OSError, ValueError):
            card = Path(hf_hub_download(os.fspath(name_or_path), CARD_FILE))
    return card if card.is_file() else None


def holds_captioner(folder: Path) -> bool:
    """Whether this is a folder with a captioner."""
    return any((folder / file).is_file() for file in _OF_CAPTIONER)


def is_of_http(error: BaseException) -> bool:
    """Whether an HTTP library of huggingface_hub raised this error."""
    return type(error).__module__.split(".")[0] in _HTTP_LIBRARIES


def _file_on_hub(name: str, kind: Kind, revision: str | None) -> str:
    """Address of a file that each repository of this kind has."""
    from huggingface_hub import hf_hub_url

    file, repo_type = ("README.md", "dataset") if kind == "data" else ("config.json", "model")
    return hf_hub_url(name, file, repo_type=repo_type, revision=revision)


@cache
def _ask_hub(url: str, token: str | bool | None) -> None:
    """Ask the Hub for a file, once for all parts of a captioner: that it is there is kept, errors are not.

    Raises:
        FileNotFoundError: if there is no such repository.
        ConnectionError: if the Hub cannot be reached, or must not be asked.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        get_hf_file_metadata(url, token=token, timeout=_TIMEOUT)
    except GatedRepoError:
        return
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{url}: no such repository") from error
    except HfHubHTTPError:
        return  # another file or revision, or a server that may recover: loading it says more
    except OfflineModeIsEnabled as error:
        raise ConnectionError("the Hub must not be asked, as HF_HUB_OFFLINE is set") from error
    except Exception as error:
        if not isinstance(error, OSError) and not is_of_http(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(f"the Hub cannot be reached ({reason})") from error


def _is_cached(name: str, kind: Kind, cache_dir: Any) -> bool:
    """Whether files of the repository have been downloaded, or prepared by Datasets."""
    from huggingface_hub import constants

    parts = name.split("/")
    downloads = Path(cache_dir or constants.HF_HUB_CACHE)
    folders = [downloads / "--".join(["datasets" if kind == "data" else "models", *parts]) / "snapshots"]
    if kind == "data":
        prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
        folders.append(Path(prepared) / "___".join(parts))
    with suppress(OSError):
        return any(any(folder.glob("*/*")) for folder in folders)
    return False

"""Error messages, exit codes and progress bars of all commands."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

FAILED, INTERRUPTED = 2, 130
A_CAPTIONER = "A captioner: a folder, a Hub id, or the name of one that comes with nic_hf."
OWN_CAPTIONER = "flickr8k, which comes with nic_hf"
# Import names of packages, and the extra that installs them.
_EXTRAS = {
    **dict.fromkeys(("accelerate", "datasets", "jinja2", "matplotlib"), "train"),
    **dict.fromkeys(("evaluate", "pycocoevalcap", "scipy"), "evaluate"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    **{"gradio": "app", "peft": "peft", "ray": "ray", "sentence_transformers": "vectors"},
}
# Read by nic_hf.progress_bar, which imports tqdm, and that must not be before the variables below are set.
_INTERVAL, SECONDS_A_LINE = "NIC_HF_PROGRESS_SECONDS", "30"
# Read by tqdm, huggingface_hub and datasets when they are imported.
_NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


def keep_bars_off_files() -> None:
    """If standard error is not a terminal, print lines of progress and no bars, also in child processes.

    Who sets `TQDM_DISABLE` gets neither.
    """
    if not sys.stderr.isatty():
        if not os.environ.get("TQDM_DISABLE"):
            os.environ.setdefault(_INTERVAL, SECONDS_A_LINE)
        for name in _NO_BARS:
            os.environ.setdefault(name, "1")


@contextmanager
def reported(command: str, stopped: str = "stopped") -> Iterator[None]:
    """Report an error or Ctrl-C in one line, and exit.

    Args:
        command: name of the command, such as "export onnx".
        stopped: message after Ctrl-C, such as how to resume.

    Raises:
        typer.Exit: with code 2 for errors of input, files or packages, and 130 for Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        fail(command, stopped, INTERRUPTED)
    except (ImportError, OSError, ValueError) as error:
        fail(command, error)


def fail(command: str, reason: str | Exception, code: int = FAILED) -> NoReturn:
    """Print an error in one line, and exit.

    Raises:
        typer.Exit: with `code`.
    """
    text = str(reason)
    if isinstance(reason, OSError) and reason.strerror:  # without "[Errno 2]"
        text = reason.strerror if reason.filename is None else f"{os.fsdecode(reason.filename)}: {reason.strerror}"
    if isinstance(reason, ModuleNotFoundError) and reason.name in _EXTRAS:
        text = f'{reason.name} is not installed: pip install "nic_hf[{_EXTRAS[reason.name]}]"'
    typer.echo(f"nic {command}: {' '.join(text.split())}", err=True)
    raise typer.Exit(code)


def print_json(document: Any) -> None:
    """Print JSON on standard output."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False))


def silence_transformers() -> None:
    """Silence the messages and progress bars of Transformers."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

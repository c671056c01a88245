"""What all commands do alike: errors in a line, exit codes, progress bars on terminals only."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

FAILED, INTERRUPTED = 2, 130
# Read by tqdm, huggingface_hub and datasets when they are imported.
# Packages of an extra, by the name that they are imported by.
_EXTRAS = {
    **dict.fromkeys(("accelerate", "datasets", "jinja2", "matplotlib"), "train"),
    **dict.fromkeys(("evaluate", "pycocoevalcap", "scipy"), "evaluate"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    **{"gradio": "app", "peft": "peft", "ray": "ray", "sentence_transformers": "vectors"},
}
_NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


def keep_bars_off_files() -> None:
    """No progress bars where standard error is a file or a pipe, here and in processes that this one starts."""
    if not sys.stderr.isatty():
        for name in _NO_BARS:
            os.environ.setdefault(name, "1")


@contextmanager
def reported(command: str, stopped: str = "stopped") -> Iterator[None]:
    """End a command as people and scripts expect: with a line of what was wrong, or of what Ctrl-C left.

    Args:
        command: its name, such as "export onnx".
        stopped: what is said at Ctrl-C, such as how to go on.

    Raises:
        typer.Exit: with code 2 for what is wrong with the input, files or packages, 130 for Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        fail(command, stopped, INTERRUPTED)
    except (ImportError, OSError, ValueError) as error:
        fail(command, error)


def fail(command: str, reason: str | Exception, code: int = FAILED) -> NoReturn:
    """Say why in one line, whatever the reason looks like, and end.

    Raises:
        typer.Exit: with `code`.
    """
    text = str(reason)
    if isinstance(reason, OSError) and reason.filename is not None and reason.strerror:
        text = f"{os.fsdecode(reason.filename)}: {reason.strerror}"  # without "[Errno 2]"
    if isinstance(reason, ModuleNotFoundError) and reason.name in _EXTRAS:
        text = f'{reason.name} is not installed: pip install "nic_hf[{_EXTRAS[reason.name]}]"'
    typer.echo(f"nic {command}: {' '.join(text.split())}", err=True)
    raise typer.Exit(code)


def print_json(document: Any) -> None:
    """A JSON document on standard output, for machines."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False))


def silence_transformers() -> None:
    """Leave the terminal to what a command has to say."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

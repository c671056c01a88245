"""Check Python and the libraries."""

import platform
import re
from importlib.metadata import PackageNotFoundError, version

from ..evaluation.java_metrics import OLDEST_JAVA, java_version
from .findings import Finding, Status

# Requirements of pyproject.toml: oldest version, and the first that is not supported.
_NEEDED: dict[str, tuple[str, str | None]] = {
    "transformers": ("5.17", "6"),
    "torch": ("2.6", None),
    "tokenizers": ("0.22", None),
    "huggingface_hub": ("1.0", None),
    "safetensors": ("0.6", None),
    "numpy": ("1.26", None),
    "pillow": ("11", None),
}


def check_installation() -> list[Finding]:
    """Check the versions of Python and the libraries, CUDA, and Java for METEOR."""
    return [_libraries(), _cuda(), _java()]


def _libraries() -> Finding:
    found, wrong = [f"Python {platform.python_version()}"], []
    for name, (oldest, first_not) in _NEEDED.items():
        wanted = f"{oldest} or later" + (f", before {first_not}" if first_not else "")
        try:
            installed = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is missing, required {wanted}")
            continue
        found.append(f"{name} {installed}")
        if _numbers(installed) < _numbers(oldest) or (first_not and _numbers(installed) >= _numbers(first_not)):
            wrong.append(f"{name} {installed}, required {wanted}")
    if wrong:
        return Finding("versions", Status.PROBLEM, "; ".join(wrong), "run pip install -U nic_hf in a new environment")
    return Finding("versions", Status.OK, ", ".join(found))


def _numbers(text: str) -> tuple[int, ...]:
    """Parse the release of a version: 2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}))
        return Finding("cuda", Status.OK, f"CUDA {torch.version.cuda}: {names}")
    if torch.version.cuda is not None:
        return Finding(
            "cuda",
            Status.NOTE,
            f"torch is built for CUDA {torch.version.cuda}, but no GPU is available; the CPU is used",
            "if there is a GPU, update its driver (nvidia-smi shows the version)",
        )
    return Finding("cuda", Status.OK, "torch is built for the CPU")


def _java() -> Finding:
    installed = java_version()
    if installed is None:
        message = "no Java, which only METEOR and SPICE need"
        return Finding("java", Status.NOTE, message, "install a Java runtime for these scores")
    if installed < OLDEST_JAVA:
        message = f"Java {installed} is too old for METEOR, which requires {OLDEST_JAVA}"
        return Finding("java", Status.NOTE, message, "install a newer Java runtime")
    return Finding("java", Status.OK, f"Java {installed}")

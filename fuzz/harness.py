"""Shared by the fuzz targets: run Atheris on a function that takes bytes and must not raise."""

import contextlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def instrumented() -> contextlib.AbstractContextManager:
    """Instrument imports for coverage if a target is run as a program."""
    main = getattr(sys.modules["__main__"], "__file__", None) or ""
    if Path(main).parent.resolve() != Path(__file__).parent.resolve():
        return contextlib.nullcontext()
    import atheris

    # Only the readers: their packages import torch, which takes memory and a minute to instrument.
    for package in ("data", "evaluation", "captioning"):
        bare = types.ModuleType(f"nic_hf.{package}")
        bare.__path__ = [str(CORPUS.parents[1] / "src" / "nic_hf" / package)]
        sys.modules[bare.__name__] = bare
    return atheris.instrument_imports(include=["nic_hf", "tarfile", "csv", "gzip"])


def fuzz(check: Callable[[bytes], None]) -> None:
    """Call `check` with inputs that increase coverage, until a libFuzzer limit given on the command line.

    If a folder of inputs is given, new ones are saved there; the corpus in the repository is only read.
    """
    import atheris

    name = Path(sys.argv[0]).stem.removeprefix("fuzz_")
    # Without torch, none of these inputs may need anything near 1 GiB.
    atheris.Setup([sys.argv[0], "-rss_limit_mb=1536", "-timeout=120", *sys.argv[1:], str(CORPUS / name)], check)
    atheris.Fuzz()

"""What the fuzz targets share: Atheris around a function that takes bytes and must not raise."""

import contextlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def instrumented() -> contextlib.AbstractContextManager:
    """Where a target is run as a program, what is imported inside is watched for new branches."""
    main = getattr(sys.modules["__main__"], "__file__", None) or ""
    if Path(main).parent.resolve() != Path(__file__).parent.resolve():
        return contextlib.nullcontext()
    import atheris

    # The readers alone: what their packages offer besides imports torch, which takes memory and a minute to watch.
    for package in ("data", "evaluation", "captioning"):
        bare = types.ModuleType(f"nic_hf.{package}")
        bare.__path__ = [str(CORPUS.parents[1] / "src" / "nic_hf" / package)]
        sys.modules[bare.__name__] = bare
    return atheris.instrument_imports(include=["nic_hf", "tarfile", "csv", "gzip"])


def fuzz(check: Callable[[bytes], None]) -> None:
    """Call `check` with bytes that reach ever more of the code, until a limit on the command line (libFuzzer's).

    A folder of inputs may be named, which takes new ones; those of the repository are only read.
    """
    import atheris

    name = Path(sys.argv[0]).stem.removeprefix("fuzz_")
    # As libFuzzer counts, with torch nowhere imported, 1 GiB is far more than any of these inputs may need.
    atheris.Setup([sys.argv[0], "-rss_limit_mb=1536", "-timeout=120", *sys.argv[1:], str(CORPUS / name)], check)
    atheris.Fuzz()

"""Transformers' own test suites, from its source distribution on the package index; none of it is part of the project.

The distribution of the installed version is downloaded once into the user's cache. It holds the files in `tests/`
itself and no folder below it: what a suite imports from those is replaced by empty classes ([`STAND_INS`]).
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers

PACKAGE = "transformers_tests"  # the name that the suites are imported by; `tests` is this project's own folder

# Names of modules that were asked for and are not in the distribution.
STAND_INS: set[str] = set()


@functools.cache
def upstream_tests() -> Path:
    """The folder `tests` of the installed Transformers' source distribution.

    Raises:
        OSError: where it cannot be downloaded.
    """
    version = transformers.__version__
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "nic_hf_tests"
    folder = cache / f"transformers-{version}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "transformers"]
            command += ["--retries", "1", "--timeout", "20", "-d", temporary, f"transformers=={version}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
                raise OSError(f"the source of Transformers {version} cannot be downloaded: {reason}")
            (archive,) = Path(temporary).glob("transformers-*.tar.gz")
            with tarfile.open(archive) as content:
                members = [member for member in content if "/tests/" in member.name]
                content.extractall(temporary, members, filter="data")
            (Path(temporary) / folder.name / "tests" / "__init__.py").touch()  # a suite reads it; sdists leave it out
            try:
                (Path(temporary) / folder.name).rename(folder)
            except OSError:
                if not folder.is_dir():  # another process may have been first
                    raise
    return folder / "tests"


def import_suite(name: str) -> Any:
    """Import a file of the distribution's tests, such as `"test_modeling_common"`, or skip the module that asks.

    Skips where there is no network, and where a package that the suite needs is not installed.
    """
    try:
        folder = upstream_tests()
    except OSError as error:
        pytest.skip(str(error), allow_module_level=True)
    pytest.importorskip("parameterized")
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
        sys.meta_path.append(_StandIns())  # last: asked only for what is nowhere else
    return importlib.import_module(f"{PACKAGE}.{name}")


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that the suites import and the distribution does not hold: any name in them is an empty class."""

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{PACKAGE}.") and fullname != "fetch_hub_objects_for_ci":
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        STAND_INS.add(module.__name__)
        if module.__name__ == "fetch_hub_objects_for_ci":
            module.url_to_local_path = str  # type: ignore[attr-defined]
        else:
            module.__getattr__ = _empty_class  # type: ignore[method-assign]


def _empty_class(name: str) -> type:
    if name.startswith("__"):  # `__file__` and the like, which tools look for in every module
        raise AttributeError(name)
    return type(name, (), {})

"""A virtual environment with timm and torchvision, over all that is installed in the environment of the tests."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import torch

# On Linux, torchvision of PyPI is built for CUDA: its operators cannot be loaded beside a torch for CPUs, and it is
# imported only if two of them are known by name. No model of timm calls them.
SCHEMAS = '''
import importlib.abc
import sys
from pathlib import Path

DEFINED = []  # a library that is forgotten takes its operators with it


class Schemas(importlib.abc.MetaPathFinder):
    """Defines the operators where torchvision cannot, at its import."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for library in (Path(__file__).parent / "torchvision").glob("_C*.so"):
                try:
                    torch.ops.load_library(str(library))
                except OSError:
                    DEFINED.append(torch.library.Library("torchvision", "DEF"))
                    for operator in ("nms", "qnms"):
                        DEFINED[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


if sys.platform == "linux":
    sys.meta_path.insert(0, Schemas())
'''


def torchvision_version() -> str:
    """The torchvision that was released with the installed torch: 0.28.0 with 2.13.0."""
    major, minor, patch = torch.__version__.partition("+")[0].split(".")[:3]
    assert major == "2", torch.__version__
    return f"0.{int(minor) + 15}.{patch}"


def timm_environment(folder: Path) -> str:
    """Make the environment in `folder`; its Python.

    Raises:
        OSError: where the packages cannot be downloaded.
    """
    venv.create(folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = ["timm", f"torchvision=={torchvision_version()}"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "-q"]
    done = subprocess.run(
        [*pip, "--no-deps", "--retries", "1", "--timeout", "20", *wanted], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise OSError(f"{' and '.join(wanted)} cannot be installed: {reason}")
    own = Path(sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"])
    (own / "torchvision_schemas.py").write_text(SCHEMAS, "utf-8")
    below = sysconfig.get_paths()["purelib"]
    # addsitedir, since a mere path would leave out what lies there as an editable installation.
    lines = ["import torchvision_schemas", f"import site; site.addsitedir({below!r})"]
    (own / "zz_below.pth").write_text("\n".join(lines) + "\n", "utf-8")
    return str(python)

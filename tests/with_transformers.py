"""Runs tests with another Transformers than that of the environment, over all else that is installed there.

    python tests/with_transformers.py oldest [PYTEST ARGUMENTS]
    python tests/with_transformers.py newest [PYTEST ARGUMENTS]
    python tests/with_transformers.py 5.20.0 [PYTEST ARGUMENTS]

`oldest` and `newest` are the ends of the range in pyproject.toml. The version, with the huggingface_hub and tokenizers
that it needs, goes into a virtual environment of its own, `.venv-transformers-VERSION`, which finds everything else in
the environment that this runs in: it takes a minute and not a gigabyte. Without further arguments the tests of what
Transformers may change are run: the core, the doors of the pipeline, decoding, the Hub.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ["tests/core", "tests/decoding", "tests/test_hub.py", "-m", "not slow and not soak"]


def requirement(wanted: str) -> str:
    """What pip is asked for.

    Raises:
        SystemExit: `wanted` is no version, "oldest" or "newest".
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (supported,) = (need for need in project["dependencies"] if need.startswith("transformers"))
    if wanted == "newest":
        return supported
    if wanted == "oldest":
        match = re.fullmatch(r"transformers>=([\d.]+),<\d+", supported)
        assert match is not None, supported
        return f"transformers=={match[1]}.*"
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", wanted):
        raise SystemExit(f"{wanted!r} is no version; give one, or oldest, or newest")
    return f"transformers=={wanted}"


def environment(wanted: str) -> Path:
    """The Python of a virtual environment with that Transformers; made where it is not there."""
    folder = ROOT / f".venv-transformers-{wanted}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    below = sysconfig.get_paths()["purelib"]
    # addsitedir, since a mere path would leave out what lies there as an editable installation.
    line = f"import site; site.addsitedir({below!r})\n"
    (Path(paths["purelib"]) / "zz_below.pth").write_text(line, "utf-8")
    own = [str(python), "-I", "-m", "pip", "install", "-q", "--upgrade", "--upgrade-strategy", "only-if-needed"]
    subprocess.run([*own, requirement(wanted)], check=True)
    return python


def main(wanted: str, *arguments: str) -> int:
    """Run the tests; pytest's exit code."""
    python = str(environment(wanted))
    show = "import transformers, huggingface_hub as hub; print('transformers', transformers.__version__, 'hub', "
    subprocess.run([python, "-c", f"{show}hub.__version__, 'from', transformers.__path__[0], flush=True)"], check=True)
    return subprocess.run([python, "-m", "pytest", *(arguments or TESTS)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) > 1 else __doc__)

"""Arrows point one way, and the core, which travels inside every checkpoint, needs nothing of the rest."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nic_hf

ROOT = Path(__file__).parents[1]
PACKAGE = Path(nic_hf.__file__).parent
CORE = sorted(PACKAGE.glob("*_nic.py"))
ALLOWED = {"torch", "transformers", "numpy", "PIL"} | sys.stdlib_module_names


def imports(file: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    tree = ast.parse(file.read_text("utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def test_the_contracts_of_setup_cfg_are_kept() -> None:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if command is None:
        pytest.skip("lint-imports is not installed: pip install import-linter")
    done = subprocess.run(
        [command, "--config", "setup.cfg", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 broken." in done.stdout


def test_the_contracts_name_every_module() -> None:
    contracts = (ROOT / "setup.cfg").read_text("utf-8")
    own = {"__init__", "__main__", "_version"}
    modules = {path.stem for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")]} - own
    modules |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert [name for name in sorted(modules) if f"nic_hf.{name}" not in contracts] == []


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.stem)
def test_a_core_file_imports_what_every_machine_with_transformers_has(file: Path) -> None:
    found = set()
    for node in imports(file):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif node.level == 0:
            found.add(str(node.module).split(".")[0])
    assert found <= ALLOWED


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.stem)
def test_a_core_file_imports_its_neighbours_the_way_that_transformers_follows(file: Path) -> None:
    # `from .x import y` is copied into a checkpoint with its file; `from . import x` and `from ..x import y` are not.
    for node in imports(file):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, ast.unparse(node)
            assert node.module is not None and "." not in node.module, ast.unparse(node)
            assert PACKAGE / f"{node.module}.py" in CORE, ast.unparse(node)


def test_there_is_a_core_to_check() -> None:
    assert {"configuration_nic", "modeling_nic", "processing_nic", "pipeline_nic"} <= {file.stem for file in CORE}

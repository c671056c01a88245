"""The notebooks run from top to bottom, one after the other in one folder, and say what they promise."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

import nic_hf

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"


def execute(name: str, folder: Path) -> tuple[Any, float]:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    start = time.perf_counter()
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    return client.execute(), time.perf_counter() - start


def printed(notebook: Any) -> str:
    """All text that the cells gave."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("notebooks")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(nic_hf.__file__).parents[1])  # for the kernel
    try:
        done = {}
        for name in ("train.ipynb", "explore.ipynb"):
            done[name], seconds = execute(name, folder)
            print(f"{name}: {seconds:.0f} s")
        return done
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def test_training_learns_what_a_minute_can_teach(notebooks: dict[str, Any]) -> None:
    found = re.search(r"(\d+) of 40 are right", printed(notebooks["train.ipynb"]))
    assert found is not None and int(found[1]) > 0  # no guess is right: there are tens of thousands of captions


def test_the_captioner_that_was_trained_looks_at_the_photos(notebooks: dict[str, Any]) -> None:
    text = printed(notebooks["explore.ipynb"])
    found = re.search(r"(\d+) of 8 captions fit their own photo best", text)
    assert found is not None and int(found[1]) >= 4  # by chance, one
    best = [float(share) for share in re.findall(r"^ *([\d.]+)%  ", text, re.MULTILINE)]
    assert len(best) == 5 and best == sorted(best, reverse=True) and sum(best) <= 100


@pytest.mark.parametrize("name", ["train.ipynb", "explore.ipynb"])
def test_it_is_committed_without_outputs(name: str) -> None:
    document = json.loads((NOTEBOOKS / name).read_text("utf-8"))
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)

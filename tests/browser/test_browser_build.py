"""The page is built as docs/browser.md prints it, with the captioner that comes with the package."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from browser_captioner import caption_of, hosting, open_page, wait_until_ready
from npm_project import SOURCE, run

from nic_hf.captioners import example_photos
from nic_hf.export import NICOnnxCaptioner

ROOT = SOURCE.parents[1]
PAGES = (ROOT / "docs" / "browser.md", SOURCE / "README.md")
ADD = ["scripts/add_captioner.js"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The page's sources as in a clone, without packages and without a captioner."""
    without = shutil.ignore_patterns("node_modules", "dist", "model")
    return shutil.copytree(SOURCE, tmp_path / "clone" / "examples" / "browser", ignore=without)


def printed(page: Path) -> str:
    """The commands of the page's first block, up to those that wait for visitors."""
    block = re.search(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert block is not None
    return "".join(line for line in block[1].splitlines(True) if "preview" not in line)


def test_both_pages_print_the_same_commands() -> None:
    first, second = (re.sub(r" *#.*", "", printed(page)) for page in PAGES)
    assert first == second == "cd examples/browser\nnpm ci\nnpm run build\n"


@pytest.mark.slow
def test_the_printed_commands_give_a_page_that_captions_a_photo_at_once(
    node_modules: Path, browser: Any, copy: Path
) -> None:
    assert node_modules.is_dir(), "npm has the packages"
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run(["bash", "-ec", printed(PAGES[0])], copy.parents[1], PATH=scripts, npm_config_prefer_offline="true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exporting the one that comes with nic_hf" in done.stdout
    captioner = NICOnnxCaptioner.from_pretrained(copy / "dist" / "model")
    with hosting(copy / "dist", {}) as url:
        page = open_page(browser, url)
        wait_until_ready(page)
        photos = example_photos()
        found = [caption_of(page, photo) for photo in photos]
        page.close()
    same = sum(caption == captioner.caption(photo) for caption, photo in zip(found, photos, strict=True))
    assert same >= len(photos) - 1 and len(set(found)) > 3  # a JPEG decoder may differ by a level


def test_without_nic_one_line_says_what_to_do(copy: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    nowhere = {"PATH": str(tmp_path), "NIC_HF_PYTHON": ""}
    for environment in (nowhere, {**nowhere, "NIC_HF_PYTHON": str(tmp_path / "python")}):
        done = run([node, *ADD], copy, **environment)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            'nic_hf is not found: pip install "nic_hf[onnx]", or set NIC_HF_PYTHON to the Python that has it'
        ]
    assert not (copy / "public" / "model").exists()


def test_the_exit_code_of_a_failed_export_ends_the_build(copy: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs Node.js")
    (copy / "public" / "model").write_text("a file, so that there can be no folder")
    done = run(["node", *ADD], copy, NIC_HF_PYTHON=sys.executable)
    assert done.returncode == 2
    assert done.stderr.startswith("nic export onnx: ") and "public/model" in done.stderr


def test_a_captioner_that_is_there_is_kept(copy: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    (copy / "public" / "model").mkdir()
    (copy / "public" / "model" / "nic_onnx.json").write_text("{}")
    done = run([node, *ADD], copy, PATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

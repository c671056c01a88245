"""examples/browser built with its packages, a captioner for it, and a real browser."""

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from npm_project import SOURCE, run
from one_thread import one_thread as one_thread
from tiny import save_tiny_photos, tiny_model, tiny_processor

from nic_hf.export import NICOnnxCaptioner, export_onnx

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))  # tests drive the page as the benchmark does
PACKAGES = ("package.json", "package-lock.json", ".npmrc")
NOT_SOURCE = shutil.ignore_patterns("node_modules", "dist", "model")
OLDEST_NODE = (20, 19)
NO_NETWORK = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET")


@pytest.fixture(scope="session")
def node_modules(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's packages, installed once and kept in pytest's cache."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm")
    version = run(["node", "--version"], ROOT).stdout.strip()
    if tuple(map(int, version.lstrip("v").split(".")[:2])) < OLDEST_NODE:
        pytest.skip(f"needs Node.js {'.'.join(map(str, OLDEST_NODE))} or newer, found {version}")
    cache = getattr(pytestconfig, "cache", None)  # there is none with -p no:cacheprovider
    folder = cache.mkdir("browser") if cache else tmp_path_factory.mktemp("packages")
    wanted = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in PACKAGES)).hexdigest() + version
    stamp = folder / "installed"
    with FileLock(folder / "lock"):
        if not stamp.is_file() or stamp.read_text("utf-8") != wanted:
            stamp.unlink(missing_ok=True)
            for name in PACKAGES:
                shutil.copyfile(SOURCE / name, folder / name)
            done = run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"], folder)
            if done.returncode and NO_NETWORK.search(done.stderr):
                pytest.skip(f"npm cannot reach its registry: {done.stderr.strip().splitlines()[0]}")
            assert done.returncode == 0, done.stderr
            stamp.write_text(wanted, "utf-8")
    return folder / "node_modules"


@pytest.fixture(scope="session")
def project(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/browser in which npm's commands work."""
    folder = shutil.copytree(SOURCE, tmp_path_factory.mktemp("browser") / "page", ignore=NOT_SOURCE)
    (folder / "node_modules").symlink_to(node_modules, target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def site(project: Path) -> Path:
    """The built page, without a captioner."""
    done = run(["npx", "--no-install", "vite", "build"], project)
    assert done.returncode == 0, done.stderr
    return project / "dist"


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> NICOnnxCaptioner:
    """A tiny captioner with attention in 8 bits."""
    folder = tmp_path_factory.mktemp("captioner") / "int8"
    model = tiny_model(attention="soft")
    model.generation_config.num_beams = 3
    return export_onnx(model, folder, processor=tiny_processor(), int8=True)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six photos whose captions differ."""
    return save_tiny_photos(tmp_path_factory.mktemp("photos"))


# Two drivers in one process do not work, and the app's tests have another one: close it after each module.
@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive a browser")
    from browser_captioner import CHROMIUM

    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="module")
def browser(driver: Any) -> Iterator[Any]:
    from browser_captioner import ARGUMENTS, CHROMIUM

    browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
    yield browser
    browser.close()

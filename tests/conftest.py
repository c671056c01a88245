"""Fixtures shared by all tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read when huggingface_hub is imported. No test needs a network; one that names a repository which is not there would
# wait half a minute for it. Tests with a Hub server of their own take it back in the processes that they start.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-scale", type=float, default=1.0, help="share of the full size of tests marked soak")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the notebooks, which take minutes: at the end one process would run them and the other wait."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(scope="session")
def soak_scale(request: pytest.FixtureRequest) -> float:
    """Share of their full size that tests marked `soak` are to run at."""
    return request.config.getoption("--soak-scale")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data that NIC_HF_TEST_DATA names."""
    folder = os.environ.get("NIC_HF_TEST_DATA")
    if not folder:
        pytest.skip("NIC_HF_TEST_DATA is unset: it names the folder of real test data")
    return Path(folder).resolve(strict=True)


@pytest.fixture(scope="session")
def flickr8k(test_data: Path) -> Path:
    """The folder of Flickr8k: captions.txt, split lists, Images/."""
    return test_data / "flickr8k"


@pytest.fixture(autouse=True)
def _transformers_may_be_heard() -> Iterator[None]:
    """Commands silence Transformers; tests that follow in the same process listen to its warnings."""
    yield
    if "transformers.utils.logging" in sys.modules:
        sys.modules["transformers.utils.logging"].set_verbosity_warning()

"""The pipeline's doors on the oldest Transformers that is supported; the newest is what the other tests run on."""

import re
import subprocess
import sys

import pytest
from with_transformers import ROOT, requirement

PIPELINE = ["tests/core/test_pipeline.py", "tests/core/test_without_package.py", "-q", "-p", "no:cacheprovider"]


@pytest.mark.slow
def test_all_doors_of_the_pipeline_open_on_the_oldest_transformers() -> None:
    command = [sys.executable, "tests/with_transformers.py", "oldest", *PIPELINE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.startswith(f"transformers {requirement('oldest')[len('transformers==') : -1]}"), done.stdout
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed is not None and int(passed[1]) > 30, done.stdout


def test_what_may_be_asked_for() -> None:
    assert requirement("oldest") == "transformers==5.17.*"
    assert requirement("newest") == "transformers>=5.17,<6"
    assert requirement("5.20.0") == "transformers==5.20.0"
    with pytest.raises(SystemExit, match="'latest' is no version"):
        requirement("latest")

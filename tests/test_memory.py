"""Memory that is freed and taken again is not asked of the system each time."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import nic_hf

CHILD = """
import resource, sys
import torch
from nic_hf.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25_000_000)  # 100 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_pages_are_kept() -> None:
    faults = {}
    for way in ("default", "keep"):
        command = [sys.executable, "-c", CHILD, way]
        environment = {"PYTHONPATH": str(Path(nic_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        faults[way] = int(done.stdout)
    assert faults["keep"] < faults["default"] / 5

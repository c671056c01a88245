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
layers = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))).requires_grad_(False)
batch = torch.ones(8, 8, 224, 224)  # 13 MB
layers(batch), layers(batch)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    layers(batch)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_pages_are_kept() -> None:
    faults = {}
    for way in ("default", "keep"):
        command = [sys.executable, "-c", CHILD, way]
        environment = {"PYTHONPATH": str(Path(nic_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        faults[way] = int(done.stdout)
    assert faults["keep"] < faults["default"] / 5, faults

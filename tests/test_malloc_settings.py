"""Memory that is freed and taken again is not asked of the system each time."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import nic_hf

CHILD = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from nic_hf.malloc_settings import keep_freed_memory
if sys.argv[1].startswith("keep"):
    assert keep_freed_memory()
if sys.argv[1] == "optimize":
    from nic_hf import NICForConditionalGeneration
    from nic_hf.captioners import captioner_path
    NICForConditionalGeneration.from_pretrained(captioner_path(None)).optimize_for_inference()
layers = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))).requires_grad_(False)
batch = torch.ones(24, 8, 224, 224)  # 39 MB: of less than 32 MiB it depends on the heap's layout what glibc does

def faults():
    layers(batch), layers(batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        layers(batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(ThreadPoolExecutor(1).submit(faults).result() if sys.argv[1].endswith("thread") else faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_pages_are_kept() -> None:
    faults = {}
    for way in ("default", "keep", "keep, in a thread", "optimize"):
        command = [sys.executable, "-c", CHILD, way]
        environment = {"PYTHONPATH": str(Path(nic_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        faults[way] = int(done.stdout)
    kept = [number for way, number in faults.items() if way != "default"]
    assert max(kept) < faults["default"] / 5, faults


STEPS = """
import resource, time
import torch
from nic_hf import malloc_settings
malloc_settings._SECONDS = 0.05
assert malloc_settings.keep_freed_memory(limit=32 << 20)

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon:")) / 1024

def step():
    tensors = [torch.ones(1 << 20) for _ in range(40)]  # 160 MiB
    time.sleep(0.04)
    del tensors
    time.sleep(0.04)

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(25):
    step()
taken = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = resident()
time.sleep(2)
print(taken / 25, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_what_each_step_takes_again_is_left_alone_and_what_lies_idle_is_given_back() -> None:
    environment = {"PYTHONPATH": str(Path(nic_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    faults, kept, left = map(float, done.stdout.split())
    assert faults < 4000, "a tenth of the 40,960 pages of a step"
    assert left < kept - 100, f"{kept} MiB after the last step, {left} MiB after two seconds"

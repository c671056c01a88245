"""FSDP2: two processes that share the weights train as one that has them whole."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import tiny_pixels
from two_processes import TORCHRUN

import nic_hf
from nic_hf import NICForConditionalGeneration

SCRIPT = Path(__file__).parent / "sharded.py"


@pytest.mark.parametrize("attention", ["none", "soft"])
def test_two_processes_that_share_weights_train_as_one(attention: str, tmp_path: Path) -> None:
    paths = [str(Path(nic_hf.__file__).parents[1]), str(SCRIPT.parents[1])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [*TORCHRUN, str(SCRIPT), str(tmp_path / "saved"), attention]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert torch.isfinite(loaded.generate(pixel_values=tiny_pixels(2), max_new_tokens=4).float()).all()

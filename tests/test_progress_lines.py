"""Where standard error is no terminal, long work says a line now and then, and there are no bars."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_tiny_data

import nic_hf

# What a command does first, then work of so many steps.
WORK = """
import sys, time
from nic_hf.cli.terminal import keep_bars_off_files
keep_bars_off_files()
from nic_hf.progress_bar import progress_bar
with progress_bar(total={steps} if {known} else None, unit="photo", desc="Encoding photos", hidden={hidden}) as bar:
    for _ in range({steps}):
        time.sleep({seconds})
        bar.update(1)
        bar.set_postfix_str("of work")
"""


def stderr_of(code: str, **environment: str) -> str:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("TQDM_", "NIC_HF_PROGRESS"))}
    given |= {"PYTHONPATH": str(Path(nic_hf.__file__).parents[1]), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    return done.stderr


def work(steps: int = 20, seconds: float = 0.1, known: bool = True, hidden: bool = False) -> str:
    return WORK.format(steps=steps, seconds=seconds, known=known, hidden=hidden)


def test_a_line_every_half_minute() -> None:
    """At the pace of a second a step, one line in 35 seconds."""
    lines = stderr_of(work(35, 1.0)).splitlines()
    assert len(lines) == 1 and re.fullmatch(r"Encoding photos: (29|30) of 35, 00:0\d left", lines[0]), lines


@pytest.mark.parametrize("known", [True, False], ids=["total", "no total"])
def test_lines_at_another_interval(known: bool) -> None:
    text = stderr_of(work(known=known), NIC_HF_PROGRESS_SECONDS="0.5")
    pattern = r"Encoding photos: \d+ of 20, 00:\d\d left" if known else r"Encoding photos: \d+ in 00:\d\d"
    lines = text.splitlines()
    assert 1 <= len(lines) <= 4 and all(re.fullmatch(pattern, line) for line in lines), lines
    assert "\r" not in text


def test_who_wants_no_progress_gets_none() -> None:
    assert stderr_of(work(), NIC_HF_PROGRESS_SECONDS="0") == ""
    assert stderr_of(work(), TQDM_DISABLE="1") == ""
    assert stderr_of(work(hidden=True), NIC_HF_PROGRESS_SECONDS="0.2") == ""
    assert stderr_of(work(seconds=0.0)) == "", "short work says nothing"


def test_an_interval_that_is_no_number_is_named() -> None:
    with pytest.raises(AssertionError, match="NIC_HF_PROGRESS_SECONDS is 'often'; it must be a number of seconds"):
        stderr_of(work(), NIC_HF_PROGRESS_SECONDS="often")


def test_training_says_how_far_it_is(tmp_path: Path) -> None:
    """Each part of a run, at an interval so short that each step is worth a line."""
    save_tiny_data(tmp_path)
    (tmp_path / "recipe.yaml").write_text("stages: {frozen: {}}\n", "utf-8")
    command = [sys.executable, "-m", "nic_hf", "train", "--recipe", "recipe.yaml", "--data", "pets"]
    command += ["--backbone", "backbone", "--output_dir", "run", "--num_train_epochs", "2", "--logging_steps", "1000"]
    command += ["--hidden_size", "8", "--embedding_size", "8", "--min_frequency", "1", "--num_sample_photos", "2"]
    command += ["--use_cpu", "true", "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    environment |= {"PYTHONPATH": str(Path(nic_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment |= {"NIC_HF_CACHE": str(tmp_path / "cache"), "NIC_HF_PROGRESS_SECONDS": "0.0001"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search(r"\r|\x1b|^$", done.stderr.strip(), re.MULTILINE), (
        "nothing that moves a cursor, no empty line"
    )
    for pattern in (
        r"Encoding photos: 4 of 4, 00:00 left",
        r"step 1 of 4, epoch 0\.50: training; \d\d:\d\d left",
        r"step 3 of 4, epoch 1\.50: training; \d\d:\d\d left",
        r"Evaluating: 2 of 4, \d\d:\d\d left",
        r"Captioning: 2 of 4, \d\d:\d\d left",
    ):
        assert re.search(rf"^{pattern}$", done.stderr, re.MULTILINE), done.stderr

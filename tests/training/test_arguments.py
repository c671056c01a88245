"""Defaults that suit a small captioner."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, IntervalStrategy
from two_processes import TORCHRUN

import nic_hf
from nic_hf.training import CaptioningTrainingArguments
from nic_hf.training.recipes import load_recipe, resolve


def test_the_recipe_is_the_default_and_every_field_can_be_given(tmp_path: Path) -> None:
    parser = HfArgumentParser(CaptioningTrainingArguments)
    (default,) = parser.parse_args_into_dataclasses([])
    assert (default.num_train_epochs, default.per_device_train_batch_size, default.learning_rate) == (16, 64, 7e-4)
    (given,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--adam_beta2", "0.9"])
    assert (given.output_dir, given.adam_beta2, given.num_train_epochs) == (str(tmp_path), 0.9, 16)


def test_a_writable_output_directory_is_left_as_it_is(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "a" / "b"):
        CaptioningTrainingArguments(output_dir=str(folder)).check_paths()
    assert list(tmp_path.iterdir()) == []


def test_an_output_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", "utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=f"cannot write to {folder}: .*file is a file"):
            CaptioningTrainingArguments(output_dir=str(folder)).check_paths()


def test_a_checkpoint_to_resume_from_that_is_not_there_is_named(tmp_path: Path) -> None:
    arguments = CaptioningTrainingArguments(
        output_dir=str(tmp_path), resume_from_checkpoint=str(tmp_path / "checkpoint-5")
    )
    with pytest.raises(FileNotFoundError, match=r"checkpoint-5: no such checkpoint"):
        arguments.check_paths()


@pytest.mark.parametrize("name", ["eval_strategy", "save_strategy"])
@pytest.mark.parametrize("no", ["no", IntervalStrategy.NO, False])
def test_without_evaluations_or_checkpoints_the_last_weights_are_kept_and_a_line_says_so(
    name: str, no: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = CaptioningTrainingArguments(output_dir=str(tmp_path), **{name: no})
    assert getattr(arguments, name) == "no" and not arguments.load_best_model_at_end
    assert [record.message for record in caplog.records] == [
        f"{name} is no: training ends with the last weights (load_best_model_at_end is off)"
    ]
    caplog.clear()
    CaptioningTrainingArguments(output_dir=str(tmp_path), load_best_model_at_end=False, **{name: no})
    assert caplog.records == []
    assert CaptioningTrainingArguments(output_dir=str(tmp_path)).load_best_model_at_end


def test_a_recipe_in_yaml_may_say_no_without_quotes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("eval_strategy: no\nstages: {frozen: {backbone: b, data: d}}\n", "utf-8")
    (stage,) = resolve(load_recipe(tmp_path / "recipe.yaml"))
    assert stage.args.eval_strategy == "no" and not stage.args.load_best_model_at_end


def test_early_stopping_needs_evaluations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early_stopping_patience needs evaluations: set eval_strategy"):
        CaptioningTrainingArguments(output_dir=str(tmp_path), eval_strategy="no", early_stopping_patience=2)


PROCESSES = """
import sys
import torch
from nic_hf.training import CaptioningTrainingArguments

if sys.argv[1] == "like a Mac":  # which has an accelerator that Accelerate cannot distribute
    torch.accelerator.is_available = lambda: True
try:
    arguments = CaptioningTrainingArguments(output_dir=sys.argv[2], report_to="none")
    place = f"process {arguments.process_index} of {arguments.world_size}"
    print(f"{place} on {arguments.device.type}\\n", end="", flush=True)
except ValueError as error:
    print(f"{error}\\n", end="", flush=True)
"""


@pytest.mark.parametrize("machine", ["without an accelerator", "like a Mac"])
def test_processes_that_torchrun_starts_train_together_or_not_at_all(machine: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PROCESSES, encoding="utf-8")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(nic_hf.__file__).parents[1])
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "script.py"), machine, str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = sorted(done.stdout.splitlines())
    if machine == "like a Mac":
        assert len(lines) == 2 and all(
            "2 processes were started, and each would train alone" in line for line in lines
        )
    else:
        assert lines == ["process 0 of 2 on cpu", "process 1 of 2 on cpu"]

"""`examples/train_self_critical.py`, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

from workshop import Workshop

from nic_hf import NICForConditionalGeneration

SCRIPT = Path(__file__).parents[2] / "examples" / "train_self_critical.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_it_trains_a_checkpoint_further(workshop: Workshop, subset: Path, tmp_path: Path) -> None:
    start = workshop.trainer(tmp_path / "start", num_train_epochs=20)
    start.train()
    start.save_model()
    arguments = ["--checkpoint", tmp_path / "start", "--data", subset, "--output_dir", tmp_path / "out"]
    arguments += ["--cache_dir", workshop.folder / "features", "--num_train_epochs", 2, "--logging_steps", 1]
    done = run(*arguments, "--report_to", "none", "--ema_decay", 0.9, "--per_device_train_batch_size", 8)
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert len([line for line in state["log_history"] if "reward" in line]) == 4
    assert "eval_cider" in json.loads((tmp_path / "out" / "eval_results.json").read_text())
    trained = NICForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert not trained.lm_head.weight.equal(start.model.lm_head.weight)
    assert len(list((tmp_path / "out" / "samples").glob("*.png"))) >= 2


def test_a_checkpoint_that_is_not_there_is_one_clear_line(subset: Path, tmp_path: Path) -> None:
    done = run("--checkpoint", tmp_path / "none", "--data", subset, "--output_dir", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "none" in done.stderr
    assert "Traceback" not in done.stderr

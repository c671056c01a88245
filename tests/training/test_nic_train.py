"""`nic train`, in processes of its own, on real photos with a real backbone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from subset import real_backbone
from tiny import save_tiny_data
from two_processes import TORCHRUN
from typer.testing import CliRunner

import nic_hf
from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.cli import app
from nic_hf.training.checkpoint_integrity import last_checkpoint

TRAINABLE = "layer.2[0-9]"
SMALL = {
    "max_train_photos": 8,
    "min_frequency": 1,
    "hidden_size": 16,
    "embedding_size": 16,
    "num_sample_photos": 2,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": "true",
    "report_to": "none",
    "views": 2,
    "finetune.trainable_backbone": TRAINABLE,
    "finetune.backbone_learning_rate": 1e-3,
}


def nic_train(subset: Path, backbone: Path, output: Path, *more: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "HF_HOME": str(output.parent / "hf"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(nic_hf.__file__).parents[1]),
    }
    command = [sys.executable, "-m", "nic_hf", "train", "--output_dir", str(output), "--data", str(subset), *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def flags() -> list[str]:
    return [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def finetuned(test_data: Path, subset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in two stages."""
    output = tmp_path_factory.mktemp("nic train") / "run"
    backbone = real_backbone(test_data)
    done = nic_train(subset, backbone, output, "--recipe", "finetune", "--backbone", str(backbone), *flags())
    assert done.returncode == 0, done.stderr[-3000:]
    # Standard output is the result alone; standard error, which is no terminal here, has lines and no bars.
    assert re.fullmatch(r".*run: BLEU-4 [\d.]+ %, CIDEr-D [\d.]+ % \(validation\)\n", done.stdout), done.stdout
    assert not re.search(r"\r|it/s|photo/s|\d%\|", done.stderr), done.stderr
    line = r"^step [\d,]+ of [\d,]+, epoch 1.00: eval_loss [\d.]+, .*; \d\d:\d\d left$"
    assert re.search(line, done.stderr, re.MULTILINE), done.stderr
    # Scores are printed in percent, and kept as fractions.
    shown = float(re.findall(r"eval_bleu_4 ([\d.]+) %, eval_cider [\d.]+ %", done.stderr)[-1])
    history = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
    kept = [line["eval_bleu_4"] for line in history if "eval_bleu_4" in line]
    assert shown == pytest.approx(100 * kept[-1], abs=0.01)
    return output


def test_trainers_settings_of_the_cache_are_not_those_of_the_captioner(finetuned: Path) -> None:
    for folder in (finetuned, finetuned / "2-finetune"):
        assert json.loads((folder / "config.json").read_text("utf-8"))["use_cache"] is True


def backbone_of(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}


def test_the_second_stage_trains_the_weights_asked_for_and_nothing_else_of_the_backbone(finetuned: Path) -> None:
    before, after = backbone_of(finetuned / "1-frozen"), backbone_of(finetuned / "2-finetune")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {n for n in before if any(f"layer.2{d}." in n for d in range(10)) and n.endswith(("weight", "bias"))}
    assert changed and changed <= wanted
    assert len(changed) > len(wanted) / 2
    assert not [name for name in changed if "running" in name or "num_batches" in name]


def test_the_first_stage_leaves_the_backbone_as_it_came(finetuned: Path, test_data: Path) -> None:
    original = load_file(real_backbone(test_data) / "model.safetensors")
    for name, tensor in backbone_of(finetuned / "1-frozen").items():
        own = name.removeprefix("encoder.backbone.")
        origin = next((t for n, t in original.items() if n.endswith(own)), None)
        assert origin is not None and torch.equal(tensor, origin), name


def test_the_run_folder_holds_the_last_stage_and_its_recipe(finetuned: Path, flickr8k: Path) -> None:
    last = load_file(finetuned / "2-finetune" / "model.safetensors")
    final = load_file(finetuned / "model.safetensors")
    assert all(torch.equal(last[name], final[name]) for name in last)
    model = NICForConditionalGeneration.from_pretrained(finetuned)
    processor = NICProcessor.from_pretrained(finetuned)
    assert model.config.feature_layers == "all" and processor.tokenizer.eos_token_id == 2
    for folder in (finetuned, finetuned / "1-frozen", *finetuned.glob("*/checkpoint-*")):
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
        assert list(recipe["stages"]) == ["frozen", "finetune"]
        assert recipe["stages"]["finetune"]["trainable_backbone"] == TRAINABLE
        assert recipe["versions"]["nic_hf"] == nic_hf.__version__


def test_the_saved_recipe_trains_the_same_weights(finetuned: Path, subset: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    done = nic_train(subset, Path(), again, "--recipe", str(finetuned / "recipe.yaml"))
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = load_file(finetuned / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resuming_repeats_no_finished_stage(finetuned: Path, subset: Path, test_data: Path, tmp_path: Path) -> None:
    """The second stage's end is taken away: it alone is run again, to the same weights."""
    final = load_file(finetuned / "model.safetensors")
    stamp = (finetuned / "1-frozen" / "model.safetensors").stat().st_mtime_ns
    (finetuned / "2-finetune" / "finished.json").unlink()
    backbone = ["--backbone", str(real_backbone(test_data))]
    same = [
        "train",
        "--recipe",
        "finetune",
        "--output_dir",
        str(finetuned),
        "--data",
        str(subset),
        *backbone,
        *flags(),
    ]
    refused = CliRunner().invoke(app, same)
    assert refused.exit_code == 2 and "--resume" in refused.stderr
    refused = CliRunner().invoke(app, [*same, "--frozen.dropout", "0.1", "--resume"])
    assert refused.exit_code == 2 and "dropout: 0.5, now 0.1" in refused.stderr
    done = nic_train(subset, Path(), finetuned, "--recipe", "finetune", *backbone, *flags(), "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (finetuned / "1-frozen" / "model.safetensors").stat().st_mtime_ns == stamp
    resumed = load_file(finetuned / "model.safetensors")
    assert all(torch.equal(final[name], resumed[name]) for name in final)


def test_self_critical_training_starts_from_a_checkpoint(finetuned: Path, subset: Path, tmp_path: Path) -> None:
    """The captioner said so little of use after some steps that rewards may all be 0; the stage runs all the same."""
    small = [text for text in flags() if "finetune" not in text]
    small = [*small[: small.index("--views")], "--self-critical.num_train_epochs", "1"]
    start = ["--recipe", "self-critical", "--from_checkpoint", str(finetuned / "1-frozen"), *small]
    done = nic_train(subset, Path(), tmp_path / "better", *start)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "better").glob("?-*")] == ["1-self-critical"]


def test_help_and_show() -> None:
    done = CliRunner().invoke(app, ["train", "--help"])
    assert done.exit_code == 0 and "--finetune.learning_rate" in done.output
    shown = CliRunner().invoke(
        app, ["train", "--recipe", "paper", "--data", "d", "--backbone", "b", "--dropout", "0.25", "--show"]
    )
    assert shown.exit_code == 0 and yaml.safe_load(shown.output)["frozen"]["dropout"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "best"], "no such recipe"),
        (["--learning_rat", "1"], "did you mean 'learning_rate'"),
        (["0.1"], "settings have the form --name value"),
        ([], "--backbone, a pretrained vision model"),
        (["--data", "nowhere", "--backbone", "b"], "nowhere"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "--output_dir", str(tmp_path / "run"), *arguments])
    assert done.exit_code == 2
    assert message in done.stderr and done.stderr.startswith("nic train: ") and done.stderr.count("\n") == 1


def test_a_mistake_does_not_take_the_folder(subset: Path, test_data: Path, tmp_path: Path) -> None:
    """The same command with the right backbone begins, without --resume and with nothing to clear away first."""
    command = ["train", "--recipe", "finetune", "--output_dir", str(tmp_path / "run"), "--data", str(subset), *flags()]
    for _ in range(2):
        done = CliRunner().invoke(app, [*command, "--backbone", str(tmp_path / "nowhere")])
        assert done.exit_code == 2 and "nowhere: no such folder" in done.stderr, done.stderr
        assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_begin_leaves_nothing(subset: Path, tmp_path: Path) -> None:
    """The folder of the backbone is there, but holds no model, which is seen when the photos have been loaded."""
    (tmp_path / "backbone").mkdir()
    command = ["train", "--recipe", "finetune", "--output_dir", str(tmp_path / "run"), "--data", str(subset), *flags()]
    done = CliRunner().invoke(app, [*command, "--backbone", str(tmp_path / "backbone")])
    assert done.exit_code == 2 and done.stderr.startswith("nic train: "), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_is_a_line_and_the_run_can_go_on(subset: Path, test_data: Path, tmp_path: Path) -> None:
    arguments = ["--recipe", "finetune", "--data", str(subset), "--backbone", str(real_backbone(test_data)), *flags()]
    arguments += [
        "--num_train_epochs",
        "500",
        "--eval_strategy",
        "no",
        "--save_strategy",
        "steps",
        "--save_steps",
        "5",
    ]
    command = [sys.executable, "-m", "nic_hf", "train", "--output_dir", str(tmp_path / "run"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(nic_hf.__file__).parents[1])}
    process = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in a shell's background, Ctrl-C is ignored, and would be here too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/1-frozen/checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    last = "nic train: stopped; add --resume to the command to continue from the last checkpoint"
    assert err.splitlines()[-1] == last and "Traceback" not in err
    whole = last_checkpoint(tmp_path / "run" / "1-frozen")  # the newest may have been at its beginning
    assert whole is not None
    NICForConditionalGeneration.from_pretrained(whole)


WATCHED = """
import os
real = os.replace
def replace(source, target):
    with open("renamed.txt", "a") as file:
        file.write(f"{os.environ['RANK']} {target}\\n")
    real(source, target)
os.replace = replace
from nic_hf.cli import app
app()
"""


def test_of_several_processes_one_alone_writes_the_files_of_the_run(tmp_path: Path) -> None:
    save_tiny_data(tmp_path)
    (tmp_path / "recipe.yaml").write_text("stages: {frozen: {}}\n", "utf-8")
    (tmp_path / "watched.py").write_text(WATCHED, "utf-8")
    command = [*TORCHRUN, "watched.py"]
    command += ["train", "--recipe", "recipe.yaml", "--data", "pets", "--backbone", "backbone", "--output_dir", "run"]
    settings = "hidden_size 8 embedding_size 8 min_frequency 1 max_steps 1 num_sample_photos 2 use_cpu true"
    words = settings.split()
    command += [word for name, value in zip(words[::2], words[1::2], strict=True) for word in (f"--{name}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(nic_hf.__file__).parents[1])}
    environment["NIC_HF_CACHE"] = str(tmp_path / "features")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    renamed = [line.split(" ", 1) for line in (tmp_path / "renamed.txt").read_text("utf-8").splitlines()]
    of_the_run = [(rank, Path(target)) for rank, target in renamed if Path(target).parts[0] == "run"]
    assert {rank for rank, _ in of_the_run} == {"0"}
    written = {path.relative_to("run").as_posix() for _, path in of_the_run}
    assert {"recipe.yaml", "1-frozen/recipe.yaml", "1-frozen/finished.json", "README.md"} <= written

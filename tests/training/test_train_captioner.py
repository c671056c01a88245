"""examples/train_captioner.py: from flags or a file of options, by one process or two, and on bad input."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from subset import real_backbone
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from two_processes import TORCHRUN

import nic_hf

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_captioner.py"
PHOTOS = {"train": 8, "dev": 5, "test": 3}  # 40 captions: five batches of eight, none of them short


def environment(folder: Path) -> dict[str, str]:
    source = str(Path(nic_hf.__file__).parents[1])
    return {**os.environ, "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1", "PYTHONPATH": source}


def options(test_data: Path, subset: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": str(subset),
        "backbone": str(real_backbone(test_data)),
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "features"),
        "max_train_photos": PHOTOS["train"],
        "predict_split": "test",
        "min_frequency": 1,
        "hidden_size": 16,
        "embedding_size": 16,
        "dropout": 0.0,
        "num_beams": 2,
        "num_sample_photos": 2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "seed": 3,
        "use_cpu": True,
        "report_to": "none",
        **changes,
    }


def flags(values: dict[str, Any]) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def one_process(test_data: Path, subset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output directory of a run by one process, told by flags."""
    folder = tmp_path_factory.mktemp("one")
    command = [sys.executable, str(EXAMPLE), *flags(options(test_data, subset, folder))]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


@pytest.fixture(scope="module")
def two_processes(test_data: Path, subset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output directory of the same run by two processes, told by a JSON file."""
    folder = tmp_path_factory.mktemp("two")
    settings = options(test_data, subset, folder, per_device_train_batch_size=4, per_device_eval_batch_size=2)
    (folder / "options.json").write_text(json.dumps(settings), "utf-8")
    command = [*TORCHRUN, str(EXAMPLE), str(folder / "options.json")]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_a_run_leaves_everything_that_it_promises(one_process: Path, subset: Path) -> None:
    files = {path.name for path in one_process.iterdir()}
    assert files >= {
        "model.safetensors",
        "tokenizer.json",
        "processor_config.json",
        "generation_config.json",
        "modeling_nic.py",
        "all_results.json",
        "samples",
        "predictions_test.json",
    }
    results = json.loads((one_process / "all_results.json").read_text("utf-8"))
    assert {"train_loss", "eval_loss", "eval_bleu_4", "eval_distinct", "eval_words"} <= results.keys()
    predictions = json.loads((one_process / "predictions_test.json").read_text("utf-8"))
    assert sorted(predictions) == sorted((subset / "Flickr_8k.testImages.txt").read_text("utf-8").split())
    generation = json.loads((one_process / "generation_config.json").read_text("utf-8"))
    assert generation["num_beams"] == 2
    samples = (one_process / "samples" / "captions.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in samples] == [5, 10, 10]


def test_the_output_directory_and_its_checkpoint_load_and_caption(one_process: Path, subset: Path) -> None:
    predictions = json.loads((one_process / "predictions_test.json").read_text("utf-8"))
    (checkpoint,) = one_process.glob("checkpoint-10")
    for folder in (one_process, checkpoint):
        model = AutoModelForImageTextToText.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
        captioner = pipeline("image-captioning", model=model, processor=processor)
        answers = captioner([str(subset / "Images" / name) for name in predictions])
        assert [answer[0]["generated_text"] for answer in answers] == list(predictions.values())


def test_two_processes_train_the_weights_of_one(one_process: Path, two_processes: Path) -> None:
    one, two = (load_file(folder / "model.safetensors") for folder in (one_process, two_processes))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_two_processes_count_each_caption_and_photo_once(one_process: Path, two_processes: Path) -> None:
    one, two = (
        json.loads((folder / "eval_results.json").read_text("utf-8")) for folder in (one_process, two_processes)
    )
    # 25 captions in batches of 2 x 2 and 5 photos for 2 processes: neither comes out even.
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)
    for name in ("eval_bleu_4", "eval_distinct", "eval_words"):
        assert two[name] == pytest.approx(one[name])
    one, two = (
        json.loads((folder / "predictions_test.json").read_text("utf-8")) for folder in (one_process, two_processes)
    )
    assert list(two.items()) == list(one.items()) and len(one) == PHOTOS["test"]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Any:
    """Run the example in this process with some arguments; gives its exit code, output and last line of errors."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        output, errors = capfd.readouterr()
        assert "Traceback" not in errors
        return caught.value.code, output, errors.strip().splitlines()[-1] if errors.strip() else ""

    return run


def test_help_lists_the_options(run_example: Any) -> None:
    code, output, _ = run_example("--help_all")
    assert code == 0
    for option in (
        "--data",
        "--backbone",
        "--squeeze",
        "--word_vectors",
        "--learning_rate",
        "--resume_from_checkpoint",
    ):
        assert option in output
    assert "torchrun --nproc_per_node 2" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_split": "holdout"}, "no split 'holdout'"),
        ({"data": "/nowhere/flickr8k"}, "/nowhere/flickr8k: no such file or folder"),
        ({"backbone": "/nowhere/backbone"}, "/nowhere/backbone"),
        ({"min_frequency": 100_000}, "no word occurs 100000 times"),
        ({"max_train_photos": 0}, "no captions"),
        ({"on_error": "ignore"}, "invalid choice: 'ignore'"),
        ({"word_vectors": "/nowhere/glove.txt"}, "/nowhere/glove.txt"),
        ({"max_caption_length": 1}, "max_caption_length must be at least 2"),
        ({"resume_from_checkpoint": "/nowhere/checkpoint-5"}, "/nowhere/checkpoint-5"),
        ({"learning_speed": 1}, "--learning_speed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_clear_line(
    changes: dict[str, Any], message: str, test_data: Path, subset: Path, tmp_path: Path, run_example: Any
) -> None:
    code, _, error = run_example(*flags(options(test_data, subset, tmp_path, **changes)))
    assert code == 2
    assert error.removeprefix("train_captioner.py: ").startswith("error: ") and message in error


def test_an_output_directory_is_checked_before_any_work(
    test_data: Path, subset: Path, tmp_path: Path, run_example: Any
) -> None:
    (tmp_path / "file").write_text("not a folder", "utf-8")
    changes = {"output_dir": str(tmp_path / "file" / "run"), "data": "/nowhere", "backbone": "/nowhere"}
    code, _, error = run_example(*flags(options(test_data, subset, tmp_path, **changes)))
    assert code == 2
    assert error.startswith(f"error: cannot write to {tmp_path / 'file' / 'run'}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": "x", "backbone": "y", "learning_speed": 1}', "learning_speed"),
        ('{"data": "x"}', "backbone"),
        ('{"data": ', "Expecting value"),
    ],
    ids=["unknown option", "option missing", "not JSON"],
)
def test_a_file_of_options_that_cannot_be_used_is_named(
    content: str, message: str, tmp_path: Path, run_example: Any
) -> None:
    (tmp_path / "options.json").write_text(content, "utf-8")
    code, _, error = run_example(str(tmp_path / "options.json"))
    assert code == 2
    assert error.startswith(f"error: {tmp_path / 'options.json'}: ") and message in error


def test_a_missing_argument_is_an_error(run_example: Any) -> None:
    code, _, error = run_example("--data", "x")
    assert code == 2 and error.endswith("the following arguments are required: --backbone")

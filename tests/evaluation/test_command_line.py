"""`nic evaluate` on files, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nic_hf.cli import app
from nic_hf.evaluation import load_predictions, load_references, score_captions


def nic(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nic_hf", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def files(test_data: Path) -> tuple[Path, Path]:
    return test_data / "eval" / "coco_fakecap_results.json", test_data / "eval" / "coco_fakecap_references.json"


def test_a_file_of_captions_is_scored(files: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = files
    metrics = ["--metrics", "bleu,rouge_l,cider"]
    done = nic(predictions, "--references", references, *metrics, "--json", "--per-image", tmp_path / "rows.jsonl")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    expected = score_captions(load_predictions(predictions), load_references(references), per_image=True)
    per_image = expected.pop("per_image")
    assert result["scores"] == expected
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row.pop("image_id"): row for row in rows} == per_image
    low, high = result["intervals"]["cider"]
    assert low < expected["cider"] < high

    shown = nic(predictions, "--references", references, *metrics)
    assert f"cider       {100 * expected['cider']:.2f} %   {100 * low:.2f} to {100 * high:.2f}" in shown.stdout


def test_photos_without_a_caption_are_left_out_when_asked(files: tuple[Path, Path], tmp_path: Path) -> None:
    captions, references = load_predictions(files[0]), load_references(files[1])
    few = dict(list(captions.items())[:50])
    (tmp_path / "few.json").write_text(json.dumps(few))
    command = ["evaluate", str(tmp_path / "few.json"), "--references", str(files[1]), "--metrics", "cider", "--json"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and "references without a prediction" in refused.stderr
    result = CliRunner().invoke(app, [*command, "--allow-partial"])
    expected = score_captions(few, {image_id: references[image_id] for image_id in few}, ["cider"])
    assert json.loads(result.stdout)["scores"] == expected


def test_two_files_are_compared(files: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = files
    worse = dict.fromkeys(load_predictions(predictions), "a man")
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    done = nic(predictions, "--references", references, "--metrics", "cider", "--compare", tmp_path / "worse.json")
    assert done.returncode == 0, done.stderr
    assert "p 0.001" in done.stdout and ", -" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{predictions}"], "is a file of captions: give --references"),
        (["no/such/captioner"], "no/such/captioner: no such folder; train one with"),
        (["no/such/captioner", "--data", "{folder}"], "no/such/captioner"),
        (["{predictions}", "--references", "no.json"], "no.json"),
        (["{predictions}", "--references", "{references}", "--metrics", "belu"], "belu"),
        (["run", "--data", "x", "--beams", "1,x"], "--beams is '1,x'"),
        (["run", "--data", "x", "--transfer", "flickr30k"], "must be NAME=DATA"),
        (["run", "--data", "x", "--compare", "y"], "need a file of captions"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    places = {"predictions": files[0], "references": files[1], "folder": tmp_path}
    command = ["evaluate", *[argument.format(**places) for argument in arguments], "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr

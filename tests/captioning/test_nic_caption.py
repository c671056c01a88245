"""The command as people type it: what it prints and writes, what it answers to mistakes, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_photos
from two_processes import TORCHRUN
from typer.testing import CliRunner

import nic_hf
from nic_hf import NICForConditionalGeneration
from nic_hf.captioners import captioner_path
from nic_hf.captioning.about import terms_of_weights
from nic_hf.cli import app

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(nic_hf.__file__).parents[1])}


def nic(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["caption", *map(str, arguments)], input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def started(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "nic_hf", "caption", *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_captions_on_the_terminal(checkpoint: str, photos: Path, paths: list[Path], expected: Callable) -> None:
    wanted = expected(paths)
    code, out, err = nic(photos, "--model", checkpoint)
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{name}\t{text}" for name, text in wanted.items()]
    code, out, _ = nic(paths[0], "--model", checkpoint, "--json", "--num-captions", 2)
    row = json.loads(out)
    assert row["image_id"] == paths[0].as_posix() and row["caption"] == wanted[row["image_id"]]
    assert len(row["captions"]) == 2 and row["captions"][0] == row["caption"]


def test_verbose_says_once_what_captions_and_on_which_terms(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(checkpoint, tmp_path / "own"))
    quiet = nic(photos, "--model", own, "--num-beams", 2)
    code, out, err = nic(photos, "--model", own, "--num-beams", 2, "--verbose")
    assert (code, out) == quiet[:2] and quiet[2] == ""
    model = NICForConditionalGeneration.from_pretrained(own)
    kind, size = model.config.backbone_config.model_type, sum(weights.numel() for weights in model.parameters())
    facts = dict(line.split(": ", 1) for line in err.splitlines())
    assert facts["captioner"] == str(own) and facts["device"] in ("cpu", "cuda:0")
    assert facts["model"].startswith(f"{kind} + LSTM of {model.config.hidden_size}, ")
    assert f"{size / 1e6:.1f} million parameters" in facts["model"]
    assert facts["captions"] == f"beam 2, at most {model.generation_config.max_new_tokens} words"
    assert facts["terms of the weights"] == "not stated; it has no card"
    for card, terms in (
        ("# A captioner", "not stated in its card"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", "other, mine"),
        ("---\nlicense: mit\n---\n**Terms of the weights**: for research.\n", "for research."),
    ):
        (own / "README.md").write_text(card)
        assert terms_of_weights(str(own)) == terms
    assert terms_of_weights(captioner_path()).startswith("research and non-commercial use, ")


def test_paths_on_standard_input_and_greedy_captions(checkpoint: str, paths: list[Path], expected: Callable) -> None:
    code, out, _ = nic("-", "--model", checkpoint, "--num-beams", 1, stdin=f"{paths[2]}\n\n{paths[1]}\n")
    wanted = expected([paths[2], paths[1]], num_beams=1)
    assert code == 0 and out.splitlines() == [f"{name}\t{text}" for name, text in wanted.items()]


def test_a_sample_of_a_seed_is_the_same_again(checkpoint: str, photos: Path) -> None:
    sample = [photos, "--model", checkpoint, "--sample", "--temperature", 0.8, "--max-new-tokens", 5]
    assert nic(*sample, "--seed", 3) == nic(*sample, "--seed", 3) != nic(*sample, "--seed", 4)


def test_a_file_a_summary_and_a_picture(
    checkpoint: str, photos: Path, paths: list[Path], expected: Callable, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    command = [photos, tmp_path / "bad.jpg", "--model", checkpoint, "--output", tmp_path / "captions.jsonl", "--json"]
    command += ["--contact-sheet", tmp_path / "sheet.png", "--contact-sheet-photos", 6]
    code, out, err = nic(*command)
    assert code == 1
    assert f"{tmp_path.as_posix()}/bad.jpg: cannot read it as an image" in err
    assert "13 photos captioned" in err and "1 could not be read" in err
    assert {row["image_id"]: row["caption"] for row in lines(tmp_path / "captions.jsonl")} == expected(paths)
    summary = json.loads(out)
    assert (summary["captioned"], summary["already"], summary["finished"]) == (13, 0, True)
    assert [photo["image_id"] for photo in summary["broken"]] == [f"{tmp_path.as_posix()}/bad.jpg"]
    assert json.loads((tmp_path / "captions.jsonl.run.json").read_text())["broken"] == summary["broken"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 5 * 240 and sheet.height > 2 * 240
        first = sheet.tobytes()

    Image.new("RGB", (9, 9), "red").save(tmp_path / "bad.jpg")
    code, out, err = nic(*command)
    summary = json.loads(out)
    assert (code, summary["captioned"], summary["already"], summary["broken"]) == (0, 1, 13, [])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.tobytes() == first


JPEG_CALLED = ("jpg", "jfif", "jpe", "jp2", "mpo", "heic", "tga", "ico", "psd", "dib", "pgm")


def test_every_photo_of_a_folder_is_captioned_and_the_rest_counted(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for suffix in JPEG_CALLED:
        Image.new("RGB", (64, 64)).save(folder / f"x.{suffix}", "JPEG")
    for name in ("notes.txt", "list.txt", "film.mp4"):
        (folder / name).write_text("no photo")
    line = "3 other files left out (.txt: 2, .mp4: 1)\n"
    code, out, err = nic(folder, "--model", checkpoint)
    assert (code, err, out.count("\n")) == (0, line, len(JPEG_CALLED))
    code, out, err = nic(folder, "--model", checkpoint, "--output", tmp_path / "captions.jsonl", "--json")
    assert code == 0 and line in err
    assert json.loads(out)["left_out"] == {".txt": 2, ".mp4": 1}
    for suffix in JPEG_CALLED[1:]:
        (folder / f"x.{suffix}").unlink()
    for _ in range(2):
        code, _, err = nic(folder, "--model", checkpoint, "--sidecar")
        assert code == 0 and "1 other file left out (.mp4: 1)" in err, "text files are the captions"


def with_damaged_exif(path: Path) -> None:
    """A photo that Pillow reads, with a warning that its tags are cut off."""
    exif = Image.Exif()
    exif[0x010E] = "a description of it"
    Image.new("RGB", (30, 30)).save(path, "JPEG", exif=exif)
    content = path.read_bytes()
    assert b"\0\0\0\x14" in content, "the length of the description"
    path.write_bytes(content.replace(b"\0\0\0\x14", b"\0\xff\xff\x14", 1))


def test_warnings_of_pillow_have_the_names_of_their_photos(checkpoint: str, tmp_path: Path) -> None:
    names = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for name in names:
        with_damaged_exif(name)
    process = started(tmp_path, "--model", checkpoint)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert sorted(err.splitlines()) == [f"{name.as_posix()}: Truncated File Read" for name in names]


def test_captions_of_a_data_set(test_data: Path, checkpoint: str, flickr8k: Path, tmp_path: Path) -> None:
    from subset import make_subset

    data = make_subset(flickr8k, tmp_path / "flickr", train=2, test=5)
    command = ["--data", data, "--split", "test", "--model", checkpoint, "--output", tmp_path / "captions.json"]
    assert nic(*command)[0] == 0
    done = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "captions.json"), "--references", str(references(data, tmp_path))]
    )
    assert done.exit_code == 0 and "cider" in done.stdout, done.stderr


def references(data: Path, folder: Path) -> Path:
    from nic_hf.data import load_captions

    rows = load_captions(data, "test", cache_dir=folder / "arrow")
    listed = [
        {"image_id": row["image_id"], "caption": row["captions"]}
        for row in rows.select_columns(["image_id", "captions"])
    ]
    (folder / "references.json").write_text(json.dumps(listed))
    return folder / "references.json"


def test_text_files_beside_the_photos(checkpoint: str, paths: list[Path], expected: Callable, tmp_path: Path) -> None:
    for path in paths[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / paths[0].name).with_suffix(".txt").write_text("mine\n")
    code, out, err = nic(tmp_path, "--model", checkpoint, "--sidecar")
    assert (code, out) == (0, "") and "2 photos captioned" in err and "1 had captions" in err
    assert [(tmp_path / path.name).with_suffix(".txt").read_text("utf-8") for path in paths[:3]] == [
        "mine\n",
        *(f"{text}\n" for text in expected(paths[1:3]).values()),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no photos"),
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["PHOTOS", "--output", "captions.xml"], "end in .jsonl"),
        (["PHOTOS", "--output", "a.csv", "--sidecar"], "give one of them"),
        (["https://host/a.jpg", "--sidecar"], "--sidecar is for photos that are files"),
        (["PHOTOS", "--seed", "1"], "without --sample"),
        (["PHOTOS", "--sample", "--temperature", "0"], "must be above 0"),
        (["PHOTOS", "--num-beams", "2", "--num-captions", "3"], "needs as many beams"),
        (["PHOTOS", "--split", "test"], "give --data too"),
        (["PHOTOS", "--num-captions", "2", "--output", "a.json"], "one caption per photo"),
        (["--data", "./nowhere/data"], "nowhere/data: no such file"),
        (["PHOTOS", "--model", "./nowhere/model"], "nowhere/model: no such folder"),
        (["PHOTOS", "--device", "nonsense"], "cannot compute on 'nonsense': "),
        (["PHOTOS", "--contact-sheet", "sheet.jpg"], "sheet.jpg: the picture is a PNG file"),
        (["PHOTOS", "--contact-sheet", "."], "the picture is a PNG file"),
        (["PHOTOS", "--contact-sheet", f"{__file__}/sheet.png"], "test_nic_caption.py is not a writable folder"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(photos) if argument == "PHOTOS" else argument for argument in arguments]
    model = [] if "--model" in arguments else ["--model", checkpoint]
    code, out, err = nic(*arguments, *model)
    assert (code, out) == (2, "")
    assert err.startswith("nic caption: ") and message in err and "Traceback" not in err
    assert err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_failing_at_the_first_broken_photo(checkpoint: str, paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    out_file = tmp_path / "captions.csv"
    command = [paths[0], tmp_path / "bad.jpg", paths[1], "--model", checkpoint, "--output", out_file]
    code, _, err = nic(*command, "--on-error", "fail")
    assert code == 1 and "bad.jpg: cannot read it as an image" in err
    assert out_file.read_text("utf-8").count("\n") == 2  # the heading and the first photo
    assert json.loads((tmp_path / "captions.csv.run.json").read_text())["finished"] is False


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_full_disk_is_one_line_and_costs_nothing_that_is_done(
    suffix: str, checkpoint: str, photos: Path, paths: list[Path], tmp_path: Path
) -> None:
    import resource

    path = tmp_path / f"captions{suffix}"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        code, _, err = nic(photos, "--model", checkpoint, "--output", path, "--batch-size", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2 and err.startswith("nic caption: cannot write ") and err.count("\n") == 1
    code, out, _ = nic(photos, "--model", checkpoint, "--output", path, "--json")
    summary = json.loads(out)
    assert code == 0 and summary["already"] >= 2 and summary["already"] + summary["captioned"] == 13
    fresh = tmp_path / f"fresh{suffix}"
    nic(photos, "--model", checkpoint, "--output", fresh)
    assert path.read_bytes() == fresh.read_bytes()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many photos that a run of them can be caught half-way."""
    folder = tmp_path_factory.mktemp("many")
    for number, photo in enumerate(tiny_photos(300, seed=5, size=(8, 8))):
        photo.save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def of_many(many: Path, checkpoint: str) -> list[dict]:
    """Their captions by a run that nothing disturbs."""
    _, out, _ = nic(many, "--model", checkpoint, "--json")
    return [json.loads(line) for line in out.splitlines()]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> Iterator[None]:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=5)
        time.sleep(0.02)
    yield


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_run_that_is_killed_goes_on(
    suffix: str, many: Path, of_many: list[dict], checkpoint: str, tmp_path: Path
) -> None:
    path = tmp_path / f"captions{suffix}"
    growing = path if suffix == ".jsonl" else tmp_path / ".captions.csv.1.0.part"
    process = started(many, "--model", checkpoint, "--output", path, "--batch-size", 2)
    next(wait_for(lambda: growing.exists() and growing.read_bytes().count(b"\n") > 20, process))
    process.kill()
    process.wait(30)
    done = growing.read_bytes().count(b"\n")
    assert done < 290, "the run was not caught half-way"
    code, out, _ = nic(many, "--model", checkpoint, "--output", path, "--json")
    summary = json.loads(out)
    assert (code, summary["already"], summary["captioned"]) == (0, done, 300 - done)
    if suffix == ".jsonl":
        assert lines(path) == of_many
    else:
        rows = "".join(f"{row['image_id']},{row['caption']}\n" for row in of_many)
        assert path.read_text("utf-8") == "image_id,caption\n" + rows


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_leaves_a_whole_file(many: Path, of_many: list[dict], checkpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    process = started(many, "--model", checkpoint, "--output", path, "--batch-size", 2)
    part = tmp_path / ".captions.json.1.0.part"
    next(wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") > 20, process))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in err and "Traceback" not in err
    found = json.loads(path.read_text("utf-8"))
    assert 20 < len(found) < 300 and not part.exists()
    wanted = {row["image_id"]: row["caption"] for row in of_many}
    assert all(wanted[row["file_name"]] == row["caption"] for row in found)
    assert nic(many, "--model", checkpoint, "--output", path)[0] == 0
    found = json.loads(path.read_text("utf-8"))
    assert [(row["file_name"], row["caption"]) for row in found] == list(wanted.items())


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_a_broken_pipe_is_one_line(many: Path, checkpoint: str) -> None:
    process = started(many, "--model", checkpoint, "--batch-size", 2)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith(many.as_posix())
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 1 and err == "nic caption: nothing reads the captions any more\n"


def test_two_processes_write_one_ordered_file(
    many: Path, of_many: list[dict], checkpoint: str, tmp_path: Path
) -> None:
    """And a killed run of two processes is gone on with, by two or by one."""
    path = tmp_path / "captions.jsonl"
    command = [many, "--model", checkpoint, "--output", path, "--json"]
    process = started(*command, "--batch-size", 2, launcher=TORCHRUN[1:])
    parts = [tmp_path / f".captions.jsonl.1.{rank}.part" for rank in range(2)]
    next(wait_for(lambda: all(part.exists() and part.read_bytes().count(b"\n") > 10 for part in parts), process))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert not path.exists() or len(lines(path)) < 300
    done = started(*command, launcher=TORCHRUN[1:])
    out, err = done.communicate(timeout=240)
    assert done.returncode == 0, err
    summary = json.loads(out)
    assert summary["already"] > 20 and summary["already"] + summary["captioned"] == 300
    assert lines(path) == of_many
    assert sorted(file.name for file in tmp_path.iterdir()) == ["captions.jsonl", "captions.jsonl.run.json"]

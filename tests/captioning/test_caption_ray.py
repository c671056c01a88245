"""Ray Data: two workers, one of them killed half-way; no caption is lost and none comes twice."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny import tiny_photos
from typer.testing import CliRunner

import nic_hf
from nic_hf.cli import app

pytest.importorskip("ray", minversion="2.40", reason="Ray is not installed: pip install 'nic_hf[ray]'")

EXAMPLE = Path(__file__).parents[2] / "examples" / "caption_ray.py"
NUMBER = 400


def captioning_workers(driver: subprocess.Popen) -> list[psutil.Process]:
    """Processes in which an actor captions; Ray names them after what they do."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "MapBatches(CaptioningActor)" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow  # Ray starts many processes, and gives up on a machine that is busy with other things
def test_a_worker_is_killed_half_way(checkpoint: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, photo in enumerate(tiny_photos(NUMBER, seed=7, size=(8, 8))):
        photo.save(photos / f"{number:03d}.png")
    (photos / "999.png").write_bytes(b"no photo")
    output = tmp_path / "captions.jsonl"
    paths = [str(Path(nic_hf.__file__).parents[1])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"RAY_TMPDIR": str(tmp_path)} if len(str(tmp_path)) < 40 else {}  # names of sockets are short
    command = [sys.executable, EXAMPLE, photos, "--model", checkpoint, "--output", output, "--batch-size", 3]
    log = tmp_path / "log.txt"
    with log.open("wb") as stderr:
        driver = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        deadline = time.monotonic() + 240
        while not (output.exists() and output.read_bytes().count(b"\n") > NUMBER // 10):
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        # The one whose captions were written: the other may still be loading its captioner.
        busy = {int(number) for number in re.findall(r"^worker (\d+) captions$", log.read_text(), re.MULTILINE)}
        killed = next(worker for worker in captioning_workers(driver) if worker.pid in busy)
        killed.kill()
        written = output.read_bytes().count(b"\n")
        assert written < 0.8 * NUMBER, "the run was not caught half-way"
        out, _ = driver.communicate(timeout=400)
    finally:
        for process in [*psutil.Process(driver.pid).children(recursive=True), driver] if driver.poll() is None else []:
            process.kill()
    assert driver.returncode == 1, log.read_text()[-3000:]  # one photo is broken
    summary = json.loads(next(line for line in out.splitlines() if line.startswith('{"captioned"')))
    assert str(killed.pid) in summary["workers"] and len(summary["workers"]) > 1
    assert summary["captioned"] == NUMBER
    assert [photo["image_id"] for photo in summary["broken"]] == [(photos / "999.png").as_posix()]

    alone = CliRunner().invoke(app, ["caption", str(photos), "--model", checkpoint, "--json"])
    assert output.read_text("utf-8").splitlines() == alone.stdout.splitlines()

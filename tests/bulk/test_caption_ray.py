"""Ray Data: two workers, one of them killed half-way; no caption is lost and none comes twice."""

import json
import os
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

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nic_hf[ray]'")

EXAMPLE = Path(__file__).parents[2] / "examples" / "caption_ray.py"
NUMBER = 600


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
    driver = subprocess.Popen(
        [*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 180
        while not (output.exists() and output.read_bytes().count(b"\n") > NUMBER // 10):
            assert driver.poll() is None and time.monotonic() < deadline, driver.communicate(timeout=5)
            time.sleep(0.02)
        workers = captioning_workers(driver)
        assert len(workers) == 2
        before = {worker: worker.cpu_times().user for worker in workers}
        time.sleep(0.1)
        # One may still be loading its captioner.
        killed = max(workers, key=lambda worker: worker.cpu_times().user - before[worker])
        killed.kill()
        written = output.read_bytes().count(b"\n")
        assert written < 0.8 * NUMBER, "the run was not caught half-way"
        out, err = driver.communicate(timeout=180)
    finally:
        for process in [*psutil.Process(driver.pid).children(recursive=True), driver] if driver.poll() is None else []:
            process.kill()
    assert driver.returncode == 1, err[-3000:]  # one photo is broken
    summary = json.loads(next(line for line in out.splitlines() if line.startswith('{"captioned"')))
    assert str(killed.pid) in summary["workers"] and len(summary["workers"]) > 1
    assert summary["captioned"] == NUMBER
    assert [photo["image_id"] for photo in summary["broken"]] == [(photos / "999.png").as_posix()]

    alone = CliRunner().invoke(app, ["caption", str(photos), "--model", checkpoint, "--json"])
    assert output.read_text("utf-8").splitlines() == alone.stdout.splitlines()

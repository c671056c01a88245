"""A disk that is full or read-only: one clear error, what was there before stays, and nothing half-written is left.

The disks are real ones, small and in memory, which needs the right to mount; elsewhere these tests are skipped.
"""

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import leftovers, make_inputs, result, work
from tiny import save_tiny_checkpoint, tiny_model, tiny_photos, tiny_pixels
from typer.testing import CliRunner

from nic_hf import NICForConditionalGeneration
from nic_hf.cli import app
from nic_hf.data import load_captions
from nic_hf.writing import write_text


class Disk:
    """A small disk in memory."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")

    def _mount(self, *arguments: str) -> None:
        try:
            done = subprocess.run(["mount", *arguments, self.folder], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no small disk to fill: there is no `mount`")
        if done.returncode:
            pytest.skip(f"no small disk to fill: {done.stderr.strip()}")

    def fill(self) -> None:
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
            while True:
                ballast.write(bytes(4096))

    def empty(self) -> None:
        (self.folder / "ballast").unlink()

    def protect(self) -> None:
        self._mount("-o", "remount,ro")

    def grow(self, size: str) -> None:
        self._mount("-o", f"remount,size={size}")

    def unmount(self) -> None:
        # Lazily: tables of captions stay mapped into the memory of this process.
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk", "1m")
    yield disk
    disk.unmount()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk") / "checkpoint"
    save_tiny_checkpoint(folder)
    return folder


def add_photos(folder: Path, number: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    for place, photo in enumerate(tiny_photos(number)):
        photo.save(folder / f"{place}.png")
    return folder


def nic(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_text_files_beside_photos_on_a_full_disk(disk: Disk, checkpoint: Path) -> None:
    photos = add_photos(disk.folder / "photos")
    write_text(photos / "0.txt", "from before\n")
    disk.fill()
    done = nic("caption", photos, "--model", checkpoint, "--sidecar", "--batch-size", 1)
    assert done.exit_code == 2 and f"nic caption: cannot write {photos / '1.txt'}: " in done.stderr
    assert [file.name for file in photos.glob("*.txt")] == ["0.txt"] and leftovers(disk.folder) == []
    disk.empty()
    assert nic("caption", photos, "--model", checkpoint, "--sidecar").exit_code == 0
    assert len(list(photos.glob("*.txt"))) == 8 and (photos / "0.txt").read_text("utf-8") == "from before\n"


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_file_of_captions_on_a_full_disk(suffix: str, disk: Disk, checkpoint: Path, tmp_path: Path) -> None:
    photos, path = add_photos(tmp_path / "photos", 4), disk.folder / f"captions{suffix}"
    assert nic("caption", photos, "--model", checkpoint, "--output", path).exit_code == 0
    before, more = path.read_bytes(), add_photos(tmp_path / "photos", 8)
    disk.fill()
    done = nic("caption", more, "--model", checkpoint, "--output", path)
    assert done.exit_code == 2 and f"nic caption: cannot write to {disk.folder}" in done.stderr
    assert done.stderr.count("\n") == 1 and path.read_bytes() == before
    disk.empty()
    assert nic("caption", more, "--model", checkpoint, "--output", path).exit_code == 0
    fresh = tmp_path / f"fresh{suffix}"
    assert nic("caption", more, "--model", checkpoint, "--output", fresh).exit_code == 0
    assert path.read_bytes() == fresh.read_bytes() and leftovers(disk.folder) == []


def test_a_checkpoint_on_a_full_disk_stays_as_it_was(disk: Disk, tmp_path: Path) -> None:
    folder, pixels = disk.folder / "run", tiny_pixels()
    model = save_tiny_checkpoint(folder)
    disk.fill()
    with pytest.raises(OSError, match=f"cannot save to {folder}: .*what it held before is unchanged"):
        tiny_model(seed=1).save_pretrained(folder)
    assert leftovers(disk.folder) == []
    again = NICForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(again.encoder(pixels).last_hidden_state, model.encoder(pixels).last_hidden_state)


def captioned(folder: Path) -> Path:
    add_photos(folder)
    rows = [{"file_name": f"{number}.png", "text": "a dog"} for number in range(8)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def test_the_table_of_captions_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    data, cache = captioned(tmp_path / "data"), disk.folder / "arrow"
    cache.mkdir()
    disk.fill()
    with pytest.raises(OSError, match=f"cannot write captions to {cache}: "):
        load_captions(data, cache_dir=cache)
    assert list(cache.iterdir()) == []
    disk.empty()
    assert len(load_captions(data, cache_dir=cache)) == 8


def test_what_a_killed_writer_left_beside_the_table_of_captions_goes(tmp_path: Path) -> None:
    data, cache = captioned(tmp_path / "data"), tmp_path / "arrow"
    load_captions(data, cache_dir=cache)
    (table,) = cache.iterdir()
    left = cache / f".{table.name[:40]}.00000000-1-01234567.tmp"  # of a process of another machine
    left.write_bytes(b"half")
    load_captions(data, cache_dir=cache)
    assert sorted(cache.iterdir()) == [left, table], "it may be at work"
    os.utime(left, (time.time() - 4000,) * 2)
    load_captions(data, cache_dir=cache)
    assert list(cache.iterdir()) == [table]


def check_work_that_fills_a_disk(kind: str, rooms: list[float], inputs: Path, folder: Path) -> None:
    """Work that has so much of the room that it needs, and then enough."""
    (folder / "alone").mkdir()
    work(kind, inputs, folder / "alone")
    wanted = result(kind, folder / "alone")
    blocks = sum(-(-file.stat().st_size // 4096) for file in (folder / "alone").rglob("*") if file.is_file())
    for number, room in enumerate(rooms):
        disk = Disk(folder / f"disk{number}", str(max(1, int(room * blocks)) * 4096))
        try:
            with pytest.raises(OSError, match=str(disk.folder)) as raised:
                work(kind, inputs, disk.folder)
            assert "No space left" in str(raised.value) or "disk may be full" in str(raised.value)
            assert leftovers(disk.folder) == [], raised.value
            disk.grow("64m")
            work(kind, inputs, disk.folder)
            assert result(kind, disk.folder) == wanted, raised.value
            assert leftovers(disk.folder) == [], raised.value
        finally:
            disk.unmount()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("filled") / "inputs")


# Of a training run: its first weights, its first optimizer.
@pytest.mark.parametrize(("kind", "rooms"), [("training", [0.2, 0.587]), ("cache", [0.5])])
def test_work_that_fills_a_disk_goes_on_when_there_is_room(
    kind: str, rooms: list[float], inputs: Path, tmp_path: Path
) -> None:
    check_work_that_fills_a_disk(kind, rooms, inputs, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["cache", "training", "export", "evaluation"])
def test_work_fills_a_disk_at_any_place(kind: str, inputs: Path, tmp_path: Path, soak_scale: float) -> None:
    generator = random.Random(kind)
    rooms = [generator.uniform(0, 0.95) for _ in range(max(2, round(20 * soak_scale)))]
    check_work_that_fills_a_disk(kind, rooms, inputs, tmp_path)


def test_a_folder_that_became_read_only(disk: Disk, checkpoint: Path, tmp_path: Path) -> None:
    photos, data = add_photos(disk.folder / "photos"), captioned(disk.folder / "data")
    save_tiny_checkpoint(disk.folder / "run")
    load_captions(data, cache_dir=disk.folder / "arrow")
    disk.protect()
    done = nic("caption", photos, "--model", checkpoint, "--sidecar")
    assert done.exit_code == 2 and f"nic caption: cannot write {photos / '0.txt'}: " in done.stderr
    done = nic("caption", photos, "--model", checkpoint, "--output", disk.folder / "captions.csv")
    assert done.exit_code == 2 and "Read-only file system" in done.stderr and done.stderr.count("\n") == 1
    with pytest.raises(OSError, match=f"cannot save to {disk.folder / 'run'}: "):
        tiny_model().save_pretrained(disk.folder / "run")
    # What only reads goes on: photos, checkpoint and cache.
    done = nic("caption", photos, "--model", disk.folder / "run", "--output", tmp_path / "captions.csv")
    assert done.exit_code == 0, done.stderr
    assert len(load_captions(data, cache_dir=disk.folder / "arrow")) == 8

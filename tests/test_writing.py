"""Files are written whole or not at all: by many processes at once, and through kills."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nic_hf import writing
from nic_hf.writing import remove_leftovers, replacing, write_text

TEXT = "a dog runs through the snow\n" * 2000

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that start at once: the imports are done once, in the server that they are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nic_hf.writing"])
    return context


def temporary(folder: Path, owner: str) -> Path:
    path = folder / f".recipe.yaml.{owner}-0123abcd.tmp"
    path.write_text("half", "utf-8")
    return path


def write_often(path: Path, number: int, ready: Any) -> None:
    ready.wait(60)
    for _ in range(40):
        write_text(path, f"{number}\n{TEXT}")


def die_before_the_rename(path: Path) -> None:
    os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    write_text(path, "new")


@posix
def test_processes_that_write_the_same_file_at_once_do_not_meet(tmp_path: Path, processes: Any) -> None:
    path, ready = tmp_path / "run" / "recipe.yaml", processes.Barrier(8)
    writers = [processes.Process(target=write_often, args=(path, number, ready)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 8
    number, text = path.read_text("utf-8").split("\n", 1)
    assert number in map(str, range(8)) and text == TEXT
    assert list(path.parent.iterdir()) == [path]


@posix
def test_a_kill_before_the_rename_leaves_the_old_file_whole(tmp_path: Path, processes: Any) -> None:
    path = write_text(tmp_path / "recipe.yaml", "old")
    writer = processes.Process(target=die_before_the_rename, args=(path,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert path.read_text("utf-8") == "old" and len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_what_a_killed_process_left_goes_with_the_first_write_to_the_folder(tmp_path: Path, processes: Any) -> None:
    writer = processes.Process(target=die_before_the_rename, args=(tmp_path / "recipe.yaml",))
    writer.start()
    writer.join(60)
    assert len(list(tmp_path.iterdir())) == 1
    path = write_text(tmp_path / "another.yaml", "whole")
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    here = writing._host()
    parent, elsewhere, long_ago = (
        temporary(tmp_path, f"{here}-{os.getppid()}"),
        temporary(tmp_path, "00000000-1"),
        temporary(tmp_path, "00000001-1"),
    )
    os.utime(long_ago, (time.time() - 4000,) * 2)
    not_ours = tmp_path / ".swap.tmp"
    not_ours.write_text("of an editor", "utf-8")
    os.utime(not_ours, (time.time() - 4000,) * 2)
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([parent, elsewhere, not_ours])


def test_the_content_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, bool]] = []  # what was called, and whether the file had its new content then
    path = write_text(tmp_path / "recipe.yaml", "old")
    sync, replace = os.fsync, os.replace

    def note(name: str) -> None:
        calls.append((name, path.read_text("utf-8") == "new"))

    monkeypatch.setattr(os, "fsync", lambda descriptor: (note("sync"), sync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda source, target: (note("rename"), replace(source, target)))
    write_text(path, "new")
    folder = [("sync", True)] if os.name == "posix" else []
    assert calls == [("sync", False), ("rename", False), *folder]
    calls.clear()
    write_text(path, "old", sync=False)
    assert calls == [("rename", True)]


def test_a_failure_in_the_middle_leaves_what_was_there_and_names_the_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "captions.csv", "old")
    with pytest.raises(OSError, match=f"cannot write {path}: no more paper"), replacing(path) as place:
        place.write_text("half", "utf-8")
        raise OSError("no more paper")
    with pytest.raises(KeyboardInterrupt), replacing(path) as place:
        place.write_text("half", "utf-8")
        raise KeyboardInterrupt
    assert path.read_text("utf-8") == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 251 + ".txt", "é" * 125 + ".txt", "名" * 83 + ".txt", "*[?].txt", "a\nb.txt"])
def test_any_name_that_a_file_may_have_will_do(name: str, tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("names that only POSIX allows are among them")
    assert write_text(tmp_path / name, "a dog").read_text("utf-8") == "a dog"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    temporary(tmp_path, f"{writing._host()}-999999999")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]

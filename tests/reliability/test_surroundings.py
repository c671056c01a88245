"""Names with spaces and letters of all the world, an installation that cannot be written, no network, spawn."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from killing import PHOTOS, leftovers, make_inputs, result, work

import nic_hf

ODD = "Ferien – naïve 照片 (1) 🐕 ñ"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surroundings") / ODD
    folder.mkdir()
    make_inputs(folder)
    first = folder / "photos" / "train" / "000.png"
    metadata = folder / "photos" / "train" / "metadata.jsonl"
    first.rename(first.with_name(f"{ODD}.png"))
    metadata.write_text(metadata.read_text("utf-8").replace("000.png", f"{ODD}.png"), "utf-8")
    return folder


@pytest.mark.parametrize("kind", ["captions.csv", "captions.json", "sidecar", "training", "evaluation"])
def test_paths_with_spaces_and_other_letters(kind: str, inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / ODD
    output.mkdir()
    work(kind, inputs, output)
    found = result(kind, output)
    assert leftovers(output) == []
    if kind.startswith("captions"):
        assert found[kind].decode().count(".png") == PHOTOS and f"{ODD}.png" in found[kind].decode()
    elif kind == "sidecar":
        assert f"photos/{ODD}.txt" in found


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["captions.jsonl", "cache", "training"])
def test_a_spawned_process_works_as_this_one_does(kind: str, inputs: Path, tmp_path: Path) -> None:
    for name in ("spawned", "here"):
        (tmp_path / name).mkdir()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(kind, inputs, tmp_path / "spawned"))
    process.start()
    process.join()
    assert process.exitcode == 0
    work(kind, inputs, tmp_path / "here")
    assert result(kind, tmp_path / "spawned") == result(kind, tmp_path / "here")


SCRIPT = """
import socket, sys
from pathlib import Path

def refuse(*args, **kwargs):
    raise AssertionError(f"a connection was tried: {args}")

socket.socket.connect = socket.getaddrinfo = refuse
from killing import work
for kind in ("captions.csv", "cache", "training"):
    work(kind, Path(sys.argv[1]), Path(sys.argv[2]))
try:
    (Path(sys.argv[3]) / "nic_hf" / "new").write_text("")
except OSError:
    print("read-only")
"""


def test_a_read_only_installation_without_a_network(inputs: Path, tmp_path: Path) -> None:
    install, output = tmp_path / "install", tmp_path / "output"
    output.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(nic_hf.__file__).parent, install / "nic_hf", ignore=ignore)
    try:
        done = subprocess.run(["mount", "--bind", install, install], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount`")
    if done.returncode:
        pytest.skip(f"no right to mount: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", install], check=True)
        # Home is there too: what may be cached there, cannot.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
        environment |= {"HOME": str(install), "HF_HOME": str(install / "hf")}
        tests = Path(__file__).parent
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, [install, tests, tests.parent]))}
        command = [sys.executable, "-c", SCRIPT, inputs, output, install]
        alone = ["unshare", "--net"] if shutil.which("unshare") else []
        done = subprocess.run([*alone, *command], env=environment, capture_output=True, text=True)
    finally:
        subprocess.run(["umount", install], check=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "read-only"
    assert result("training", output) and result("captions.csv", output)["captions.csv"].count(b".png") == PHOTOS

"""Work that is killed at random moments and begun again ends as if nothing had happened, and leaves nothing behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killing import KINDS, hammer, make_inputs
from tiny import tiny_model

from nic_hf import NICForConditionalGeneration
from nic_hf.captioning import CaptionFile, PhotoItem

SAMPLE = {"captions.parquet": 2, "sidecar": 2, "cache": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("killed") / "inputs")


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_few_kills(kind: str, inputs: Path, tmp_path: Path) -> None:
    tally = hammer(kind, inputs, tmp_path / "runs", SAMPLE[kind], seed=1, a_result=2)
    assert tally.kills >= SAMPLE[kind] and tally.compared >= 1


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_kills(kind: str, inputs: Path, tmp_path: Path, soak_scale: float) -> None:
    kills = max(2, round(100 * soak_scale))
    print(hammer(kind, inputs, tmp_path / "runs", kills))


def test_a_kill_while_captions_are_cleared_leaves_none_without_an_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, photo = tmp_path / "captions.csv", PhotoItem("a.jpg", "", (0, 0))
    file = CaptionFile(path, {"captioner": "old"})
    file.open()
    file.begin()
    file.add(photo, ["of the old captioner"])
    file.close()
    real, removed = Path.unlink, []

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if len(removed) == 2:
            raise KeyboardInterrupt  # the kill
        removed.append(self)
        real(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        CaptionFile(path, {"captioner": "new"}, overwrite=True).clear()
    monkeypatch.undo()
    later = CaptionFile(path, {"captioner": "newer"})
    later.open()
    assert not later.is_done(photo)


def test_a_save_that_is_killed_as_files_move_leaves_weights_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment do weights lie beside the digest of others, which would be refused."""
    old, new = tiny_model(seed=1), tiny_model(seed=2)
    real, moved = os.replace, 0

    def replace(source: Path, target: Path) -> None:
        nonlocal moved
        if moved == number:
            raise KeyboardInterrupt  # the kill
        moved += 1
        real(source, target)

    outcomes = []
    for number in range(100):
        folder, moved = tmp_path / str(number), 0
        old.save_pretrained(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                new.save_pretrained(folder)
            except KeyboardInterrupt:
                finished = False
            else:
                finished = True
        weight = NICForConditionalGeneration.from_pretrained(folder).lm_head.weight
        outcomes.append([torch.equal(weight, model.lm_head.weight) for model in (old, new)])
        if finished:
            break
    assert outcomes == sorted(outcomes, reverse=True) and outcomes[0] == [True, False], outcomes
    assert outcomes[-2:] == [[False, True]] * 2, "killed before the digest is there, and not killed"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere they stay for an hour")
def test_what_a_killed_save_left_goes_with_the_next_one_and_that_of_another_process_stays(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from nic_hf.model.checkpoint import staged_save\n"
        "with staged_save(sys.argv[1]) as folder:\n"
        "    (folder / 'model.safetensors').write_bytes(bytes(10))\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if len(sys.argv) > 2 else input()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    alive = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
    killed = subprocess.run([*command, "killed"], env=environment)
    assert killed.returncode == -9
    for _ in range(600):
        if len(list(tmp_path.glob(".saving.*/*"))) == 2:
            break
        time.sleep(0.1)
    tiny_model().save_pretrained(tmp_path)
    (kept,) = tmp_path.glob(".saving.*")
    assert f"-{alive.pid}-" in kept.name
    alive.communicate(b"\n", timeout=60)
    assert list(tmp_path.glob(".saving.*")) == []

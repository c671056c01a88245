"""Every input that the fuzz targets keep passes, and so do inputs with single bytes changed."""

import importlib
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
TARGETS = [file.stem.removeprefix("fuzz_") for file in sorted(FUZZ.glob("fuzz_*.py"))]


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_a_reader(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FUZZ), *sys.path])
    check = importlib.import_module(f"fuzz_{target}").check
    files = sorted((FUZZ / "corpus" / target).iterdir())
    assert files
    generator = random.Random(target)
    for file in files:
        content = file.read_bytes()
        check(content)
        for _ in range(3 if target == "photos" else 20):
            changed = bytearray(content)
            for _ in range(generator.randint(1, 4)):
                changed[generator.randrange(len(changed))] = generator.randrange(256)
            check(bytes(changed))


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_ten_minutes_of_fuzzing(target: str, tmp_path: Path, soak_scale: float) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs Atheris: the extra `fuzz`")
    command = [sys.executable, str(FUZZ / f"fuzz_{target}.py"), f"-max_total_time={max(1, round(600 * soak_scale))}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    print(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr[-3000:]

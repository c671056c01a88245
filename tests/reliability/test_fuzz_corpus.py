"""Every input that the fuzz targets keep passes, and so do inputs with single bytes changed."""

import importlib
import random
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

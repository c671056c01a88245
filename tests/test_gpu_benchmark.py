"""The benchmark of the GPU runs on a CPU, and loses no row to another."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str
) -> dict[str, dict[str, Any]]:
    """The rows of a run, by name."""
    output = folder / "gpu.json"
    common = ["gpu.py", "--device", "cpu", "--batch_size", "2", "--steps", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*common, *arguments])
    benchmark.main()
    return {row["what"]: row for row in json.loads(output.read_text())["rows"]}


def test_rates_and_a_profile(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measured(
        benchmark, monkeypatch, tmp_path, "--profile", "--only", "where", "training, float32$", "decoding, greedy$"
    )
    assert list(rows) == ["where a beam-3 step goes", "decoding, greedy", "training, float32"]
    assert rows["decoding, greedy"]["captions_a_second"] > 0
    assert rows["training, float32"]["captions_a_second"] > 0
    profile = rows["where a beam-3 step goes"]
    assert len(profile["top"]) == 10
    assert 0 <= profile["share_outside_kernels"] < 1
    assert profile["top"][0]["name"] in capsys.readouterr().out


def test_a_row_that_fails_tells_why_and_the_next_one_is_measured(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def out_of_memory(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(benchmark, "decoding", out_of_memory)
    rows = measured(benchmark, monkeypatch, tmp_path, "--only", "decoding, greedy$", "training, float32$")
    assert rows["decoding, greedy"]["error"] == "RuntimeError: out of memory"
    assert rows["training, float32"]["captions_a_second"] > 0


def test_a_budget_ends_a_row_and_skips_the_rest(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def endless(*args: Any, **kwargs: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(benchmark, "decoding", endless)
    rows = list(measured(benchmark, monkeypatch, tmp_path, "--budget", "0.3", "--only", "beam 3").values())
    assert rows[0]["error"].startswith("TimeoutError")
    assert len(rows) > 1
    assert all("skipped" in row for row in rows[1:])

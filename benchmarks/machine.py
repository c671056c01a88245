"""The machine of a benchmark: CPU, instruction sets, cores, versions; and the time of a call on it."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_PACKAGES = ("nic_hf", "torch", "transformers", "onnxruntime", "numpy", "pillow")


def about() -> dict[str, Any]:
    """Facts to save with results."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(facts.get("flags", "").split())
    return {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def save(path: Path | None, **content: Any) -> None:
    """Write results and facts about the machine, unless `path` is None."""
    if path is not None:
        path.write_text(json.dumps({"machine": about(), **content}, indent=1, default=str) + "\n", encoding="utf-8")


def seconds(run: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Best and median time of a call, without the first one."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times), sorted(times)[len(times) // 2]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

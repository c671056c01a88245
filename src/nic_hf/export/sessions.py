"""Open and run ONNX Runtime sessions."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_CPU = "CPUExecutionProvider"
# A graph that multiplies `x` (unsigned, of shape (2, 8)) by eight signed numbers, each 127, with MatMulInteger.
_PROBE = (
    b'\x08\x08:\\\n\x18\n\x01x\n\x01w\x12\x01y"\rMatMulInteger\x12\x01g*\x13\x08\x08\x08\x01\x10\x03B\x01wJ\x08'
    b"\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7fZ\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x02\n\x02\x08\x08b\x13"
    b"\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x02\n\x02\x08\x01B\x04\n\x00\x10\x12"
)


def open_session(file: Path, providers: Sequence[Any] | None, num_threads: int, unpack: bool) -> Any:
    """Open a graph.

    Args:
        file: the graph.
        providers: ONNX Runtime's execution providers in order of preference. Defaults to the CPU.
        num_threads: number of threads; 0 for the number of cores.
        unpack: convert 8-bit weights to float32 once, when the graph is loaded.

    Raises:
        ValueError: if a provider is not available or does not work, or ONNX Runtime cannot run the graph.
        ImportError: if onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("the ONNX captioner needs onnxruntime: pip install onnxruntime") from error
    wanted = [_CPU] if providers is None else list(providers)
    names = [entry if isinstance(entry, str) else entry[0] for entry in wanted]
    there = onnxruntime.get_available_providers()
    absent = [name for name in names if name not in there]
    if absent or not names:
        raise ValueError(
            f"this onnxruntime has no {', '.join(absent) or 'requested provider'}; it has {', '.join(there)}. Leave "
            "out `providers` to run on the CPU, or install another build (onnxruntime-gpu for CUDA)"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    # Otherwise threads keep the cores busy after a run while they wait for work.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if overflows_in_8_bits():
        # Kernels without overflow take twice the time.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if unpack:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=wanted)
    except Exception as error:
        raise ValueError(f"{file}: ONNX Runtime {onnxruntime.__version__} cannot run it: {error}") from error
    if names[0] not in session.get_providers():  # it only logs that it falls back to the CPU
        raise ValueError(
            f"{names[0]} is available in this onnxruntime but does not work here; it would run on "
            f"{', '.join(session.get_providers())}. Leave out `providers` to run on the CPU"
        )
    return session


def run_session(session: Any, outputs: Sequence[str] | None, inputs: Mapping[str, np.ndarray]) -> Any:
    """Run a session, and return a list of arrays.

    Raises:
        RuntimeError: if the graph fails. ONNX Runtime has no separate exception for a lack of memory, so a smaller
            batch may work.
    """
    from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, RuntimeException

    try:
        return session.run(outputs, inputs)
    except (EPFail, Fail, RuntimeException) as error:  # none is a RuntimeError; which one depends on the operator
        shapes = ", ".join(f"{name} of shape {value.shape}" for name, value in inputs.items())
        raise RuntimeError(f"cannot compute with {shapes}: {str(error).strip()[:200]}") from error


@functools.cache
def overflows_in_8_bits() -> bool:
    """Whether sums of 8-bit products overflow, as they do on x86 processors without VNNI.

    These add two 8-bit products in 16 bits, which is too little for 255 x 127 + 255 x 127.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(_PROBE, options, providers=[_CPU])
    sums = session.run(None, {"x": np.full((2, 8), 255, dtype=np.uint8)})[0]
    return bool((sums != 8 * 255 * 127).any())


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

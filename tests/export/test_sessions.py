"""Opening and running graphs: correct 8-bit sums on all CPUs, and a lack of memory."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, InvalidArgument, RuntimeException
from tiny import tiny_photos, tiny_pixels

import nic_hf
from nic_hf.captioning import load_captioner
from nic_hf.captioning.captioners import caption_batch
from nic_hf.export import NICOnnxCaptioner, quantize_onnx, sessions


def products(columns: int, precise: bool) -> np.ndarray:
    """Sums of 8 x 255 x 127 in ONNX Runtime, with the default 8-bit kernels or those without overflow."""
    weights = helper.make_tensor("w", TensorProto.INT8, [8, columns], bytes([127] * 8 * columns), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, columns])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    if columns == 1:
        assert model == sessions._PROBE
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", str(int(precise)))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.full((2, 8), 255, dtype=np.uint8)})[0]


def test_the_processor_is_asked_whether_its_sums_are_right() -> None:
    assert (products(1, precise=True) == 8 * 255 * 127).all()
    for columns in (1, 48):  # narrow and wide matrices are multiplied by different code
        are_right = (products(columns, precise=False) == 8 * 255 * 127).all()
        assert sessions.overflows_in_8_bits() != are_right


def test_8_bits_compute_the_same_with_and_without_the_slow_sums(
    tiny_onnx: NICOnnxCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = quantize_onnx(tiny_onnx.folder, tmp_path / "static", tiny_photos(8))
    pixels = tiny_pixels(6).numpy()
    as_chosen = captioner.get_image_features(pixels)
    monkeypatch.setattr(sessions, "overflows_in_8_bits", lambda: True)
    np.testing.assert_array_equal(NICOnnxCaptioner(captioner.folder).get_image_features(pixels), as_chosen)


IN_LITTLE_MEMORY = """
import logging, resource, sys
import numpy as np
from nic_hf.captioning.captioners import ArrayCaptioner, caption_batch
from nic_hf.export import NICOnnxCaptioner

logging.basicConfig(format="%(message)s")
# Providers that are named encode a batch as a whole, as on a GPU.
captioner = ArrayCaptioner(NICOnnxCaptioner(sys.argv[1], providers=["CPUExecutionProvider"]), sys.argv[1])
photos = list(np.random.default_rng(0).standard_normal((6000, 3, 32, 32), dtype=np.float32))
few = caption_batch(captioner, photos[:6], 1)
assert sys.argv[2] in ("little", "plenty")
if sys.argv[2] == "little":
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 180 * 2**20, used + 180 * 2**20))
captions = caption_batch(captioner, photos, 1)
assert captions[:6] == few
print(len(captions), hash(str(captions)))
try:
    captioner.captioner.get_image_features(np.zeros((200_000, 3, 32, 32), dtype=np.float32))
except (MemoryError, RuntimeError) as error:
    print(error, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process by RLIMIT_AS")
def test_a_batch_that_does_not_fit_into_memory_is_captioned_in_parts(tiny_onnx: NICOnnxCaptioner) -> None:
    """With a real limit: ONNX Runtime's exception is neither MemoryError nor RuntimeError."""
    paths = {"PYTHONPATH": str(Path(nic_hf.__file__).parents[1]), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    outputs: dict[str, Any] = {}
    for memory in ("plenty", "little"):
        outputs[memory] = subprocess.run(
            [sys.executable, "-c", IN_LITTLE_MEMORY, str(tiny_onnx.folder), memory],
            capture_output=True,
            text=True,
            env={**os.environ, **paths},
            timeout=240,
        )
        assert outputs[memory].returncode == 0, outputs[memory].stderr
    assert outputs["little"].stdout == outputs["plenty"].stdout
    assert re.search(r"a batch of 6000 photos failed \(.*\): trying 3000 photos", outputs["little"].stderr)
    assert "6000 photos" not in outputs["plenty"].stderr


@pytest.mark.parametrize("kind", [EPFail, Fail, RuntimeException])
def test_whatever_a_failed_operator_raises_a_smaller_batch_is_tried(
    tiny_onnx: NICOnnxCaptioner, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """Which of them a lack of memory raises depends on the operator that meets it, so it cannot be chosen here."""
    captioner = load_captioner(tiny_onnx.folder)
    photos = list(tiny_pixels(4).numpy())
    expected = caption_batch(captioner, photos, 1)
    run = captioner.captioner._first_step.run

    class LittleMemory:
        def run(self, outputs: Any, inputs: Any) -> Any:
            if len(inputs["image_features"]) > 1:
                raise kind("Failed to allocate memory for requested buffer")
            return run(outputs, inputs)

    monkeypatch.setattr(captioner.captioner, "_first_step", LittleMemory())
    assert caption_batch(captioner, photos, 1) == expected


def test_other_errors_of_a_session_stay_what_they_are(tiny_onnx: NICOnnxCaptioner) -> None:
    with pytest.raises(InvalidArgument):
        sessions.run_session(tiny_onnx._encoder, None, {"pixel_values": np.zeros((1, 3, 5, 5), dtype=np.float32)})

"""What the machine could do at most: operations of a captioner, and the rate of the CPU for each kind of them.

    python benchmarks/limits.py runs/flickr8k

The limit of a path is the time that its multiplications would take at the rates of a large matrix product and of a
depthwise convolution, measured in the same run: no time for memory, activations, choice of words and Python.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import save, seconds
from torch import nn

from nic_hf import NICForConditionalGeneration
from nic_hf.captioners import captioner_path

SIDE = 2048  # of the matrices
BYTES = 2**28  # of the tensor that is copied
ROUNDS = 10
DEPTHWISE = ((32, 240, 28, 28), (1, 96, 112, 112))  # photos, channels, height, width; the second fits into a cache
KERNEL = 5  # height and width of a depthwise convolution


def best(call: Callable[[], Any]) -> float:
    """Shortest time of a call in seconds, without the first one."""
    return seconds(call, ROUNDS)[0]


@torch.inference_mode()
def machine_limits() -> dict[str, float]:
    """Operations per second of matrix products and depthwise convolutions, and bytes per second of a copy."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = torch.randn(2, SIDE, SIDE).to(dtype)
        found[f"{name} products"] = 2 * SIDE**3 / best(lambda a=left, b=right: a @ b)
        found[f"{name} depthwise"] = max(depthwise_rate(shape, torch_depthwise(shape, dtype)) for shape in DEPTHWISE)
    # The faster library counts, PyTorch (oneDNN, MKL) or ONNX Runtime.
    found["int8 products"] = 2 * SIDE**3 / best(onnx_product(integers=True))
    found["float32 products"] = max(found["float32 products"], 2 * SIDE**3 / best(onnx_product(integers=False)))
    rates = [depthwise_rate(shape, onnx_depthwise(shape)) for shape in DEPTHWISE]
    found["float32 depthwise"] = max(found["float32 depthwise"], *rates)
    found["int8 depthwise"] = found["float32 depthwise"]  # not measured: a small part of the operations
    source = torch.zeros(BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    found["bytes copied"] = 2 * BYTES / best(lambda: target.copy_(source))
    return found


def onnx_product(integers: bool) -> Callable[[], Any]:
    """A product of matrices in ONNX Runtime, in 8 bits or in float32."""
    generator = np.random.default_rng(0)
    if integers:
        left = generator.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
        right = generator.integers(-127, 127, (SIDE, SIDE), dtype=np.int8)
        return onnx_operator("MatMulInteger", np.int32, left, right)
    return onnx_operator("MatMul", np.float32, *generator.standard_normal((2, SIDE, SIDE)).astype(np.float32))


def depthwise_rate(shape: tuple[int, ...], call: Callable[[], Any]) -> float:
    """Operations per second of a depthwise convolution."""
    return 2 * KERNEL**2 * float(np.prod(shape)) / best(call)


def torch_depthwise(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], Any]:
    """A depthwise convolution in PyTorch, channels last."""
    photos = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
    layer = nn.Conv2d(shape[1], shape[1], KERNEL, padding=KERNEL // 2, groups=shape[1], bias=False).to(dtype)
    layer = layer.to(memory_format=torch.channels_last)
    return lambda: layer(photos)


def onnx_depthwise(shape: tuple[int, ...]) -> Callable[[], Any]:
    """A depthwise convolution in ONNX Runtime in float32."""
    generator = np.random.default_rng(0)
    photos = generator.standard_normal(shape).astype(np.float32)
    weights = generator.standard_normal((shape[1], 1, KERNEL, KERNEL)).astype(np.float32)
    return onnx_operator("Conv", np.float32, photos, weights, group=shape[1], pads=[KERNEL // 2] * 4)


def onnx_operator(
    name: str, result: type, left: np.ndarray, right: np.ndarray, **attributes: Any
) -> Callable[[], Any]:
    """An operator of two arrays in ONNX Runtime, with all threads; the second one is constant."""
    import onnxruntime
    from onnx import helper, numpy_helper

    types = [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (left.dtype, result)]
    values = [
        helper.make_tensor_value_info("a", types[0], left.shape),
        helper.make_tensor_value_info("c", types[1], [None] * left.ndim),
    ]
    node = helper.make_node(name, ["a", "b"], ["c"], **attributes)
    graph = helper.make_graph([node], name, values[:1], values[1:], [numpy_helper.from_array(right, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": left})


@torch.inference_mode()
def operations(model: NICForConditionalGeneration, beams: int, words: int) -> dict[str, float]:
    """Multiplications and additions of a caption of a photo, in products and in depthwise convolutions."""
    found = {"products": 0.0, "depthwise": 0.0}

    def count(layer: nn.Module, inputs: Any, output: Any) -> None:
        weights = layer.weight
        per_output = weights[0].numel()  # of a channel, or of a unit
        is_depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        found["depthwise" if is_depthwise else "products"] += 2.0 * per_output * output.numel()

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.encoder.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    size = model.config.backbone_config.to_dict().get("image_size") or 224
    model.get_image_features(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    lstm = sum(weights.numel() for name, weights in model.decoder.lstm.named_parameters() if "weight" in name)
    found["products"] += 2.0 * model.image_projection.linear.weight.numel() + 2.0 * lstm
    found["products"] += 2.0 * (lstm + model.lm_head.weight.numel()) * (1 + beams * (words - 1))
    return found


def limit(counted: dict[str, float], limits: dict[str, float], dtype: str) -> float:
    """Captions per second if only the multiplications took time."""
    return 1 / sum(number / limits[f"{dtype} {kind}"] for kind, number in counted.items())


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="by default the captioner that comes with the package")
    parser.add_argument("--num_beams", type=int, default=3)
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model = NICForConditionalGeneration.from_pretrained(captioner_path(args.checkpoint)).eval()
    counted, limits = operations(model, args.num_beams, args.words), machine_limits()
    for name, rate in limits.items():
        print(f"{name}: {rate / 1e9:,.1f} G/s")
    for kind, number in counted.items():
        print(f"{kind} of a caption: {number / 1e6:,.1f} million operations")
    captions = {dtype: limit(counted, limits, dtype) for dtype in ("float32", "bfloat16", "int8")}
    for dtype, rate in captions.items():
        print(f"limit in {dtype}: {rate:,.0f} captions/s")
    save(args.output, limits=limits, operations=counted, captions=captions, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()

"""Time of the layers of an exported encoder in ONNX Runtime, by the size of their output and their kind.

    python benchmarks/profile_layers.py captioner-onnx captioner-int8

Runs a batch of random photos in one thread with ONNX Runtime's profiler. Prints a table for each export: milliseconds,
share of the whole, billions of operations per second, and the share of the rate of a large matrix product or a large
depthwise convolution, which is measured with one thread in the same run (see limits.py).
"""

import argparse
import json
import math
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from limits import machine_limits
from machine import save


def tensor(described: dict[str, list[int]]) -> tuple[str, list[int]]:
    """Type and shape of a tensor, as ONNX Runtime's profiler writes them."""
    return next(iter(described.items()))


def layer(event: dict[str, Any], weights: dict[str, list[int]]) -> tuple[str, str, float]:
    """Size of the output, kind, and operations of a node."""
    name = event["args"]["op_name"]
    read, _ = tensor(event["args"]["input_type_shape"][0])
    _, written = tensor(event["args"]["output_type_shape"][0])
    size = f"{written[2]} px" if len(written) == 4 else "pooled"  # third: height or width, also in channels-last order
    number = "8 bits" if "int8" in read else "float32"
    shape = weights.get(event["name"].removesuffix("_kernel_time"))
    if shape is None:
        return size, f"{name}, {number}", 0.0
    outputs, per_group, height, width = shape
    kind = "depthwise" if per_group == 1 < outputs else "convolution"
    return size, f"{kind} {height} x {width}, {number}", 2.0 * math.prod(written) * per_group * height * width


def weight_shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Shape of the weights of each convolution, by the name of its node."""
    constants = {constant.name: list(constant.dims) for constant in graph.initializer}
    place = {"Conv": 1, "QLinearConv": 3}
    return {node.name: constants[node.input[place[node.op_type]]] for node in graph.node if node.op_type in place}


def profile(folder: Path, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of the table, in the order of the layers."""
    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(scratch) / "profile")
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        session = onnxruntime.InferenceSession(
            str(folder / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )
        weights = weight_shapes(onnx.load(options.optimized_model_filepath).graph)
        manifest = json.loads((folder / "nic_onnx.json").read_text("utf-8"))
        shape = (batch_size, *manifest["image_shape"])
        photos = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for _ in range(rounds + 1):
            session.run(None, {session.get_inputs()[0].name: photos})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    nodes = defaultdict(list)  # the events of each one, one for each run
    for event in events:
        if event.get("cat") == "Node" and "op_name" in event.get("args", {}):
            nodes[event["args"]["node_index"]].append(event)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for runs in nodes.values():
        size, kind, operations = layer(runs[0], weights)
        row = rows.setdefault((size, kind), {"size": size, "kind": kind, "layers": 0, "ms": 0.0, "operations": 0.0})
        row["layers"] += 1
        row["ms"] += min(run["dur"] for run in runs[1:]) / 1e3
        row["operations"] += operations
    return list(rows.values())


def share_of_limit(row: dict[str, Any], limits: dict[str, float]) -> float | None:
    """Share of the rate that the machine reaches with large operands; None for what does not multiply."""
    if not row["operations"]:
        return None
    bits = "int8" if "8 bits" in row["kind"] else "float32"
    kind = "depthwise" if "depthwise" in row["kind"] else "products"
    return row["operations"] / (row["ms"] / 1e3) / limits[f"{bits} {kind}"]


def main() -> None:
    """Measure, and print a table for each export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path, help="folders that `nic export onnx` wrote")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--least", type=float, default=1.0, help="smallest share to print, in percent")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    limits = machine_limits()
    profiles = {}
    for folder in args.exports:
        rows = profiles[folder.name] = profile(folder, args.batch_size, args.rounds)
        whole = sum(row["ms"] for row in rows)
        rate = 1e3 * args.batch_size / whole
        print(f"\n{folder.name}: {whole:.3g} ms for {args.batch_size} photos, {rate:.0f} a second")
        print("| output | kind | layers | ms | share | G operations/s | of the limit |\n|---|---|---|---|---|---|---|")
        for row in rows:
            row["share"], row["of_limit"] = row["ms"] / whole, share_of_limit(row, limits)
            if 100 * row["share"] < args.least:
                continue
            billions = row["operations"] / row["ms"] / 1e6
            ends = ["", ""] if row["of_limit"] is None else [f"{billions:.0f}", f"{row['of_limit']:.0%}"]
            cells = [row["size"], row["kind"], row["layers"], f"{row['ms']:.3g}", f"{row['share']:.0%}", *ends]
            print("| " + " | ".join(str(cell) for cell in cells) + " |")
    save(args.output, limits=limits, profiles=profiles, batch_size=args.batch_size)


if __name__ == "__main__":
    main()

"""Plot photos per second by batch and beam size, and the cost of a million captions compared with other models.

    python benchmarks/throughput.py runs/flickr8k --onnx captioner-onnx captioner-int8 --output throughput.json
    python benchmarks/throughput_plots.py throughput.json --onnx captioner-int8 --dollars_an_hour 0.085 --output .

The first plot is measured by this script; the second is computed from the results of benchmarks/throughput.py and the
hourly price of a machine with the same number of cores.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib
import numpy as np

from nic_hf.export import NICOnnxCaptioner
from nic_hf.malloc_settings import keep_freed_memory

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BATCHES = (1, 2, 4, 8, 16, 32, 64)
BEAMS = (1, 3, 5, 10)


def sweep(folder, words, rounds):
    """Photos per second for each beam size and batch size; the best of several rounds."""
    captioner = NICOnnxCaptioner.from_pretrained(folder)
    photos = np.random.default_rng(0).standard_normal((max(BATCHES), *captioner.manifest["image_shape"]))
    photos = photos.astype(np.float32)
    rates = {}
    for beams in BEAMS:
        for batch in BATCHES:
            best = float("inf")
            for _ in range(rounds + 1):
                start = time.perf_counter()
                captioner.generate(
                    pixel_values=photos[:batch], num_beams=beams, min_new_tokens=words, max_new_tokens=words
                )
                best = min(best, time.perf_counter() - start)
            rates.setdefault(beams, []).append(batch / best)
        print(f"beam {beams}: " + ", ".join(f"{rate:.0f}" for rate in rates[beams]), flush=True)
    return rates


def main():
    """Measure, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("throughput", type=Path, nargs="+", help="Output of benchmarks/throughput.py.")
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--dollars_an_hour", type=float, default=0.085, help="Hourly price of the machine.")
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path())
    args = parser.parse_args()
    keep_freed_memory()
    rates = sweep(args.onnx, args.words, args.rounds)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for beams, values in rates.items():
        axes.plot(BATCHES, values, marker="o", label=f"beam {beams}" if beams > 1 else "greedy")
    axes.set(xscale="log", xlabel="photos per batch", ylabel="photos per second", ylim=(0, None))
    axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.output / "throughput.png", dpi=130)

    rows = [row for file in args.throughput for row in json.loads(file.read_text())["rows"]]
    best: dict[str, float] = {}
    for row in rows:
        if row["what"].endswith("array to text"):
            continue
        name = row["what"]
        if name.startswith("nic_hf, ONNX"):  # followed by the name of the folder
            name = f"nic_hf, ONNX, {'8 bits' if row['limit'] == 'int8' else row['limit']}"
        best[name] = max(best.get(name, 0.0), row["photos_a_second"])
    costs = {name: 1e6 / rate / 3600 * args.dollars_an_hour for name, rate in best.items()}
    costs = dict(sorted(costs.items(), key=lambda item: -item[1]))
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    colours = ["#2a8c6a" if name.startswith("nic_hf") else "#9a9a9a" for name in costs]
    bars = axes.barh(list(costs), list(costs.values()), color=colours)
    axes.bar_label(bars, [f"${cost:,.2f}" for cost in costs.values()], padding=4)
    axes.set(xscale="log", xlabel=f"dollars per million captions, at ${args.dollars_an_hour} per hour")
    axes.set_xlim(right=3 * max(costs.values()))  # room for the labels
    figure.savefig(args.output / "cost.png", dpi=130)
    for name, cost in costs.items():
        print(f"{name:40} ${cost:8.2f} per million")


if __name__ == "__main__":
    main()

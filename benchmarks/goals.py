"""Measure the results of docs/performance.md, and compare them with their goals.

    nic export onnx captioner-onnx
    nic export onnx captioner-int8 --int8 --calibration path/to/flickr8k
    python benchmarks/goals.py --onnx captioner-onnx --int8 captioner-int8 --data path/to/flickr8k \\
        --backbone path/to/efficientnet-lite0 --output goals

Each part runs a benchmark of this folder in a separate process, which takes half a minute to two minutes; `stream`,
which captions 100,000 photos, takes five. `--parts` selects parts; the table includes all results
in `--output`, so that parts can be run separately.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from machine import about

from nic_hf.captioners import captioner_path

HERE = Path(__file__).parent
Rows = dict[str, Any]  # results of a part


# The command of each part, to which the JSON file is added that it writes.
PARTS = {
    "throughput": "throughput.py {checkpoint} --onnx {onnx} {int8} --bfloat16 --photo {photo} --peers ViT-GPT2"
    " --output",
    "peers": "throughput.py {checkpoint} --peers GIT-base BLIP-base --rounds 1 --output",
    "files": "caption_folder.py --model {int8} --photos {images} --size 500 375 --output",
    "decoding": "decoding.py {checkpoint} --data {data} --output",
    "training": "training_step.py --data {data} --backbone {backbone} --max-photos 1000 --steps 40 --bf16 --json",
    "start_up": "start_up.py {photo} --models {checkpoint} {onnx} {int8} --output",
    "accuracy": "onnx_captioner.py {checkpoint} --data {data} --threads 2 --json",
    "stream": "stream_memory.py --model {int8} --photos {images} --output",
}


def command(part: str, args: argparse.Namespace) -> list[str]:
    """The command of a part."""
    images = args.images or str(Path(args.data) / "Images")
    photo = next(path for path in sorted(Path(images).iterdir()) if path.suffix == ".jpg")
    script, *words = PARTS[part].split()
    values = {**vars(args), "images": images, "photo": photo}
    options = [word.format(**values) for word in words]
    return [sys.executable, str(HERE / script), *options, str(args.output / f"{part}.json")]


class Goal(NamedTuple):
    """A row of the table."""

    what: str
    part: str
    least: bool  # whether the goal is a minimum, otherwise a maximum
    goal: float
    unit: str
    value: Callable[[Rows], float]


def rate(rows: Rows, key: str, number: str = "int8") -> float:
    """A result of the ONNX captioner in 8 bits or float32 with the largest batch."""
    batches = [row for row in rows["rows"] if row["what"].startswith("nic_hf, ONNX") and "text" not in row["what"]]
    return next(row[key] for row in batches if row["batch"] > 1 and row["limit"] == number)


def one_photo(rows: Rows) -> float:
    """Median milliseconds from an array to a text with the faster ONNX captioner."""
    return min(row["median_ms"] for row in rows["rows"] if row["what"].endswith("array to text"))


def decoded(what: str) -> Callable[[Rows], float]:
    """The ratio to a bare loop of the row with this prefix."""
    return lambda rows: next(row["ratio_median"] for row in rows["rows"] if row["what"].startswith(what))


def started(is_onnx: bool) -> Callable[[Rows], float]:
    """Median seconds of `nic caption` with the slowest captioner of this kind."""

    def value(rows: Rows) -> float:
        names = [name for name, onnx in rows["is_onnx"].items() if onnx == is_onnx]
        ends = tuple(f"--model {name}" for name in names)
        return max(row["median_s"] for row in rows["rows"] if row["what"].endswith(ends))

    return value


def lost(rows: Rows) -> float:
    """Loss of CIDEr-D of the static 8-bit captioner, in percent."""
    return rows["results"]["float32"]["cider_d"] - rows["results"]["static"]["cider_d"]


def growth(rows: Rows) -> float:
    """Growth of memory in percent, from the second tenth of the run to the last."""
    peaks = rows["peak_of_each_tenth_mib"]
    return 100 * (peaks[-1] / peaks[1] - 1)


GOALS = (
    Goal(
        "arrays to captions, batch 32, beam 3",
        "throughput",
        True,
        250,
        "photos/s",
        lambda r: rate(r, "photos_a_second"),
    ),
    Goal("the same, relative to ViT-GPT2", "throughput", True, 100, "times", lambda r: rate(r, "times_vit_gpt2")),
    Goal(
        "in float32, relative to ViT-GPT2",
        "throughput",
        True,
        60,
        "times",
        lambda r: rate(r, "times_vit_gpt2", "float32"),
    ),
    Goal(
        "JPEG files (500 x 375) to captions, beam 3",
        "files",
        True,
        120,
        "photos/s",
        lambda r: max(row["photos_a_second"] for row in r["rows"]),
    ),
    Goal("one photo, array to text, beam 3", "throughput", False, 10, "ms", one_photo),
    Goal("decoding 64 photos, beam 3, vs a bare loop", "decoding", False, 1.25, "times", decoded("beam 3, 64")),
    Goal(
        "a greedy word of 1 photo, vs the bare cell",
        "decoding",
        False,
        1.5,
        "times",
        decoded("greedy, 1 photo, e"),
    ),
    Goal("a greedy caption of 1 photo, vs bare cells", "decoding", False, 1.5, "times", decoded("greedy, 1")),
    Goal(
        "training step, Trainer vs a bare loop",
        "training",
        False,
        1.15,
        "times",
        lambda r: r["medians"]["ratio_grouped"],
    ),
    Goal(
        "training step, bfloat16 vs float32",
        "training",
        True,
        1.5,
        "times",
        lambda r: r["medians"]["bf16_rate"],
    ),
    Goal("nic --help", "start_up", False, 0.3, "s", lambda r: r["rows"][0]["median_s"]),
    Goal("nic caption photo.jpg, PyTorch, cold", "start_up", False, 5, "s", started(False)),
    Goal("nic caption photo.jpg, ONNX, cold", "start_up", False, 1, "s", started(True)),
    Goal("memory over 100,000 photos, the most", "stream", False, 1536, "MiB", lambda r: r["peak_mib"]),
    Goal("memory over 100,000 photos, growth", "stream", False, 2, "%", growth),
    Goal("size in 8 bits", "accuracy", False, 12, "MB", lambda r: r["results"]["static"]["megabytes"]),
    Goal("CIDEr-D lost in 8 bits, dev split", "accuracy", False, 0.3, "%", lost),
    Goal(
        "same captions in ONNX float32, dev split",
        "accuracy",
        True,
        100,
        "%",
        lambda r: 100 * r["results"]["float32"]["same_captions"] / r["photos"],
    ),
    Goal(
        "same captions in bfloat16, dev split",
        "accuracy",
        True,
        97,
        "%",
        lambda r: 100 * r["results"]["PyTorch, bfloat16"]["same_captions"] / r["photos"],
    ),
)


def table(folder: Path) -> list[dict[str, Any]]:
    """Rows of the table; those not measured have no value."""
    rows = []
    for goal in GOALS:
        file = folder / f"{goal.part}.json"
        value = goal.value(json.loads(file.read_text("utf-8"))) if file.is_file() else None
        met = None if value is None else (value >= goal.goal if goal.least else value <= goal.goal)
        rows.append({**goal._asdict(), "value": value, "met": met})
        del rows[-1]["least"]
        rows[-1]["goal"] = f"{'at least' if goal.least else 'at most'} {goal.goal:g} {goal.unit}"
    return rows


def main() -> int:
    """Measure the selected parts and print the table; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="by default the captioner that comes with the package")
    parser.add_argument("--onnx", required=True, help="its export in float32")
    parser.add_argument("--int8", required=True, help="its export in 8 bits")
    parser.add_argument("--data", required=True, help="a Flickr8k folder")
    parser.add_argument("--images", help="folder of its photos, if not DATA/Images")
    parser.add_argument("--backbone", required=True, help="for the training step")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), help="parts to measure; empty for only the table")
    parser.add_argument("--output", type=Path, default=Path("goals"))
    args = parser.parse_args()
    args.checkpoint = captioner_path(args.checkpoint)
    args.output.mkdir(parents=True, exist_ok=True)
    for part in PARTS if args.parts is None else args.parts:
        print(f"\n{part}", flush=True)
        start = time.perf_counter()
        subprocess.run(command(part, args), check=True)
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    rows = table(args.output)
    print("\n| | goal | measured | |\n|---|---|---|---|")
    for row in rows:
        shown = "" if row["value"] is None else f"{row['value']:.3g} {row['unit']}"
        print(f"| {row['what']} | {row['goal']} | {shown} | {'' if row['met'] in (True, None) else 'missed'} |")
    (args.output / "goals.json").write_text(
        json.dumps({"machine": about(), "rows": rows}, indent=1, default=str) + "\n"
    )
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

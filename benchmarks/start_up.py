"""Seconds from the start of a process to its end: `nic --help`, and a caption of one photo.

    python benchmarks/start_up.py photo.jpg --models runs/flickr8k captioner-onnx captioner-int8 --output start_up.json

All commands take turns, so that a machine that slows down slows all. The first round, in which the system reads the
files from disk, is not counted. Prints one table and writes JSON.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import save


def main():
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("--models", nargs="*", default=[], help="Captioners: checkpoints, ONNX folders.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    nic = str(Path(sys.executable).with_name("nic"))
    commands = {"nic --help": [nic, "--help"]}
    for model in args.models:
        commands[f"nic caption photo.jpg --model {Path(model).name}"] = [nic, "caption", args.photo, "--model", model]
    seconds = {name: [] for name in commands}
    for number in range(args.rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if number:
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, each in seconds.items():
        rows.append({"what": name, "best_s": min(each), "median_s": statistics.median(each)})
        print(f"{name:60} best {min(each):5.2f} s, median {statistics.median(each):5.2f} s")
    models = {Path(model).name: (Path(model) / "nic_onnx.json").is_file() for model in args.models}
    save(args.output, rows=rows, is_onnx=models)


if __name__ == "__main__":
    main()

"""Seconds from the start of a process to its end, for `nic --help` and for a caption of one photo.

    python benchmarks/start_up.py photo.jpg --models runs/flickr8k captioner-onnx captioner-int8 --output start_up.json

The commands alternate, so that changes in machine speed affect all of them. The first round, in which files are read
from disk, does not count. Prints a table and writes JSON.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import save


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("--models", nargs="*", default=[], help="Checkpoints and ONNX folders.")
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

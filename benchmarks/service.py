"""Answers a second for many clients at a time, relative to the same photos in one call.

    python benchmarks/service.py path/to/flickr8k/Images --clients 64 --seconds 30 --output service.json

Measured in one run: the pipeline with a list of photos and batches of 32, the pipeline with one photo after the other,
the pipeline behind an HTTP server that answers each request in a thread of its own, and `nic app` through its HTTP
interface. Clients are another process on the same machine, and check each answer.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import save
from photo_server import photo_server

from nic_hf import ImageToTextPipeline

LOAD = Path(__file__).parents[1] / "tests" / "reliability" / "load_generator.py"


def main() -> None:
    """Measure, print a line for each, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--captioner", help="by default the one that comes with the package")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    pipeline = ImageToTextPipeline.from_pretrained(args.captioner)
    photos = [str(path) for path in sorted(args.photos.iterdir())[: max(args.clients, 64)]]
    results: dict[str, Any] = {}

    def rate(caption: Any) -> float:
        caption(photos[:32])
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < args.seconds / 2:
            caption(photos)
            done += len(photos)
        return done / (time.perf_counter() - start)

    results["batches"] = {"rate": rate(lambda photos: pipeline(photos, batch_size=32))}
    results["one by one"] = {"rate": rate(lambda photos: [pipeline(photo) for photo in photos])}
    with photo_server(pipeline) as url:
        results["server"] = load(url, args)
    command = [sys.executable, "-m", "nic_hf", "app", *([args.captioner] if args.captioner else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
        assert app.stdout is not None
        url = app.stdout.readline().split()[2]
        asked = ("--gradio", "caption", "--inputs", '[1, "beam search", 3, 1.0]')
        results["app, through its queue"] = load(url, args, *asked)
        results["app, in one request"] = load(url, args, *asked, "--at_once")
        app.terminate()
    for name, result in results.items():
        result["relative"] = result["rate"] / results["batches"]["rate"]
        print(f"{name}: {result}", flush=True)
    save(args.output, **results)


def load(url: str, args: argparse.Namespace, *more: str) -> dict[str, float]:
    """Answers a second, and the median and 99th percentile of their times in seconds."""
    command = [
        sys.executable,
        str(LOAD),
        url,
        str(args.photos),
        "--clients",
        str(args.clients),
        *more,
    ]
    done = subprocess.run([*command, "--seconds", str(args.seconds)], capture_output=True, text=True, check=True)
    found = re.search(r"([\d.]+) a second; p50 (\d+) ms, p99 (\d+) ms; errors: 0", done.stdout)
    if found is None:
        raise SystemExit(done.stdout)
    return {"rate": float(found[1]), "p50": int(found[2]) / 1000, "p99": int(found[3]) / 1000}


if __name__ == "__main__":
    main()

"""Memory of `nic caption` over 100,000 photos: peak and growth.

    python benchmarks/stream_memory.py --model captioner-int8 --photos path/to/flickr8k/Images --output stream.json

The photos of a folder are repeated under different names (links to the files), so that each is read, decoded and
captioned. Resident memory is sampled every half second. Prints a line per tenth of the photos and writes JSON.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from machine import save

MIB = 2**20


def link_photos(source, target, number):
    """Create links to the photos of `source` in `target`."""
    photos = sorted(path.resolve() for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for place, photo in zip(range(number), itertools.cycle(photos), strict=False):
        folder = target / f"{place // 10_000:02d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{place:07d}{photo.suffix}").symlink_to(photo)


def count_lines(file, position, lines):
    """Count the lines of a growing file, continuing after the last call."""
    if file.exists():
        with file.open("rb") as content:
            content.seek(position)
            while block := content.read(MIB):
                lines += block.count(b"\n")
            position = content.tell()
    return position, lines


def main():
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--number", type=int, default=100_000)
    parser.add_argument("--num_beams", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, captions = Path(temporary) / "photos", Path(temporary) / "captions.jsonl"
        folder.mkdir()
        link_photos(args.photos, folder, args.number)
        nic = str(Path(sys.executable).with_name("nic"))
        command = [nic, "caption", str(folder), "--model", args.model, "--num-beams", str(args.num_beams)]
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--output", str(captions)], stderr=subprocess.DEVNULL)
        watched, samples, position, lines, shown = psutil.Process(process.pid), [], 0, 0, 0
        while process.poll() is None:
            position, lines = count_lines(captions, position, lines)
            try:
                samples.append((lines, watched.memory_info().rss / MIB))
            except psutil.Error:
                break
            if lines >= (shown + 1) * args.number / 10:
                shown = 10 * lines // args.number
                print(
                    f"{lines:8,} photos  {samples[-1][1]:7.0f} MiB  {time.perf_counter() - start:7.0f} s", flush=True
                )
            time.sleep(0.5)
        code = process.wait()
        _, lines = count_lines(captions, position, lines)
    peaks = []  # per tenth of the photos
    for tenth in range(10):
        part = [rss for done, rss in samples if tenth <= 10 * done / args.number < tenth + 1]
        peaks.append(max(part, default=None))
    seconds = time.perf_counter() - start
    peak = max(rss for _, rss in samples)
    print(f"exit code {code}, {lines:,} captions, {lines / seconds:.1f} per second, peak {peak:.0f} MiB")
    print("peak per tenth, MiB:", *(f"{rss:.0f}" if rss else "-" for rss in peaks))
    save(
        args.output,
        model=args.model,
        captions=lines,
        seconds=seconds,
        exit_code=code,
        peak_mib=peak,
        peak_of_each_tenth_mib=peaks,
    )


if __name__ == "__main__":
    main()

"""What captioned photos of one's own make of the captioner that comes with nic_hf, and of a new one.

    python benchmarks/adaptation.py --data path/to/flickr8k --backbone path/to/efficientnet-lite0 --sizes 50 200 800

The photos are Flickr8k's dev photos, which neither captioner was trained on: 200 are scored, and as many of the others
as `--sizes` says are the photos of one's own, a tenth of them to select the checkpoint. Prints CIDEr-D in percent:
without training, after `nic train --from_checkpoint flickr8k`, and, with --backbone, of a captioner that `nic train`
makes of these photos alone. Words after `--` go to both, such as `-- --num_train_epochs 1`.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
from pathlib import Path

from nic_hf import load_captions

SCORED = 200


def main() -> None:
    """Train, score, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", help="folder of the photos, by default DATA/Images")
    parser.add_argument("--backbone", help="also train new captioners with it")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200, 800])
    parser.add_argument("--output", type=Path, default=Path("runs/adaptation"), help="folder of the runs")
    parser.add_argument("more", nargs="*", help="settings of nic train, after --")
    args = parser.parse_args()
    images = args.images or str(Path(args.data, "Images"))
    rows = list(load_captions(args.data, "dev").select_columns(["image_id", "captions"]))
    random.Random(0).shuffle(rows)
    args.output.mkdir(parents=True, exist_ok=True)
    common = ["--images", images, "--cache_dir", str(args.output / "features")]
    for size in args.sizes:
        table = args.output / f"own{size}.csv"
        own = rows[SCORED : SCORED + size]
        number = max(1, size // 10)
        parts = {"test": rows[:SCORED], "validation": own[:number], "train": own[number:]}
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption", "split"])
            for part, photos in parts.items():
                writer.writerows([row["image_id"], caption, part] for row in photos for caption in row["captions"])
        ways = {"from flickr8k": ["--from_checkpoint", "flickr8k"]}
        if args.backbone:
            ways["new"] = ["--backbone", args.backbone]
        print(f"{size} photos, not trained: {cider('flickr8k', table, args.output / 'scores' / 'before', images):.1f}")
        for name, start in ways.items():
            run = args.output / f"{name.split()[0]}-{size}"
            if not (run / "config.json").is_file():
                nic("train", *start, "--data", str(table), "--output_dir", str(run), *common, *args.more)
            score = cider(str(run), table, args.output / "scores" / run.name, images)
            print(f"{size} photos, {name}: {score:.1f}", flush=True)


def cider(captioner: str, table: Path, report: Path, images: str) -> float:
    """CIDEr-D of a captioner on the scored photos, in percent."""
    options = ["--data", str(table), "--images", images, "--split", "test", "--output", str(report), "--json"]
    return 100 * json.loads(nic("evaluate", captioner, *options))["scores"]["cider"]


def nic(*words: str) -> str:
    """Run `nic`, with its progress on standard error, and return its output."""
    command = [sys.executable, "-m", "nic_hf", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()

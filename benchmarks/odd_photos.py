"""Confidence in captions of pictures unlike the training photos, as a table.

    pip download scikit-image --no-deps -d wheels; unzip wheels/scikit_image*.whl -d scikit-image
    python benchmarks/odd_photos.py scikit-image/skimage/data
    python benchmarks/odd_photos.py folder/of/pictures --captioner runs/own --data flickr8k

Without names of files, the twenty pictures of scikit-image 0.26 that are most unlike snapshots are taken. With --data,
quantiles of the confidence in captions of its test photos are printed for comparison.
"""

import argparse
from pathlib import Path

import numpy as np

from nic_hf.captioners import captioner_path
from nic_hf.captioning import load_captioner
from nic_hf.captioning.captioners import caption_batch
from nic_hf.data import load_captions
from nic_hf.images import load_photo

ODD = {
    "page.png": "a page of a book",
    "text.png": "handwriting",
    "logo.png": "a logo",
    "chessboard_GRAY.png": "a chessboard, drawn",
    "color.png": "a colour chart",
    "phantom.png": "a drawn phantom of a head",
    "horse.png": "a silhouette",
    "no_time_for_that_tiny.gif": "a still of a film",
    "clock_motion.png": "a blurred clock",
    "coins.png": "coins",
    "moon.png": "the moon's surface",
    "hubble_deep_field.jpg": "galaxies",
    "retina.jpg": "a retina",
    "microaneurysms.png": "a part of a retina",
    "cell.png": "a cell",
    "ihc.png": "stained tissue",
    "brick.png": "bricks, close",
    "grass.png": "grass, close",
    "gravel.png": "gravel, close",
    "rocket.jpg": "a rocket",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the pictures")
    parser.add_argument("names", nargs="*", help="files in it; those of scikit-image by default, if they are there")
    parser.add_argument("--captioner", help="a calibrated captioner; the one of the package by default")
    parser.add_argument("--data", help="Flickr8k's folder, for a comparison with its test photos")
    args = parser.parse_args()
    captioner = load_captioner(captioner_path(args.captioner), "cpu")
    names = args.names or [name for name in ODD if (args.folder / name).is_file()]
    names = names or sorted(file.name for file in args.folder.iterdir() if file.is_file())
    pixels = [captioner.prepare(load_photo(args.folder / name)) for name in names]
    found = caption_batch(captioner, pixels, 1, with_confidence=True)
    print("| picture | caption | confidence |\n|---|---|---|")
    for name, [(caption, confidence)] in sorted(zip(names, found, strict=True), key=lambda each: each[1][0][1]):
        print(f"| {ODD.get(name, name)} | {caption} | {100 * confidence:.0f} % |")
    if args.data is None:
        return
    known = []
    photos = load_captions(args.data, "test")
    for start in range(0, len(photos), 32):
        rows = photos.select(range(start, min(start + 32, len(photos))))
        batch = [captioner.prepare(row["image"].convert("RGB")) for row in rows]
        known += [pairs[0][1] for pairs in caption_batch(captioner, batch, 1, with_confidence=True)]
    quantiles = np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95])
    print(
        f"{len(known)} test photos, 5, 25, 50, 75 and 95 % quantiles:", *(f"{100 * each:.0f} %" for each in quantiles)
    )


if __name__ == "__main__":
    main()

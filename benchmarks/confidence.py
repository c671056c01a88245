"""The chain from human judgments to a confidence, and the reliability diagram of docs/captioning.md.

    python benchmarks/confidence.py path/to/flickr8k --picture docs/images/reliability.png

1. Flickr8k's experts judged 5,664 pairs of a photo and a caption of another photo: the chance that one gives 3 or 4 of
   4 points is fitted to the caption's CIDEr-D, and checked on the photos that were left out of the fit.
2. The calibration in the captioner's config.json, fitted on dev photos, is checked on the test photos.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from nic_hf import NICForConditionalGeneration, NICProcessor, PhotoDataset, cache_features, load_captions
from nic_hf.captioners import captioner_path
from nic_hf.evaluation import DocumentFrequencies, load_expert_judgments, load_token_captions, score_captions
from nic_hf.evaluation.calibration import (
    NEAR_ZERO,
    acceptance,
    accepted_captions,
    auroc,
    confidences,
    logistic_fit,
    photo_evidence,
    reliability,
)
from nic_hf.evaluation.paper.human_judgments import judged_pairs
from nic_hf.model.confidence import Calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Flickr8k's folder")
    parser.add_argument("--captioner", help="a calibrated captioner; the one of the package by default")
    parser.add_argument("--cache_dir", help="folder to keep image features in")
    parser.add_argument("--picture", type=Path, help="file of the diagram")
    args = parser.parse_args()
    check_acceptance(args.folder)
    name = captioner_path(args.captioner)
    model = NICForConditionalGeneration.from_pretrained(name).eval()
    processor, calibration = NICProcessor.from_pretrained(name), Calibration.of(model.config)
    if calibration is None:
        raise SystemExit(f"{name} is not calibrated")
    table = load_captions(args.folder, "test")
    photos = PhotoDataset(table, processor, cache_features(model, processor, table, args.cache_dir))
    own = photo_evidence(model, photos)
    accepted = accepted_captions(own.captions, photos)
    sure = confidences(calibration, own)
    found = reliability(sure, accepted)
    print(f"{len(sure)} test photos: accepted {accepted.mean():.3f}, confidence {sure.mean():.3f}")
    print({key: round(value, 4) for key, value in found.items() if key != "bins"})
    print("quantiles 5, 25, 50, 75, 95 %:", np.quantile(sure, [0.05, 0.25, 0.5, 0.75, 0.95]).round(3))
    if args.picture is not None:
        draw(found, sure, args.picture)


def check_acceptance(folder: Path) -> None:
    """Fit the acceptance by experts on half of the photos, and print how it does on the other half."""
    captions = load_token_captions(folder / "Flickr8k.token.txt")
    judgments = load_expert_judgments(folder / "ExpertAnnotations.txt", captions)
    judgments, predictions, references = judged_pairs(judgments, captions, "leave_out")
    frequencies = DocumentFrequencies(captions[i] for i in {judgment.image_id for judgment in judgments})
    scores = score_captions(predictions, references, ["cider"], per_image=True, document_frequencies=frequencies)[
        "per_image"
    ]
    cider = np.array([scores[judgment.key]["cider"] for judgment in judgments])
    said_yes = np.array([np.mean([rating >= 3 for rating in judgment.ratings]) for judgment in judgments])
    inputs = np.stack([np.ones_like(cider), np.log(cider + NEAR_ZERO)], axis=1)
    print(f"{len(cider)} judged pairs; fit {logistic_fit(inputs, said_yes).round(3)}")
    photos = sorted({judgment.image_id for judgment in judgments})
    first = set(photos[::2])
    half = np.array([judgment.image_id in first for judgment in judgments])
    chance = 1 / (1 + np.exp(-inputs[~half] @ logistic_fit(inputs[half], said_yes[half])))
    found = reliability(chance, said_yes[~half])
    print("other half of the photos:", {key: round(value, 4) for key, value in found.items() if key != "bins"})
    print(f"AUROC of CIDEr-D, most experts: {auroc(cider, said_yes > 0.5):.3f}")
    print("CIDEr-D of an acceptance of one half:", next(c / 100 for c in range(1000) if acceptance(c / 100) >= 0.5))


def draw(found: dict, sure: np.ndarray, picture: Path) -> None:
    """Draw the reliability diagram, with a histogram of the confidences below."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(5, 5.6), height_ratios=(4, 1), sharex=True)
    means, shares, _ = zip(*found["bins"], strict=True)
    above.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfect")
    above.plot(means, shares, "o-", color="#00796b", label="test photos, a tenth per point")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="chance of acceptance, by the references")
    above.legend(loc="upper left")
    above.text(0.97, 0.05, f"AUROC {found['auroc']:.2f}\nECE {found['ece']:.3f}", ha="right")
    below.hist(sure, bins=np.linspace(0, 1, 41), color="#00796b")
    below.set(xlabel="confidence", ylabel="photos")
    figure.tight_layout()
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main()

"""Fit a captioner's confidence: the chance that people would accept a caption."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.feature_cache import cache_features
from ..data.loading import load_captions
from ..data.odd_pictures import odd_pictures
from ..data.torch_datasets import PhotoDataset
from ..model.captioner import NICForConditionalGeneration
from ..model.confidence import Calibration, mean_log_probabilities, unlikeness
from ..model.processor import NICProcessor
from ..progress_bar import progress_bar
from .scores import score_captions

# P(an expert gives 3 or 4 of 4 points) = sigmoid(0.88 + 1.15 log(CIDEr-D + 0.01)), fitted to Flickr8k's 5,664 judged
# pairs of a photo and another photo's caption by benchmarks/confidence.py. 3: "almost describes the image".
ACCEPTANCE = (0.88, 1.15)
NEAR_ZERO = 0.01
ODD_PICTURES = 250
FEWEST_PHOTOS = 50
_FAMILIAR_SHARE = 0.95  # of the photos to fit on
_BATCH = 32


class Evidence(NamedTuple):
    """What a confidence is computed from, of shape `(num_captions,)` each, and the captions."""

    log_probabilities: np.ndarray
    unlikeness: np.ndarray
    captions: list[str]


def calibrate(
    captioner: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split: str = "validation",
    data_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    save: bool = True,
) -> dict[str, Any]:
    """Fit a captioner's confidence on photos that it was not trained on, and write it into its `config.json`.

    Captions with the captioner's generation settings are compared with the references of their photos: CIDEr-D gives
    the chance that an expert would accept the caption ([`acceptance`]). Made-up pictures of screens, pages and
    drawings, none of whose captions is acceptable, show what unlike the training data is.

    Args:
        captioner: folder of a checkpoint.
        data: captioned photos, in any form of [`nic_hf.data.load_captions`].
        split: split to fit on; never the one whose scores are reported.
        data_options: arguments of [`nic_hf.data.load_captions`], such as `images` or `dev_share`.
        cache_dir: folder to keep image features in between runs.
        save: write the calibration.

    Returns:
        `calibration`; `photos`, their number; `accepted`, the mean chance that their captions are; `held_out`, see
        [`reliability`], of each half of the photos by a fit on the other half; `odd`, the highest confidence in a
        caption of a made-up picture.

    Raises:
        OSError: if there is no such captioner, or it cannot be written.
        ValueError: if there is no such split, or it has fewer than 50 photos.
    """
    table = load_captions(data, split, **(data_options or {}))
    if len(table) < FEWEST_PHOTOS:
        raise ValueError(
            f"{data}: {len(table)} photos in split {split!r}; a calibration needs {FEWEST_PHOTOS} or more"
        )
    model = NICForConditionalGeneration.from_pretrained(captioner).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.set_backbone_frozen(True)  # in memory: its features are cached
    processor = NICProcessor.from_pretrained(captioner)
    photos = PhotoDataset(table, processor, cache_features(model, processor, table, cache_dir))
    own, odd = photo_evidence(model, photos), odd_evidence(model, processor)
    targets = accepted_captions(own.captions, photos)
    calibration = fit(own, targets, odd)

    halves = np.random.default_rng(0).permutation(len(targets)) % 2 == 0
    held_out = np.empty(len(targets))
    for half in (halves, ~halves):
        held_out[~half] = confidences(fit(_part(own, half), targets[half], odd), _part(own, ~half))
    if save:
        calibration.save(captioner)
    return {
        "calibration": calibration,
        "photos": len(targets),
        "accepted": float(targets.mean()),
        "held_out": reliability(held_out, targets),
        "odd": float(confidences(calibration, odd).max()),
    }


def acceptance(cider: np.ndarray) -> np.ndarray:
    """Chance that an expert accepts a caption, given its CIDEr-D (0 to 10) with five references."""
    return _sigmoid(ACCEPTANCE[0] + ACCEPTANCE[1] * np.log(np.asarray(cider) + NEAR_ZERO))


def accepted_captions(captions: list[str], photos: PhotoDataset) -> np.ndarray:
    """Chance that people would accept the caption of each photo, by CIDEr-D with its references."""
    predictions = dict(zip(photos.image_ids(), captions, strict=True))
    scores = score_captions(predictions, photos.references(), ["cider"], per_image=True)["per_image"]
    return acceptance(np.array([scores[image_id]["cider"] for image_id in predictions]))


def photo_evidence(model: NICForConditionalGeneration, photos: PhotoDataset) -> Evidence:
    """Caption photos, and measure what their confidence depends on."""
    batches = (range(start, min(start + _BATCH, len(photos))) for start in range(0, len(photos), _BATCH))
    parts, name = [], "pixel_values" if photos.features is None else "encoder_outputs"
    with progress_bar(total=len(photos), unit="photo", desc="Captioning", leave=False) as bar:
        for batch in batches:
            inputs = torch.stack([photos[place][name] for place in batch]).to(model.device)
            parts.append(_evidence(model, photos.processor, inputs, is_pixels=photos.features is None))
            bar.update(len(batch))
    return _joined(parts)


def odd_evidence(
    model: NICForConditionalGeneration, processor: NICProcessor, number: int = ODD_PICTURES, seed: int = 0
) -> Evidence:
    """Caption made-up pictures, and measure the same."""
    pictures = [picture for _, picture in odd_pictures(number, seed)]
    parts = []
    for start in range(0, number, _BATCH):
        inputs = processor(images=pictures[start : start + _BATCH], return_tensors="pt")["pixel_values"]
        parts.append(_evidence(model, processor, inputs.to(model.device), is_pixels=True))
    return _joined(parts)


def fit(own: Evidence, accepted: np.ndarray, odd: Evidence, ridge: float = 1e-3) -> Calibration:
    """Fit a logistic regression by Newton's method.

    Args:
        own: evidence of captions of photos like the training data.
        accepted: the chance that each is accepted, of shape `(num_captions,)`.
        odd: evidence of captions of other pictures, none of which is accepted.
        ridge: weight of the squared coefficients, which keeps them finite.
    """
    familiar = float(np.quantile(own.unlikeness, _FAMILIAR_SHARE))
    log_probabilities = np.concatenate([own.log_probabilities, odd.log_probabilities])
    excess = np.maximum(0, np.concatenate([own.unlikeness, odd.unlikeness]) - familiar)
    inputs = np.stack([np.ones_like(excess), log_probabilities, excess], axis=1)
    targets = np.concatenate([accepted, np.zeros(len(odd.captions))])
    intercept, slope, penalty = (round(float(weight), 4) for weight in logistic_fit(inputs, targets, ridge))
    return Calibration(intercept, slope, penalty, round(familiar, 4))


def logistic_fit(inputs: np.ndarray, targets: np.ndarray, ridge: float = 1e-3, steps: int = 50) -> np.ndarray:
    """Weights of a logistic regression of chances `(n,)` on inputs `(n, k)`, of shape `(k,)`."""
    weights = np.zeros(inputs.shape[1])
    for _ in range(steps):
        chances = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (targets - chances) - ridge * weights
        curvature = (inputs * (chances * (1 - chances))[:, None]).T @ inputs + ridge * np.eye(len(weights))
        weights = weights + np.linalg.solve(curvature, gradient)
    return weights


def confidences(calibration: Calibration, evidence: Evidence) -> np.ndarray:
    """Confidence in each caption, of shape `(num_captions,)`."""
    inputs = (torch.from_numpy(np.asarray(each, float)) for each in evidence[:2])
    return calibration.confidence(*inputs).numpy()


def reliability(confidence: np.ndarray, accepted: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """How well confidences foretell which captions are accepted.

    Args:
        confidence: of shape `(num_captions,)`.
        accepted: the chance that each is accepted, of the same shape.
        bins: number of bins of as many captions each.

    Returns:
        `auroc` of the captions that are more likely than not accepted against the others; `brier`, the expected Brier
        score, and `brier_base` of one confidence for all; `ece`, the mean difference of confidence and share accepted
        over the bins (expected calibration error); `bins`, rows of both with the number of captions.
    """
    rows = [
        (float(confidence[part].mean()), float(accepted[part].mean()), len(part))
        for part in np.array_split(np.argsort(confidence, kind="stable"), bins)
        if len(part)
    ]
    spread = float((accepted * (1 - accepted)).mean())  # of yes and no, which no confidence foretells
    return {
        "auroc": auroc(confidence, accepted >= 0.5),
        "brier": float(((confidence - accepted) ** 2).mean()) + spread,
        "brier_base": float(accepted.var()) + spread,
        "ece": sum(abs(mean - share) * number for mean, share, number in rows) / len(confidence),
        "bins": rows,
    }


def auroc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Chance that a positive has a higher score than a negative, ties counting half; NaN if either is missing."""
    _, place, numbers = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(numbers) - (numbers - 1) / 2)[place]
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if not positives or not negatives:
        return float("nan")
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


@torch.inference_mode()
def _evidence(model: Any, processor: NICProcessor, inputs: torch.Tensor, *, is_pixels: bool) -> Evidence:
    features = model.get_image_features(inputs) if is_pixels else inputs.float()
    ids = model.generate(encoder_outputs=features)
    return Evidence(
        mean_log_probabilities(model, features, ids).cpu().numpy(),
        unlikeness(model, features).cpu().numpy(),
        processor.tokenizer.batch_decode(ids, skip_special_tokens=True),
    )


def _joined(parts: list[Evidence]) -> Evidence:
    return Evidence(
        np.concatenate([part.log_probabilities for part in parts]),
        np.concatenate([part.unlikeness for part in parts]),
        [caption for part in parts for caption in part.captions],
    )


def _part(evidence: Evidence, chosen: np.ndarray) -> Evidence:
    captions = [caption for caption, wanted in zip(evidence.captions, chosen, strict=True) if wanted]
    return Evidence(evidence.log_probabilities[chosen], evidence.unlikeness[chosen], captions)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))

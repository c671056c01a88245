"""Check what a captioner does with photos: whether captions depend on them and fit the data."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from ..configuration_nic import IGNORED_LABEL
from ..tokenization import MIN_FREQUENCY, unknown_words
from .findings import Finding, Status

_BATCH = 16
_DRAWN = 24

# Features of two photos differ by far more than rounding errors.
_SAME = 1e-4
# Minimum gain in nats per word of the right photo over another one.
_WORTH = 0.02
# Maximum share of unknown words; the Flickr8k test split has 2 to 3%.
_UNKNOWN = 0.10
# Maximum share of unknown words that are frequent in the data: those of a tokenizer that was learned from it are rare.
_UNKNOWN_FREQUENT = 0.05
# Distance of the mean feature in standard deviations of training; 0.1 to 0.3 for photos like the training data.
_FAR = 1.0


@dataclass
class Sample:
    """Photos, a caption of each if there are any, and all captions of the data that they are from."""

    photos: list[Image.Image]
    captions: list[str] | None
    of_data: Sequence[Sequence[str]] = ()


def drawn_photos(number: int = _DRAWN) -> list[Image.Image]:
    """Draw pictures of coarse random colours, with the brightness and contrast of photos."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (number, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC) for pixels in coarse]


@torch.inference_mode()
def check_behaviour(model: Any, processor: Any, sample: Sample) -> list[Finding]:
    """Caption the photos and check the results."""
    model = model.eval()
    features = torch.cat(
        [model.get_image_features(pixels).float() for pixels in _pixels(processor, sample.photos, model.device)]
    )
    findings = []
    if sample.captions is not None:
        words = check_words(processor.tokenizer, sample.captions, sample.of_data)
        findings.append(words)
        findings.append(_statistics(model, features))
    used = _backbone(features)
    findings.append(used)
    if used.status == Status.OK:
        findings[-1] = used = _image_input(model, features, used)
    if sample.captions is not None:
        loss = _loss(model, processor.tokenizer, features, sample.captions)
        fit = _fit(processor.tokenizer, sample.captions, loss, is_small=words.status == Status.NOTE)
        findings.append(fit)
        if used.status == Status.OK and fit.status == Status.OK:
            wrong = _loss(model, processor.tokenizer, features.roll(1, dims=0), sample.captions)
            findings.append(_worth(loss, wrong))
    findings.append(_distinct(model, processor.tokenizer, features, sample))
    return findings


def _pixels(processor: Any, photos: Sequence[Image.Image], device: Any) -> Any:
    for start in range(0, len(photos), _BATCH):
        yield processor(images=photos[start : start + _BATCH], return_tensors="pt")["pixel_values"].to(device)


def check_words(tokenizer: Any, captions: Sequence[str], of_data: Sequence[Sequence[str]] = ()) -> Finding:
    """Check that the tokenizer knows the words of the captions.

    Args:
        tokenizer: the captioner's.
        captions: captions of some photos.
        of_data: all captions of each photo of the data; a word that is rare there may have had no id in training.
    """
    ids = [token for caption in tokenizer(list(captions), add_special_tokens=False).input_ids for token in caption]
    share = ids.count(tokenizer.unk_token_id) / max(len(ids), 1)
    if share > _UNKNOWN and of_data:
        unknown, total = unknown_words(tokenizer, [caption for each in of_data for caption in each])
        rare = sum(number for number in unknown.values() if number < MIN_FREQUENCY) / total
        if unknown.total() / total - rare <= _UNKNOWN_FREQUENT:
            return Finding(
                "words of the data",
                Status.NOTE,
                f"{share:.1%} of the words in {len(captions):,} captions are unknown; {rare:.1%} of the words of the "
                f"data are, because they occur there fewer than {MIN_FREQUENCY} times (min_frequency)",
                "too few photos: add photos with captions, or train with a lower min_frequency",
            )
    return Finding.judge(
        "words of the data",
        share <= _UNKNOWN,
        f"{share:.1%} of the words in {len(captions):,} captions are unknown",
        "the tokenizer was learned from other captions: train a tokenizer on these (train_tokenizer) and a captioner "
        "with it, or use the data that the captioner is for",
    )


def _statistics(model: Any, features: torch.Tensor) -> Finding:
    """Check that features have the mean and variance of the training photos."""
    check = "features"
    projection = model.image_projection
    if not projection.mean.any() and (projection.std == 1).all():
        return Finding(check, Status.SKIPPED, "the checkpoint has no statistics of the training photos")
    z = (features.flatten(0, -2) - projection.mean.float()) / projection.std.float()
    varied = projection.std > 1e-5  # a feature that was constant in training has no scale
    if not varied.any() or len(features) < 8:
        return Finding(check, Status.SKIPPED, "too few photos to compare with the training photos")
    # The median over features: a few that were rare in training may differ a lot in any sample.
    shift, spread = float(z[:, varied].mean(0).abs().median()), float(z[:, varied].std(0).median())
    return Finding.judge(
        check,
        shift < _FAR and 1 / 4 < spread < 4,
        f"shifted by {shift:.2f} standard deviations from the training photos, {spread:.2f} times their spread",
        "photos are not processed as in training: another image_mean, image_std or size, other weights or BatchNorm "
        "statistics of the backbone (set --backbone), or another kind of photos",
    )


def _backbone(features: torch.Tensor) -> Finding:
    """Check that features differ between photos."""
    rows = features.flatten(1)
    varied = float(rows.std(0).norm() / rows.norm(dim=1).mean().clamp_min(1e-12))
    if math.isfinite(varied) and varied >= _SAME:
        return Finding("use of the photo", Status.OK, f"features vary by {varied:.0%} between photos")
    message = f"the backbone gives the same features for {len(features)} different photos (variation {varied:.1e})"
    advice = (
        "the weights of the backbone are missing or zero: load the original backbone (from_backbone_pretrained) and "
        "train again"
    )
    return Finding("use of the photo", Status.PROBLEM, message, advice)


def _image_input(model: Any, features: torch.Tensor, found: Finding) -> Finding:
    """Check that the first word depends on the features."""
    bos = torch.full((len(features), 1), model.config.decoder_start_token_id, device=features.device)
    words = model(encoder_outputs=features, decoder_input_ids=bos, return_dict=True).logits[:, -1].float().softmax(-1)
    varied = float((words - words.mean(0)).abs().sum(-1).mean() / 2)
    if varied >= _SAME:
        message = f"{found.message}, the probabilities of the first word by {varied:.2f}"
        return Finding(found.check, Status.OK, message)
    message = (
        "features differ between photos, but the first word does not depend on them (its probabilities change by "
        f"{varied:.1e})"
    )
    advice = (
        "the LSTM ignores the image: train again with standardised features (set_feature_statistics) and a higher "
        "learning rate; bag_of_words_loss makes captions depend on the photo"
    )
    return Finding(found.check, Status.PROBLEM, message, advice)


def _fit(tokenizer: Any, captions: Sequence[str], loss: float, is_small: bool) -> Finding:
    """Check that the loss is lower than with word frequencies alone.

    A captioner that has learned little is no worse than one that guesses; with another tokenizer it is.
    """
    ids = [token for caption in tokenizer(list(captions)).input_ids for token in caption]
    frequencies = np.array(list(Counter(ids).values())) / len(ids)
    table = float(-(frequencies * np.log(frequencies)).sum())
    guessed = math.log(len(tokenizer))
    message = f"{loss:.2f} nats per word on these captions; word frequencies alone give {table:.2f}"
    if is_small or loss <= guessed:
        advice = (
            "too few photos or steps: add photos with captions, or train longer (num_train_epochs); or the captioner "
            "is for other captions than these"
        )
    else:
        message += f", and guessing {guessed:.2f}"
        advice = (
            "the tokenizer does not match the model (tokenizer.json of another training run), or the captioner was "
            "trained on other captions than these, or on too few photos"
        )
    return Finding.judge("fit to the captions", loss < table, message, advice)


def _worth(right: float, wrong: float) -> Finding:
    """Check that the loss is lower with the right photo than with another one."""
    return Finding.judge(
        "captions and photos",
        wrong - right > _WORTH,
        f"the right photo lowers the loss by {wrong - right:.3f} nats per word compared with another",
        "captions do not depend on the photos: check that photos and captions of the training data match, and that "
        "preprocessing fits the backbone; or there were too few photos or steps: add photos, train longer, or with "
        "bag_of_words_loss",
    )


def _loss(model: Any, tokenizer: Any, features: torch.Tensor, captions: Sequence[str]) -> float:
    rows = [torch.tensor(row) for row in tokenizer(list(captions)).input_ids]
    labels = pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL).to(features.device)
    total = words = 0.0
    for part, seen in zip(labels.split(_BATCH), features.split(_BATCH), strict=True):
        count = float((part != IGNORED_LABEL).sum())
        total += float(model(encoder_outputs=seen, labels=part, return_dict=True).loss) * count
        words += count
    return total / words


def _distinct(model: Any, tokenizer: Any, features: torch.Tensor, sample: Sample) -> Finding:
    """Check that photos get different captions."""
    captions = []
    for start in range(0, len(features), _BATCH):
        ids = model.generate(encoder_outputs=features[start : start + _BATCH])
        captions += tokenizer.batch_decode(ids, skip_special_tokens=True)
    number = len(set(captions))
    kind = "photos" if sample.captions is not None else "random pictures"
    commonest, times = Counter(captions).most_common(1)[0]
    message = f"{number} distinct captions for {len(captions)} {kind}; the most common, {times} times: {commonest!r}"
    kinds = len(captions if sample.captions is None else set(sample.captions))
    is_good = number > max(1, 0.1 * kinds) or len(captions) < 4
    if not is_good and sample.captions is None and number > 1:
        return Finding("distinct captions", Status.NOTE, message, "set --data: these are not photos")
    return Finding.judge(
        "distinct captions",
        is_good,
        message,
        "train longer or with a higher learning rate; first see the other findings, which say why captions do not "
        "depend on the photo",
    )

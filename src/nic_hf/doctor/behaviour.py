"""What a captioner does with photos: whether captions follow from them, and from the words it was trained on."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from ..processing_nic import IGNORED_LABEL
from .findings import Finding, Status

_BATCH = 16
_DRAWN = 24

# A photo's features differ from another's by far more than rounding does.
_SAME = 1e-4
# Nats a word that the right photo has to be worth, against another one.
_WORTH = 0.02
# Unknown words in captions like those of training: Flickr8k's test split has 2 to 3 % of them.
_UNKNOWN = 0.10
# Distance, in standard deviations of training, of the mean over photos; 0.1 to 0.3 for photos like those of training.
_FAR = 1.0


@dataclass
class Sample:
    """Photos to try, and their captions where they have some."""

    photos: list[Image.Image]
    captions: list[str] | None


def drawn_photos(number: int = _DRAWN) -> list[Image.Image]:
    """Pictures that have nothing in common: coarse random colours, as bright and as full of contrast as photos are."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (number, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC) for pixels in coarse]


@torch.inference_mode()
def check_behaviour(model: Any, processor: Any, sample: Sample) -> list[Finding]:
    """Caption the photos, and look at what came of it."""
    model = model.eval()
    features = torch.cat(
        [model.get_image_features(pixels).float() for pixels in _pixels(processor, sample.photos, model.device)]
    )
    findings = []
    if sample.captions is not None:
        findings += check_words(processor.tokenizer, sample.captions)
        findings.append(_statistics(model, features))
    used = _backbone(model, features)
    findings.append(used)
    if used.status == Status.OK:
        findings[-1] = used = _image_input(model, features, used)
    if sample.captions is not None:
        fit = _fit(model, processor.tokenizer, features, sample.captions)
        findings.append(fit)
        if used.status == Status.OK and fit.status == Status.OK:
            findings.append(_worth(model, processor.tokenizer, features, sample.captions))
    findings.append(_distinct(model, processor.tokenizer, features, sample))
    return findings


def _pixels(processor: Any, photos: Sequence[Image.Image], device: Any) -> Any:
    for start in range(0, len(photos), _BATCH):
        yield processor(images=photos[start : start + _BATCH], return_tensors="pt")["pixel_values"].to(device)


def check_words(tokenizer: Any, captions: Sequence[str]) -> list[Finding]:
    """The words of captions are those of the tokenizer."""
    ids = [token for caption in tokenizer(list(captions), add_special_tokens=False).input_ids for token in caption]
    share = ids.count(tokenizer.unk_token_id) / max(len(ids), 1)
    message = f"{share:.1%} of the words of {len(captions):,} captions are unknown"
    if share <= _UNKNOWN:
        return [Finding("words of the data", Status.OK, message)]
    return [
        Finding(
            "words of the data",
            Status.PROBLEM,
            message,
            "the tokenizer was learned from other captions: train one on these (train_tokenizer), and the captioner "
            "with it; or this is not the data that the captioner is for",
        )
    ]


def _statistics(model: Any, features: torch.Tensor) -> Finding:
    """Features are about where they were in training."""
    check = "features"
    projection = model.image_projection
    if not projection.mean.any() and (projection.std == 1).all():
        return Finding(check, Status.SKIPPED, "the checkpoint holds no statistics of the training photos")
    rows = features.flatten(0, -2)
    z = (rows - projection.mean.float()) / projection.std.float()
    varied = projection.std > 1e-5  # a feature that never moved in training has no scale
    if not varied.any() or len(features) < 8:
        return Finding(check, Status.SKIPPED, "too few photos to compare with those of training")
    # The median over features, as a few that were rare in training may be far off in any sample.
    shift, spread = float(z[:, varied].mean(0).abs().median()), float(z[:, varied].std(0).median())
    message = f"{shift:.2f} standard deviations from those of the training photos, {spread:.2f} times as spread out"
    if shift < _FAR and 1 / 4 < spread < 4:
        return Finding(check, Status.OK, message)
    return Finding(
        check,
        Status.PROBLEM,
        message,
        "the model sees photos otherwise than in training: another image_mean, image_std or size, other weights or "
        "BatchNorm statistics of the backbone (give --backbone), or photos of another kind",
    )


def _backbone(model: Any, features: torch.Tensor) -> Finding:
    """Features differ from photo to photo."""
    rows = features.flatten(1)
    varied = float(rows.std(0).norm() / rows.norm(dim=1).mean().clamp_min(1e-12))
    if not math.isfinite(varied) or varied < _SAME:
        return Finding(
            "use of the photo",
            Status.PROBLEM,
            f"the backbone gives the same features for {len(features)} different photos (they vary by {varied:.1e})",
            "the backbone's weights are lost or zero: load the original backbone (from_backbone_pretrained) and train "
            "again",
        )
    return Finding("use of the photo", Status.OK, f"features vary by {varied:.0%} from photo to photo")


def _image_input(model: Any, features: torch.Tensor, found: Finding) -> Finding:
    """What is said first depends on the features."""
    bos = torch.full((len(features), 1), model.config.decoder_start_token_id, device=features.device)
    words = model(encoder_outputs=features, decoder_input_ids=bos, return_dict=True).logits[:, -1].float().softmax(-1)
    varied = float((words - words.mean(0)).abs().sum(-1).mean() / 2)
    if varied < _SAME:
        return Finding(
            found.check,
            Status.PROBLEM,
            f"features differ from photo to photo, but the first word does not follow from them (its probabilities "
            f"move by {varied:.1e})",
            "the LSTM does not read the image: train again, with standardised features (set_feature_statistics) and a "
            "higher learning rate; bag_of_words_loss makes the photo count",
        )
    return Finding(found.check, Status.OK, f"{found.message}, the first word's probabilities by {varied:.2f}")


def _fit(model: Any, tokenizer: Any, features: torch.Tensor, captions: Sequence[str]) -> Finding:
    """The captioner knows the captions better than a table of word frequencies does."""
    ids = [token for caption in tokenizer(list(captions)).input_ids for token in caption]
    frequencies = np.array(list(Counter(ids).values())) / len(ids)
    table = float(-(frequencies * np.log(frequencies)).sum())
    loss = _loss(model, tokenizer, features, captions)
    message = f"{loss:.2f} nats a word of these captions; their word frequencies alone give {table:.2f}"
    if loss < table:
        return Finding("fit to the captions", Status.OK, message)
    return Finding(
        "fit to the captions",
        Status.PROBLEM,
        message,
        "ids and words do not belong together (the tokenizer.json of another training run), or the captioner was not "
        "trained, or not on captions such as these",
    )


def _worth(model: Any, tokenizer: Any, features: torch.Tensor, captions: Sequence[str]) -> Finding:
    """The right photo explains a caption better than another one does."""
    right = _loss(model, tokenizer, features, captions)
    wrong = _loss(model, tokenizer, features.roll(1, dims=0), captions)
    message = f"a caption's own photo is worth {wrong - right:.3f} nats a word against another's"
    if wrong - right > _WORTH:
        return Finding("captions and photos", Status.OK, message)
    return Finding(
        "captions and photos",
        Status.PROBLEM,
        message,
        "captions do not follow from the photos: check that photos and captions of the training data belong together, "
        "and that preprocessing is that of the backbone; then train longer, or with bag_of_words_loss",
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
    """Photos get captions of their own."""
    captions = []
    for start in range(0, len(features), _BATCH):
        ids = model.generate(encoder_outputs=features[start : start + _BATCH])
        captions += tokenizer.batch_decode(ids, skip_special_tokens=True)
    number = len(set(captions))
    kind = "photos" if sample.captions is not None else "random pictures"
    commonest, times = Counter(captions).most_common(1)[0]
    message = f"{number} different captions of {len(captions)} {kind}; the commonest, {times} times: {commonest!r}"
    kinds = len(captions if sample.captions is None else set(sample.captions))
    if number > max(1, 0.1 * kinds) or len(captions) < 4:
        return Finding("distinct captions", Status.OK, message)
    advice = (
        "train longer or with a higher learning rate; look at the other findings first, which say why the photo does "
        "not count"
    )
    if sample.captions is None and number > 1:
        return Finding("distinct captions", Status.NOTE, message, "give --data, as these are no photos")
    return Finding("distinct captions", Status.PROBLEM, message, advice)

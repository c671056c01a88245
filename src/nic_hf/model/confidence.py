"""How sure a captioner is of a caption: the chance that people would accept it.

    confidence = sigmoid(intercept + log_probability * l + unlikeness * max(0, u - familiar))

l is the mean log-probability of the caption's words and its end, and u says how unlike the training photos the photo
is. [`nic_hf.evaluation.calibrate`] fits the four numbers; they travel in `config.json`, as `confidence`.
"""

import json
import os
from dataclasses import asdict, dataclass
from math import isfinite, log
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ..writing import write_text

FIELD = "confidence"  # of config.json
NOT_CALIBRATED = "not calibrated: run nic calibrate {} --data DATA, with captioned photos like the training data"


@dataclass(frozen=True)
class Calibration:
    """The numbers of a captioner's confidence.

    Attributes:
        intercept, log_probability, unlikeness: the weights of the formula above.
        familiar: unlikeness up to which a photo counts as one like those of the training data.
    """

    intercept: float
    log_probability: float
    unlikeness: float
    familiar: float

    @classmethod
    def of(cls, config: Any) -> "Calibration | None":
        """Return the calibration in a model's configuration; `None` if the captioner is not calibrated.

        Raises:
            ValueError: if it does not hold the four numbers.
        """
        numbers = getattr(config, FIELD, None)
        if numbers is None:
            return None
        names = cls.__dataclass_fields__.keys()
        values = [numbers[name] for name in names if name in numbers] if isinstance(numbers, dict) else []
        if len(values) < len(names) or any(type(each) not in (int, float) or not isfinite(each) for each in values):
            raise ValueError(f"config.json: `{FIELD}` must hold {', '.join(names)}, got {numbers!r:.200}")
        return cls(*values)

    def confidence(self, log_probability: torch.Tensor, unlikeness: torch.Tensor) -> torch.Tensor:
        """Chance of acceptance, 0 to 1, given l and u of the same shape."""
        excess = (unlikeness - self.familiar).clamp_min(0)
        return torch.sigmoid(self.intercept + self.log_probability * log_probability + self.unlikeness * excess)

    def is_unlike(self, unlikeness: float) -> bool:
        """Whether the photo is so unlike the training data that this alone halves the odds of its captions."""
        return self.unlikeness * max(0.0, unlikeness - self.familiar) < -log(2)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it into the `config.json` of a checkpoint, whose other files stay as they are."""
        file = Path(folder, "config.json")
        config = {**json.loads(file.read_text("utf-8")), FIELD: asdict(self)}
        return write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def unlikeness(model: Any, features: torch.Tensor) -> torch.Tensor:
    """How unlike the training photos each photo is: the log of the mean squared deviation of its features.

    A deviation is in standard deviations of the training photos, which the checkpoint stores: a photo like them is
    near 0.

    Args:
        model: the captioner.
        features: as `get_image_features` returns them, of shape `(num_photos, ..., feature_size)`.

    Returns:
        A tensor of shape `(num_photos,)`.
    """
    projection = model.image_projection
    deviations = (features.float() - projection.mean.float()) / projection.std.float().clamp_min(1e-6)
    return deviations.square().flatten(1).mean(dim=1).clamp_min(1e-12).log()


@torch.no_grad()
def mean_log_probabilities(model: Any, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean log-probability of the words of each caption and of its end, in one pass of the decoder.

    Args:
        model: the captioner, in eval mode.
        features: as `get_image_features` returns them, for `num_photos` photos.
        ids: captions as `generate()` returns them, `<bos>` first, of shape `(num_captions, sequence_length)`;
            captions of a photo are adjacent.

    Returns:
        A tensor of shape `(num_captions,)`.
    """
    is_pad = ids == model.config.pad_token_id
    ids = ids.gather(1, is_pad.int().argsort(dim=1, stable=True))  # padding of a prefix comes last, too
    said = ids[:, 1:]
    by_photo = ids[:, :-1].reshape(len(features), -1, said.shape[1])
    logits = model(encoder_outputs=features, decoder_input_ids=by_photo, use_cache=False, return_dict=True).logits
    costs = F.cross_entropy(logits.float().flatten(0, 1), said.flatten(), reduction="none").view(said.shape)
    is_end = said == model.config.eos_token_id
    is_before = is_end.cumsum(dim=1) - is_end.int() == 0  # beam search may repeat the end as padding
    is_word = is_before & (said != model.config.pad_token_id)
    return -(costs * is_word).sum(dim=1) / is_word.sum(dim=1).clamp_min(1)


def caption_confidences(
    model: Any, features: torch.Tensor, ids: torch.Tensor, calibration: Calibration
) -> torch.Tensor:
    """Confidence of each caption, of shape `(num_captions,)`; arguments as of [`mean_log_probabilities`]."""
    own = unlikeness(model, features).repeat_interleave(len(ids) // len(features))
    return calibration.confidence(mean_log_probabilities(model, features, ids), own)

"""Model soup: one captioner whose weights are the mean of those of several (Wortsman et al. 2022).

https://arxiv.org/abs/2203.05482. Unlike an ensemble it costs no more than one captioner; it helps where the averaged
ones started from the same weights, as checkpoints of one run or fine-tuned copies of one model do.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

from ..modeling_nic import NICForConditionalGeneration
from .compatible_captioners import Member, load_members

COUNTER = "num_batches_tracked"


@torch.no_grad()
def average_checkpoints(
    paths_or_models: Sequence[Member], weights: Sequence[float] | None = None, **kwargs: Any
) -> NICForConditionalGeneration:
    """Average captioners weight by weight.

    Sums are in float64; the result has the first one's number formats, configuration and settings of generation.
    Floating-point buffers (BatchNorm's statistics, the features' mean and standard deviation) are averaged too: this
    is exact where a frozen backbone has left them alone, and for backbones that were trained it is an approximation.
    Integer buffers must agree, except for BatchNorm's count of batches, which plays no part in captioning: the largest
    is kept.

    Args:
        paths_or_models: checkpoints or models; models stay as they are.
        weights: how much each counts, at least 0; they are divided by their sum. Defaults to all the same.
        **kwargs: passed to `NICForConditionalGeneration.from_pretrained` for each checkpoint.

    Returns:
        A captioner in eval mode.

    Raises:
        ValueError: naming the tensor that one lacks, whose shape differs or whose integers disagree; where the
            vocabularies differ; or where `weights` are not as many numbers as captioners.
        OSError: where a checkpoint is not there, or is damaged.
    """
    models = load_members(paths_or_models, **kwargs)
    shares = _shares(weights, len(paths_or_models))
    averaged: Any = None
    sums: dict[str, torch.Tensor] = {}
    for number, (share, model) in enumerate(zip(shares, models, strict=True)):
        name = f"model {number + 1}" if model is paths_or_models[number] else str(paths_or_models[number])
        # float64 exists on the CPU whatever the accelerator
        tensors = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
        if averaged is None:
            averaged = copy.deepcopy(model) if model is paths_or_models[0] else model
            sums = {key: _scaled(tensor, share) for key, tensor in tensors.items()}
            continue
        _check_tensors(name, tensors, sums)
        for key, tensor in tensors.items():
            if tensor.is_floating_point():
                sums[key] += _scaled(tensor, share)
            elif key.endswith(COUNTER):
                sums[key] = torch.maximum(sums[key], tensor)
            elif not torch.equal(sums[key], tensor):
                raise ValueError(f"{name}: the integers of `{key}` differ from those of the first, and have no mean")
    for key, tensor in averaged.state_dict().items():
        tensor.copy_(sums[key])
    return averaged.eval()


def _scaled(tensor: torch.Tensor, share: float) -> torch.Tensor:
    return tensor.double() * share if tensor.is_floating_point() else tensor.clone()


def _shares(weights: Sequence[float] | None, number: int) -> list[float]:
    if weights is None:
        weights = [1.0] * number
    if len(weights) != number:
        raise ValueError(f"{len(weights)} weights do not fit {number} captioners")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or sum(weights) <= 0:
        raise ValueError(f"`weights` must be numbers of at least 0, and not all 0, got {list(weights)}")
    return [weight / sum(weights) for weight in weights]


def _check_tensors(name: str, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for key in sorted(tensors.keys() ^ expected.keys()):
        lacking = "it" if key in expected else "the first"
        raise ValueError(f"{name}: not the same network as the first: {lacking} has no tensor `{key}`")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{name}: `{key}` has shape {tuple(tensor.shape)}, and {tuple(expected[key].shape)} in the first"
            )

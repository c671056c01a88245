"""Average the weights of captioners ("model soup", Wortsman et al. 2022, https://arxiv.org/abs/2203.05482).

Unlike an ensemble, the result is as fast as a single captioner. Averaging works for captioners that started from the
same weights, such as checkpoints of one run or fine-tuned copies of one model.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

from ..model.captioner import NICForConditionalGeneration
from .compatible_captioners import Member, load_members

COUNTER = "num_batches_tracked"


@torch.no_grad()
def average_checkpoints(
    paths_or_models: Sequence[Member], weights: Sequence[float] | None = None, **kwargs: Any
) -> NICForConditionalGeneration:
    """Average the parameters of several captioners.

    Sums are in float64. The result has the dtypes, configuration and generation config of the first captioner.
    Floating-point buffers (BatchNorm statistics, mean and standard deviation of features) are averaged too, which is
    exact for frozen backbones and an approximation for trained ones. Integer buffers must be equal, except for
    BatchNorm's number of batches, of which the largest is kept; it does not affect captions.

    Args:
        paths_or_models: checkpoints or models. Models are not modified.
        weights: weight of each captioner, at least 0; they are normalized to a sum of 1. Defaults to equal weights.
        **kwargs: passed to `NICForConditionalGeneration.from_pretrained` for each checkpoint.

    Returns:
        A captioner in eval mode.

    Raises:
        ValueError: if a tensor is missing, or its shape or integers differ (the message names it), if vocabularies
            differ, or if the number of `weights` is not the number of captioners.
        OSError: if a checkpoint does not exist or is damaged.
    """
    models = load_members(paths_or_models, **kwargs)
    shares = _shares(weights, len(paths_or_models))
    averaged: Any = None
    sums: dict[str, torch.Tensor] = {}
    for number, (share, model) in enumerate(zip(shares, models, strict=True)):
        name = f"model {number + 1}" if model is paths_or_models[number] else str(paths_or_models[number])
        # Some accelerators have no float64.
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
                raise ValueError(f"{name}: the integers of `{key}` differ from the first, and cannot be averaged")
    for key, tensor in averaged.state_dict().items():
        tensor.copy_(sums[key])
    return averaged.eval()


def _scaled(tensor: torch.Tensor, share: float) -> torch.Tensor:
    return tensor.double() * share if tensor.is_floating_point() else tensor.clone()


def _shares(weights: Sequence[float] | None, number: int) -> list[float]:
    if weights is None:
        weights = [1.0] * number
    if len(weights) != number:
        raise ValueError(f"got {len(weights)} weights for {number} captioners")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or sum(weights) <= 0:
        raise ValueError(f"`weights` must be numbers of at least 0, and not all 0, got {list(weights)}")
    return [weight / sum(weights) for weight in weights]


def _check_tensors(name: str, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for key in sorted(tensors.keys() ^ expected.keys()):
        lacking = "it" if key in expected else "the first"
        raise ValueError(f"{name}: another architecture than the first: {lacking} has no tensor `{key}`")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{name}: `{key}` has shape {tuple(tensor.shape)}, but {tuple(expected[key].shape)} in the first"
            )

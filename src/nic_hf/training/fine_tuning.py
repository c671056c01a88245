"""Choose which weights of the backbone are trained, and their learning rate."""

import math
import re
from contextlib import suppress

import torch

from ..model.captioner import NICForConditionalGeneration
from ..model.encoder import skip_neutral_gates


def thaw_backbone(model: NICForConditionalGeneration, which: str | float | None = None) -> int:
    """Make the backbone trainable: all of it, its last weights, or weights selected by name.

    Squeeze-and-excitation that multiplies by one, as in EfficientNet-Lite, is neither trained nor computed.

    Args:
        model: the captioner.
        which: the share of the backbone's weight tensors to train, counted from its end, above 0 and at most 1; or a
            regular expression that is searched for in their names. By default all of them.

    Returns:
        The number of trainable parameters of the backbone.

    Raises:
        ValueError: if it matches no weight, or is neither a share nor a regular expression.
    """
    model.set_backbone_frozen(False)
    weights = dict(model.encoder.backbone.named_parameters())
    names = list(weights)
    trained = _trained_names(names, which)
    for name, weight in weights.items():
        weight.requires_grad_(name in trained)
    if not trained:
        raise ValueError(
            f"trainable_backbone: {which!r} matches no weight of the backbone; their names are, for example,"
            f" {names[0]}, {names[len(names) // 2]} and {names[-1]}"
        )
    skip_neutral_gates(model.encoder.backbone)
    return sum(weights[name].numel() for name in trained if weights[name].requires_grad)


def _trained_names(names: list[str], which: str | float | None) -> set[str]:
    if which is None:
        return set(names)
    share = math.nan
    with suppress(ValueError):
        share = float(which)
    if not math.isnan(share):
        if not 0 < share <= 1:
            raise ValueError(f"trainable_backbone: a share must be above 0 and at most 1, got {which}")
        return set(names[-max(1, round(len(names) * share)) :])
    try:
        wanted = re.compile(str(which))
    except re.error as error:
        raise ValueError(f"trainable_backbone: {which!r} is not a regular expression ({error})") from error
    return {name for name in names if wanted.search(name)}


def set_backbone_learning_rate(
    optimizer: torch.optim.Optimizer, model: NICForConditionalGeneration, learning_rate: float
) -> None:
    """Move the backbone's weights to separate parameter groups; call this before a schedule is created."""
    own = {id(weight) for weight in model.encoder.parameters()}
    for group in list(optimizer.param_groups):
        backbone = [weight for weight in group["params"] if id(weight) in own]
        if backbone:
            group["params"] = [weight for weight in group["params"] if id(weight) not in own]
            optimizer.add_param_group({**group, "params": backbone, "lr": learning_rate})

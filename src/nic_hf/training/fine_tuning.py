"""Training the backbone too: which of its weights, and at what learning rate."""

import re

import torch

from ..modeling_nic import NICForConditionalGeneration


def thaw_backbone(model: NICForConditionalGeneration, pattern: str | None = None) -> int:
    """Train the backbone: all of it, or the weights whose names match. What comes before those needs no gradient.

    Args:
        model: the captioner.
        pattern: a regular expression, searched for in the names of the backbone's weights.

    Returns:
        The number of weights (scalars) that will be trained.

    Raises:
        ValueError: where it matches no weight, or is no regular expression.
    """
    model.set_backbone_frozen(False)
    backbone = model.encoder.backbone
    try:
        wanted = re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"trainable_backbone: {pattern!r} is no regular expression ({error})") from error
    number = 0
    for name, weight in backbone.named_parameters():
        weight.requires_grad_(bool(wanted.search(name)))
        number += weight.numel() if weight.requires_grad else 0
    if number == 0:
        names = [name for name, _ in backbone.named_parameters()]
        raise ValueError(
            f"trainable_backbone: {pattern!r} matches no weight of the backbone; they have names such as"
            f" {names[0]}, {names[len(names) // 2]} and {names[-1]}"
        )
    return number


def set_backbone_learning_rate(
    optimizer: torch.optim.Optimizer, model: NICForConditionalGeneration, learning_rate: float
) -> None:
    """Move the backbone's weights to parameter groups of their own; to be called before there is a schedule."""
    own = {id(weight) for weight in model.encoder.parameters()}
    for group in list(optimizer.param_groups):
        backbone = [weight for weight in group["params"] if id(weight) in own]
        if backbone:
            group["params"] = [weight for weight in group["params"] if id(weight) not in own]
            optimizer.add_param_group({**group, "params": backbone, "lr": learning_rate})

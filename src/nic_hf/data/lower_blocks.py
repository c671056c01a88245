"""Cache the outputs of frozen lower blocks, so that fine-tuning computes the blocks above them only.

Two things are unusual here.

- Blocks are skipped by replacing their `forward` for one call of the backbone (`_replaced_by`). Transformers' vision
  models have no common way to start at a block, and a hook cannot skip a computation. Replacing `forward` on the
  instance works for every backbone whose blocks follow one another, and [`split_encoder`] verifies the result.
- A `pixel_values` of two dimensions, `(batch_size, size)`, holds cached outputs instead of photos. Trainer, the
  collator and the model's `forward` then pass them on unchanged; photos, with four dimensions, still work, as in
  evaluation.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from ..layers_nic import NICEncoder
from ..model.encoder import faster_encoder, random_images

_SAME = 1e-3  # of the largest feature: rounding when BatchNorm is folded


class LowerBlocks(nn.Module):
    """Runs a photo through the frozen blocks of a backbone.

    The output, one vector per photo, holds the output of the last of those blocks and the image features that depend
    on nothing above it (see `feature_layers` of [`NICConfig`]).
    """

    def __init__(self, encoder: NICEncoder, last: str) -> None:
        super().__init__()
        self.encoder = faster_encoder(encoder)
        self.last = last

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutput:
        """Return `last_hidden_state` of shape `(batch_size, 1, size)`."""
        maps, features = self.parts(pixel_values)
        return BaseModelOutput(last_hidden_state=torch.cat([maps.flatten(1), features.flatten(1)], dim=1).unsqueeze(1))

    def parts(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output of the last block, and image features."""
        kept: list[torch.Tensor] = []
        block = self.encoder.backbone.get_submodule(self.last)
        hook = block.register_forward_hook(lambda module, inputs, output: kept.append(output.contiguous()))
        try:
            features = self.encoder(pixel_values).last_hidden_state
        finally:
            hook.remove()
        return kept[0], features


class UpperEncoder(NICEncoder):
    """An encoder that starts from the output of [`LowerBlocks`], or from photos.

    It shares the backbone of the given encoder, so checkpoints are the same.

    Args:
        encoder: the encoder.
        lower: names of blocks of its backbone that need not run, in the order of their calls, and the shapes of their
            outputs for one photo.
        photos: `pixel_values` to test it with.

    Raises:
        ValueError: the other blocks compute different features from the output of the last lower block.
    """

    def __init__(self, encoder: NICEncoder, lower: Mapping[str, torch.Size], photos: torch.Tensor) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({**encoder.__dict__, "_modules": dict(encoder._modules)})
        self.lower = dict(lower)
        self.lower_blocks = [LowerBlocks(encoder, list(lower)[-1])]  # in a list, to keep it out of the checkpoint
        self.photo_shape = photos.shape
        maps, features = self.lower_blocks[0].parts(photos)
        self.maps_shape, self.features_shape = maps.shape[1:], features.shape[1:]
        upper = self._upper(maps, others=math.nan)
        if upper.shape != features.shape:
            raise ValueError("the blocks above compute different features from the outputs of those below")
        # Features that come from blocks below the last one and bypass those above it.
        self.fixed = upper.isnan().flatten(0, -2).any(0)
        change = torch.where(self.fixed, 0, upper - features).abs().max()
        if not change <= _SAME * features.abs().max():
            raise ValueError("the blocks above compute different features from the outputs of those below")

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encode photos or outputs of [`LowerBlocks`], of shape `(batch_size, size)`."""
        if pixel_values.ndim != 2:
            return super().forward(pixel_values, output_hidden_states, **kwargs)
        sizes = [math.prod(self.maps_shape), math.prod(self.features_shape)]
        maps, features = pixel_values.to(self.backbone.dtype).split(sizes, dim=1)
        upper = self._upper(maps.unflatten(1, self.maps_shape))
        fixed = self.fixed.to(upper.device)
        return BaseModelOutput(last_hidden_state=torch.where(fixed, features.unflatten(1, self.features_shape), upper))

    def _upper(self, maps: torch.Tensor, others: float = 0.0) -> torch.Tensor:
        """Compute features from the last lower block's output; the other lower blocks output `others`."""
        nothing = maps.new_full((), others)
        given = {name: nothing.expand(len(maps), *shape) for name, shape in self.lower.items()}
        given[list(given)[-1]] = maps
        with _replaced_by({self.backbone.get_submodule(name): output for name, output in given.items()}):
            outputs = self.run_backbone(nothing.expand(len(maps), *self.photo_shape[1:]))
            return self.features(outputs, self.photo_shape)


def split_encoder(encoder: NICEncoder, photo_shape: Sequence[int] | None = None) -> UpperEncoder:
    """Return an encoder that skips as many frozen blocks as possible.

    Blocks are found by running the backbone, and the split is tested with random images.

    Args:
        encoder: of a captioner with a partly frozen backbone (see [`thaw_backbone`]) and `freeze_batch_norm`.
        photo_shape: `(channels, height, width)` of the photos; the backbone's own if not given.

    Raises:
        ValueError: BatchNorm statistics of frozen blocks would change, or no blocks can be skipped.
    """
    if not encoder.freeze_batch_norm:
        raise ValueError("caching the outputs of frozen blocks requires freeze_batch_norm")
    photos = random_images(encoder, 1, photo_shape)
    mode = encoder.training
    encoder.eval()
    try:
        lower = _frozen_blocks(encoder, photos)
        for number in range(len(lower), 0, -1):
            try:
                upper = UpperEncoder(encoder, dict(lower[:number]), photos)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError):
                continue  # the blocks above need more than this block's output
            if not upper.fixed.all() and _is_fixed(encoder, upper, photos):
                return upper.train(mode)  # type: ignore[return-value]
    finally:
        encoder.train(mode)
    raise ValueError(
        "no frozen blocks of this backbone can be left out: trainable_backbone must leave its first blocks frozen, and"
        " they must follow one another"
    )


def _frozen_blocks(encoder: NICEncoder, photos: torch.Tensor) -> list[tuple[str, torch.Size]]:
    """Find the largest modules that end before the first trained weight is used, in the order of their calls.

    Returns:
        Their names, and the shapes of their outputs for one photo.
    """
    backbone = encoder.backbone
    ended: dict[str, torch.Size] = {}
    calls: dict[str, int] = {}
    reached = []

    def enter(module: nn.Module, name: str) -> None:
        calls[name] = calls.get(name, 0) + 1
        if any(weight.requires_grad for weight in module.parameters(recurse=False)):
            reached.append(name)

    def leave(module: nn.Module, name: str, output: Any) -> None:
        frozen = not any(weight.requires_grad for weight in module.parameters())
        if not reached and frozen and isinstance(output, torch.Tensor):
            ended[name] = output.shape[1:]

    hooks = []
    for name, module in backbone.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda module, inputs, name=name: enter(module, name)))
            hooks.append(
                module.register_forward_hook(lambda module, inputs, output, name=name: leave(module, name, output))
            )
    try:
        with torch.no_grad():
            encoder(photos)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name in ended if calls[name] == 1]
    inside = {name for name in names for other in names if name.startswith(f"{other}.")}
    return [(name, ended[name]) for name in names if name not in inside]


def _is_fixed(encoder: NICEncoder, upper: UpperEncoder, photos: torch.Tensor) -> bool:
    """Whether the features taken from below are independent of all trained weights."""
    if not upper.fixed.any():
        return True
    with torch.enable_grad():
        features = encoder(photos).last_hidden_state[..., upper.fixed]
    if not features.requires_grad:
        return True
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(features.sum(), weights, allow_unused=True)
    return not any(gradient is not None and gradient.any() for gradient in gradients)


@contextmanager
def _replaced_by(outputs: Mapping[nn.Module, torch.Tensor]) -> Iterator[None]:
    """Let modules return known outputs instead of running."""
    for module, output in outputs.items():
        module.forward = lambda *args, output=output, **kwargs: output
    try:
        yield
    finally:
        for module in outputs:
            del module.forward

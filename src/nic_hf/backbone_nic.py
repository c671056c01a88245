"""Image to feature: any Transformers vision model, pooled to one vector a photo, or one vector a region of it."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, can_return_tuple

from .checkpoint_nic import check_path
from .configuration_nic import NICConfig, resolve_backbone_config


class NICEncoder(nn.Module):
    """Image to feature: the backbone, pooled unless there is attention to look at its regions.

    Frozen, it stays in eval mode whatever the rest of the model does.
    """

    main_input_name = "pixel_values"
    optimized = False  # by `faster_encoder`: its weights are no longer those of a checkpoint

    def __init__(self, config: NICConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone_config, config.use_backbone_pooler)
        self.frozen = config.freeze_backbone
        self.freeze_batch_norm = config.freeze_batch_norm
        self.keep_regions = config.attention is not None
        self.feature_layers = config.feature_layers

    def set_frozen(self, frozen: bool) -> None:
        """Freeze or thaw the backbone: its gradients, and its BatchNorm and dropout."""
        if self.optimized and not frozen:
            raise ValueError("a backbone that was optimised for inference cannot be trained: load the checkpoint anew")
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "NICEncoder":
        """Set training mode, except for a frozen backbone, and for BatchNorm whose statistics must not move."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encode images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): the images.
            output_hidden_states: also return the backbone's hidden states, where it has any.
            **kwargs: ignored; `generate()` passes what other encoders need.

        Returns:
            `BaseModelOutput` whose `last_hidden_state` has shape `(batch_size, 1, feature_size)`: one feature a photo;
            with attention `(batch_size, num_regions, feature_size)`.
        """
        outputs = self._run_backbone(pixel_values, output_hidden_states)
        states = getattr(outputs, "hidden_states", None) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=self._features(outputs, pixel_values.shape), hidden_states=states)

    def encode(self, backbone_input: torch.Tensor, photo_shape: Sequence[int]) -> torch.Tensor:
        """Features of what the backbone is given, made of photos of `photo_shape`."""
        return self._features(self._run_backbone(backbone_input), photo_shape)

    def _run_backbone(self, backbone_input: torch.Tensor, output_hidden_states: bool | None = None) -> ModelOutput:
        asked = hidden_states_asked(self.feature_layers)
        if output_hidden_states:
            known = inspect.signature(self.backbone.forward).parameters.values()
            if any(each.name == "output_hidden_states" or each.kind == each.VAR_KEYWORD for each in known):
                asked = {"output_hidden_states": True}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone(pixel_values=backbone_input.to(self.backbone.dtype), **asked)

    def _features(self, outputs: ModelOutput, photo_shape: Sequence[int]) -> torch.Tensor:
        """Shape `(batch_size, 1, feature_size)` or `(batch_size, num_regions, feature_size)`."""
        if self.keep_regions:
            patches = count_patches(self.backbone.config, *photo_shape[-2:])
            return region_features(outputs, patches, self.feature_layers)
        return image_features(outputs, self.feature_layers).unsqueeze(1)


def infer_feature_size(
    backbone_config: PreTrainedConfig | dict | None,
    use_pooler: bool = True,
    keep_regions: bool = False,
    feature_layers: str | Sequence[int] | None = None,
) -> int:
    """Size of a backbone's feature, pooled or of a region, by a dry run without weights (on the meta device).

    Raises:
        ValueError: where the model does not turn `pixel_values` into one vector an image, or a region, or has no such
            layers.
    """
    backbone_config = resolve_backbone_config(backbone_config)
    size = getattr(backbone_config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
    try:
        with torch.device("meta"), torch.no_grad():
            backbone = build_backbone(backbone_config, use_pooler).eval()
            images = torch.empty(1, getattr(backbone_config, "num_channels", 3), height, width)
            outputs = backbone(
                pixel_values=images, **({} if feature_layers is None else {"output_hidden_states": True})
            )
            pooled = region_features(outputs) if keep_regions else pool_features(outputs)
    except Exception as error:
        raise ValueError(
            f"a model of type '{backbone_config.model_type}' cannot be the backbone of a captioner: "
            f"it does not turn `pixel_values` into a `pooler_output` or a `last_hidden_state` ({error})"
        ) from error
    return pooled.shape[-1] + sum(
        output.shape[1] if output.ndim == 4 else output.shape[-1] for output in layer_outputs(outputs, feature_layers)
    )


def hidden_states_asked(layers: str | Sequence[int] | None) -> dict[str, bool]:
    """What to call a backbone with; without `layers` nothing, as not every backbone knows that argument."""
    return {} if layers is None else {"output_hidden_states": True}


def image_features(backbone_outputs: ModelOutput, layers: str | Sequence[int] | None) -> torch.Tensor:
    """The pooled feature and, beside it, the means over places of the outputs of `layers` (see [`NICConfig`]).

    Returns:
        Shape `(batch_size, feature_size)`.

    Raises:
        ValueError: as [`layer_outputs`] does.
    """
    pooled = pool_features(backbone_outputs)
    return torch.cat([pooled, *map(_mean_over_places, layer_outputs(backbone_outputs, layers))], dim=-1)


def layer_outputs(backbone_outputs: ModelOutput, layers: str | Sequence[int] | None) -> list[torch.Tensor]:
    """Outputs of `layers` (see [`NICConfig`]), in their order.

    Raises:
        ValueError: where the backbone gives no `hidden_states`, or has no such layer.
    """
    if layers is None:
        return []
    hidden_states = getattr(backbone_outputs, "hidden_states", None)
    if not hidden_states:
        raise ValueError("`feature_layers` needs a backbone that returns its `hidden_states`, which this one does not")
    if isinstance(layers, str):
        layers = range(len(hidden_states))
    for number in layers:
        if not -len(hidden_states) <= number < len(hidden_states):
            raise ValueError(f"`feature_layers` has {number}, but the backbone has {len(hidden_states)} layers")
    return [hidden_states[number] for number in layers]


def pool_features(backbone_outputs: ModelOutput) -> torch.Tensor:
    """One vector an image, of shape `(batch_size, feature_size)`: the pooled output, else the mean over positions."""
    features = getattr(backbone_outputs, "pooler_output", None)
    if features is None:
        features = _mean_over_places(_last_hidden_state(backbone_outputs))
    return features.flatten(1)


def _mean_over_places(states: torch.Tensor) -> torch.Tensor:
    """CNNs give `(batch_size, channels, height, width)`, transformers `(batch_size, positions, channels)`."""
    return states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)


def region_features(
    backbone_outputs: ModelOutput, num_patches: int | None = None, layers: str | Sequence[int] | None = None
) -> torch.Tensor:
    """One vector a region, of shape `(batch_size, num_regions, feature_size)`, row by row of the image.

    A CNN's regions are the places of its last feature map. A transformer's are its patches: tokens before them (CLS, a
    distillation token, registers) stand for no place, and a drawing of the weights has no room for them.

    Args:
        backbone_outputs: what the backbone returned.
        num_patches: number of patches of the image (see [`count_patches`]), where it is known.
        layers: whose outputs to put beside those of the last, as in [`image_features`]. Where a layer has a finer map,
            a region gets the mean of the places that it covers.

    Raises:
        ValueError: where the backbone gives no `hidden_states`, has no such layer, or its layers differ in the number
            of patches.
    """
    last = _last_hidden_state(backbone_outputs)
    others = layer_outputs(backbone_outputs, layers)
    if last.ndim == 4:  # shape: (batch_size, channels, height, width)
        maps = [last, *(F.adaptive_avg_pool2d(output, (last.shape[2], last.shape[3])) for output in others)]
        return torch.cat([each.flatten(2) for each in maps], dim=1).transpose(1, 2)
    if any(output.shape[:2] != last.shape[:2] for output in others):
        raise ValueError("`feature_layers` with attention needs layers with the same patches as the last, or a CNN's")
    # Models that merge patches (Swin) return fewer than the image had, and no other tokens.
    extra = 0 if num_patches is None else max(last.shape[1] - num_patches, 0)
    return torch.cat([last, *others], dim=-1)[:, extra:]


def count_patches(backbone_config: PreTrainedConfig, height: int, width: int) -> int | None:
    """Number of patches that a transformer cuts an image into; `None` where its configuration names no patch size."""
    size = getattr(backbone_config, "patch_size", None)
    if isinstance(size, list | tuple) and len(size) == 2:
        return (height // size[0]) * (width // size[1])
    return (height // size) * (width // size) if isinstance(size, int) else None


def _last_hidden_state(backbone_outputs: ModelOutput) -> torch.Tensor:
    features = getattr(backbone_outputs, "last_hidden_state", None)
    if features is None:
        raise ValueError(f"the backbone's output has neither: {', '.join(backbone_outputs.keys())}")
    return features


def build_backbone(config: PreTrainedConfig | dict | None, use_pooler: bool) -> PreTrainedModel:
    """A vision model with random weights, in the number format that the captioner around it is built in."""
    config = resolve_backbone_config(config)
    # A checkpoint in half precision says so in its configuration; the backbone must not differ from the LSTM in that.
    return AutoModel.from_config(config, dtype=torch.get_default_dtype(), **_pooling_kwargs(config, use_pooler))


def _pooling_kwargs(config: PreTrainedConfig, use_pooler: bool) -> dict[str, bool]:
    if use_pooler:
        return {}
    model_class: Any = AutoModel._model_mapping[type(config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}


def load_backbone(
    name_or_path: str | PathLike, use_pooler: bool, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, bool]:
    """Load a vision model; drop its pooling layer where the checkpoint has no weights for that (ViT classifiers).

    Returns:
        The model, and whether it has its pooling layer.

    Raises:
        OSError: where there is no such model.
        ValueError: where the checkpoint lacks weights.
    """
    check_path(name_or_path)
    config = resolve_backbone_config(AutoConfig.from_pretrained(name_or_path, **kwargs))
    pooling = _pooling_kwargs(config, use_pooler)
    with _without_loading_report():
        backbone, info = AutoModel.from_pretrained(
            name_or_path, config=config, output_loading_info=True, **pooling, **kwargs
        )
    missing = sorted(info["missing_keys"])
    if use_pooler and missing and all("pooler" in key for key in missing):
        return load_backbone(name_or_path, False, kwargs)
    if missing:
        raise ValueError(
            f"{name_or_path}: the checkpoint lacks weights of {type(backbone).__name__}: {', '.join(missing[:5])}"
        )
    return backbone, use_pooler


def vision_part(model: PreTrainedModel, use_pooler: bool) -> tuple[PreTrainedModel, bool]:
    """Take the image half of a two-tower model, or the body of a classifier.

    Returns:
        The part, and whether it has its pooling layer.
    """
    part: Any = getattr(model, "vision_model", model.base_model)
    if not isinstance(part, PreTrainedModel):
        part = model  # timm's wrapper calls what it wraps its base model
    return part, use_pooler and getattr(part, "pooler", True) is not None


@contextmanager
def _without_loading_report() -> Iterator[None]:
    """Keep Transformers from reporting a classifier's head as left over, and a pooler as made up, which it is not."""

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)

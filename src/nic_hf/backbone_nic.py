"""Image to feature: any Transformers vision model, pooled to one vector a photo."""

import inspect
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .configuration_nic import NICConfig


class NICEncoder(nn.Module):
    """Image to feature: the backbone, pooled. Frozen, it stays in eval mode whatever the rest of the model does."""

    main_input_name = "pixel_values"

    def __init__(self, config: NICConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone_config, config.use_backbone_pooler)
        self.set_frozen(config.freeze_backbone)

    def set_frozen(self, frozen: bool) -> None:
        """Freeze or thaw the backbone: its gradients, and its BatchNorm and dropout."""
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "NICEncoder":
        """Set training mode, except for a frozen backbone: its BatchNorm statistics must not move."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, pixel_values: torch.FloatTensor, return_dict: bool = True, **kwargs: Any) -> BaseModelOutput:
        """Encode images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): from the processor.
            return_dict, **kwargs: accepted because `generate()` passes them to every encoder; not used.

        Returns:
            `BaseModelOutput` whose `last_hidden_state` has shape `(batch_size, 1, feature_size)`: one feature a photo.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            outputs = self.backbone(pixel_values=pixel_values.to(self.backbone.dtype))
        # shape: (batch_size, 1, feature_size)
        return BaseModelOutput(last_hidden_state=pool_features(outputs).unsqueeze(1))


def infer_feature_size(backbone_config: PreTrainedConfig, use_pooler: bool = True) -> int:
    """Size of a backbone's pooled feature, by a dry run without weights (on the meta device).

    Raises:
        ValueError: where the model does not turn `pixel_values` into one vector an image.
    """
    size = getattr(backbone_config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
    try:
        with torch.device("meta"), torch.no_grad():
            backbone = build_backbone(backbone_config, use_pooler).eval()
            images = torch.empty(1, getattr(backbone_config, "num_channels", 3), height, width)
            features = pool_features(backbone(pixel_values=images))
    except Exception as error:
        raise ValueError(
            f"a model of type '{backbone_config.model_type}' cannot be the backbone of a captioner: "
            f"it does not turn `pixel_values` into a `pooler_output` or a `last_hidden_state` ({error})"
        ) from error
    return features.shape[1]


def pool_features(backbone_outputs: ModelOutput) -> torch.Tensor:
    """One vector an image, of shape `(batch_size, feature_size)`: the pooled output, else the mean over positions."""
    features = getattr(backbone_outputs, "pooler_output", None)
    if features is None:
        features = getattr(backbone_outputs, "last_hidden_state", None)
        if features is None:
            raise ValueError(f"the backbone's output has neither: {', '.join(backbone_outputs.keys())}")
        # CNNs give (batch_size, channels, height, width), transformers (batch_size, positions, channels).
        features = features.mean(dim=(2, 3)) if features.ndim == 4 else features.mean(dim=1)
    return features.flatten(1)


def build_backbone(config: PreTrainedConfig, use_pooler: bool) -> PreTrainedModel:
    return AutoModel.from_config(config, **_pooling_kwargs(config, use_pooler))


def _pooling_kwargs(config: PreTrainedConfig, use_pooler: bool) -> dict[str, bool]:
    if use_pooler:
        return {}
    model_class = AutoModel._model_mapping[type(config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}


def load_backbone(
    name_or_path: str | PathLike, use_pooler: bool, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, bool]:
    """Load a vision model; drop its pooling layer where the checkpoint has no weights for that (ViT classifiers)."""
    config = NICConfig(backbone_config=AutoConfig.from_pretrained(name_or_path, **kwargs)).backbone_config
    pooling = _pooling_kwargs(config, use_pooler)
    backbone, info = AutoModel.from_pretrained(
        name_or_path, config=config, output_loading_info=True, **pooling, **kwargs
    )
    missing = sorted(info["missing_keys"])
    if use_pooler and missing and all("pooler" in key for key in missing):
        return load_backbone(name_or_path, False, kwargs)
    if missing:
        raise ValueError(f"{name_or_path}: the checkpoint lacks weights of {type(backbone).__name__}: {missing[:5]}")
    config.num_labels = 2  # a classifier's labels are of no use to a captioner
    return backbone, use_pooler

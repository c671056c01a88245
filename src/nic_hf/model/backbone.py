"""Pretrained vision models, as the backbones of captioners."""

from os import PathLike
from typing import Any

from transformers import AutoConfig, AutoModel, PreTrainedModel

from ..configuration_nic import resolve_backbone_config
from ..lookup import look_up
from ..quiet_libraries import errors_only
from .timm_models import complete_timm_config


def load_backbone(
    name_or_path: str | PathLike, use_pooler: bool, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, bool]:
    """Load a vision model, without its pooling layer if the checkpoint has no weights for that (ViT classifiers).

    Returns:
        The model, and whether it has its pooling layer.

    Raises:
        OSError: if there is no such model, or the Hub cannot be reached.
        ValueError: if the checkpoint lacks weights.
    """
    kwargs = look_up(name_or_path, "backbone", **kwargs)
    config = resolve_backbone_config(AutoConfig.from_pretrained(name_or_path, **kwargs))
    complete_timm_config(config)
    backbone, info = _load_quietly(name_or_path, use_pooler, config=config, **kwargs)
    missing = sorted(info["missing_keys"])
    if use_pooler and missing and all("pooler" in key for key in missing):
        return load_backbone(name_or_path, False, kwargs)
    if missing:
        raise ValueError(
            f"{name_or_path}: the checkpoint lacks weights of {type(backbone).__name__}: {', '.join(missing[:5])}"
        )
    return backbone, use_pooler


def _load_quietly(name_or_path: str | PathLike, use_pooler: bool, **kwargs: Any) -> tuple[PreTrainedModel, dict]:
    """Load without Transformers' warnings of a classifier's head that is left over and of a pooler that is missing."""
    with errors_only("transformers"):
        if not use_pooler:
            try:
                return AutoModel.from_pretrained(
                    name_or_path, output_loading_info=True, add_pooling_layer=False, **kwargs
                )
            except TypeError:
                pass  # its pooling layer, if any, is not optional
        return AutoModel.from_pretrained(name_or_path, output_loading_info=True, **kwargs)


def vision_part(model: PreTrainedModel, use_pooler: bool) -> tuple[PreTrainedModel, bool]:
    """Take the image half of a two-tower model, or the body of a classifier.

    Returns:
        The part, and whether it has its pooling layer.
    """
    part: Any = getattr(model, "vision_model", model.base_model)
    if not isinstance(part, PreTrainedModel):
        part = model  # timm's wrapper calls what it wraps its base model
    return part, use_pooler and getattr(part, "pooler", True) is not None

"""Models of timm as backbones: what the wrapper in Transformers lacks. Their photos are prepared without timm."""

import math
from os import PathLike
from typing import Any

from PIL import Image
from transformers import ImageProcessingMixin, PreTrainedConfig, PreTrainedModel

MODEL_TYPE = "timm_wrapper"
# Defaults of timm.data.resolve_data_config.
_MEAN, _STD, _CROP = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875


def read_timm_settings(name_or_path: str | PathLike, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Settings of an image processor for a model of timm, which has them in `config.json`, and keywords left over.

    Args:
        name_or_path: a folder or a Hub id.
        **kwargs: of `ImageProcessingMixin.get_image_processor_dict`.

    Returns:
        `None` if it is not a model of timm.

    Raises:
        OSError: if it has no `config.json`.
        ValueError: if timm prepares the model's photos in a way that no image processor of Transformers has.
    """
    config, kwargs = ImageProcessingMixin.get_image_processor_dict(
        name_or_path, image_processor_filename="config.json", **kwargs
    )
    if not isinstance(config.get("pretrained_cfg"), dict):
        return None
    try:
        return image_processor_settings(config["pretrained_cfg"]), kwargs
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name_or_path}: `pretrained_cfg` in config.json: {error}") from error


def image_processor_settings(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
    """Settings of the image processor that prepares photos as `timm.data.create_transform` does in evaluation.

    A crop that does not lie exactly in the middle may be a pixel beside timm's.

    Raises:
        ValueError: if no image processor of Transformers does the same.
    """
    _, height, width = pretrained_cfg.get("input_size") or (3, 224, 224)
    interpolation = pretrained_cfg.get("interpolation") or "bicubic"
    mode = pretrained_cfg.get("crop_mode") or "center"
    if interpolation.upper() not in Image.Resampling.__members__:
        raise ValueError(f"interpolation {interpolation!r} is unknown")
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ValueError(
            f"no image processor crops as crop_mode {mode!r} does to {height} x {width} pixels; add a "
            "preprocessor_config.json"
        )
    scaled = [math.floor(side / (pretrained_cfg.get("crop_pct") or _CROP)) for side in (height, width)]
    return {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": scaled[0]} if mode == "center" else {"height": scaled[0], "width": scaled[1]},
        "resample": int(Image.Resampling[interpolation.upper()]),
        "crop_size": {"height": height, "width": width},
        "image_mean": list(pretrained_cfg.get("mean") or _MEAN),
        "image_std": list(pretrained_cfg.get("std") or _STD),
    }


def complete_timm_config(config: PreTrainedConfig) -> None:
    """Add the image size to the configuration of a model of timm, and take out what is a classifier's.

    Configurations of other models are not changed.
    """
    if config.model_type != MODEL_TYPE:
        return
    # timm.models.save_for_hf writes num_classes, which the wrapper passes too: Python refuses to pass it twice.
    config.model_args = {key: value for key, value in (config.model_args or {}).items() if key != "num_classes"}
    for name in ("label_names", "label_descriptions", "num_classes"):
        vars(config).pop(name, None)
    channels, *size = (getattr(config, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    config.num_channels, config.image_size = channels, size


def describe_timm_regions(config: PreTrainedConfig, backbone: PreTrainedModel) -> None:
    """Add the patch size to the configuration of a model of timm, so that attention leaves out the tokens before them.

    Raises:
        ValueError: if its last feature map has another layout than `(batch_size, channels, height, width)`.
    """
    if config.model_type != MODEL_TYPE:
        return
    model: Any = backbone.base_model
    if getattr(model, "output_fmt", None) == "NHWC":
        raise ValueError(
            f"attention cannot read the regions of timm's {config.architecture}, whose feature map has its channels"
            " last: train without attention, or take the model of the same name from Transformers"
        )
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if size is not None:
        config.patch_size = size if isinstance(size, int) else list(size)

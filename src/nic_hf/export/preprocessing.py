"""Preprocess photos to `pixel_values` with Pillow and NumPy, bit by bit like the checkpoint's image processor.

It supports the common steps of Transformers' Pillow image processors (resize, center crop, rescale, normalize), and
the additional ones of MobileViT and ConvNeXt. Differences from other image processors are detected when a checkpoint
is exported, by comparing pixels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..images import load_photo

# Settings without effect on the pixels.
_WITHOUT_EFFECT = {
    "auto_map",
    "crop_pct",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",  # photos come as RGB
    "do_reduce_labels",
    "image_processor_type",
    "input_data_format",
    "processor_class",
    "return_tensors",
    "size_divisor",
}
_KNOWN = {
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_flip_channel_order",
}


class PhotoPreprocessor:
    """Preprocesses photos by the settings of an image processor, without torch and Transformers.

    Args:
        settings: the settings of an image processor, from `processor_config.json`.

    Raises:
        ValueError: if a setting is not supported.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        asked = {name: value for name, value in settings.items() if value is not None and value is not False}
        unknown = sorted(asked.keys() - _KNOWN - _WITHOUT_EFFECT)
        if unknown:
            raise ValueError(
                f"the ONNX captioner cannot preprocess photos like {settings.get('image_processor_type')} with "
                f"{', '.join(f'{name}={asked[name]!r}' for name in unknown)}; compute `pixel_values` yourself"
            )
        self.size = _sizes("size", asked) if asked.get("do_resize") else None
        self.crop = _sizes("crop_size", asked) if asked.get("do_center_crop") else None
        if self.crop is not None and "height" not in self.crop:
            raise ValueError(f"the image processor's `crop_size` must have a height and a width, got {self.crop}")
        if str(settings.get("image_processor_type")).startswith("ConvNext") and self.size is not None:
            self._resize_as_convnext(float(settings.get("crop_pct") or 224 / 256))
        self.resample = Image.Resampling(asked.get("resample", Image.Resampling.BILINEAR))
        self.flip = bool(asked.get("do_flip_channel_order"))
        self.levels = _levels(asked)

    def _resize_as_convnext(self, share: float) -> None:
        """ConvNeXt's processor crops the central `share` of a photo, but nothing from 384 pixels on."""
        short = (self.size or {}).get("shortest_edge")
        if short is None:
            raise ValueError("ConvNeXt's image processor needs a `size` with shortest_edge")
        square = {"height": short, "width": short}
        self.size, self.crop = ({"shortest_edge": int(short / share)}, square) if short < 384 else (square, self.crop)

    def __call__(self, images: Sequence[Any]) -> np.ndarray:
        """Preprocess photos (see [`nic_hf.images.load_photo`]) to shape `(len(images), 3, height, width)`.

        Raises:
            OSError: if a photo cannot be read; the message names the file.
            ValueError: if the outputs have different sizes.
        """
        photos = [self._prepare(load_photo(image)) for image in images]
        if len({photo.shape for photo in photos}) > 1:
            raise ValueError(
                "photos have different sizes after preprocessing: the image processor neither squeezes nor crops"
            )
        return np.stack(photos)

    def _prepare(self, photo: Image.Image) -> np.ndarray:
        if self.size is not None:
            height, width = _target(photo.height, photo.width, self.size)
            photo = photo.resize((width, height), self.resample)
        pixels = np.asarray(photo)
        if self.crop is not None:
            pixels = _center_crop(pixels, self.crop["height"], self.crop["width"])
        prepared = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        for channel in range(3):
            np.take(self.levels[channel], pixels[:, :, channel], out=prepared[channel])
        return prepared[::-1].copy() if self.flip else prepared


def _sizes(name: str, settings: Mapping[str, Any]) -> dict[str, int]:
    size = settings.get(name)
    given = {side: value for side, value in size.items() if value} if isinstance(size, Mapping) else {}
    if given.keys() not in ({"height", "width"}, {"shortest_edge"}):
        raise ValueError(f"the image processor's `{name}` must have height and width, or shortest_edge, got {size!r}")
    return given


def _target(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    if "height" in size:
        return size["height"], size["width"]
    short = size["shortest_edge"]
    long = int(short * max(height, width) / min(height, width))
    return (long, short) if width <= height else (short, long)


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop the center, padding small photos with black. Odd differences are split like in Transformers."""
    pads = [max(wanted - length, 0) for wanted, length in ((height, pixels.shape[0]), (width, pixels.shape[1]))]
    starts = [(length - wanted) // 2 for wanted, length in ((height, pixels.shape[0]), (width, pixels.shape[1]))]
    before = [math.ceil(pad / 2) for pad in pads]
    if any(pads):
        pixels = np.pad(pixels, [*((first, pad - first) for first, pad in zip(before, pads, strict=True)), (0, 0)])
    top, left = (max(start + first, 0) for start, first in zip(starts, before, strict=True))
    return pixels[top : top + height, left : left + width]


def _levels(settings: Mapping[str, Any]) -> np.ndarray:
    """Lookup table of the rescaled and normalized value of each of 256 levels per channel, of shape `(3, 256)`."""
    levels: Any = np.repeat(np.arange(256)[None], 3, axis=0)
    if settings.get("do_rescale"):
        levels = (levels.astype(np.float64) * settings.get("rescale_factor", 1 / 255)).astype(np.float32)
    levels = levels.astype(np.float32)
    if settings.get("do_normalize"):
        mean, std = (np.array(settings[name], dtype=np.float32) for name in ("image_mean", "image_std"))
        levels = (levels - mean.reshape(-1, 1)) / std.reshape(-1, 1)
    return levels

"""Photos in: from a path, URL, bytes, array or PIL image to an upright RGB image."""

import io
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_utils import load_image


def load_photo(source: Any, timeout: float | None = None) -> Image.Image:
    """Read a photo.

    Args:
        source: a path, a URL, base64 text, the bytes of an image file, or anything that [`to_rgb`] takes.
        timeout: seconds after which a download is given up.

    Returns:
        An upright RGB image (see [`to_rgb`]), decoded.

    Raises:
        OSError: naming the file, where it is missing, empty, truncated or not an image.
        ValueError: where `source` is none of the above.
    """
    name = "the photo"
    try:
        if isinstance(source, bytes | bytearray):
            return to_rgb(Image.open(io.BytesIO(source)))
        if isinstance(source, str | PathLike):
            name = str(source) if len(str(source)) < 500 else f"{str(source)[:80]}..."
            if is_file(source):
                with Image.open(source) as image:
                    return to_rgb(image)
            source = load_image(str(source), timeout=timeout)
        return to_rgb(source)
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        # SyntaxError is what Pillow raises for some broken PNG files.
        raise OSError(f"{name}: cannot read it as an image: {error}") from error


def is_file(source: str | PathLike) -> bool:
    """Whether `source` is the path of a file. Long base64 text is no path, which some systems answer by an error."""
    try:
        return Path(source).is_file()
    except (OSError, ValueError):
        return False


def to_rgb(image: Any) -> Image.Image:
    """Turn any photo into an upright RGB one.

    EXIF orientation is applied, transparency is laid over white, 16-bit and floating-point greys are scaled to 8 bits.

    Args:
        image: a `PIL.Image.Image`, or an array or tensor of shape `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)` with values 0 to 255, or 0 to 1 where they are floating-point.

    Raises:
        ValueError: where the image is empty or is not an image.
        OSError: where its file is damaged (Pillow decodes when the pixels are first needed).
    """
    if isinstance(image, np.ndarray) or torch.is_tensor(image):
        image = _array_to_image(np.asarray(image))
    if not isinstance(image, Image.Image):
        raise ValueError(f"not an image: {type(image).__name__}")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_scale_to_bytes(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _array_to_image(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError(f"not an image: an array of shape {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        array = (array.clip(0, 1) * 255).round() if array.max() <= 1 else array
    return Image.fromarray(array.clip(0, 255).astype(np.uint8))


def _scale_to_bytes(array: np.ndarray) -> np.ndarray:
    """Grey levels of 16 or 32 bits to 8: by 257 for a 16-bit file, else by the range that the photo uses."""
    array = array.astype(np.float64)
    top = 65535.0 if 255 < array.max() <= 65535 else max(255.0, float(array.max()))
    return (array.clip(0, top) * (255.0 / top)).round().astype(np.uint8)

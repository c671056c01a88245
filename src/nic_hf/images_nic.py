"""Photos in: from a path, URL, bytes, array or PIL image to an upright RGB image."""

import base64
import io
import os
import struct
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# Neither torch nor Transformers is imported: the ONNX captioner reads photos without them.
from .download_nic import download, without_secrets


def load_photo(
    source: Any,
    timeout: float | None = None,
    *,
    at_least: tuple[int, int] | None = None,
    allow_private: bool | None = None,
) -> Image.Image:
    """Read a photo.

    Args:
        source: a path, a URL, base64 text, the bytes of an image file, or anything that [`to_rgb`] takes.
        timeout: seconds after which a download is given up; 30 where not given.
        at_least: width and height that are enough. A JPEG of twice that or more is decoded at a half, a quarter or an
            eighth of its size, which takes a fraction of the time.
        allow_private: download from private addresses too (see [`nic_hf.download_nic.download`]).

    Returns:
        An upright RGB image (see [`to_rgb`]), decoded.

    Raises:
        OSError: naming the file, where it is missing, empty, truncated or not an image.
        ValueError: where `source` is none of the above.
    """
    if not isinstance(source, str | PathLike | bytes | bytearray | Image.Image):
        return to_rgb(source)
    try:
        return to_rgb(_open(source, timeout, at_least, allow_private))
    except MemoryError:
        raise
    except Exception as error:
        # Pillow answers a damaged file by ValueError, SyntaxError, struct.error and others, depending on the format.
        raise OSError(f"{_name(source)}: cannot read it as an image: {error}") from error


def _open(
    source: Any, timeout: float | None, at_least: tuple[int, int] | None, allow_private: bool | None
) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes | bytearray):
        return _smaller(Image.open(io.BytesIO(source)), at_least)
    if is_file(source):
        with Image.open(source) as image:
            _smaller(image, at_least).load()
            return image
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _smaller(Image.open(io.BytesIO(download(source, timeout, allow_private))), at_least)
    text = os.fspath(source)
    if text.startswith("data:image/"):
        text = text.partition(",")[2]
    try:
        return _smaller(Image.open(io.BytesIO(base64.decodebytes(text.encode()))), at_least)
    except (ValueError, OSError):
        raise FileNotFoundError("there is no such file") from None


def _smaller(image: Image.Image, at_least: tuple[int, int] | None) -> Image.Image:
    """Let a JPEG be decoded at a fraction of its size, as long as twice `at_least` is left in both directions."""
    if at_least is not None:
        # The longer side for both: whether the photo lies on its side shows in its EXIF tags, after decoding.
        image.draft(None, (2 * max(at_least), 2 * max(at_least)))
    return image


def _name(source: Any) -> str:
    if isinstance(source, str | PathLike):
        name = os.fspath(source)
        if name.startswith(("http://", "https://")):
            name = without_secrets(name)
        return name if len(name) < 500 else f"{name[:80]}..."  # base64 text
    return str(getattr(source, "filename", "") or "the photo")


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
            `(channels, height, width)`, of 1, 3 or 4 channels. Values are 0 to 255; 0 to 1 where they are
            floating-point or boolean; 0 to 65535 where they are 16-bit.

    Raises:
        ValueError: where the image is empty or is not an image.
        OSError: where its file is damaged (Pillow decodes when the pixels are first needed).
    """
    if hasattr(image, "is_floating_point"):  # a tensor
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if isinstance(image, np.ndarray):
        image = _array_to_image(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"not an image: {type(image).__name__}")
    image.load()
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image)
        image = Image.fromarray(_scale_to_bytes(grey.astype(np.uint16) if image.mode.startswith("I;16") else grey))
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts it to nothing else
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return image  # a damaged EXIF block takes nothing from the pixels


def _array_to_image(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError(f"not an image: an array of shape {array.shape}")
    if array.dtype == np.bool_ or array.dtype == np.uint16 or np.issubdtype(array.dtype, np.floating):
        return Image.fromarray(_scale_to_bytes(array))
    return Image.fromarray(array.clip(0, 255).astype(np.uint8))


def _scale_to_bytes(array: np.ndarray) -> np.ndarray:
    """Levels of any kind to 0 to 255. Full scale is 65535 for 16-bit levels, else 1, 255 or 65535 by what fits."""
    top = 65535.0
    if array.dtype != np.uint16:
        scales = (255.0, 65535.0) if np.issubdtype(array.dtype, np.integer) else (1.0, 255.0, 65535.0)
        array = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
        # Twice the scale, because resizing a photo can overshoot it.
        top = next((scale for scale in scales if array.max() <= 2 * scale), float(array.max()))
    return (array.clip(0, top) * (255.0 / top)).round().astype(np.uint8)

"""Photos in: from a path, URL, bytes, array or PIL image to an upright RGB image."""

import base64
import ctypes
import io
import math
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# Neither torch nor Transformers is imported: the ONNX captioner reads photos without them.
from .download_nic import download, without_secrets

# Photos may take no gigabyte, whatever a few bytes of a file claim: Pillow's own limit is 179 million pixels, and half
# of what is decoded needs several copies on the way to RGB.
_KEPT_PIXELS = 2**25  # larger photos than 5793 x 5793 are reduced to a quarter of that before anything is copied
_MOST_PIXELS = 2**26  # of formats whose decoders hold the photo several times over
_DECODED_AT_ONCE = ("AVIF", "JPEG2000", "WEBP")
_LONGEST = 100  # times the width that a photo may be high, or the other way round; the middle is kept of longer ones
_ORIENTATION = 0x0112  # the EXIF tag
_DAMAGED_EXIF = (SyntaxError, ValueError, KeyError, TypeError, struct.error)
_BAND = 2**20  # values of a grey that are scaled at once
_one_large_photo = threading.Lock()


def load_photo(
    source: Any,
    timeout: float | None = None,
    *,
    at_least: tuple[int, int] | None = None,
    allow_private: bool | None = None,
    name: str | None = None,
) -> Image.Image:
    """Read a photo.

    Args:
        source: a path, a URL, base64 text, the bytes of an image file, or anything that [`to_rgb`] takes.
        timeout: seconds after which a download is given up; 30 where not given.
        at_least: width and height that are enough. A JPEG of twice that or more is decoded at a half, a quarter or an
            eighth of its size, which takes a fraction of the time.
        allow_private: download from private addresses too (see [`nic_hf.download_nic.download`]).
        name: what to call it in errors, where `source` has no name of its own.

    Returns:
        An upright RGB image (see [`to_rgb`]), decoded.

    Raises:
        OSError: naming the file, where it is missing, empty, truncated, not an image, too large to decode within a
            gigabyte, or a program that draws one (EPS, WMF).
        ValueError: where `source` is none of the above.
    """
    if not isinstance(source, str | PathLike | bytes | bytearray | Image.Image):
        return to_rgb(source)
    try:
        if isinstance(source, Image.Image):
            return to_rgb(source)
        image = _smaller(_checked(_open(source, timeout, allow_private)), at_least)
        with _in_turn(image.width * image.height):
            with image:
                image.load()
                bounded = _bounded(image)
            del image  # the rest needs memory too
            return to_rgb(bounded)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow answers a damaged file by ValueError, SyntaxError, struct.error and others, depending on the format.
        raise OSError(f"{name or _name(source)}: cannot read it as an image: {error}") from error


def _open(source: Any, timeout: float | None, allow_private: bool | None) -> Image.Image:
    """A photo of which the header was read."""
    if isinstance(source, bytes | bytearray):
        return Image.open(io.BytesIO(source))
    if is_file(source):
        return Image.open(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return Image.open(io.BytesIO(download(source, timeout, allow_private)))
    text = os.fspath(source)
    if text.startswith("data:image/"):
        text = text.partition(",")[2]
    try:
        return Image.open(io.BytesIO(base64.decodebytes(text.encode())))
    except (ValueError, OSError):
        raise FileNotFoundError("there is no such file") from None


@contextmanager
def _in_turn(pixels: int) -> Iterator[None]:
    """Let large photos be decoded one at a time, whatever the number of threads: each takes hundreds of megabytes.

    glibc keeps what one thread frees from the others; it is told to give that back.
    """
    if pixels <= _KEPT_PIXELS:
        yield
        return
    with _one_large_photo:
        try:
            yield
        finally:
            if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
                ctypes.CDLL(None).malloc_trim(0)


def _checked(image: Image.Image) -> Image.Image:
    """Refuse a file by its header, before a pixel of it is decoded."""
    problem = ""
    if image.format in ("EPS", "WMF"):
        problem = f"{image.format} files are programs that draw, which are not run; save it as PNG"
    elif image.format in _DECODED_AT_ONCE and image.width * image.height > _MOST_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        problem = f"{size} are more than {_MOST_PIXELS:,}, too large for {image.format}; make it smaller"
    if problem:
        image.close()
        raise OSError(problem)
    return image


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
    More than 33 million pixels are reduced to 8 million, and of a photo more than 100 times as long as wide the middle
    is taken, so that no photo takes a gigabyte of memory on its way to a model, which sees some hundred pixels a side.

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
    image = _upright(_bounded(image))
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image)
        image = Image.fromarray(_scale_to_bytes(grey.astype(np.uint16) if image.mode.startswith("I;16") else grey))
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts it to nothing else
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _bounded(image: Image.Image) -> Image.Image:
    """The image itself, or what is enough of a very long or a very large one."""
    width, height = image.size
    original = image
    if max(width, height) > _LONGEST * min(width, height) > 0:
        keep = (min(width, _LONGEST * height), min(height, _LONGEST * width))
        left, top = (width - keep[0]) // 2, (height - keep[1]) // 2
        image = image.crop((left, top, left + keep[0], top + keep[1]))
    pixels = image.width * image.height
    if pixels > _KEPT_PIXELS:
        factor = math.ceil(math.sqrt(4 * pixels / _KEPT_PIXELS))
        size = (-(-image.width // factor), -(-image.height // factor))
        try:
            image = _reduced(image, factor, size)
        except ValueError:  # palettes, black and white, 16 bits: of these every so many pixels are taken
            image = image.resize(size, Image.Resampling.NEAREST)
    if image is not original:
        with suppress(*_DAMAGED_EXIF):  # of TIFF, what is cut out does not know which way up it was
            image.getexif()[_ORIENTATION] = original.getexif().get(_ORIENTATION, 1)
    return image


def _reduced(image: Image.Image, factor: int, size: tuple[int, int]) -> Image.Image:
    """`image.reduce(factor)` in strips, as Pillow first makes a copy of all that has transparency."""
    strip = 64 * factor
    reduced = image.resize((1, 1), Image.Resampling.NEAREST).resize(size)  # with the info of the image
    for number, top in enumerate(range(0, image.height, strip)):
        part = image.crop((0, top, image.width, min(top + strip, image.height)))
        reduced.paste(part.reduce(factor), (0, 64 * number))
    return reduced


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED_EXIF:
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
    array = np.ascontiguousarray(array)
    top = 65535.0
    if array.dtype != np.uint16:
        scales = (255.0, 65535.0) if np.issubdtype(array.dtype, np.integer) else (1.0, 255.0, 65535.0)
        highest = max(float(_numbers(band).max()) for band in _bands(array))
        # Twice the scale, because resizing a photo can overshoot it.
        top = next((scale for scale in scales if highest <= 2 * scale), highest)
    scaled = np.empty(array.shape, dtype=np.uint8)
    for band, result in zip(_bands(array), _bands(scaled), strict=True):
        result[:] = (_numbers(band).clip(0, top) * (255.0 / top)).round()
    return scaled


def _bands(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = array.reshape(-1)
    return (flat[start : start + _BAND] for start in range(0, flat.size, _BAND))


def _numbers(band: np.ndarray) -> np.ndarray:
    return np.nan_to_num(band.astype(np.float64), posinf=0.0, neginf=0.0)

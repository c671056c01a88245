"""Read photos: from a path, URL, bytes, array or PIL image to an upright RGB image."""

import base64
import ctypes
import importlib
import io
import math
import os
import struct
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Neither torch nor Transformers is imported: the ONNX captioner reads photos without them.
from .download import download, without_secrets

# A photo must not take a gigabyte of memory, whatever its header claims. Pillow's own limit is 179 million pixels, and
# conversion to RGB may need several copies. Photos with more pixels than this are reduced to a quarter of it before
# they are copied; above half of it, they are decoded one at a time.
_KEPT_PIXELS = 2**25
_MOST_BYTES = 720_000_000  # that Pillow needs: at most four per pixel, and eight per row
# Formats (and a decoder) that need several copies while decoding, up to forty bytes per pixel.
_MOST_PIXELS = {"AVIF": 2**26, "HEIF": 2**26, "JPEG2000": 2**26, "QOI": 2**26, "WEBP": 2**26, "fits_gzip": 2**24}
# Decoded in Python, or containers of another file, which may be larger than the header claims.
_ALONE = ("BLP", "FITS", "ICNS", "ICO", "IPTC", "QOI")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_LONGEST = 100  # largest aspect ratio; of longer photos the middle is kept
_ORIENTATION, _BITS, _SAMPLE_FORMAT = 0x0112, 0x0102, 0x0153  # tags of EXIF and TIFF
_DAMAGED_EXIF = (SyntaxError, ValueError, KeyError, TypeError, struct.error)
_BAND = 2**20  # grey values that are scaled at once
_UNDERSHOT = 0.2  # of the range: how far below black resizing may go
_one_large_photo = threading.Lock()
reading = threading.local()  # `name`: the photo that this thread reads, for warnings


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
        timeout: limit of a download in seconds; 30 by default.
        at_least: sufficient width and height. A JPEG of at least twice that is decoded at a half, a quarter or an
            eighth of its size, which is faster.
        allow_private: download from private addresses too (see [`nic_hf.download.download`]).
        name: name of the photo in errors, if `source` has none.

    Returns:
        An upright RGB image (see [`to_rgb`]), decoded.

    Raises:
        OSError: naming the file, if it is missing, empty, truncated, not an image, too large to decode within a
            gigabyte, a program that draws one (EPS, WMF), or HEIC without `pillow-heif`.
        ValueError: if `source` is none of the above.
    """
    if not isinstance(source, str | PathLike | bytes | bytearray | Image.Image):
        return to_rgb(source)
    reading.name = name or _name(source)
    try:
        if isinstance(source, Image.Image):
            return to_rgb(source)
        return _decoded(_smaller(_checked(_open(source, timeout, allow_private)), at_least))
    except MemoryError:
        raise
    except Exception as error:
        # Pillow answers a damaged file by ValueError, SyntaxError, struct.error and others, depending on the format.
        _let_go(error)
        raise OSError(f"{reading.name}: cannot read it as an image: {reason(error)}") from error
    finally:
        reading.name = None


def photo_size(file: str | PathLike, name: str) -> tuple[int, int]:
    """Width and height of an image file, by its header. Errors are as Pillow has them."""
    reading.name = name
    try:
        with _identified(file) as image:
            return image.size
    finally:
        reading.name = None


def _open(source: Any, timeout: float | None, allow_private: bool | None) -> Image.Image:
    """A photo of which the header was read."""
    if isinstance(source, bytes | bytearray):
        return _identified(io.BytesIO(source))
    if is_file(source):
        return _identified(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _identified(io.BytesIO(download(source, timeout, allow_private)))
    text = os.fspath(source)
    if text.startswith("data:image/"):
        text = text.partition(",")[2]
    try:
        return _identified(io.BytesIO(base64.decodebytes(text.encode())))
    except (ValueError, OSError):
        raise FileNotFoundError("there is no such file") from None


def _identified(file: Any) -> Image.Image:
    """Open an image, with `pillow-heif` if Pillow does not know the format and the header says HEIC."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        with nullcontext(file) if isinstance(file, io.BytesIO) else Path(file).open("rb") as stream:
            stream.seek(0)
            start = stream.read(12)
        if start[4:8] != b"ftyp" or start[8:] not in _HEIF_BRANDS:
            raise
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise OSError('HEIC photos need pillow-heif: pip install "nic_hf[heif]"') from None
    return Image.open(file)


def _decoded(image: Image.Image) -> Image.Image:
    """A photo whose header was read as upright RGB. What decoding takes is freed before another one's turn."""
    with _in_turn(image.width * image.height > _KEPT_PIXELS // 2 or image.format in _ALONE):
        try:
            with image:
                white = _white(image)
                image.load()
                bounded = _bounded(image)
        except BaseException as error:
            _let_go(error)
            raise
        finally:
            del image
        return _upright_rgb(bounded, white)


@contextmanager
def _in_turn(is_large: bool) -> Iterator[None]:
    """Let large photos be decoded one at a time, whatever the number of threads: each takes hundreds of megabytes.

    glibc keeps what one thread frees from the others; it is told to give that back.
    """
    if not is_large:
        yield
        return
    with _one_large_photo:
        try:
            yield
        finally:
            if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
                ctypes.CDLL(None).malloc_trim(0)


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold: Pillow's hold the pixels for as long as the error is kept."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def reason(error: Exception) -> str:
    """What was wrong, without the file's path, which may be a temporary one."""
    if isinstance(error, UnidentifiedImageError):
        return "it is in no format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _checked(image: Image.Image) -> Image.Image:
    """Refuse a file by its header, before a pixel of it is decoded."""
    problem, pixels = "", image.width * image.height
    most = min(_MOST_PIXELS.get(kind, math.inf) for kind in (image.format or "", *_codec(image)[:1]))
    if image.format in ("EPS", "WMF"):
        problem = f"{image.format} files are programs that draw, which are not run; save it as PNG"
    elif pixels > most or 4 * pixels + 8 * image.height > _MOST_BYTES:
        problem = f"{image.width} x {image.height} pixels are too many for {image.format}; make it smaller"
    if problem:
        image.close()
        raise OSError(problem)
    return image


def _codec(image: Image.Image) -> tuple[str, Any]:
    """Name and arguments of the decoder of an image that is not decoded yet."""
    tile = getattr(image, "tile", None)
    return (tile[0][0], tile[0][3]) if tile else ("", None)


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

    EXIF orientation is applied, transparency is laid over white, all levels are scaled to 8 bits.
    More than 33 million pixels are reduced to 8 million, and of a photo more than 100 times as long as wide the middle
    is taken, so that no photo takes a gigabyte of memory on its way to a model, which sees some hundred pixels a side.

    Args:
        image: a `PIL.Image.Image`, or an array or tensor of shape `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)`, of 1, 3 or 4 channels. White is 65535 if values are `uint16` and 1 if
            they are boolean. Of other arrays it is the least of 1 (floating-point ones only), 255 and 65535 that is
            half of the highest value or more, or else that value.

    Raises:
        ValueError: if the image is empty or not an image, or an array has negative values, as normalised photos
            have: which of them is black cannot be told.
        OSError: if its file is damaged (Pillow decodes when the pixels are first needed).
    """
    if hasattr(image, "is_floating_point"):  # a tensor
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if isinstance(image, np.ndarray):
        image = _array_to_image(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"not an image: {type(image).__name__}")
    white = _white(image)
    image.load()
    return _upright_rgb(_bounded(image), white)


def _upright_rgb(image: Image.Image, white: float) -> Image.Image:
    """See [`to_rgb`] and [`_white`]."""
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image)
        clear = image.info.get("transparency")  # a level of a 16-bit PNG
        image = Image.fromarray(_scale_to_bytes(levels, white))
        if clear is not None:
            image.putalpha(Image.fromarray(levels != clear))
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts it to nothing else
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info.clear()  # which way up it was, what was transparent: all of that is done, and need not be read again
    return image


def _white(image: Image.Image) -> float:
    """The level of white in a grey of more than 8 bits, before it is decoded; 0 if its format does not say.

    Pillow leaves a transparent colour as it stands in a PNG file and changes the levels of the photo, unless they are
    of 8 bits: the colour is changed in the same way.
    """
    (codec, raw), clear = _codec(image), image.info.get("transparency")
    if codec != "zip":
        pass
    elif raw == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    elif raw in ("L;2", "L;4") and isinstance(clear, int):
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        return 2.0 ** tags.get(_BITS, (16,))[0] - 1
    if tags.get(_BITS) == (16,) and tags.get(_SAMPLE_FORMAT) == (2,):
        return 32767.0
    if (image.format, image.mode) == ("PPM", "I"):
        return 65535.0
    return 0.0


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
    if array.dtype != np.bool_ and (array.dtype.kind not in "iuf"):
        raise ValueError(f"not an image: an array of {array.dtype}")
    return Image.fromarray(array if array.dtype == np.uint8 else _scale_to_bytes(array, None))


def _scale_to_bytes(array: np.ndarray, white: float | None) -> np.ndarray:
    """Levels of any kind to 0 to 255. White is what is given, or 65535 for 16-bit levels, else 1, 255 or 65535.

    Of Pillow's images, whose `white` is not None but may be 0, all below 0 is black: it marks what was not measured.
    """
    array = np.ascontiguousarray(array)
    if white is None and array.dtype.kind == "u" and array.dtype.itemsize == 2:
        white = 65535.0
    if not white:
        scales = (255.0, 65535.0) if np.issubdtype(array.dtype, np.integer) else (1.0, 255.0, 65535.0)
        highest = max(float(_numbers(band).max()) for band in _bands(array))
        # Twice the scale, because resizing a photo can overshoot it.
        fits = next((scale for scale in scales if highest <= 2 * scale), highest)
        lowest = min(float(_numbers(band).min()) for band in _bands(array))
        if white is None and lowest < -_UNDERSHOT * max(1.0, min(highest, fits)):
            raise ValueError(
                f"levels from {lowest:g} to {highest:g}: which is black and which is white cannot be told; give 0 to"
                " 255, 0 to 1 or 0 to 65535, and photos as they are before they are normalised"
            )
        white = fits
    scaled = np.empty(array.shape, dtype=np.uint8)
    for band, result in zip(_bands(array), _bands(scaled), strict=True):
        result[:] = (_numbers(band).clip(0, white) * (255.0 / white)).round()
    return scaled


def _bands(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = array.reshape(-1)
    return (flat[start : start + _BAND] for start in range(0, flat.size, _BAND))


def _numbers(band: np.ndarray) -> np.ndarray:
    return np.nan_to_num(band.astype(np.float64), posinf=0.0, neginf=0.0)

"""Some hundred files that are hard to read as photos, made from one photo and seeds: no file need be kept."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageCms

WIDTH, HEIGHT = 64, 48


class HardImage(NamedTuple):
    """A file to be read as a photo.

    Attributes:
        name: of the file, unlike any other.
        content: its bytes.
        expected: "caption" where it has to be read, "error" where it has to be refused, "either" where both will do.
    """

    name: str
    content: bytes
    expected: Literal["caption", "error", "either"]


def photo(seed: int = 0) -> Image.Image:
    """Coarse colours, some noise on them."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)).astype(int)
    return Image.fromarray((pixels + generator.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def hard_images() -> list[HardImage]:
    """All of them."""
    Image.init()
    images = [
        each
        for family in (
            formats,
            modes,
            orientations,
            profiles,
            animations,
            shapes,
            truncated,
            flipped,
            disguised,
            bombs,
        )
        for each in family()
    ]
    assert len({image.name for image in images}) == len(images)
    return images


def formats() -> Iterator[HardImage]:
    """Each format that Pillow writes."""
    refused = {"BUFR", "EPS", "GRIB", "HDF5", "PALM", "PDF", "WMF"}
    for kind in sorted(Image.SAVE):
        image = photo()
        image = image.convert("1") if kind in ("MSP", "XBM") else image
        image = image.convert("L") if kind in ("PALM",) else image
        image = image.convert("F") if kind == "SPIDER" else image
        image = image.convert("P") if kind == "BLP" else image
        try:
            content = encoded(image, kind)
        except (OSError, ValueError, KeyError):  # stubs of formats, which write nothing without a handler
            continue
        yield HardImage(f"format-{kind.lower()}.jpg", content, "error" if kind in refused else "caption")
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield HardImage(f"tiff-{compression}.tif", encoded(photo(), "TIFF", compression=compression), "caption")
    for name, options in {
        "progressive": {"progressive": True},
        "quality-1": {"quality": 1},
        "444": {"subsampling": 0},
        "restart": {"restart_marker_blocks": 1},
    }.items():
        yield HardImage(f"jpeg-{name}.jpg", encoded(photo(), "JPEG", **options), "caption")
    yield HardImage("webp-lossless.webp", encoded(photo(), "WEBP", lossless=True), "caption")
    yield HardImage("pgm-ascii.pgm", b"P2\n2 2\n255\n0 255 255 0\n", "caption")
    for suffix in ("jfif", "jpe", "jp2", "mpo", "heic", "tga", "ico", "psd", "dib", "pgm"):
        yield HardImage(f"jpeg-called.{suffix}", encoded(photo(), "JPEG"), "caption")


def modes() -> Iterator[HardImage]:
    """Ways to store colours."""
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"):
        if mode == "I;16":
            levels = np.asarray(photo().convert("L")).astype(np.uint16) * 257
            image = Image.fromarray(levels)
        elif mode == "PA":
            image = photo().convert("P").convert("PA")
        else:
            image = photo().convert(mode) if mode != "LAB" else Image.new("LAB", (WIDTH, HEIGHT), (120, 20, 30))
        for kind in ("PNG", "TIFF", "JPEG", "WEBP", "JPEG2000", "GIF", "ICO", "AVIF", "TGA", "BMP"):
            try:
                content = encoded(image, kind)
            except (OSError, ValueError, KeyError, SystemError):
                continue  # the format has no such colours
            # Pillow 12.3 writes TIFFs in YCbCr of three bytes a pixel and reads them as if they had four.
            expected = "either" if (mode, kind) == ("YCbCr", "TIFF") else "caption"
            yield HardImage(f"mode-{mode.replace(';', '-')}-{kind.lower()}.{kind.lower()}", content, expected)
    palette = photo().convert("P")
    for name, transparency in {"colour": 3, "table": bytes(range(256))}.items():
        yield HardImage(
            f"palette-transparent-{name}.png", encoded(palette, "PNG", transparency=transparency), "caption"
        )
    yield HardImage("palette-transparent.gif", encoded(palette, "GIF", transparency=3), "caption")
    yield HardImage("rgb-transparent.png", encoded(photo(), "PNG", transparency=(1, 2, 3)), "caption")
    for bits in (1, 2, 4):
        few = photo().quantize(2**bits)
        yield HardImage(f"palette-{bits}-bits.png", encoded(few, "PNG", bits=bits), "caption")
    for value, name in ((np.nan, "nan"), (np.inf, "infinite"), (-1e30, "huge")):
        levels = np.asarray(photo().convert("L")).astype(np.float32)
        levels[3:9] = value
        yield HardImage(f"float-{name}.tif", encoded(Image.fromarray(levels), "TIFF"), "caption")


def orientations() -> Iterator[HardImage]:
    """The eight ways to hold a camera, stored so that all look the same; and tags that say nothing sensible."""
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in range(1, 9):
            yield HardImage(f"exif-{kind.lower()}-{orientation}.img", turned(photo(), orientation, kind), "caption")
    for orientation in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield HardImage(f"exif-odd-{orientation}.jpg", encoded(photo(), "JPEG", exif=exif), "caption")
    for name, block in {
        "short": b"Exif\0\0MM\0*",
        "loop": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x08\0\0\0\x08\0\0\0",
        "noise": b"Exif\0\0" + np.random.default_rng(1).bytes(500),
        "text": b"Exif\0\0<html>",
    }.items():
        yield HardImage(f"exif-{name}.jpg", encoded(photo(), "JPEG", exif=block), "caption")


_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(image: Image.Image, orientation: int, kind: str) -> bytes:
    """A file whose EXIF tag turns it upright; without loss where the format can."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(_BACK[orientation]) if orientation in _BACK else image
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    return encoded(stored, kind, exif=exif, **options)


def profiles() -> Iterator[HardImage]:
    """Colour profiles, sound and not."""
    sound = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield HardImage(f"icc-srgb.{kind.lower()}", encoded(photo(), kind, icc_profile=sound), "caption")
        yield HardImage(f"icc-noise.{kind.lower()}", encoded(photo(), kind, icc_profile=b"noise" * 90), "caption")
    yield HardImage("icc-cmyk.jpg", encoded(photo().convert("CMYK"), "JPEG", icc_profile=sound), "caption")


def animations() -> Iterator[HardImage]:
    """Several pictures in one file; the first counts."""
    frames = [photo(seed) for seed in range(4)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        yield HardImage(f"animated.{kind.lower()}", content, "caption")
    yield HardImage("mpo.jpg", encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]), "caption")


def shapes() -> Iterator[HardImage]:
    """From a single pixel to a thread."""
    for width, height in (
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 3),
        (20000, 3),
        (3, 20000),
        (60000, 1),
        (1, 60000),
        (4000, 3000),
    ):
        image = photo().resize((width, height))
        for kind in ("PNG", "JPEG"):
            yield HardImage(f"shape-{width}x{height}.{kind.lower()}", encoded(image, kind), "caption")


def truncated() -> Iterator[HardImage]:
    """Cut off at every 5 %. Nearly whole files may be read: what lacks is a mark of the end, or other pictures."""
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF"):
        content = encoded(photo(), kind)
        for percent in range(5, 100, 5):
            yield HardImage(
                f"truncated-{percent:02d}.{kind.lower()}",
                content[: len(content) * percent // 100],
                "error" if percent <= 50 and kind not in ("JPEG2000", "TIFF") else "either",
            )


def flipped() -> Iterator[HardImage]:
    """One to fifty bits changed."""
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "ICO", "PSD"):
        content = PSD if kind == "PSD" else encoded(photo(), kind)
        for seed in range(8):
            generator = np.random.default_rng(seed)
            bits = np.unpackbits(np.frombuffer(content, np.uint8))
            reach = len(bits) if seed % 2 else min(len(bits), 8 * 200)  # headers hold more than pixels
            bits[generator.integers(0, reach, generator.integers(1, 51))] ^= 1
            yield HardImage(f"flipped-{seed}.{kind.lower()}", np.packbits(bits).tobytes(), "either")


PSD = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 4, 8, 3) + struct.pack(">IIIH", 0, 0, 0, 0) + bytes(48)


def disguised() -> Iterator[HardImage]:
    """What is not what its name says."""
    yield HardImage("png-called.jpg", encoded(photo(), "PNG"), "caption")
    yield HardImage("jpeg-called.png", encoded(photo(), "JPEG"), "caption")
    yield HardImage("gif-called.webp", encoded(photo(), "GIF"), "caption")
    yield HardImage("psd-called.jpg", PSD, "caption")
    yield HardImage("photo-with-a-tail.jpg", encoded(photo(), "JPEG") + b"<script>alert(1)</script>" * 99, "caption")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    pdf = encoded(photo(), "PDF")
    page = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>"
    contents = {
        "zero-bytes": b"",
        "one-byte": b"\xff",
        "zeros": bytes(5000),
        "noise": np.random.default_rng(3).bytes(5000),
        "svg": svg,
        "svg-in-html": page.replace(b"<h1>", svg),
        "html": page,
        "html-with-photo": page + encoded(photo(), "JPEG"),
        "pdf": pdf,
        "pdf-in-zip": b"PK\x03\x04" + pdf,
        "text": b"a photo of a dog, but in words",
        "json": b'{"image_id": 1}',
        "elf": b"\x7fELF\x02\x01\x01" + bytes(100),
        "gzip": zlib.compress(encoded(photo(), "PNG")),
        "jpeg-header": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01",
        "png-header": b"\x89PNG\r\n\x1a\n",
        "gif-header": b"GIF89a",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n%%EOF\n",
        "wmf": b"\xd7\xcd\xc6\x9a\0\0"
        + struct.pack("<4hHI", 0, 0, 99, 99, 96, 0)
        + bytes(2)
        + b"\x01\0\t\0"
        + bytes(99),
    }
    for name, content in contents.items():
        for suffix in ("jpg", "png"):
            yield HardImage(f"{name}.{suffix}", content, "error")


def bombs() -> Iterator[HardImage]:
    """Small files of many pixels."""
    yield HardImage("bomb-1-bit.png", png(60000, 60000, 0, 1), "error")
    yield HardImage("bomb-claimed.png", png(2**31 - 1, 2**31 - 1, 2, 8, b""), "error")
    yield HardImage("bomb-claimed.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;", "error")
    yield HardImage(
        "bomb-claimed.bmp",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 50000, 50000, 1, 24, *[0] * 6),
        "error",
    )
    for name, content in claimed().items():
        yield HardImage(f"bomb-claimed-{name}", content, "error")
    text = zlib.compress(bytes(100_000_000), 9)
    chunk = chunk_of(b"zTXt", b"a\0\0" + text)
    sound = encoded(photo(), "PNG")
    yield HardImage("bomb-text.png", sound[:33] + chunk + sound[33:], "either")


def claimed() -> dict[str, bytes]:
    """Small broken files by name that claim hundreds of megabytes, of formats that find out at different times."""

    def blp(width: int, height: int) -> bytes:
        header = b"BLP2" + struct.pack("<i4BII", 1, 1, 0, 0, 0, width, height)
        return header + struct.pack("<32I", *[1172] * 16, *[10] * 16) + bytes(1024)

    bmp = b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 13300, 13300, 1, 24, *[0] * 6) + bytes(99)
    webp = bytearray(encoded(Image.new("RGB", (61, 47)), "WEBP"))
    place = webp.index(struct.pack("<HH", 61, 47))
    webp[place : place + 4] = struct.pack("<HH", 5700, 5700)
    return {
        "rows.blp": blp(1, 83_886_336),
        "narrow.blp": blp(1, 59_900_000),
        "square.blp": blp(13_300, 13_300),
        "square.bmp": bmp,
        "square.tga": struct.pack("<3BHHB4H2B", 0, 0, 2, 0, 0, 0, 0, 0, 13_300, 13_300, 32, 0) + bytes(99),
        "canvas.webp": bytes(webp),
        "truncated.png": png(13_300, 13_300, 6, 8, zlib.compress(bytes(99))),
    }


def large() -> Iterator[HardImage]:
    """Small files that Pillow takes for photos, and that take it most of a gigabyte."""
    yield HardImage("large-grey.png", png(13000, 13000, 0, 8), "caption")
    yield HardImage("large-16-bit.png", png(13000, 13000, 0, 16), "caption")
    yield HardImage("large-rgba.png", png(13000, 13000, 6, 8), "caption")
    yield HardImage("large-palette.png", png(13000, 13000, 3, 8), "caption")
    large_webp = encoded(Image.new("L", (12000, 12000)).convert("RGB"), "WEBP", quality=1, method=0)
    yield HardImage("large.webp", large_webp, "error")
    yield HardImage("large.jpg", encoded(Image.new("L", (13000, 13000), 90), "JPEG"), "caption")


def png(width: int, height: int, colour_type: int, bits: int, rows: bytes | None = None) -> bytes:
    """A PNG file of zeros; `rows` in place of its pixels' bytes."""
    if rows is None:
        channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour_type]
        packer = zlib.compressobj(9)
        row = bytes(1 + -(-width * channels * bits // 8))
        rows = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    palette = chunk_of(b"PLTE", bytes(range(30))) if colour_type == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk_of(b"IHDR", header) + palette + chunk_of(b"IDAT", rows) + chunk_of(b"IEND", b"")
    )


def chunk_of(name: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

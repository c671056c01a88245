"""Levels that are not 0 to 255: what is black and what is white, in arrays, in Pillow's images and in files."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nic_hf import NICProcessor
from nic_hf.export.preprocessing import PhotoPreprocessor
from nic_hf.images import load_photo, to_rgb

RAMP = (np.mgrid[0:48, 0:64][1] * 1040).astype(np.int32)  # 0 to 65520
GREYS = np.asarray(to_rgb(Image.fromarray(RAMP)))


def levels(photo: Any) -> list[int]:
    """The greys of the first row."""
    pixels = np.asarray(load_photo(photo))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def tiff(values: bytes, bits: int, sample_format: int = 1, order: str = "<") -> bytes:
    """A TIFF of a row of four pixels, written here because Pillow writes neither 12 bits nor signed 16 (TIFF 6.0)."""
    tags = [(256, 4), (257, 1), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(values))]
    tags.append((339, sample_format))
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(values)) + values
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return start + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def png(bits: int, colour_type: int, row: bytes, transparent: bytes, width: int = 4) -> bytes:
    """A PNG of one row, with a transparent colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0))
    parts = chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + parts


@pytest.mark.parametrize(
    "make",
    [
        lambda ramp: ramp,
        lambda ramp: ramp.astype(np.int64),
        lambda ramp: ramp.astype(np.uint32),
        lambda ramp: ramp.astype(np.uint64),
        lambda ramp: ramp.astype(">i4"),
        lambda ramp: np.stack([ramp] * 3, axis=-1),
        lambda ramp: np.stack([ramp] * 3),
        lambda ramp: ramp.astype(np.float32),
        lambda ramp: torch.from_numpy(ramp),
        lambda ramp: torch.from_numpy(ramp).long().expand(3, -1, -1),
        lambda ramp: Image.fromarray(ramp),
    ],
)
def test_integers_above_255_are_scaled_as_pillows_image_of_them_is(make: Callable) -> None:
    assert GREYS[0, :, 0].tolist() == [round(level * 255 / 65535) for level in RAMP[0]]
    assert (np.asarray(load_photo(make(RAMP))) == GREYS).all()


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_white_is_65535_in_unsigned_arrays_of_16_bits_whatever_their_byte_order(dtype: str) -> None:
    assert levels(np.array([[0, 257, 510, 65535]], dtype=dtype)) == [0, 1, 2, 255]


def test_positive_integers_of_16_bits_with_sign_are_scaled() -> None:
    assert (np.asarray(to_rgb((RAMP // 2).astype(np.int16))) == np.asarray(to_rgb(Image.fromarray(RAMP // 2)))).all()


NORMALISED = np.random.default_rng(0).normal(size=(48, 64, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "photo",
    [
        NORMALISED,
        NORMALISED.astype(np.float64),
        NORMALISED.transpose(2, 0, 1),
        torch.from_numpy(NORMALISED),
        torch.from_numpy(NORMALISED).to(torch.bfloat16),
        NORMALISED.clip(-1, 1),
        -np.ones((4, 4), dtype=np.float32),
        np.linspace(-32768, 32767, 64).astype(np.int16).reshape(8, 8),
        np.linspace(-128, 127, 64).astype(np.int8).reshape(8, 8),
        RAMP - 30000,
    ],
)
def test_negative_levels_are_refused_since_black_is_not_known(photo: Any) -> None:
    with pytest.raises(ValueError, match=r"levels from -.* cannot be told; give 0 to 255, 0 to 1 or 0 to"):
        load_photo(photo)


def test_both_captioners_refuse_and_scale_alike() -> None:
    from tiny import tiny_processor

    processor: NICProcessor = tiny_processor()
    onnx = PhotoPreprocessor(processor.image_processor.to_dict())
    for prepare in (
        lambda photo: processor(images=[photo], return_tensors="np")["pixel_values"],
        lambda photo: onnx([photo]),
    ):
        with pytest.raises(ValueError, match="cannot be told"):
            prepare(NORMALISED)
        assert (prepare(RAMP.astype(np.int64)) == prepare(Image.fromarray(RAMP))).all()


def test_what_resizing_overshoots_by_is_cut_off() -> None:
    assert levels(np.array([[-0.1, 0.0, 1.0, 1.1]], dtype=np.float32)) == [0, 0, 255, 255]
    assert levels(np.array([[-20, 0, 255, 280]], dtype=np.int16)) == [0, 0, 255, 255]


@pytest.mark.parametrize("dtype", [np.complex64, object, "datetime64[s]", "U1"])
def test_what_are_no_levels_is_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match="not an image: an array of "):
        to_rgb(np.zeros((2, 3), dtype=dtype))


def test_white_of_a_tiff_of_12_bits_is_white() -> None:
    packed = int("".join(f"{level:012b}" for level in (0, 1000, 2047, 4095)), 2).to_bytes(6, "big")
    assert levels(tiff(packed, bits=12)) == [0, 62, 127, 255]


@pytest.mark.parametrize("order", ["<", ">"])
def test_white_of_a_tiff_of_signed_16_bits_is_32767_and_of_others_65535(order: str) -> None:
    signed = struct.pack(f"{order}4h", -7, 0, 16384, 32767)
    assert levels(tiff(signed, bits=16, sample_format=2, order=order)) == [0, 0, 128, 255]
    dark = struct.pack(f"{order}4h", 0, 129, 258, 510)
    assert levels(tiff(dark, bits=16, sample_format=2, order=order)) == [0, 1, 2, 4]
    unsigned = struct.pack(f"{order}4H", 0, 257, 32768, 65535)
    assert levels(tiff(unsigned, bits=16, order=order)) == [0, 1, 128, 255]


def test_negative_levels_of_a_file_or_an_image_of_pillow_are_black() -> None:
    """As TIFF has it (0 is black), and as files of measurements need it, where they mark what was not measured."""
    assert levels(Image.fromarray(np.array([[-9999, 0, 32768, 65535]], dtype=np.int32))) == [0, 0, 128, 255]
    assert levels(tiff(struct.pack("<4f", -1e30, 0, 0.5, 1), bits=32, sample_format=3)) == [0, 0, 128, 255]


@pytest.mark.parametrize(
    "pgm", [b"P5 4 1 65535\n" + struct.pack(">4H", 0, 257, 300, 510), b"P2 4 1 65535\n0 257 300 510\n"]
)
def test_a_dark_pgm_of_16_bits_is_dark(pgm: bytes) -> None:
    assert levels(pgm) == [0, 1, 1, 2]


def test_a_large_photo_keeps_its_white(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nic_hf.images._KEPT_PIXELS", 100)
    dark = np.full((20, 20), 510)
    assert levels(b"P5 20 20 65535\n" + dark.astype(">u2").tobytes())[0] == 2


@pytest.mark.parametrize("photo", [bytes, lambda data: Image.open(io.BytesIO(data))], ids=["bytes", "image"])
def test_a_transparent_grey_or_colour_is_white_whatever_its_bits(photo: Callable) -> None:
    deep = struct.pack(">4H", 0, 1, 0x1234, 0x8000)
    assert levels(photo(png(16, 0, deep, b"\x12\x34"))) == [0, 0, 255, 128]
    assert levels(photo(png(16, 0, deep, b"\0\0"))) == [255, 0, 18, 128]
    assert levels(photo(png(8, 0, bytes([0, 1, 2, 3]), b"\0\2"))) == [0, 1, 255, 3]
    assert levels(photo(png(4, 0, b"\x01\x2f", b"\0\2"))) == [0, 17, 255, 255]
    assert levels(photo(png(2, 0, b"\x1b", b"\0\1"))) == [0, 255, 170, 255]
    assert levels(photo(png(1, 0, b"\x50", b"\0\0"))) == [255, 255, 255, 255]
    colours = b"".join(struct.pack(">3H", *[level] * 3) for level in (0, 0x1234, 0x3412, 0x8000))
    assert levels(photo(png(16, 2, colours, b"\x12\x34" * 3))) == [0, 255, 52, 128]

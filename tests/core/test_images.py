"""Photos in every form that people keep them in: the right pixels, or an error with the file's name."""

import base64
import io
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from nic_hf.images import load_photo, to_rgb

WIDTH, HEIGHT = 5, 3
# Every pixel differs, so that a flip or a turn shows.
PIXELS = (np.arange(HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3) * 5).astype(np.uint8)
PHOTO = Image.fromarray(PIXELS)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def assert_pixels(image: Image.Image, expected: Any, tolerance: int = 0) -> None:
    assert image.mode == "RGB"
    expected = np.asarray(expected, dtype=int)
    assert np.asarray(image).shape == expected.shape
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= tolerance


def grey(levels: Any) -> np.ndarray:
    return np.repeat(np.asarray(levels)[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: str(folder / "photo.png"),
        lambda folder: folder / "photo.png",
        lambda folder: (folder / "photo.png").read_bytes(),
        lambda folder: bytearray((folder / "photo.png").read_bytes()),
        lambda folder: base64.b64encode((folder / "photo.png").read_bytes()).decode(),
        lambda folder: "data:image/png;base64," + base64.b64encode((folder / "photo.png").read_bytes()).decode(),
        lambda folder: Image.open(folder / "photo.png"),
        lambda folder: PIXELS,
        lambda folder: PIXELS.transpose(2, 0, 1),
        lambda folder: PIXELS.astype(np.int64),
        lambda folder: PIXELS / 255,
        lambda folder: PIXELS.astype(np.uint16) * 257,
        lambda folder: torch.from_numpy(PIXELS),
        lambda folder: torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
        lambda folder: (torch.from_numpy(PIXELS) / 255).requires_grad_(),
        lambda folder: torch.from_numpy(PIXELS).to(torch.bfloat16),
    ],
)
def test_a_photo_may_come_in_any_form(make: Any, tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "photo.png")
    assert_pixels(load_photo(make(tmp_path)), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_photo_is_turned_upright(orientation: int, format: str) -> None:
    # How a camera stores an upright photo, for each value of the tag (EXIF 2.3, section 4.6.4).
    stored = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, 1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    assert_pixels(load_photo(data), PIXELS, tolerance=12 if format == "JPEG" else 0)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_damaged_exif_does_not_cost_the_photo(format: str) -> None:
    data = encoded(PHOTO, format, exif=b"Exif\0\0garbage instead of tags")
    assert load_photo(data).size == (WIDTH, HEIGHT)


LEVELS = np.array([[0, 60, 120], [180, 220, 255]], dtype=np.uint8)


def with_alpha(alpha: Any) -> tuple[Image.Image, np.ndarray]:
    """A photo with transparency, and what it is over white."""
    alpha = np.broadcast_to(np.asarray(alpha, dtype=np.uint8), (HEIGHT, WIDTH))
    image = PHOTO.copy()
    image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    share = alpha[..., None] / 255
    return image, PIXELS * share + 255 * (1 - share)


def test_greyscale() -> None:
    assert_pixels(to_rgb(Image.fromarray(LEVELS)), grey(LEVELS))
    assert_pixels(to_rgb(LEVELS), grey(LEVELS))
    assert_pixels(to_rgb(LEVELS.T[None]), grey(LEVELS.T))
    assert_pixels(to_rgb(LEVELS[..., None]), grey(LEVELS))


def test_black_and_white() -> None:
    bits = LEVELS > 100
    assert_pixels(load_photo(encoded(Image.fromarray(bits))), grey(bits * 255))
    assert_pixels(to_rgb(bits), grey(bits * 255))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_greys_are_scaled_not_cut_off(format: str) -> None:
    image = Image.fromarray(LEVELS.astype(np.uint16) * 257)
    assert image.mode == "I;16"
    assert_pixels(load_photo(encoded(image, format)), grey(LEVELS))


def test_a_dark_sixteen_bit_photo_stays_dark() -> None:
    assert_pixels(to_rgb(Image.fromarray(np.full((2, 3), 200, dtype=np.uint16))), grey(np.full((2, 3), 1)))


def test_greys_of_32_bits_and_floating_point_ones_are_scaled() -> None:
    wide = LEVELS.astype(np.int32)
    assert_pixels(to_rgb(Image.fromarray(wide)), grey(LEVELS))
    assert_pixels(to_rgb(Image.fromarray(wide * 257)), grey(LEVELS))
    assert_pixels(to_rgb(Image.fromarray(wide * 1_000_000)), grey(LEVELS))
    assert_pixels(to_rgb(Image.fromarray((LEVELS / 255).astype(np.float32))), grey(LEVELS))
    assert_pixels(to_rgb(Image.fromarray(LEVELS.astype(np.float32))), grey(LEVELS))
    overshot = LEVELS.astype(np.float32) + np.float32(4)
    assert_pixels(to_rgb(overshot), grey(np.minimum(overshot, 255)))
    broken = np.array([[0.0, np.nan, np.inf, -np.inf, 1.0]], dtype=np.float32)
    assert_pixels(to_rgb(Image.fromarray(broken)), grey([[0, 0, 0, 0, 255]]))


def test_transparency_is_laid_over_white() -> None:
    image, expected = with_alpha([0, 64, 128, 192, 255])
    assert_pixels(to_rgb(image), expected, tolerance=1)
    assert_pixels(load_photo(encoded(image)), expected, tolerance=1)
    assert_pixels(to_rgb(np.asarray(image)), expected, tolerance=1)
    assert_pixels(to_rgb(image.convert("RGBa")), expected, tolerance=3)

    greys, expected = image.convert("LA"), np.asarray(PHOTO.convert("L"), dtype=float)
    share = np.asarray(greys)[..., 1] / 255
    expected = grey(expected * share + 255 * (1 - share))
    assert_pixels(to_rgb(greys), expected, tolerance=1)
    assert_pixels(load_photo(encoded(greys)), expected, tolerance=1)
    assert_pixels(to_rgb(greys.convert("La")), expected, tolerance=3)


def palette() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8), mode="L")
    image = image.convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    image.putdata([0, 1, 2, 2, 1, 0])
    return image


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette(format: str) -> None:
    first, second, third = [10, 20, 30], [200, 100, 50], [7, 8, 9]
    assert_pixels(load_photo(encoded(palette(), format)), [[first, second, third], [third, second, first]])
    # The second colour as transparent, in the two ways that PNG has.
    seen = [[first, [255] * 3, third], [third, [255] * 3, first]]
    assert_pixels(load_photo(encoded(palette(), format, transparency=1)), seen)
    if format == "PNG":
        assert_pixels(load_photo(encoded(palette(), format, transparency=bytes([255, 0, 255]))), seen)
    assert_pixels(to_rgb(palette().convert("PA")), [[first, second, third], [third, second, first]])


def test_a_colour_declared_transparent() -> None:
    expected = PIXELS.copy()
    expected[1, 2] = 255
    data = encoded(PHOTO, transparency=tuple(int(level) for level in PIXELS[1, 2]))
    assert_pixels(load_photo(data), expected)


YCBCR_TIFF = pytest.param(
    "YCbCr",
    "TIFF",
    marks=pytest.mark.skipif(
        PIL.__version__ < "13", reason="before version 13 Pillow cannot read what it writes there"
    ),
)


@pytest.mark.parametrize(("mode", "format"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), YCBCR_TIFF, ("HSV", None)])
def test_other_colour_spaces(mode: str, format: str | None) -> None:
    flat = Image.new("RGB", (16, 16), (200, 60, 30))
    image = flat.convert(mode)
    found = to_rgb(image) if format is None else load_photo(encoded(image, format))
    assert_pixels(found, np.asarray(flat), tolerance=8)


def test_of_an_animation_the_first_picture_is_taken() -> None:
    data = encoded(PHOTO.convert("P"), "GIF", save_all=True, append_images=[Image.new("P", PHOTO.size)])
    assert_pixels(load_photo(data), np.asarray(PHOTO.convert("P").convert("RGB")))


def test_the_users_own_image_is_left_as_it_was() -> None:
    image, _ = with_alpha(100)
    exif = image.getexif()
    exif[0x0112] = 6
    before = image.tobytes()
    load_photo(image)
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (WIDTH, HEIGHT), before)


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Path]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    contents = {
        "truncated.jpg": encoded(noise, "JPEG")[:1500],
        "truncated.png": encoded(noise)[:1500],
        "header-only.png": encoded(noise)[:20],
        "truncated.tif": encoded(noise, "TIFF")[:1500],
        "damaged.ppm": b"P6\nO0 60\n255\n" + bytes(100),
        "empty.jpg": b"",
        "text.jpg": b"a photo of a dog, but in words",
        "page.jpg": b"<html><body>404 Not Found</body></html>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in [*contents, "missing.jpg"]}


@pytest.mark.parametrize(
    "name",
    [
        "truncated.jpg",
        "truncated.png",
        "header-only.png",
        "truncated.tif",
        "damaged.ppm",
        "empty.jpg",
        "text.jpg",
        "page.jpg",
        "missing.jpg",
    ],
)
def test_a_photo_that_cannot_be_read_is_named(name: str, broken: dict[str, Path]) -> None:
    for source in (broken[name], str(broken[name])):
        with pytest.raises(OSError, match=f"{broken[name]}: cannot read it as an image: ."):
            load_photo(source)
    if name != "missing.jpg":
        with pytest.raises(OSError, match="the photo: cannot read it as an image"):
            load_photo(broken[name].read_bytes())


def test_a_missing_file_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"dog.jpg: cannot read it as an image: there is no such file"):
        load_photo("dog.jpg")
    with pytest.raises(OSError, match="no such file"):
        load_photo(tmp_path)


def test_an_opened_image_whose_file_is_damaged_is_named(broken: dict[str, Path]) -> None:
    with Image.open(broken["truncated.jpg"]) as image, pytest.raises(OSError, match=r"truncated\.jpg: cannot read"):
        load_photo(image)


def test_an_image_of_a_size_made_to_fill_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PHOTO.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(OSError, match=r"bomb\.png: cannot read it as an image: .*decompression bomb"):
        load_photo(tmp_path / "bomb.png")


@pytest.mark.parametrize("thing", [None, 3, ["photo.png"], np.zeros((2, 3, 4, 5)), np.zeros((0, 4, 3)), np.zeros(7)])
def test_what_is_no_image_at_all_is_refused(thing: Any) -> None:
    with pytest.raises(ValueError, match="not an image: "):
        load_photo(thing)


def heic(image: Image.Image, **options: Any) -> bytes:
    """Made by `pillow-heif` itself, whose writer need not be registered for that."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=-1, **options)
    return stream.getvalue()


def test_heic_is_read(tmp_path: Path) -> None:
    flat = Image.new("RGB", (64, 48), (200, 60, 30))
    (tmp_path / "photo.heic").write_bytes(heic(flat))
    for source in (tmp_path / "photo.heic", (tmp_path / "photo.heic").read_bytes()):
        assert_pixels(load_photo(source), np.asarray(flat), tolerance=3)


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_without_its_package_says_what_to_install(
    brand: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    for source in (tmp_path / "photo.heic", (tmp_path / "photo.heic").read_bytes()):
        with pytest.raises(OSError, match=r'HEIC photos need pillow-heif: pip install "nic_hf\[heif\]"'):
            load_photo(source)


def test_an_error_holds_no_path_and_no_address_of_an_object(broken: dict[str, Path]) -> None:
    """A name that was given stands for the path, which may be a temporary one."""
    for source in (broken["text.jpg"], broken["text.jpg"].read_bytes()):
        with pytest.raises(
            OSError, match=r"^dog\.jpg: cannot read it as an image: it is in no format that Pillow"
        ) as error:
            load_photo(source, name="dog.jpg")
        assert str(broken["text.jpg"].parent) not in str(error.value) and "0x" not in str(error.value)


class PhotoServer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/photo.png"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(encoded(PHOTO) if found else b"<html>nothing here</html>")

    def log_message(self, *args: Any) -> None:
        pass


def test_a_photo_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIC_HF_ALLOW_PRIVATE_URLS", "1")
    with HTTPServer(("127.0.0.1", 0), PhotoServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert_pixels(load_photo(f"{address}/photo.png", timeout=20), PIXELS)
        with pytest.raises(OSError, match=f"{address}/missing.png: cannot read it as an image"):
            load_photo(f"{address}/missing.png", timeout=20)
        server.shutdown()
    with pytest.raises(OSError, match=f"{address}/photo.png: cannot read it as an image"):
        load_photo(f"{address}/photo.png", timeout=5)

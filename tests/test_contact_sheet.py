"""Photos with their captions in one picture."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from nic_hf import contact_sheet as module
from nic_hf.contact_sheet import LINE_HEIGHT, MARGIN, contact_sheet, save_picture

COLOURS = ["red", "lime", "blue", "yellow", "cyan"]
TILE = 100
WHITE, GREY = (255, 255, 255), (242, 242, 242)


def squares(number: int = 5, size: tuple[int, int] = (60, 60)) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in COLOURS[:number]]


def tile(sheet: Image.Image, column: int, top: int) -> np.ndarray:
    """The pixels of the photo in a column whose tile starts `top` pixels from above."""
    left = MARGIN + column * (TILE + MARGIN)
    return np.asarray(sheet.crop((left, top, left + TILE, top + TILE)))


def text_pixels(sheet: Image.Image, column: int, top: int, height: int) -> np.ndarray:
    """The pixels of the text below that tile."""
    left = MARGIN + column * (TILE + MARGIN)
    return np.asarray(sheet.crop((left, top + TILE, left + TILE, top + TILE + height)))


def test_photos_stand_in_reading_order_in_a_sheet_of_the_right_size() -> None:
    sheet = contact_sheet(squares(), ["a dog"] * 5, columns=3, tile_size=TILE)
    row_height = TILE + LINE_HEIGHT + 2 * MARGIN
    assert sheet.size == (3 * (TILE + MARGIN) + MARGIN, MARGIN + 2 * row_height)
    for index, colour in enumerate(COLOURS):
        pixels = tile(sheet, index % 3, MARGIN + index // 3 * row_height)
        assert (pixels == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all()
    assert (tile(sheet, 2, MARGIN + row_height) == WHITE).all()  # the place of a sixth photo
    for edge in (sheet.crop((0, 0, MARGIN, sheet.height)), sheet.crop((0, 0, sheet.width, MARGIN))):
        assert (np.asarray(edge) == WHITE).all()


def test_a_row_is_no_wider_than_its_photos() -> None:
    assert contact_sheet(squares(2), ["a", "b"], columns=4, tile_size=TILE).width == 2 * (TILE + MARGIN) + MARGIN


def test_a_photo_keeps_its_shape() -> None:
    sheet = contact_sheet(squares(1, (200, 100)), ["a dog"], tile_size=TILE)
    pixels = tile(sheet, 0, MARGIN)
    assert (pixels[:25] == GREY).all() and (pixels[25:75] == (255, 0, 0)).all() and (pixels[75:] == GREY).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_photos_of_any_mode_are_taken(mode: str) -> None:
    sheet = contact_sheet([Image.new("RGB", (8, 8), "white").convert(mode)], ["a dog"], tile_size=TILE)
    assert (tile(sheet, 0, MARGIN) == WHITE).all()


def test_each_caption_stands_below_its_photo() -> None:
    sheet = contact_sheet(squares(3), ["a dog runs", "", "two"], tile_size=TILE)
    with_text = [(text_pixels(sheet, column, MARGIN, LINE_HEIGHT) < 128).any() for column in range(3)]
    assert with_text == [True, True, True]
    ink = [int((text_pixels(sheet, column, MARGIN, LINE_HEIGHT) < 128).sum()) for column in range(3)]
    assert ink[1] > ink[0] > ink[2]  # "(empty caption)" is the longest, "two" the shortest


def test_a_long_caption_wraps_within_its_photo_and_makes_room() -> None:
    short = contact_sheet(squares(2), ["a dog", "a cat"], tile_size=TILE)
    words = "a man in a red shirt and a black hat stands on a large rock"
    long = contact_sheet(squares(2), ["a dog", words], tile_size=TILE)
    extra = long.height - short.height
    assert extra >= 2 * LINE_HEIGHT and extra % LINE_HEIGHT == 0
    last_line = text_pixels(long, 1, MARGIN + extra, LINE_HEIGHT + 4)
    assert (last_line < 128).any()
    margins = np.asarray(long.crop((2 * (TILE + MARGIN), 0, long.width, long.height)))
    assert (margins == WHITE).all()


@pytest.mark.parametrize("text", ["a dog runs through the grass", "x" * 90, "of " + "W" * 30 + " b", "", "i"])
def test_no_line_is_wider_than_its_place_and_no_letter_is_lost(text: str) -> None:
    font = module._font()
    lines = module._wrap(text, font, 80)
    assert all(0 < font.getlength(line) <= 80 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_place_narrower_than_a_letter_still_ends() -> None:
    assert module._wrap("ab c", module._font(), 1) == ["a", "b", "c"]


def colours_of(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(map(int, pixel)) for pixel in pixels.reshape(-1, 3)}


def test_right_captions_are_green_and_wrong_ones_red() -> None:
    sheet = contact_sheet(squares(2), ["a dog", "a dog"], good=[True, False], tile_size=TILE)
    right, wrong = (colours_of(text_pixels(sheet, column, MARGIN, LINE_HEIGHT)) for column in range(2))
    assert (0x1A, 0x7F, 0x37) in right and (0xB3, 0x26, 0x1E) in wrong
    assert (0xB3, 0x26, 0x1E) not in right
    assert (0, 0, 0) in colours_of(
        text_pixels(contact_sheet(squares(1), ["a dog"], tile_size=TILE), 0, MARGIN, LINE_HEIGHT)
    )


def test_notes_stand_below_captions_in_grey() -> None:
    sheet = contact_sheet(squares(1), ["a dog"], notes=["a person: a cat"], tile_size=TILE)
    caption = colours_of(text_pixels(sheet, 0, MARGIN, LINE_HEIGHT))
    note = colours_of(text_pixels(sheet, 0, MARGIN + LINE_HEIGHT + 4, LINE_HEIGHT))
    assert (0, 0, 0) in caption and (0x6B,) * 3 in note and (0, 0, 0) not in note


def test_a_title_stands_above_and_wraps() -> None:
    plain = contact_sheet(squares(1), ["a dog"], tile_size=TILE)
    titled = contact_sheet(squares(1), ["a dog"], title="step 400, epoch 2.0, of a long run", tile_size=TILE)
    lines, rest = divmod(titled.height - plain.height - MARGIN, LINE_HEIGHT)
    assert lines >= 2 and rest == 0
    assert (np.asarray(titled.crop((0, MARGIN, titled.width, MARGIN + LINE_HEIGHT))) < 128).any()


def test_letters_beyond_english_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    font = module._font()
    unknown = font.getmask("\U0010ffff").getbbox(), bytes(font.getmask("\U0010ffff"))
    for letter in "äßéøČжλ":
        assert (font.getmask(letter).getbbox(), bytes(font.getmask(letter))) != unknown


def test_pillows_own_font_serves_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(*args: object, **kwargs: object) -> None:
        raise OSError("no such font")

    monkeypatch.setattr(ImageFont, "truetype", no_file)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: ImageFont.load_default_imagefont())
    module._font.cache_clear()
    try:
        sheet = contact_sheet(squares(1), ["a dog runs"], tile_size=TILE)
        assert (text_pixels(sheet, 0, MARGIN, LINE_HEIGHT) < 128).any()
    finally:
        module._font.cache_clear()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"captions": ["a"]}, "2 photos but 1 captions"),
        ({"captions": ["a", "b"], "notes": ["c"]}, "2 photos but 1 notes"),
        ({"captions": ["a", "b"], "good": [True] * 3}, "2 photos but 3 verdicts"),
    ],
)
def test_lists_of_different_length_are_refused(others: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contact_sheet(squares(2), **others)


def test_a_picture_is_saved_with_its_folders(tmp_path: Path) -> None:
    path = save_picture(squares(1)[0], tmp_path / "a" / "b" / "picture.png")
    with Image.open(path) as saved:
        assert saved.format == "PNG" and saved.size == (60, 60) and saved.getpixel((5, 5)) == (255, 0, 0)
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_earlier_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_picture(squares(1)[0], tmp_path / "picture.png")
    before = path.read_bytes()
    write = Path.write_bytes

    def disk_full(self: Path, content: bytes) -> int:
        write(self, content[: len(content) // 2])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match=f"cannot write {path}: .*No space left"):
        save_picture(squares(2)[1], path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["picture.png"]  # noqa: PTH208


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", "utf-8")
    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'file' / 'picture.png'}: "):
        save_picture(squares(1)[0], tmp_path / "file" / "picture.png")

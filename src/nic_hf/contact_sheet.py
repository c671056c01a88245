"""Contact sheets: a picture of photos with their captions."""

import io
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .writing import write_bytes

MARGIN = 14
LINE_HEIGHT = 18
FONT_SIZE = 14


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    notes: Sequence[str] | None = None,
    good: Sequence[bool] | None = None,
    title: str = "",
    columns: int = 4,
    tile_size: int = 240,
) -> Image.Image:
    """Arrange photos in a grid, each with its caption below.

    Args:
        images: RGB photos of any size; each is fitted into a square of `tile_size` pixels.
        captions: one per photo.
        notes: a second text per photo in grey, such as a reference caption.
        good: whether each caption is correct, shown in green or red; black if not given.
        title: text above the grid.
        columns: photos per row.
        tile_size: side of a photo's square in pixels.

    Raises:
        ValueError: the numbers of photos, captions, notes and verdicts differ.
    """
    for name, values in (("captions", captions), ("notes", notes), ("verdicts", good)):
        if values is not None and len(values) != len(images):
            raise ValueError(f"{len(images)} photos but {len(values)} {name}")
    font = _font()
    columns = max(1, min(columns, len(images)))
    width = columns * (tile_size + MARGIN) + MARGIN
    texts = [_wrap(caption, font, tile_size) or ["(empty caption)"] for caption in captions]
    details = [_wrap(note, font, tile_size) for note in notes or [""] * len(captions)]
    title_lines = _wrap(title, font, width - 2 * MARGIN)
    rows = range(0, len(images), columns)
    line_counts = [len(text) + len(detail) for text, detail in zip(texts, details, strict=True)]
    text_heights = [LINE_HEIGHT * max(line_counts[start : start + columns]) for start in rows]
    top = MARGIN + (len(title_lines) * LINE_HEIGHT + MARGIN if title_lines else 0)
    height = top + sum(tile_size + text + 2 * MARGIN for text in text_heights)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title_lines):
        draw.text((MARGIN, MARGIN + number * LINE_HEIGHT), line, "black", font)
    y = top
    for start, text_height in zip(rows, text_heights, strict=True):
        for index in range(start, min(start + columns, len(images))):
            x = MARGIN + (index - start) * (tile_size + MARGIN)
            tile = ImageOps.pad(images[index].convert("RGB"), (tile_size, tile_size), color="#f2f2f2")
            sheet.paste(tile, (x, y))
            colour = "black" if good is None else ("#1a7f37" if good[index] else "#b3261e")
            lines = [(line, colour) for line in texts[index]] + [(line, "#6b6b6b") for line in details[index]]
            for number, (line, ink) in enumerate(lines):
                draw.text((x, y + tile_size + 4 + number * LINE_HEIGHT), line, ink, font)
        y += tile_size + text_height + 2 * MARGIN
    return sheet


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return DejaVu Sans if matplotlib is installed, as Pillow's own font only has the letters of English."""
    try:
        import matplotlib

        return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE - 2)
    except (ImportError, OSError):
        return ImageFont.load_default(FONT_SIZE)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break text into lines of at most `width` pixels, between words, or within a word that is too long."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = ""
        while not line and len(word) > 1 and font.getlength(word) > width:
            fitting = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fitting])
            word = word[fitting:]
        line = f"{line} {word}" if line else word
    return [*lines, line] if line else lines


def check_picture_path(path: str | os.PathLike) -> None:
    """Check in advance that a picture can be written to a path.

    Raises:
        ValueError: the name does not end in `.png`, or it is a folder.
        OSError: its folder cannot be created or written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: the picture is a PNG file, so its name has to end in .png")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OSError(f"{path} cannot be written: {existing} is not a writable folder")


def save_picture(picture: Image.Image, path: str | os.PathLike) -> Path:
    """Write a PNG atomically.

    Raises:
        OSError: it cannot be written; the message names it.
    """
    content = io.BytesIO()
    picture.save(content, "PNG")
    return write_bytes(path, content.getvalue())

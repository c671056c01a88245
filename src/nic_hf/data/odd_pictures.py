"""Pictures that are no photographs: pages, screens, charts, drawings and noise, drawn with a seed.

They stand for everything unlike a captioner's training photos where its confidence is fitted (see
[`nic_hf.evaluation.calibrate`]).
"""

from collections.abc import Callable, Iterator
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LETTERS = "etaoinshrdlucmfwypvbgk"
_SIZES = ((640, 480), (480, 640), (800, 600), (600, 800), (512, 512))

Colour = tuple[int, int, int]


def odd_pictures(number: int, seed: int = 0) -> Iterator[tuple[str, Image.Image]]:
    """Yield pictures of all kinds in turn, each with the name of its kind: the same ones for a seed."""
    rng = Random(seed)
    for place in range(number):
        kind = list(ODD_KINDS)[place % len(ODD_KINDS)]
        yield kind, ODD_KINDS[kind](rng)


def _page(rng: Random) -> Image.Image:
    """A page of black text, in one or two columns."""
    picture, draw = _canvas(rng, _bright(rng))
    size, margin, columns = rng.randint(9, 22), rng.randint(20, 60), rng.randint(1, 2)
    width = (picture.width - 2 * margin) // columns
    for column in range(columns):
        left, y = margin + column * width, margin
        while y < picture.height - margin:
            _write(draw, rng, left, y, width - 12, size, _dark(rng))
            y += int(size * (2.4 if rng.random() < 0.1 else 1.4))
    return picture


def _screen(rng: Random) -> Image.Image:
    """Windows with a title bar, lines of text and buttons, on a plain desktop."""
    picture, draw = _canvas(rng, _any(rng))
    for _ in range(rng.randint(1, 4)):
        x, y = rng.randint(0, picture.width // 2), rng.randint(0, picture.height // 2)
        right, bottom = rng.randint(x + 120, picture.width), rng.randint(y + 100, picture.height)
        ground, ink = (_bright(rng), _dark(rng)) if rng.random() < 0.6 else (_dark(rng), _bright(rng))
        draw.rectangle((x, y, right, bottom), ground, _dark(rng))
        draw.rectangle((x, y, right, y + 20), _any(rng))
        for line in range(y + 30, bottom - 20, rng.randint(14, 22)):
            _write(draw, rng, x + 10 + 12 * rng.randint(0, 3), line, right - x - 60, 11, ink)
        draw.rounded_rectangle((right - 70, bottom - 28, right - 8, bottom - 8), 4, _any(rng))
    return picture


def _bars(rng: Random) -> Image.Image:
    """A bar chart with axes and labels."""
    picture, draw = _canvas(rng, _bright(rng))
    number, colour, foot = rng.randint(3, 14), _any(rng), picture.height - 50
    step = (picture.width - 80) / number
    for bar in range(number):
        left = 60 + bar * step
        top = rng.randint(40, foot - 5)
        draw.rectangle((left, top, left + 0.7 * step, foot), colour if rng.random() < 0.8 else _any(rng))
        _write(draw, rng, int(left), foot + 8, int(step), 11, _dark(rng))
    draw.line([(55, 30), (55, foot), (picture.width - 20, foot)], _dark(rng), 2)
    return picture


def _curves(rng: Random) -> Image.Image:
    """Curves over a grid."""
    picture, draw = _canvas(rng, _bright(rng))
    for x in range(60, picture.width, 60):
        draw.line([(x, 20), (x, picture.height - 40)], (210, 210, 210))
    for y in range(20, picture.height - 40, 50):
        draw.line([(60, y), (picture.width - 20, y)], (210, 210, 210))
    for _ in range(rng.randint(1, 5)):
        height, points = rng.uniform(60, picture.height - 60), []
        for x in range(60, picture.width - 20, 8):
            height = min(picture.height - 45, max(20, height + rng.gauss(0, 9)))
            points.append((x, height))
        draw.line(points, _any(rng), rng.randint(1, 4))
    return picture


def _table(rng: Random) -> Image.Image:
    """A form: ruled cells, some with text."""
    picture, draw = _canvas(rng, _bright(rng))
    row, column, ink = rng.randint(22, 44), rng.randint(70, 160), _dark(rng)
    for y in range(20, picture.height - row, row):
        for x in range(20, picture.width - column, column):
            draw.rectangle((x, y, x + column, y + row), None, ink)
            if rng.random() < 0.7:
                _write(draw, rng, x + 5, y + 5, column - 10, 12, ink)
    return picture


def _drawing(rng: Random) -> Image.Image:
    """Outlines of figures, as of a pencil."""
    picture, draw = _canvas(rng, _bright(rng))
    for _ in range(rng.randint(3, 14)):
        x, y = rng.randint(0, picture.width - 80), rng.randint(0, picture.height - 80)
        box = (x, y, x + rng.randint(30, 300), y + rng.randint(30, 300))
        width, ink, kind = rng.randint(1, 5), _dark(rng), rng.randint(0, 3)
        if kind == 0:
            draw.ellipse(box, None, ink, width)
        elif kind == 1:
            draw.arc(box, rng.randint(0, 180), rng.randint(181, 360), ink, width)
        elif kind == 2:
            draw.line([(rng.randint(0, picture.width), rng.randint(0, picture.height)) for _ in range(5)], ink, width)
        else:
            draw.regular_polygon((x, y, rng.randint(20, 120)), rng.randint(3, 7), rng.randint(0, 90), None, ink, width)
    return picture


def _figures(rng: Random) -> Image.Image:
    """Coloured shapes, some with a word in large letters."""
    picture, draw = _canvas(rng, _any(rng))
    for _ in range(rng.randint(1, 8)):
        x, y, radius = rng.randint(0, picture.width), rng.randint(0, picture.height), rng.randint(20, 160)
        draw.regular_polygon((x, y, radius), rng.choice([3, 4, 5, 30]), rng.randint(0, 90), _any(rng))
    if rng.random() < 0.5:
        _write(draw, rng, picture.width // 5, picture.height // 3, picture.width, rng.randint(40, 120), _any(rng))
    return picture


def _gradient(rng: Random) -> Image.Image:
    """One colour that turns into another."""
    width, height = rng.choice(_SIZES)
    first, second = np.array(_any(rng), float), np.array(_any(rng), float)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    share = x if rng.random() < 0.4 else y if rng.random() < 0.6 else np.hypot(x - 0.5, y - 0.5) * 1.4
    return Image.fromarray((first + share[..., None] * (second - first)).astype(np.uint8))


def _noise(rng: Random) -> Image.Image:
    """Noise from fine to coarse, in colour or grey."""
    width, height = rng.choice(_SIZES)
    grain, channels = rng.choice([1, 2, 4, 8, 16, 32]), rng.choice([1, 3])
    shape = (max(1, height // grain), max(1, width // grain), channels)
    generator = np.random.default_rng(rng.randint(0, 10**9))
    values = generator.normal(rng.uniform(60, 200), rng.uniform(10, 70), shape).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(values.repeat(3, 2) if channels == 1 else values)
    return picture.resize((width, height), rng.choice([Image.Resampling.NEAREST, Image.Resampling.BICUBIC]))


def _pattern(rng: Random) -> Image.Image:
    """Stripes, squares or dots, again and again."""
    picture, draw = _canvas(rng, _any(rng))
    step, colour, kind = rng.randint(8, 80), _any(rng), rng.randint(0, 2)
    for row, y in enumerate(range(0, picture.height, step)):
        for column, x in enumerate(range(0, picture.width, step)):
            if kind < 2 and (column + kind * row) % 2:
                draw.rectangle((x, y, x + step, y + step), colour)
            elif kind == 2:
                draw.ellipse((x + step // 5, y + step // 5, x + step - step // 5, y + step - step // 5), colour)
    return picture.rotate(rng.choice([0, 0, 90, 30]))


ODD_KINDS: dict[str, Callable[[Random], Image.Image]] = {
    "page": _page,
    "screen": _screen,
    "bar chart": _bars,
    "curves": _curves,
    "form": _table,
    "drawing": _drawing,
    "figures": _figures,
    "gradient": _gradient,
    "noise": _noise,
    "pattern": _pattern,
}


def _canvas(rng: Random, ground: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", rng.choice(_SIZES), ground)
    return picture, ImageDraw.Draw(picture)


def _write(draw: ImageDraw.ImageDraw, rng: Random, x: int, y: int, width: int, size: int, ink: Colour) -> None:
    """Write made-up words up to a width in pixels."""
    text = ""
    while len(text) * 0.55 * size < width * rng.uniform(0.6, 1):
        text += "".join(rng.choices(_LETTERS, k=rng.randint(1, 9))) + " "
    draw.text((x, y), text[: max(1, int(width / (0.55 * size)))], ink, ImageFont.load_default(size))


def _bright(rng: Random) -> Colour:
    return rng.randint(225, 255), rng.randint(225, 255), rng.randint(220, 255)


def _dark(rng: Random) -> Colour:
    return rng.randint(0, 70), rng.randint(0, 70), rng.randint(0, 80)


def _any(rng: Random) -> Colour:
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)

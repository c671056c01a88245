"""The built-in scenes: coloured shapes on a plain background with five captions each, generated without a download.

A scene shows one or two objects, each with a size, a colour and a shape. Two objects are next to each other or one
above the other; captions name the left or the upper one first.

The combination of a scene is the set of its objects' colours and shapes. `COLOURS` and `SHAPES` number the words from
0; a combination of two objects whose numbers add up to a multiple of five is held out for the test split, which shows
nothing else. So a fifth of the combinations is never trained on, although every word and every pair of colour and
shape is. Single objects are not held out: without a single red circle in training, a captioner would learn that single
red objects are never circles.
"""

import io
import json
from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from PIL import Image, ImageDraw

from .scene_grammar import COLOURS, SHAPES, SIZES, Description, write_captions

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import ResNetConfig

Split = Literal["train", "validation", "test"]
RGB = tuple[int, int, int]

RELATIONS = ("left", "above")
IMAGE_SIZE = 64
_MARGIN = 2
_GAP = 4
# Shapes are drawn at this multiple of the size and averaged down, for smooth edges.
_OVERSAMPLING = 4
_HELD_OUT_MODULUS = 5
_SHARE_OF_SINGLE_OBJECTS = 0.25

_RADII = {"small": (8, 9), "large": (12, 13)}
_FILLS: dict[str, RGB] = {
    "red": (216, 48, 48),
    "yellow": (240, 196, 32),
    "green": (48, 160, 72),
    "blue": (48, 96, 208),
    "purple": (144, 64, 176),
    "black": (40, 40, 44),
}
_FILL_JITTER = 14
_BACKGROUND_RANGE = (236, 252)

# Corners in hundredths of the radius. Integers give the same pixels on every platform.
_CORNERS = {
    "square": ((-84, -84), (84, -84), (84, 84), (-84, 84)),
    "triangle": ((0, -100), (100, 84), (-100, 84)),
    "star": (
        *((0, -100), (26, -36), (95, -31), (42, 14), (59, 81)),
        *((0, 45), (-59, 81), (-42, 14), (-95, -31), (-26, -36)),
    ),
    "cross": (
        *((-32, -96), (32, -96), (32, -32), (96, -32), (96, 32), (32, 32)),
        *((32, 96), (-32, 96), (-32, 32), (-96, 32), (-96, -32), (-32, -32)),
    ),
}


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene: its words, centre and radius in pixels, and fill colour."""

    size: str
    colour: str
    shape: str
    x: int
    y: int
    radius: int
    fill: RGB


@dataclass(frozen=True)
class Scene:
    """The facts of one picture.

    Objects are in reading order. `relation` is the position of the first relative to the second, "left" or "above", or
    None if there is only one object.
    """

    objects: tuple[SceneObject, ...]
    relation: str | None
    background: RGB

    @property
    def descriptions(self) -> tuple[Description, ...]:
        """The words for each object."""
        return tuple(Description(each.colour, each.shape, each.size) for each in self.objects)

    @property
    def combination(self) -> frozenset[tuple[str, str]]:
        """The (colour, shape) pairs of the objects, which determine the split."""
        return frozenset((each.colour, each.shape) for each in self.objects)

    def to_json(self) -> str:
        """Serialise the scene for the column `scene` of the dataset."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """Parse the column `scene` of the dataset."""
        facts = json.loads(text)
        objects = tuple(SceneObject(**{**each, "fill": tuple(each["fill"])}) for each in facts["objects"])
        return cls(objects, facts["relation"], tuple(facts["background"]))


def is_held_out(combination: frozenset[tuple[str, str]]) -> bool:
    """Whether only the test split shows this combination of (colour, shape) pairs.

    ```python
    >>> is_held_out(frozenset({("red", "circle")})), is_held_out(frozenset({("red", "circle"), ("blue", "triangle")}))
    (False, True)

    ```
    """
    if len(combination) == 1:
        return False
    total = sum(COLOURS.index(colour) + SHAPES.index(shape) for colour, shape in combination)
    return total % _HELD_OUT_MODULUS == 0


def make_scene(split: Split, index: int, seed: int = 0) -> tuple[Scene, list[str]]:
    """Generate a scene and its five captions; the same arguments always give the same ones.

    Raises:
        ValueError: `split` is not one of the three.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split is {split!r}; the built-in scenes have 'train', 'validation' and 'test'")
    # A generator per scene makes scenes independent of their number and order.
    rng = Random(f"{seed}/{split}/{index}")
    num_objects = 1 if rng.random() < _SHARE_OF_SINGLE_OBJECTS and split != "test" else 2
    while True:
        kinds = [(rng.choice(COLOURS), rng.choice(SHAPES)) for _ in range(num_objects)]
        combination = frozenset(kinds)
        # Two objects of one kind could not be distinguished in a caption without sizes.
        if len(combination) == num_objects and is_held_out(combination) == (split == "test"):
            break
    scene = _arrange(kinds, rng)
    return scene, write_captions(scene, rng)


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image of `IMAGE_SIZE` by `IMAGE_SIZE` pixels."""
    side = IMAGE_SIZE * _OVERSAMPLING
    canvas = Image.new("RGB", (side, side), scene.background)
    draw = ImageDraw.Draw(canvas)
    for each in scene.objects:
        x, y, radius = (value * _OVERSAMPLING for value in (each.x, each.y, each.radius))
        if each.shape == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=each.fill)
        else:
            corners = [(x + radius * dx // 100, y + radius * dy // 100) for dx, dy in _CORNERS[each.shape]]
            draw.polygon(corners, fill=each.fill)
    return canvas.reduce(_OVERSAMPLING)


def make_scenes(split: Split, num_scenes: int, seed: int = 0) -> "Dataset":
    """Generate a dataset of scenes in memory (about a kilobyte each).

    Columns: `image` (PNG, decoded when accessed), `image_id`, `captions` (five strings) and `scene` (for
    `Scene.from_json` and `caption_is_correct`). Training and validation have different scenes of the same
    combinations; the test split has held-out combinations only. A larger dataset starts with the scenes of a smaller
    one.

    Raises:
        ValueError: `split` is not one of the three, or `num_scenes` is less than one.
    """
    # Only this function needs `nic_hf[train]`.
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    if num_scenes < 1:
        raise ValueError(f"num_scenes is {num_scenes}; ask for at least one scene")
    rows = []
    for index in range(num_scenes):
        scene, captions = make_scene(split, index, seed)
        png = io.BytesIO()
        draw_scene(scene).save(png, format="PNG")
        rows.append(
            {
                "image": {"bytes": png.getvalue(), "path": None},
                "image_id": f"{split}-{index:05d}",
                "captions": captions,
                "scene": scene.to_json(),
            }
        )
    features = Features(
        {
            "image": ImageFeature(),
            "image_id": Value("string"),
            "captions": List(Value("string")),
            "scene": Value("string"),
        }
    )
    return Dataset.from_list(rows, features=features)


def _arrange(kinds: list[tuple[str, str]], rng: Random) -> Scene:
    """Choose a size, a place and a shade for each object, so that exactly one relation holds and nothing overlaps."""
    sizes = [rng.choice(SIZES) for _ in kinds]
    radii = [rng.randint(*_RADII[size]) for size in sizes]
    relation = rng.choice(RELATIONS) if len(kinds) == 2 else None
    if relation is None:
        span = _span(radii[0])
        places = [(rng.randint(*span), rng.randint(*span))]
    else:
        places = _place_two(radii, relation, rng)
    fills = [_jitter(_FILLS[colour], rng) for colour, _ in kinds]
    objects = tuple(
        SceneObject(size, colour, shape, x, y, radius, fill)
        for size, (colour, shape), (x, y), radius, fill in zip(sizes, kinds, places, radii, fills, strict=True)
    )
    low, high = _BACKGROUND_RANGE
    background = (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))
    return Scene(objects, relation, background)


def _place_two(radii: list[int], relation: str, rng: Random) -> list[tuple[int, int]]:
    """Choose centres (x, y) of two objects that differ across their axis by at most a third of their distance."""
    closest = radii[0] + _GAP + radii[1]
    last = _span(radii[1])[1]
    start = rng.randint(_MARGIN + radii[0], last - closest)
    end = rng.randint(start + closest, last)
    drift = (end - start) // 3
    # A place that fits either object leaves enough space for the second one.
    first = rng.randint(*_span(max(radii)))
    low, high = _span(radii[1])
    second = rng.randint(max(low, first - drift), min(high, first + drift))
    if relation == "left":
        return [(start, first), (end, second)]
    return [(first, start), (second, end)]


def _span(radius: int) -> tuple[int, int]:
    """Return the lowest and highest coordinate of a centre that keeps the object inside the picture."""
    return _MARGIN + radius, IMAGE_SIZE - 1 - _MARGIN - radius


def _jitter(colour: RGB, rng: Random) -> RGB:
    """Return a shade of a colour."""
    red, green, blue = (min(255, max(0, value + rng.randint(-_FILL_JITTER, _FILL_JITTER))) for value in colour)
    return red, green, blue


def scene_backbone_config() -> "ResNetConfig":
    """Return the configuration of a ResNet that trains from scratch on scenes; its last feature map is 4 x 4."""
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=16,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
    )

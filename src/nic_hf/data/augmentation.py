"""Other views of a photo, for a captioner to learn from: mirrored, cut, or both."""

import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class PhotoView:
    """One way to see every photo; the same photo is always cut in the same place, so that its features can be kept.

    Attributes:
        mirrored: left and right change places. Captions of such a view should swap those words too.
        area: smallest share of the photo's area that is left after cutting, from above 0 to 1. The cut keeps the
            photo's proportions to within a tenth, and is put at random.
        seed: views that differ in nothing else are cut in other places.
    """

    mirrored: bool = False
    area: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.area <= 1:
            raise ValueError(f"area must be above 0 and at most 1, not {self.area}")

    def __call__(self, photo: Image.Image) -> Image.Image:
        """The photo as seen this way, of the size that the cut has."""
        if self.area < 1:
            photo = self._cut(photo)
        return ImageOps.mirror(photo) if self.mirrored else photo

    def _cut(self, photo: Image.Image) -> Image.Image:
        generator = np.random.default_rng([self.seed, zlib.crc32(photo.tobytes())])
        side = np.sqrt(generator.uniform(self.area, 1))
        stretch = np.sqrt(generator.uniform(0.9, 1 / 0.9))
        width = max(1, min(photo.width, round(photo.width * side * stretch)))
        height = max(1, min(photo.height, round(photo.height * side / stretch)))
        left, top = generator.integers(photo.width - width + 1), generator.integers(photo.height - height + 1)
        return photo.crop((int(left), int(top), int(left) + width, int(top) + height))


def default_views(number: int, area: float = 0.6) -> list[PhotoView | None]:
    """The whole photo, the whole mirrored, then cuts, every second one mirrored.

    Args:
        number: how many; 1 is the photo itself.
        area: of the cuts (see [`PhotoView`]).

    Raises:
        ValueError: where `number` is below 1.
    """
    if number < 1:
        raise ValueError(f"the number of views must be at least 1, the photo itself, not {number}")
    cuts = [PhotoView(mirrored=bool(index % 2), area=area, seed=index) for index in range(2, number)]
    return [None, PhotoView(mirrored=True), *cuts][:number]

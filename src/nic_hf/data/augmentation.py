"""Views of a photo for augmentation: mirrored, cropped, or both."""

import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class PhotoView:
    """One view of every photo. A photo is always cropped at the same place, so that its features can be cached.

    Attributes:
        mirrored: flip the photo horizontally. Words for left and right have to be swapped in its captions.
        area: smallest share of the photo's area that is kept, above 0 and at most 1. The crop is placed at random
            and keeps the aspect ratio to within a tenth.
        seed: seed of the crops.
    """

    mirrored: bool = False
    area: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.area <= 1:
            raise ValueError(f"area must be above 0 and at most 1, not {self.area}")

    def __call__(self, photo: Image.Image) -> Image.Image:
        """Apply the view; the result has the size of the crop."""
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
    """Return the whole photo, the mirrored photo, then crops, every second one mirrored.

    Args:
        number: number of views; the first one, `None`, is the photo itself.
        area: smallest area of the crops (see [`PhotoView`]).

    Raises:
        ValueError: `number` is below 1.
    """
    if number < 1:
        raise ValueError(f"the number of views must be at least 1, the photo itself, not {number}")
    cuts = [PhotoView(mirrored=bool(index % 2), area=area, seed=index) for index in range(2, number)]
    return [None, PhotoView(mirrored=True), *cuts][:number]

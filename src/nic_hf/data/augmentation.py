"""Views of a photo for augmentation: mirrored, cropped, edited, or all of it."""

import io
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


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


@dataclass(frozen=True)
class EditedView(PhotoView):
    """A crop of every photo as people edit, print or scan them: in grey, darker, with bars, compressed more.

    Each photo gets the same edits each time: 40 % of them are grey, the others have more or less colour; half have
    another brightness and contrast; 30 % are smaller, down to 0.4 of their width and height; half have black, white or
    grey bars, which make them narrower or wider, up to 9 : 16; 30 % are compressed with a JPEG quality of 20 to 60.
    """

    def __call__(self, photo: Image.Image) -> Image.Image:
        """Apply the view; bars make the result larger than the crop."""
        generator = np.random.default_rng([self.seed, zlib.crc32(photo.tobytes()), 1])
        photo = super().__call__(photo)
        is_grey, changes_light, has_bars, is_compressed, is_small = generator.random(5) < (0.4, 0.5, 0.5, 0.3, 0.3)
        photo = ImageEnhance.Color(photo).enhance(0.0 if is_grey else generator.uniform(0.4, 1.4))
        if changes_light:
            photo = ImageEnhance.Brightness(photo).enhance(generator.uniform(0.4, 1.3))
            photo = ImageEnhance.Contrast(photo).enhance(generator.uniform(0.6, 1.3))
        if is_small:
            scale = generator.uniform(0.4, 0.8)
            photo = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
        if has_bars:
            longer = round(max(photo.size) * generator.uniform(1.1, 16 / 9))
            size = (longer, photo.height) if generator.random() < 0.5 else (photo.width, longer)
            photo = ImageOps.pad(photo, size, color=str(generator.choice(["black", "black", "white", "grey"])))
        if is_compressed:
            file = io.BytesIO()
            photo.save(file, "JPEG", quality=int(generator.integers(20, 61)))
            photo = Image.open(file).convert("RGB")
        return photo


def default_views(number: int, area: float = 0.6, edited: int = 0) -> list[PhotoView | None]:
    """Return the whole photo, the mirrored photo, then crops, every second one mirrored, then edited crops.

    Args:
        number: number of views that are not edited; the first one, `None`, is the photo itself.
        area: smallest area of the crops (see [`PhotoView`]).
        edited: number of edited views (see [`EditedView`]).

    Raises:
        ValueError: `number` is below 1, or `edited` below 0.
    """
    if number < 1:
        raise ValueError(f"the number of views must be at least 1, the photo itself, not {number}")
    if edited < 0:
        raise ValueError(f"the number of edited views must be at least 0, not {edited}")
    cuts = [PhotoView(mirrored=bool(index % 2), area=area, seed=index) for index in range(2, number)]
    edits = [EditedView(mirrored=bool(index % 2), area=(1 + area) / 2, seed=2000 + index) for index in range(edited)]
    return [*[None, PhotoView(mirrored=True), *cuts][:number], *edits]

"""Preprocessing with Pillow and NumPy gives exactly the pixels of Transformers' image processors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_processors import IMAGE_PROCESSORS
from PIL import Image
from subset import real_backbone

from nic_hf.export.preprocessing import PhotoPreprocessor
from nic_hf.export.verification import check_pixels
from nic_hf.model.processor import build_image_processor, load_image_processor, squeeze_to

SIZES = [(500, 375), (333, 500), (500, 333), (224, 224), (31, 97), (97, 30), (160, 161), (1, 1), (1023, 40)]


def photos() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def compare(image_processor: Any, images: list[Any]) -> np.ndarray:
    prepare = PhotoPreprocessor(image_processor.to_dict())
    found = prepare(images)
    assert found.dtype == np.float32
    for image, pixels in zip(images, found, strict=True):
        expected = np.asarray(image_processor(image, return_tensors="np")["pixel_values"][0])
        np.testing.assert_array_equal(pixels, expected.astype(np.float32))
    return found


@pytest.mark.parametrize("name", IMAGE_PROCESSORS)
def test_pixels_are_those_of_the_image_processor(name: str) -> None:
    found = compare(build_image_processor(IMAGE_PROCESSORS[name]), photos())
    assert len({pixels.tobytes() for pixels in found}) == len(SIZES)


def test_real_photos_for_a_real_backbone(test_data: Path, flickr8k: Path) -> None:
    files = sorted((flickr8k / "Images").iterdir())[:8]
    images = [Image.open(file).convert("RGB") for file in files]
    images = [image.resize((200 + 30 * number, 160)) for number, image in enumerate(images)]
    compare(load_image_processor(real_backbone(test_data)), images)
    squeezed = compare(squeeze_to(load_image_processor(real_backbone(test_data)), 128), images)
    assert squeezed.shape == (8, 3, 128, 128)


def test_paths_arrays_and_greys_are_photos(tmp_path: Path) -> None:
    photo = photos()[0]
    photo.save(tmp_path / "photo.png")
    prepare = PhotoPreprocessor(build_image_processor(IMAGE_PROCESSORS["ViT"]).to_dict())
    forms = [photo, tmp_path / "photo.png", str(tmp_path / "photo.png"), np.asarray(photo), photo.convert("RGBA")]
    found = prepare(forms)
    assert all((pixels == found[0]).all() for pixels in found)
    assert prepare([photo.convert("L")]).shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_pad": True}, "cannot preprocess photos like ViTImageProcessor with do_pad=True"),
        ({"do_thumbnail": True, "do_align_long_axis": True}, "with do_align_long_axis=True, do_thumbnail=True"),
        ({"size": {"longest_edge": 224}}, "`size` must have height and width, or shortest_edge"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 9}}, "`crop_size` must have a height and a width"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhotoPreprocessor({**build_image_processor(IMAGE_PROCESSORS["ViT"]).to_dict(), **settings})


@pytest.mark.parametrize("name", ["LevitImageProcessor", "EfficientNetImageProcessor", "PoolFormerImageProcessor"])
def test_an_export_finds_what_is_prepared_otherwise(name: str) -> None:
    settings = (
        {"image_processor_type": name, "rescale_offset": True}
        if "Efficient" in name
        else {"image_processor_type": name}
    )
    with pytest.raises(ValueError, match=f"cannot preprocess photos like {name}"):
        check_pixels(build_image_processor(settings))


def test_an_export_gives_the_shape_of_photos() -> None:
    assert check_pixels(build_image_processor(IMAGE_PROCESSORS["a size that is not square"])) == (3, 96, 128)


def test_photos_of_different_sizes_make_no_batch() -> None:
    settings = {"image_processor_type": "MobileNetV2ImageProcessor", "do_center_crop": False}
    prepare = PhotoPreprocessor(build_image_processor(settings).to_dict())
    with pytest.raises(ValueError, match="photos have different sizes"):
        prepare(photos()[:2])

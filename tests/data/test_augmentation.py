"""Other views of photos: what is cut and mirrored, and that captions follow."""

import multiprocessing
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from subset import make_subset, real_captioner
from torch.utils.data import DataLoader

from nic_hf.data import (
    CaptionCollator,
    CaptionDataset,
    PhotoDataset,
    PhotoView,
    cache_features,
    default_views,
    load_captions,
)
from nic_hf.data.augmentation import EditedView

CAPTIONS = ["a dog on the left of a man", "right or left", "a cat"]


def photo(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_cut_is_a_part_of_the_photo_and_always_the_same_one() -> None:
    whole, areas, places = np.asarray(photo()), [], set()
    for seed in range(200):
        cut = PhotoView(area=0.6, seed=seed)(photo())
        assert np.array_equal(np.asarray(cut), np.asarray(PhotoView(area=0.6, seed=seed)(photo())))
        pixels = np.asarray(cut)
        rows, columns = np.nonzero((whole == pixels[0, 0]).all(-1))
        assert any(
            np.array_equal(whole[y : y + cut.height, x : x + cut.width], pixels)
            for y, x in zip(rows, columns, strict=True)
        )
        areas.append(cut.width * cut.height / (60 * 40))
        places.add((rows[0], columns[0]))
        assert 0.85 < (cut.width / cut.height) / (60 / 40) < 1.18
    assert 0.57 < min(areas) < 0.65 and 0.93 < max(areas) <= 1
    assert len(places) > 50
    assert PhotoView(area=0.6)(photo(seed=1)).size != PhotoView(area=0.6)(photo(seed=2)).size


def test_photos_of_a_pixel_are_seen_too() -> None:
    for view in default_views(8)[1:]:
        assert view is not None and view(photo(1, 1)).size == (1, 1)
        assert view(photo(1, 300)).width == 1


def test_the_first_views_are_the_photo_and_its_mirror_image() -> None:
    whole, mirrored, cut, mirrored_cut = default_views(4)
    assert whole is None
    assert mirrored is not None and cut is not None and mirrored_cut is not None
    assert np.array_equal(np.asarray(mirrored(photo())), np.asarray(ImageOps.mirror(photo())))
    assert not cut.mirrored and mirrored_cut.mirrored
    assert default_views(1) == [None]
    with pytest.raises(ValueError, match="at least 1, the photo itself, not 0"):
        default_views(0)
    for area in (0, 1.1):
        with pytest.raises(ValueError, match=f"area must be above 0 and at most 1, not {area}"):
            PhotoView(area=area)


def test_edited_views_come_last_and_are_the_same_each_time() -> None:
    *plain, first, second = default_views(4, edited=2)
    assert plain == default_views(4)
    assert isinstance(first, EditedView) and isinstance(second, EditedView)
    assert not first.mirrored and second.mirrored and first.seed != second.seed
    assert np.array_equal(np.asarray(first(photo())), np.asarray(first(photo())))
    assert first(photo(1, 1)).size[0] >= 1
    with pytest.raises(ValueError, match="edited views must be at least 0, not -1"):
        default_views(1, edited=-1)


def test_edited_views_have_grey_dark_small_and_padded_photos_in_their_shares() -> None:
    view, grey, padded, small, light = EditedView(area=1.0), 0, 0, 0, []
    for seed in range(300):
        base = photo(80, 60, seed)
        edited = view(base)
        pixels = np.asarray(edited).astype(int)
        assert edited.mode == "RGB" and edited.width >= 32 and edited.height >= 24
        assert max(edited.size) / min(edited.size) <= 16 / 9 * 80 / 60 + 0.1
        grey += bool((np.ptp(pixels, axis=-1) <= 2).all())
        is_padded = abs(edited.width / edited.height - 80 / 60) > 0.08
        padded += is_padded
        small += not is_padded and edited.width < 80
        if not is_padded:
            light.append(pixels.mean() / np.asarray(base).mean())
    assert 0.3 < grey / 300 < 0.5 and 0.35 < padded / 300 < 0.6
    assert 0.2 < small / (300 - padded) < 0.4
    assert min(light) < 0.6 and max(light) > 1.1


@pytest.fixture(scope="module")
def photos(flickr8k: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> PhotoDataset:
    folder = tmp_path_factory.mktemp("views")
    rows = load_captions(make_subset(flickr8k, folder / "flickr", train=12))
    rows = rows.remove_columns("captions").add_column("captions", [CAPTIONS] * len(rows))
    model, processor = real_captioner(test_data, CAPTIONS)
    views = default_views(3)
    tables = [cache_features(model, processor, rows, folder / "features", view=view) for view in views]
    again = cache_features(model, processor, rows, folder / "features", view=views[1])
    assert [file.path for file in again.files] == [file.path for file in tables[1].files]
    return PhotoDataset(rows, processor, tables[0], views=list(zip(views[1:], tables[1:], strict=True)))


def test_features_of_a_view_are_those_of_the_photo_seen_so(photos: PhotoDataset, test_data: Path) -> None:
    model, processor = real_captioner(test_data, CAPTIONS)
    for number, view in enumerate(default_views(3)):
        image = photos.photos.cast_column("image", datasets.Image())[5]["image"].convert("RGB")
        pixels = processor(images=image if view is None else view(image), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model.get_image_features(pixels)[0]
        assert torch.allclose(photos.inputs(5, number)["encoder_outputs"], expected, atol=1e-4)
    assert not torch.allclose(
        photos.inputs(5, 0)["encoder_outputs"], photos.inputs(5, 1)["encoder_outputs"], atol=0.01
    )


def test_left_and_right_change_places_with_the_photo(photos: PhotoDataset) -> None:
    tokenizer = photos.processor.tokenizer
    samples = CaptionDataset(photos, tokenizer)
    loader = DataLoader(samples, batch_size=6, shuffle=True, collate_fn=CaptionCollator())
    mirrored_texts = {"a dog on the right of a man", "left or right", "a cat"}
    seen: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for _ in range(12):
        for batch in loader:
            for feature, labels in zip(batch["encoder_outputs"], batch["labels"], strict=True):
                (view,) = (
                    number
                    for number in range(3)
                    if any(feature.equal(photos.inputs(row, number)["encoder_outputs"]) for row in photos.rows)
                )
                seen[view].add(tokenizer.decode(labels[labels >= 0], skip_special_tokens=True))
    assert seen == {0: set(CAPTIONS), 1: mirrored_texts, 2: set(CAPTIONS)}


def test_views_depend_on_the_epoch_and_the_sample_alone(photos: PhotoDataset) -> None:
    samples = CaptionDataset(photos, photos.processor.tokenizer, captions_per_sample=3)
    torch.manual_seed(0)
    first = samples.__getitems__([3, 1, 4])
    torch.manual_seed(1)
    np.random.seed(1)
    again = [*samples.__getitems__([3]), *samples.__getitems__([1, 4, 0])]
    for one, other in zip(first, again, strict=False):
        assert one["encoder_outputs"].equal(other["encoder_outputs"])
    seen = set()
    for epoch in range(12):
        samples.set_epoch(epoch)
        seen.add(tuple(samples[3]["encoder_outputs"][:5].tolist()))
    assert len(seen) == 3, "a photo is seen in every way in time"
    samples.set_epoch(0)
    assert samples[3]["encoder_outputs"].equal(first[0]["encoder_outputs"])


def test_each_view_is_drawn_as_often_as_the_others(photos: PhotoDataset) -> None:
    samples = CaptionDataset(photos, photos.processor.tokenizer)
    drawn = []
    for epoch in range(100):
        samples.set_epoch(epoch)
        drawn += samples._draw_views(range(len(samples)))
    counts = np.bincount(drawn, minlength=3) / len(drawn)
    assert len(counts) == 3 and abs(counts - 1 / 3).max() < 0.03


@pytest.mark.parametrize("context", ["spawn", None])
def test_workers_that_are_kept_follow_the_epochs(photos: PhotoDataset, context: str | None) -> None:
    """At batch size 1, where nothing but the epoch can change what is seen of a photo."""
    if context is None and multiprocessing.get_start_method() != "fork":
        pytest.skip("processes are spawned here")
    samples = CaptionDataset(photos, photos.processor.tokenizer, captions_per_sample=3)

    def seen(**settings: Any) -> list[torch.Tensor]:
        loader: DataLoader = DataLoader(samples, batch_size=1, collate_fn=CaptionCollator(), **settings)
        epochs = []
        for epoch in (0, 1, 0):
            samples.set_epoch(epoch)
            epochs.append(torch.cat([batch["encoder_outputs"] for batch in loader]))
        return epochs

    alone = seen()
    kept = seen(num_workers=1, persistent_workers=True, multiprocessing_context=context)
    assert all(torch.equal(one, other) for one, other in zip(alone, kept, strict=True))
    assert not torch.equal(alone[0], alone[1]) and torch.equal(alone[0], alone[2])


def test_photos_without_features_are_seen_in_views_as_well(photos: PhotoDataset) -> None:
    views = [(view, None) for view in default_views(3)[1:] if view is not None]
    plain = PhotoDataset(photos.photos, photos.processor, views=views, keep_pixels=True)
    whole, mirrored = plain.inputs(2)["pixel_values"], plain.inputs(2, 1)["pixel_values"]
    assert torch.allclose(whole.flip(-1), mirrored, atol=0.1)
    assert plain.inputs(2, 1)["pixel_values"] is mirrored
    assert plain[2]["pixel_values"].equal(whole)


def test_views_and_photos_must_both_have_features(photos: PhotoDataset) -> None:
    view = PhotoView(mirrored=True)
    with pytest.raises(ValueError, match="either all views and the photos have features"):
        PhotoDataset(photos.photos, photos.processor, photos.features, views=[(view, None)])
    with pytest.raises(ValueError, match=f"features of {len(photos.photos)} photos do not fit a dataset of 3"):
        few = photos.photos.select(range(3))
        PhotoDataset(few, photos.processor, photos.features, views=[(view, photos.features)])

"""The feature cache of a model with attention: regions in, regions out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
import torch
from tiny import tiny_model, tiny_photos, tiny_processor, tiny_tokenizer
from torch.utils.data import DataLoader

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import CaptionCollator, CaptionDataset, FeatureTable, PhotoDataset, cache_features
from nic_hf.evaluation.paper.ranking import caption_log_likelihoods

NUMBER = 7
A_CHUNK = 3
CAPTIONS = ["a black dog runs through the snow", "a man rides his bicycle", "the woman smiles"]


@pytest.fixture
def model() -> NICForConditionalGeneration:
    return tiny_model(seed=79, attention="soft")


@pytest.fixture(scope="module")
def processor() -> NICProcessor:
    return tiny_processor()


@pytest.fixture
def photos(tmp_path: Path) -> datasets.Dataset:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, photo in enumerate(tiny_photos(NUMBER)):
        photo.save(folder / f"{number}.png")
    rows = {
        "image": [str(folder / f"{number}.png") for number in range(NUMBER)],
        "image_id": [str(number) for number in range(NUMBER)],
        "captions": [CAPTIONS[: 1 + number % 3] for number in range(NUMBER)],
    }
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


@contextmanager
def counted(model: NICForConditionalGeneration) -> Iterator[list[int]]:
    runs: list[int] = []
    hook = model.encoder.backbone.register_forward_hook(
        # Photos are encoded in inference mode; the one random image that shows how to fold BatchNorm is not.
        lambda module, args, kwargs, output: (
            runs.append(len(kwargs["pixel_values"])) if torch.is_inference_mode_enabled() else None
        ),
        with_kwargs=True,
    )
    try:
        yield runs
    finally:
        hook.remove()


def everything(table: FeatureTable) -> torch.Tensor:
    return torch.stack([table[row] for row in range(len(table))])


@torch.no_grad()
def encoded(model: NICForConditionalGeneration, processor: NICProcessor, photos: datasets.Dataset) -> torch.Tensor:
    return torch.cat(
        [
            model.get_image_features(processor(images=row["image"], return_tensors="pt")["pixel_values"])
            for row in photos
        ]
    )


def test_regions_come_back_as_the_backbone_gave_them(
    model: NICForConditionalGeneration, processor: NICProcessor, photos: datasets.Dataset, tmp_path: Path
) -> None:
    with counted(model) as runs:
        first = cache_features(model, processor, photos, tmp_path / "cache", photos_a_chunk=A_CHUNK)
        assert sum(runs) == NUMBER
        again = cache_features(model, processor, photos, tmp_path / "cache", photos_a_chunk=A_CHUNK)
        assert sum(runs) == NUMBER
    direct = encoded(model, processor, photos)
    assert direct.shape == (NUMBER, 16, 10)
    torch.testing.assert_close(everything(first), direct, rtol=1e-5, atol=1e-6)
    assert torch.equal(everything(first), everything(again))
    torch.testing.assert_close(torch.cat(list(first.chunks())), direct, rtol=1e-5, atol=1e-6)
    mean, std = first.statistics()
    torch.testing.assert_close(mean, direct.flatten(0, 1).mean(dim=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(std, direct.flatten(0, 1).std(dim=0, correction=0), rtol=1e-4, atol=1e-6)
    model.set_feature_statistics(mean, std)


def test_half_precision_takes_half_the_disk_and_a_file_of_its_own(
    model: NICForConditionalGeneration, processor: NICProcessor, photos: datasets.Dataset, tmp_path: Path
) -> None:
    full = cache_features(model, processor, photos, tmp_path)
    half = cache_features(model, processor, photos, tmp_path, dtype=torch.float16)
    (of_full,), (of_half,) = ([file.path for file in table.files] for table in (full, half))
    assert of_full != of_half
    assert of_half.stat().st_size < 0.6 * of_full.stat().st_size
    assert everything(half).dtype == next(half.chunks()).dtype == torch.float32
    assert torch.equal(everything(half), everything(full).half().float())
    torch.testing.assert_close(half.statistics(), full.statistics(), rtol=1e-3, atol=1e-3)


def test_features_too_large_for_half_precision_and_other_formats_are_refused(
    model: NICForConditionalGeneration, processor: NICProcessor, photos: datasets.Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"must be torch.float32 or torch.float16"):
        cache_features(model, processor, photos, tmp_path, dtype=torch.bfloat16)
    for parameter in model.encoder.parameters():
        parameter.data.mul_(100.0)
    with pytest.raises(ValueError, match=r"do not fit torch.float16; use torch.float32"):
        cache_features(model, processor, photos, tmp_path, dtype=torch.float16)


def test_pooled_features_and_regions_of_one_backbone_do_not_meet(
    processor: NICProcessor, photos: datasets.Dataset, tmp_path: Path
) -> None:
    shapes = []
    for attention in (None, "soft", None, "soft"):
        model = tiny_model(seed=79, attention=attention, use_backbone_pooler=False)
        shapes.append(tuple(cache_features(model, processor, photos, tmp_path)[0].shape))
    assert shapes == [(10,), (16, 10)] * 2


def test_photos_that_cannot_be_read_are_left_out(
    model: NICForConditionalGeneration, processor: NICProcessor, photos: datasets.Dataset, tmp_path: Path
) -> None:
    whole = encoded(model, processor, photos)
    for number in (1, 3, 4, 5):  # all of the second chunk
        (tmp_path / "photos" / f"{number}.png").write_bytes(b"this is no photo")
    for _ in range(2):
        table = cache_features(model, processor, photos, tmp_path / "cache", photos_a_chunk=A_CHUNK, on_error="skip")
        assert table.unreadable_rows() == [1, 3, 4, 5]
        dataset = PhotoDataset(photos, processor, table)
        found = torch.stack([dataset[index]["encoder_outputs"] for index in range(len(dataset))])
        torch.testing.assert_close(found, whole[[0, 2, 6]], rtol=1e-5, atol=1e-6)
        mean, _ = table.statistics()
        torch.testing.assert_close(mean, found.flatten(0, 1).mean(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("captions_per_sample", [1, 2])
def test_batches_of_cached_regions_cost_what_photos_cost(
    captions_per_sample: int,
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    photos: datasets.Dataset,
    tmp_path: Path,
) -> None:
    table = cache_features(model, processor, photos, tmp_path)
    losses = []
    for dataset in (PhotoDataset(photos, processor, table), PhotoDataset(photos, processor)):
        captions = CaptionDataset(dataset, tiny_tokenizer(), captions_per_sample=captions_per_sample)
        loader: DataLoader = DataLoader(captions, batch_size=3, collate_fn=CaptionCollator())
        batches = list(loader)
        assert batches[0]["labels"].ndim == 1 + min(captions_per_sample, 2)
        with torch.no_grad():
            losses.append(torch.stack([model(**batch).loss for batch in batches]))
    torch.testing.assert_close(losses[0], losses[1])


def test_captions_are_ranked_by_what_the_model_says_of_each_pair(model: NICForConditionalGeneration) -> None:
    regions = torch.randn(3, 5, 10, generator=torch.Generator().manual_seed(0))
    captions = [tiny_tokenizer()(caption).input_ids for caption in [*CAPTIONS, "a dog"]]
    found = caption_log_likelihoods(model, regions, captions)
    for photo, row in enumerate(found):
        for caption, score in zip(captions, row, strict=True):
            with torch.no_grad():
                loss = model(encoder_outputs=regions[photo : photo + 1], labels=torch.tensor([caption])).loss
            assert score == pytest.approx(-loss.item() * len(caption), rel=1e-5)

"""`load_captions` on the whole of the real Flickr8k, in four forms of the same captions."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nic_hf.data import CaptionDataError, SkippedItem, load_captions

Contents = dict[str, tuple[list[str], str]]

SIZES = {"train": 6000, "validation": 1000, "test": 1000}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    cache = tmp_path_factory.mktemp("cache")
    return lambda *args, **kwargs: load_captions(*args, cache_dir=cache, **kwargs)


@pytest.fixture(scope="module")
def captions(flickr8k: Path) -> dict[str, list[str]]:
    """The captions of each photo as the csv module alone reads them."""
    with (flickr8k / "captions.txt").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    gathered: dict[str, list[str]] = {}
    for name, caption in rows:
        gathered.setdefault(name, []).append(caption)
    return gathered


@pytest.fixture(scope="module")
def split_names(flickr8k: Path) -> dict[str, list[str]]:
    files = {"train": "trainImages", "validation": "devImages", "test": "testImages"}
    return {split: (flickr8k / f"Flickr_8k.{name}.txt").read_text("utf-8").split() for split, name in files.items()}


def contents(dataset: Any) -> Contents:
    """Captions and photo path by image id, without decoding a photo."""
    table = dataset.with_format("arrow")[:].to_pydict()
    paths = [image["path"] for image in table["image"]]
    return dict(zip(table["image_id"], zip(table["captions"], paths, strict=True), strict=True))


@pytest.fixture(scope="module")
def kaggle(load: Callable[..., Any], flickr8k: Path) -> dict[str, Contents]:
    """The Kaggle form, whole and by split."""
    return {"all": contents(load(flickr8k)), **{split: contents(load(flickr8k, split)) for split in SIZES}}


def test_every_photo_has_its_five_captions_in_the_order_of_the_file(
    flickr8k: Path, captions: dict[str, list[str]], kaggle: dict[str, Contents]
) -> None:
    expected = {name: (texts, str(flickr8k / "Images" / name)) for name, texts in captions.items()}
    assert list(kaggle["all"].items()) == list(expected.items())
    assert len(expected) == 8091
    assert {len(texts) for texts in captions.values()} == {5}


def test_the_official_splits_are_whole_and_disjoint(
    split_names: dict[str, list[str]], kaggle: dict[str, Contents]
) -> None:
    assert {split: len(kaggle[split]) for split in SIZES} == SIZES
    for split, names in split_names.items():
        assert kaggle[split] == {name: kaggle["all"][name] for name in names}
    assert len(set().union(*(kaggle[split] for split in SIZES))) == 8000


def test_kaggle_and_token_forms_agree(load: Callable[..., Any], flickr8k: Path, kaggle: dict[str, Contents]) -> None:
    # A split leaves the name without a photo alone; the whole of the token file is looked at below.
    assert contents(load(flickr8k / "Flickr8k.token.txt", "validation")) == kaggle["validation"]


def test_the_name_without_a_photo_in_the_token_file_is_named(
    load: Callable[..., Any], flickr8k: Path, kaggle: dict[str, Contents]
) -> None:
    file = flickr8k / "Flickr8k.token.txt"
    with pytest.raises(CaptionDataError, match=r"token\.txt: line 6731: photo not found: .*586949ec62\.jpg\.1"):
        load(file)
    skipped: list[SkippedItem] = []
    dataset = load(file, on_error="skip", skipped=skipped)
    assert [(item.line, item.name) for item in skipped] == [(6731, "2258277193_586949ec62.jpg.1")]
    assert contents(dataset) == kaggle["all"]


def test_karpathy_json_gives_the_same_data_set(
    load: Callable[..., Any],
    flickr8k: Path,
    captions: dict[str, list[str]],
    split_names: dict[str, list[str]],
    kaggle: dict[str, Contents],
    tmp_path: Path,
) -> None:
    images = [
        {
            "filename": name,
            "split": {"validation": "val"}.get(split, split),
            "sentences": [{"raw": text, "tokens": text.lower().split()} for text in captions[name]],
        }
        for split, names in split_names.items()
        for name in names
    ]
    file = tmp_path / "dataset_flickr8k.json"
    file.write_text(json.dumps({"dataset": "flickr8k", "images": images}), "utf-8")
    for split in SIZES:
        assert contents(load(file, split, images=flickr8k / "Images")) == kaggle[split]


def test_coco_json_gives_the_same_captions_under_its_own_ids(
    load: Callable[..., Any],
    flickr8k: Path,
    captions: dict[str, list[str]],
    kaggle: dict[str, Contents],
    tmp_path: Path,
) -> None:
    numbers = {name: 100 + number for number, name in enumerate(captions)}
    pairs = [(numbers[name], text) for name, texts in captions.items() for text in texts]
    document = {
        "images": [{"id": number, "file_name": name} for name, number in numbers.items()],
        "annotations": [{"image_id": image, "id": k, "caption": text} for k, (image, text) in enumerate(pairs)],
    }
    file = tmp_path / "captions_flickr8k.json"
    file.write_text(json.dumps(document), "utf-8")
    expected = {str(numbers[name]): found for name, found in kaggle["all"].items()}
    assert contents(load(file, images=flickr8k / "Images")) == expected

"""`load_captions` on what Hugging Face Datasets opens: local parquet folders stand for the Hub, which is not asked."""

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from nic_hf.data import CaptionDataError, SkippedItem, load_captions


def photo(shade: int, brighter: int = 0) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("L", (8 + shade, 8), shade + brighter).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{shade}.png"}


def make_dataset(columns: dict[str, Any], image: str = "image", brighter: int = 0) -> Any:
    rows = len(next(iter(columns.values())))
    data = datasets.Dataset.from_dict({image: [photo(row, brighter) for row in range(rows)], **columns})
    return data.cast_column(image, datasets.Image())


def numbered(rows: int, split: str = "") -> Any:
    """In the shape of jxie/flickr8k: image, caption_0, ..., caption_4."""
    return make_dataset(
        {f"caption_{k}": [f"Row {row} caption {k} {split}." for row in range(rows)] for k in range(5)},
        brighter=10 * len(split),
    )


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    (tmp_path / "repo" / "data").mkdir(parents=True)
    for split, rows in (("train", 3), ("validation", 2), ("test", 1)):
        numbered(rows, split).to_parquet(tmp_path / "repo" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "repo"


def load(source: Any, split: str | None = None, *, cache_dir: Path, **kwargs: Any) -> dict[str, list[str]]:
    dataset = load_captions(source, split, cache_dir=cache_dir, **kwargs)
    return dict(zip(dataset["image_id"], dataset["captions"], strict=True))


def test_a_parquet_folder_with_five_caption_columns(parquet_folder: Path, tmp_path: Path) -> None:
    dataset = load_captions(parquet_folder, "dev", cache_dir=tmp_path / "cache")
    assert dataset.column_names == ["image", "image_id", "captions"]
    assert dataset["image_id"][:] == ["0", "1"]
    assert dataset[1]["captions"] == [f"Row 1 caption {k} validation." for k in range(5)]
    assert dataset[1]["image"].size == (9, 8)
    assert len(load_captions(parquet_folder, cache_dir=tmp_path / "cache")) == 6


def test_the_images_are_left_where_datasets_put_them(parquet_folder: Path, tmp_path: Path) -> None:
    dataset = load_captions(parquet_folder, "train", cache_dir=tmp_path / "cache")
    files = [Path(file["filename"]) for file in dataset.cache_files]
    (own,) = [file for file in files if file.parent == tmp_path / "cache"]
    assert len(files) == 2
    assert b"PNG" not in own.read_bytes()


def test_an_edited_parquet_file_gives_its_present_captions(parquet_folder: Path, tmp_path: Path) -> None:
    before = load(parquet_folder, "test", cache_dir=tmp_path / "cache")
    numbered(1, "edited").to_parquet(parquet_folder / "data" / "test-00000-of-00001.parquet")
    after = load(parquet_folder, "test", cache_dir=tmp_path / "cache")
    assert before["0"][0] == "Row 0 caption 0 test." and after["0"][0] == "Row 0 caption 0 edited."


def test_a_folder_made_by_save_to_disk(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"train": numbered(2), "validation": numbered(1)})
    saved.save_to_disk(tmp_path / "all")
    saved["train"].save_to_disk(tmp_path / "one")
    assert list(load(tmp_path / "all", "train", cache_dir=tmp_path)) == ["0", "1"]
    assert load(tmp_path / "one", cache_dir=tmp_path) == load(saved["train"], cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("caption", ["A dog .", "A cat ."]),
        ("text", [" A dog . ", "A cat .\n"]),
        ("captions", [["A dog ."], ["A cat ."]]),
        ("sentences", [[{"raw": "A dog .", "tokens": ["a"]}], [{"raw": "A cat .", "tokens": ["a"]}]]),
    ],
)
def test_a_caption_column_may_hold_text_lists_or_sentences(tmp_path: Path, column: str, cells: list[Any]) -> None:
    assert load(make_dataset({column: cells}), cache_dir=tmp_path) == {"0": ["A dog ."], "1": ["A cat ."]}


def test_an_image_column_of_another_name_is_found_by_its_type(tmp_path: Path) -> None:
    dataset = load_captions(make_dataset({"text": ["A dog ."]}, image="photo"), cache_dir=tmp_path)
    assert dataset.column_names == ["image", "image_id", "captions"]


def test_paths_in_a_text_column_become_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(1)["bytes"])
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], "text": ["A dog ."]})
    assert load_captions(data, cache_dir=tmp_path)[0]["image"].size == (9, 8)


@pytest.mark.parametrize("column", ["image_id", "id", "filename"])
def test_rows_with_one_image_id_are_one_image(tmp_path: Path, column: str) -> None:
    data = make_dataset({column: [7, 5, 7, 7], "caption": ["A dog .", "A cat .", "A brown dog .", "A pup ."]})
    dataset = load_captions(data, cache_dir=tmp_path)
    assert dataset["image_id"][:] == ["7", "5"]
    assert dataset["captions"][:] == [["A dog .", "A brown dog .", "A pup ."], ["A cat ."]]
    assert [image.size for image in dataset["image"]] == [(8, 8), (9, 8)]


def test_a_shuffled_selection_keeps_images_and_captions_together(tmp_path: Path) -> None:
    dataset = load_captions(numbered(9).shuffle(seed=1).select(range(4)), cache_dir=tmp_path)
    rows = [image.size[0] - 8 for image in dataset["image"]]
    assert rows != sorted(rows) and len(rows) == 4
    assert [captions[3] for captions in dataset["captions"]] == [f"Row {row} caption 3 ." for row in rows]


def test_a_format_set_on_the_data_set_does_not_matter(tmp_path: Path) -> None:
    assert load(numbered(2).with_format("numpy"), cache_dir=tmp_path) == load(numbered(2), cache_dir=tmp_path)


def test_splits_of_a_dataset_dict(tmp_path: Path) -> None:
    data = datasets.DatasetDict({"train": numbered(2), "val": numbered(1, "val")})
    assert load(data, "dev", cache_dir=tmp_path)["0"][0] == "Row 0 caption 0 val."
    assert len(load(data, cache_dir=tmp_path)) == 3
    with pytest.raises(CaptionDataError, match="DatasetDict: no split 'test'; available: train, validation"):
        load(data, "test", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (datasets.Dataset.from_dict({"text": ["A"]}), "no image column: expected image and found text"),
        (make_dataset({"label": [1]}), "no caption column: expected one of captions, .* and found label"),
        (make_dataset({"text": ["A", " "]}), r"Dataset: row 1: blank caption \(1\)"),
        (make_dataset({"text": ["A", None]}), r"row 1: blank caption"),
        (make_dataset({"captions": [["A"], []]}), r"row 1: the photo has no caption that can be used"),
        (make_dataset({"text": ["A", "B"], "image_id": ["x", None]}), r"row 1: no image id"),
    ],
)
def test_a_faulty_data_set_is_an_error_that_names_the_row(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(CaptionDataError, match=message):
        load_captions(data, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (None, "no photo"),
        ({"bytes": b"", "path": "x.png"}, r"the photo is empty \(0 bytes\)"),
        ({"bytes": None, "path": "/nowhere/x.png"}, "photo not found: /nowhere/x.png"),
    ],
)
def test_a_missing_or_empty_image_is_named_or_skipped(tmp_path: Path, broken: Any, reason: str) -> None:
    columns = {"image": [photo(0), broken, photo(2)], "text": ["A dog .", "A cat .", "A cow ."]}
    data = datasets.Dataset.from_dict(
        columns, features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    )
    with pytest.raises(CaptionDataError, match=f"Dataset: row 1: {reason}"):
        load_captions(data, cache_dir=tmp_path)
    skipped: list[SkippedItem] = []
    dataset = load_captions(data, cache_dir=tmp_path, on_error="skip", skipped=skipped)
    assert [(row["image_id"], row["captions"], row["image"].size) for row in dataset] == [
        ("0", ["A dog ."], (8, 8)),
        ("2", ["A cow ."], (10, 8)),
    ]
    assert [(item.entry, item.name) for item in skipped] == [("row 1", "1")]


def test_a_folder_that_nothing_can_open_lists_the_supported_forms(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CaptionDataError, match=r"folder: no captions found; it is empty; supported: a folder or file"):
        load_captions(tmp_path / "folder", cache_dir=tmp_path / "cache")


def test_a_name_that_is_nowhere_lists_the_supported_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str, **kwargs: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")

    monkeypatch.setattr("nic_hf.data.hf_datasets.look_up", lambda *_: {})
    monkeypatch.setattr("nic_hf.data.hf_datasets.load_dataset", nowhere)
    with pytest.raises(
        CaptionDataError, match=r"^some/name: Hugging Face .* cannot open it .*doesn't exist.*supported:"
    ):
        load_captions("some/name", cache_dir=tmp_path)


def test_a_hub_id_is_opened_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nic_hf.data.hf_datasets.look_up", lambda *_: {})
    monkeypatch.setattr(
        "nic_hf.data.hf_datasets.load_dataset", lambda name, **kwargs: {"jxie/flickr8k": numbered(2)}[name]
    )
    assert list(load("jxie/flickr8k", cache_dir=tmp_path)) == ["0", "1"]


def test_a_photo_folder_has_no_meaning_for_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(CaptionDataError, match="images= cannot be used"):
        load_captions(numbered(1), images=tmp_path)

"""Sources in which a careless reader takes the wrong photo, or puts one photo in two splits."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from layouts import NAMES, coco, csv_rows, photos, write
from PIL import Image
from shards import write_tar

from nic_hf.data import CaptionDataError, load_captions
from nic_hf.data.errors import say_once


@pytest.fixture(autouse=True)
def said_again() -> None:
    say_once.cache_clear()


def load(source: Any, folder: Path, split: str | None = None, **options: Any) -> dict[str, str]:
    """Photo files, or ids where the photos are in the table, with their captions."""
    rows = load_captions(source, split, cache_dir=folder / "cache", **options).with_format("arrow")[:].to_pydict()
    return {
        image["path"] if image["bytes"] is None else image_id: " | ".join(captions)
        for image, image_id, captions in zip(rows["image"], rows["image_id"], rows["captions"], strict=True)
    }


def test_photos_of_one_name_are_taken_from_the_folder_of_their_split(tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "train", ["0.jpg", "1.jpg", "2.jpg"])
    photos(data / "val", ["1.jpg", "2.jpg"])
    csv_rows(data / "train.csv", ["image", "caption"], [("0.jpg", "train 0"), ("1.jpg", "train 1")])
    csv_rows(data / "val.csv", ["image", "caption"], [("1.jpg", "val 1"), ("2.jpg", "val 2")])
    assert load(data, tmp_path, "train") == {str(data / "train" / f"{n}.jpg"): f"train {n}" for n in (0, 1)}
    assert load(data, tmp_path, "dev") == {str(data / "val" / f"{n}.jpg"): f"val {n}" for n in (1, 2)}
    assert len(load(data, tmp_path)) == 4


def test_photos_of_one_name_in_several_folders_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "photos")
    photos(data / "masks")
    csv_rows(data / "c.csv", ["image", "caption"], [(name, "A dog .") for name in NAMES])
    with pytest.raises(CaptionDataError, match=r"p00\.jpg is in several folders: .*masks, .*photos; name one of them"):
        load(data, tmp_path)
    assert len(load(data, tmp_path, images=data / "photos")) == 12


def test_photos_may_be_spread_over_folders(tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "one", NAMES[:5])
    photos(data / "other", NAMES[5:])
    csv_rows(data / "c.csv", ["image", "caption"], [(name, "A dog .") for name in NAMES])
    assert len(load(data, tmp_path)) == 12


def test_files_by_split_may_have_photos_of_one_name_in_folders_of_their_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val", "test"):
        photos(data / "images" / split, ["0.jpg", "1.jpg"])
        csv_rows(data / f"{split}.csv", ["image", "caption"], [("0.jpg", f"{split} 0"), ("1.jpg", f"{split} 1")])
    for split in ("train", "val", "test"):
        found = load(data, tmp_path, split)
        assert found == {str(data / "images" / split / f"{n}.jpg"): f"{split} {n}" for n in (0, 1)}


def test_a_folder_may_be_named_after_a_split_and_more(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        photos(data / f"{split}_images", ["0.jpg", "1.jpg"])
        records = [{"image": f"{n}.jpg", "caption": f"{split} {n}"} for n in (0, 1)]
        write(data / "annotations" / f"{split}.json", json.dumps(records))
    assert load(data, tmp_path, "dev") == {str(data / "val_images" / f"{n}.jpg"): f"val {n}" for n in (0, 1)}


def test_what_img2dataset_leaves_is_read_as_text_next_to_photos(tmp_path: Path) -> None:
    import pandas as pd

    data = tmp_path / "data"
    for shard in ("00000", "00001"):
        photos(data / shard, [f"{shard}{n:04}.jpg" for n in range(4)])
        for n in range(4):
            write(data / shard / f"{shard}{n:04}.txt", f"photo {n}")
        keys = [f"{shard}{n:04}" for n in range(4)]
        kept = {"url": ["https://x"] * 4, "caption": ["A"] * 4, "key": keys, "status": ["success"] * 4}
        pd.DataFrame(kept).to_parquet(data / f"{shard}.parquet")
    assert len(load(data, tmp_path)) == 8


def test_folders_by_split_may_each_have_a_file_of_captions(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val", "test"):
        photos(data / split / "images", ["0.jpg", "1.jpg"])
        csv_rows(
            data / split / "captions.csv", ["image", "caption"], [("0.jpg", f"{split} 0"), ("1.jpg", f"{split} 1")]
        )
    assert load(data, tmp_path, "dev") == {str(data / "val" / "images" / f"{n}.jpg"): f"val {n}" for n in (0, 1)}


def test_two_names_of_one_file_are_one_photo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    photos(data / "Images")
    rows = [(form.format(name), caption) for name in NAMES for form, caption in (("{}", "one"), ("Images/{}", "two"))]
    csv_rows(data / "c.csv", ["image", "caption"], rows)
    assert set(load(data, tmp_path).values()) == {"one | two"}
    assert "12 photos have two names; their captions are merged" in caplog.text


@pytest.mark.parametrize("names", [("a.jpg", "a.jpg"), ("a.jpg", "Images/a.jpg"), ("a.jpg", "a")])
def test_a_photo_in_two_splits_is_refused_whatever_it_is_called(names: tuple[str, str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "Images", ["a.jpg", "b.jpg", "c.jpg"])
    rows = [(names[0], "A dog .", "train"), (names[1], "A dog .", "test"), ("b.jpg", "A cat .", "train")]
    csv_rows(data / "c.csv", ["image", "caption", "split"], rows)
    with pytest.raises(CaptionDataError, match="is in two splits"):
        load_captions(data, "train", cache_dir=tmp_path / "cache", on_error="skip")


def drawn(number: int) -> list[dict[str, Any]]:
    """The photos themselves, as a table on the Hub holds them."""
    import io

    found = []
    for shade in range(number):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), (20 * shade, 90, 255 - 20 * shade)).save(buffer, "PNG")
        found.append({"bytes": buffer.getvalue(), "path": None})
    return found


def table(rows: list[int], **columns: Any) -> datasets.Dataset:
    images = drawn(12)
    data = datasets.Dataset.from_dict({"image": [images[row] for row in rows], **columns})
    return data.cast_column("image", datasets.Image())


def test_a_table_with_a_row_for_each_caption_has_a_photo_for_each_photo(tmp_path: Path) -> None:
    rows = [row for row in range(12) for _ in range(3)]
    data = table(rows, caption=[f"photo {row}" for row in rows])
    found = load(data, tmp_path)
    assert len(found) == 12 and found["3"] == "photo 1 | photo 1 | photo 1"
    splits = [set(load(data, tmp_path, split).values()) for split in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 12


def test_splits_of_a_data_set_that_share_an_id_are_refused(tmp_path: Path) -> None:
    one = table([0, 1], filename=["a.jpg", "b.jpg"], caption=["A", "B"])
    other = table([1, 2], filename=["b.jpg", "c.jpg"], caption=["B", "C"])
    with pytest.raises(CaptionDataError, match=r"DatasetDict: b\.jpg is in two splits: train and test"):
        load(datasets.DatasetDict(train=one, test=other), tmp_path, "train")


def test_two_spellings_of_a_split_are_put_together(tmp_path: Path) -> None:
    parts = {name: table([row], caption=[name]) for row, name in enumerate(("train", "val", "validation"))}
    assert set(load(datasets.DatasetDict(parts), tmp_path, "dev").values()) == {"val", "validation"}


@pytest.mark.parametrize("names", [("00000.tar", "00001.tar"), ("train-0.tar", "val-0.tar")])
def test_shards_may_count_their_keys_from_0_each(names: tuple[str, str], tmp_path: Path) -> None:
    images = drawn(4)
    for name, rows in zip(names, ((0, 1), (2, 3)), strict=True):
        members = [
            member
            for key, row in enumerate(rows)
            for member in ((f"{key:04}.png", images[row]["bytes"]), (f"{key:04}.txt", f"photo {row}".encode()))
        ]
        write_tar(tmp_path / "shards" / name, members)
    found = load(tmp_path / "shards", tmp_path)
    assert list(found.values()) == [f"photo {row}" for row in range(4)]
    if "train" in names[0]:
        assert set(load(tmp_path / "shards", tmp_path, "dev").values()) == {"photo 2", "photo 3"}


def test_validation_photos_alone_are_shared_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "val2017")
    write(data / "annotations" / "captions_val2017.json", coco(NAMES))
    splits = [set(load(data, tmp_path, split)) for split in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 12
    assert len(load(data, tmp_path, "all")) == 12


def test_splits_may_be_the_keys_of_a_json_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "images")
    document = {
        split: [{"image": name, "caption": "A dog ."} for name in names]
        for split, names in (("train", NAMES[:8]), ("val", NAMES[8:10]), ("test", NAMES[10:]))
    }
    write(data / "captions.json", json.dumps(document))
    assert [len(load(data, tmp_path, split)) for split in ("train", "dev", "test")] == [8, 2, 2]


def test_lists_of_names_by_split_are_used(tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "flickr30k-images")
    write(data / "results_20130124.token", "".join(f"{name}#0\tA dog .\n" for name in NAMES))
    for split, names in (("train", NAMES[:8]), ("val", NAMES[8:10]), ("test", NAMES[10:])):
        write(data / f"{split}.txt", "\n".join(name[:-4] for name in names))
    assert [len(load(data, tmp_path, split)) for split in ("train", "dev", "test")] == [8, 2, 2]


def test_a_misspelt_split_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    photos(data / "images")
    splits = [*["train"] * 7, "trian", "trian", "", "val", "test"]
    rows = list(zip(NAMES, ["A dog ."] * 12, splits, strict=True))
    csv_rows(data / "c.csv", ["image", "caption", "split"], rows)
    assert len(load(data, tmp_path, "train")) == 7
    assert "2 photos are in split 'trian'" in caplog.text and "1 photos are in no split" in caplog.text


@pytest.mark.parametrize("cell", ["nan", "None", "NULL", "n/a", "-", "['a dog's life', 'b']"])
def test_cells_without_a_caption_are_no_captions(cell: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "images")
    csv_rows(data / "c.csv", ["image", "caption"], [(name, cell if name == NAMES[2] else "A dog .") for name in NAMES])
    with pytest.raises(CaptionDataError, match=r"c\.csv: line 4: (blank caption|a list that is not closed)"):
        load(data, tmp_path)


def test_boxes_in_place_of_captions_are_refused(tmp_path: Path) -> None:
    photos(tmp_path / "data")
    for name in NAMES:
        write((tmp_path / "data" / name).with_suffix(".txt"), "0 0.5 0.5 0.1 0.2\n1 0.2 0.3 0.1 0.2")
    with pytest.raises(CaptionDataError, match=r"p00\.txt: numbers in place of captions: '0 0\.5 .* YOLO"):
        load(tmp_path / "data", tmp_path)


def test_faults_are_named_where_they_leave_no_photo_for_a_split(tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "images")
    csv_rows(data / "c.csv", ["image", "caption"], [(f"../{name}", "A dog .") for name in NAMES])
    with pytest.raises(CaptionDataError, match=r"c\.csv: line 2: photo name '\.\./p00\.jpg' leads out"):
        load(data, tmp_path, "train")


def test_absolute_paths_of_another_machine_are_found_by_their_ends(tmp_path: Path) -> None:
    data = tmp_path / "data"
    photos(data / "Images")
    rows = [(f"/kaggle/input/flickr8k/Images/{name}", "A dog .") for name in NAMES]
    csv_rows(data / "c.csv", ["image", "caption"], rows)
    assert set(load(data, tmp_path)) == {str(data / "Images" / name) for name in NAMES}


def test_a_folder_without_captions_says_what_it_holds(tmp_path: Path) -> None:
    photos(tmp_path / "data")
    write(tmp_path / "data" / "archive.zip", "PK")
    with pytest.raises(CaptionDataError, match=r"data: no captions found; it holds 12 \.jpg, 1 \.zip; supported: "):
        load(tmp_path / "data", tmp_path)


def test_names_without_captions_of_a_parquet_file_beside_photos(tmp_path: Path) -> None:
    import pandas as pd

    data = tmp_path / "data"
    photos(data / "Images")
    pd.DataFrame({"image": NAMES, "caption": ["A dog ."] * 12}).to_parquet(data / "captions.parquet")
    assert len(load(data, tmp_path)) == 12


def test_own_photos_among_those_of_flickr8k_are_counted(
    flickr8k: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    lists = [f"Flickr_8k.{name}Images.txt" for name in ("train", "dev", "test")]
    names = [name for file in lists for name in (flickr8k / file).read_text("utf-8").split()[:100]] + NAMES
    photos(data / "Images", names)
    csv_rows(data / "captions.txt", ["image", "caption"], [(name, "A dog .") for name in names])
    with caplog.at_level(logging.WARNING):
        assert len(load(data, tmp_path, "train")) == 100
    assert "Flickr8k's official split, by the photos' names (12 in no split): 100 train" in caplog.text

"""`load_captions` on the layouts that people have."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from layouts import CAPTIONS, LAYOUTS, NAMES, Layout, csv_rows, photos, write

from nic_hf.data import CaptionDataError, SkippedItem, load_captions
from nic_hf.data.errors import say_once


@pytest.fixture(autouse=True)
def said_again() -> None:
    say_once.cache_clear()


def drawn(name: str, folder: Path) -> tuple[Layout, Path]:
    found = LAYOUTS[name]
    found.draw(folder / "data")
    return found, folder / "data" / found.source


def load(source: Path, folder: Path, split: str | None = None, **options: Any) -> dict[str, list[str]]:
    rows = load_captions(source, split, cache_dir=folder / "cache", **options)
    assert all(row["image"].size == (40, 30) for row in rows)
    return dict(zip(rows["image_id"], rows["captions"], strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_its_photos_with_their_captions(name: str, tmp_path: Path) -> None:
    found, source = drawn(name, tmp_path)
    rows = load(source, tmp_path, **dict(found.options))
    number = sum(found.own_splits.values()) if found.own_splits else len(NAMES)
    assert len(rows) == number
    captions = [caption.replace("\n", " ") for caption in found.captions]
    assert all(own == captions for own in rows.values())


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_splits_that_share_no_photo(name: str, tmp_path: Path) -> None:
    found, source = drawn(name, tmp_path)
    options: dict[str, Any] = dict(found.options)
    parts = {"train", "validation", "test"} if found.own_splits is None else set(found.own_splits)
    splits = {split: load(source, tmp_path, split, **options) for split in parts}
    ids = [image_id for rows in splits.values() for image_id in rows]
    assert len(ids) == len(set(ids)) == len(load(source, tmp_path, **options))
    if found.own_splits is None:
        assert {split: len(rows) for split, rows in splits.items()} == {"train": 9, "validation": 1, "test": 2} or (
            len(splits["train"]) >= 7 and min(map(len, splits.values())) >= 1
        )
    else:
        assert {split: len(rows) for split, rows in splits.items()} == found.own_splits


def test_a_hash_of_the_ids_splits_a_set_the_same_on_every_machine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The places are computed here from the definition, and not by the package."""
    import hashlib

    names = [f"photo {number}é.jpg" for number in range(300)]
    photos(tmp_path / "data" / "Images", names)
    csv_rows(tmp_path / "data" / "captions.txt", ["image", "caption"], [(name, "A dog .") for name in names])

    def place(name: str) -> float:
        text = f"7\0{unicodedata.normalize('NFC', name)}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") / 2**48

    options = {"dev_share": 0.2, "test_share": 0.3, "split_seed": 7}
    found = {split: set(load(tmp_path / "data", tmp_path, split, **options)) for split in ("train", "dev", "test")}
    assert found["dev"] == {name for name in names if place(name) < 0.2}
    assert found["test"] == {name for name in names if place(name) >= 0.7}
    assert found["train"] == set(names) - found["dev"] - found["test"]
    sizes = f"{len(found['train'])} train, {len(found['dev'])} validation, {len(found['test'])} test"
    assert caplog.text.count(f"no splits: photos split by a hash of their ids (seed 7): {sizes}") == 1
    rows = load_captions(tmp_path / "data", "train", cache_dir=tmp_path / "cache", **options)
    assert rows.info.description == f"no splits: photos split by a hash of their ids (seed 7): {sizes}"


def test_photos_stay_in_their_split_when_others_are_added(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(400)]
    photos(tmp_path / "data" / "Images", names)
    found = []
    for some in (names[:200], names[::-1]):
        csv_rows(tmp_path / "data" / "captions.txt", ["image", "caption"], [(name, "A dog .") for name in some])
        found.append({split: set(load(tmp_path / "data", tmp_path, split)) for split in ("train", "dev", "test")})
    few, many = found
    assert all(few[split] <= many[split] for split in few)


def test_the_shares_can_leave_all_photos_for_training(tmp_path: Path) -> None:
    _, source = drawn("kaggle_flickr8k", tmp_path)
    assert len(load(source, tmp_path, "train", dev_share=0, test_share=0)) == 12
    with pytest.raises(CaptionDataError, match=r"split 'test' holds no photos .*12 train, 0 validation, 0 test"):
        load(source, tmp_path, "test", dev_share=0, test_share=0)
    with pytest.raises(ValueError, match=r"dev_share 0\.5 and test_share 0\.5 must be 0 or more, and together less"):
        load(source, tmp_path, "test", dev_share=0.5, test_share=0.5)


def test_validation_is_held_out_of_train_where_a_set_has_train_and_test(tmp_path: Path) -> None:
    photos(tmp_path / "data" / "images")
    for split, names in (("train", NAMES[:10]), ("test", NAMES[10:])):
        csv_rows(tmp_path / "data" / f"{split}.csv", ["image", "caption"], [(name, "A dog .") for name in names])
    assert set(load(tmp_path / "data", tmp_path, "test")) == set(NAMES[10:])
    train, dev = (set(load(tmp_path / "data", tmp_path, split)) for split in ("train", "dev"))
    assert train | dev == set(NAMES[:10]) and train and dev and not train & dev


def test_all_takes_every_photo(tmp_path: Path) -> None:
    _, source = drawn("karpathy_elsewhere", tmp_path)
    assert len(load(source, tmp_path, "all")) == 12


def test_flickr8k_is_split_by_its_official_lists_where_they_are_not_there(
    flickr8k: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Kaggle's folder as it is downloaded: `Images` and `captions.txt`."""
    folder = tmp_path / "kaggle"
    folder.mkdir()
    (folder / "captions.txt").write_bytes((flickr8k / "captions.txt").read_bytes())
    for split, name in (("train", "trainImages"), ("dev", "devImages"), ("test", "testImages")):
        official = (flickr8k / f"Flickr_8k.{name}.txt").read_text("utf-8").split()
        rows = load_captions(folder, split, images=flickr8k / "Images", cache_dir=tmp_path / "cache")
        assert sorted(rows["image_id"]) == sorted(official)
    assert (
        caplog.text.count("Flickr8k's official split, by the photos' names (91 in no split): 6,000 train, 1,000") == 1
    )


def test_a_photo_in_two_files_of_splits_is_an_error(tmp_path: Path) -> None:
    photos(tmp_path / "images")
    for split, names in (("train", NAMES[:8]), ("val", NAMES[7:])):
        csv_rows(tmp_path / f"{split}.csv", ["image", "caption"], [(name, "A dog .") for name in names])
    with pytest.raises(CaptionDataError, match=r"p07\.jpg is in two splits: .*train\.csv \(train\) and .*val\.csv"):
        load_captions(tmp_path, "train", cache_dir=tmp_path / "cache", on_error="skip")


def test_bad_rows_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos(tmp_path / "images")
    rows = [f"{name},A dog ." for name in NAMES]
    rows[2], rows[5], rows[8] = "p02.jpg", 'p05.jpg,"A dog', "missing.jpg,A dog ."
    write(tmp_path / "captions.csv", "\n".join(["image,caption", *rows]))
    with pytest.raises(CaptionDataError, match=r"captions\.csv: line 4: no comma between .*\(and 2 more errors\)"):
        load_captions(tmp_path, cache_dir=tmp_path / "cache")
    skipped: list[SkippedItem] = []
    found = load_captions(tmp_path, cache_dir=tmp_path / "cache", on_error="skip", skipped=skipped)
    assert len(found) == 9 and [item.line for item in skipped] == [4, 7, 10]
    assert "3 item(s) of the caption data skipped" in caplog.text
    for line in ("line 4: no comma", "line 7: broken quotes", "line 10: photo not found"):
        assert f"captions.csv: {line}" in caplog.text


def test_the_damaged_row_of_flickr30k_is_read_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, source = drawn("kaggle_flickr30k", tmp_path)
    assert load(source, tmp_path)["p03.jpg"] == CAPTIONS
    assert "results.csv: line 9: no bar after the caption's number" in caplog.text


def test_rejected_captions_of_vizwiz_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, source = drawn("vizwiz", tmp_path)
    load(source, tmp_path, "train")
    assert "train.json: 3 captions that annotators rejected left out" in caplog.text
    assert "train.json: 1 photos all of whose captions annotators rejected left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("utf_16", "captions.txt: read as UTF-16-LE"),
        ("windows_1252", "captions.csv: not UTF-8 (byte 0xfc), read as Windows-1252 (cp1252)"),
        ("no_header", "captions.txt: no header; 'p00.jpg"),
        ("karpathy_elsewhere", "dataset_flickr8k.json: photos found in"),
        ("unpacked_one_folder_too_deep", "captions found in"),
    ],
)
def test_what_is_guessed_is_said(name: str, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, source = drawn(name, tmp_path)
    load(source, tmp_path)
    assert text in caplog.text


def test_a_forgotten_quote_does_not_swallow_the_rows_behind_it(tmp_path: Path) -> None:
    photos(tmp_path / "images")
    rows = [f'{name},"A dog, running ."' for name in NAMES]
    rows[3] = 'p03.jpg,"A dog, running .'
    write(tmp_path / "captions.csv", "\n".join(["image,caption", *rows]))
    skipped: list[SkippedItem] = []
    found = load_captions(tmp_path, cache_dir=tmp_path / "cache", on_error="skip", skipped=skipped)
    assert found["image_id"][:] == [name for name in NAMES if name != "p03.jpg"]
    assert {item.line for item in skipped} == {5}


def test_several_files_that_may_be_meant_are_listed(tmp_path: Path) -> None:
    photos(tmp_path / "images")
    for name in ("one.csv", "other.csv"):
        csv_rows(tmp_path / name, ["image", "caption"], [(photo, "A dog .") for photo in NAMES])
    with pytest.raises(CaptionDataError, match=r"several files may hold the captions: one\.csv, other\.csv; name one"):
        load_captions(tmp_path)


def test_a_column_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    _, source = drawn("any_header", tmp_path)
    with pytest.raises(
        CaptionDataError, match="no column 'photo': the columns are ID, Image Name, Photographer, Desc"
    ):
        load(source / "data.csv", tmp_path, image_column="photo")


@pytest.mark.parametrize(("numpy_list"), ["['a dog' \"a dog's bed\"]", "['a dog'\n \"a dog's bed\"]"])
def test_lists_that_numpy_wrote_are_not_joined(numpy_list: str, tmp_path: Path) -> None:
    photos(tmp_path / "images")
    csv_rows(tmp_path / "captions.csv", ["image", "captions"], [(name, numpy_list) for name in NAMES])
    rows = load_captions(tmp_path, cache_dir=tmp_path / "cache")
    assert rows["captions"][0] == ["a dog", "a dog's bed"]


def test_a_caption_in_brackets_is_no_list(tmp_path: Path) -> None:
    photos(tmp_path / "images")
    csv_rows(tmp_path / "captions.csv", ["image", "caption"], [(name, "[a sign] reads 'no'") for name in NAMES])
    assert load_captions(tmp_path, cache_dir=tmp_path / "cache")["captions"][0] == ["[a sign] reads 'no'"]


def test_a_set_of_test_photos_alone_is_whole_and_may_be_trained_on_which_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path / "data" / "test")
    csv_rows(tmp_path / "data" / "test" / "metadata.csv", ["file_name", "text"], [(name, "A dog .") for name in NAMES])
    assert len(load(tmp_path / "data", tmp_path, "test")) == 12
    train, dev = (set(load(tmp_path / "data", tmp_path, split)) for split in ("train", "dev"))
    assert train and dev and not train & dev
    assert "no split but 'test', which holds training photos then: split by a hash" in caplog.text

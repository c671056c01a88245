"""`load_captions` on folders of photos with a metadata file."""

import json
from pathlib import Path
from typing import Any

import pytest

from nic_hf.data import CaptionDataError, SkippedItem, load_captions


def make_folder(folder: Path, photos: str, metadata: str, name: str = "metadata.csv") -> Path:
    folder.mkdir(exist_ok=True)
    for photo in photos.split():
        (folder / photo).parent.mkdir(exist_ok=True)
        (folder / photo).write_bytes(b"not decoded here")
    (folder / name).write_text(metadata, "utf-8")
    return folder


def json_lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def load(source: Path, split: str | None = None, **kwargs: Any) -> dict[str, list[str]]:
    folder = source if source.is_dir() else source.parent
    dataset = load_captions(source, split, cache_dir=folder / "cache", **kwargs)
    return dict(zip(dataset["image_id"], dataset["captions"], strict=True))


@pytest.mark.parametrize("column", ["text", "caption", "captions", "sentences"])
def test_rows_of_a_csv_with_one_photo_are_gathered(tmp_path: Path, column: str) -> None:
    metadata = f'file_name,author,{column}\nb.jpg,me,"A cat, asleep ."\na.jpg,me,A dog .\nb.jpg,me,A tabby .\n'
    folder = make_folder(tmp_path, "a.jpg b.jpg", metadata)
    expected = [("b.jpg", ["A cat, asleep .", "A tabby ."]), ("a.jpg", ["A dog ."])]
    assert list(load(folder).items()) == list(load(folder / "metadata.csv").items()) == expected


def test_numbered_caption_columns_are_taken_in_order_and_may_be_empty(tmp_path: Path) -> None:
    metadata = "caption_10,file_name,caption_2,caption_1\nc,a.jpg,b,a\n,b.jpg,,A cat .\n"
    assert load(make_folder(tmp_path, "a.jpg b.jpg", metadata)) == {"a.jpg": ["a", "b", "c"], "b.jpg": ["A cat ."]}


def test_json_lines_may_hold_a_list_of_captions(tmp_path: Path) -> None:
    metadata = json_lines(
        {"file_name": "a.jpg", "captions": ["A dog .", "A brown dog ."]},
        {"file_name": "b.jpg", "text": "A cat ."},
        {"file_name": "a.jpg", "caption": "A third one ."},
    )
    folder = make_folder(tmp_path, "a.jpg b.jpg", metadata, "metadata.jsonl")
    assert load(folder) == {"a.jpg": ["A dog .", "A brown dog .", "A third one ."], "b.jpg": ["A cat ."]}


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    for split in ("train", "val", "test"):
        make_folder(tmp_path / split, "x.jpg", f"file_name,text\nx.jpg,In {split} .\n")
    return tmp_path


def test_split_folders_are_the_splits(split_folder: Path) -> None:
    assert load(split_folder, "dev") == {"val/x.jpg": ["In val ."]}
    assert load(split_folder, "train") == {"train/x.jpg": ["In train ."]}
    assert sorted(load(split_folder)) == ["test/x.jpg", "train/x.jpg", "val/x.jpg"]
    with pytest.raises(CaptionDataError, match="no split 'extra'; available: test, train, validation"):
        load(split_folder, "extra")


def test_one_metadata_file_above_split_folders_is_read_too(tmp_path: Path) -> None:
    metadata = "file_name,text\ntrain/x.jpg,A dog .\ntest/x.jpg,A cat .\nz.jpg,In no split .\n"
    folder = make_folder(tmp_path, "train/x.jpg test/x.jpg z.jpg", metadata)
    assert load(folder, "test") == {"test/x.jpg": ["A cat ."]}
    assert len(load(folder)) == 3


def test_faults_of_other_splits_do_not_hurt(split_folder: Path) -> None:
    (split_folder / "test" / "metadata.csv").write_text("file_name,text\nx.jpg,\nz.jpg,No photo .\n", "utf-8")
    assert load(split_folder, "train") == {"train/x.jpg": ["In train ."]}


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("metadata.csv", "", r"metadata\.csv: the file is empty"),
        ("metadata.csv", "label,text\n", r"metadata\.csv: line 1: no image column: expected one of image, file_name"),
        ("metadata.csv", "file_name,label\n", r"metadata\.csv: line 1: no caption column: expected one of captions, "),
        (
            "metadata.csv",
            "file_name,text\na.jpg,A\na.jpg\n",
            r"metadata\.csv: line 3: no comma between photo name and caption: 'a\.jpg'",
        ),
        ("metadata.csv", "file_name,text\na.jpg,\n", r"line 2: blank caption \(a\.jpg\)"),
        ("metadata.csv", 'file_name,text\na.jpg,"A\n', r"line 2: broken quotes"),
        ("metadata.csv", "file_name,text\n../a.jpg,A\n", r"line 2: photo name '\.\./a\.jpg' leads out"),
        ("metadata.csv", "file_name,text\nz.jpg,A\n", r"line 2: photo not found: .*z\.jpg"),
        ("metadata.jsonl", "", r"metadata\.jsonl: the file is empty"),
        ("metadata.jsonl", "{]\n", r"metadata\.jsonl: line 1: not valid JSON"),
        ("metadata.jsonl", "3\n", r"metadata\.jsonl: line 1: expected an object and found 3"),
        ("metadata.jsonl", '{"text": "A"}\n', r"line 1: no image column: expected one of image, .* and found text"),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg"}\n',
            r"line 1: no caption column: .* and found file_name",
        ),
        ("metadata.jsonl", '{"file_name": "a.jpg", "captions": [2]}\n', r"line 1: the caption is 2, not text"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "captions": []}\n', r"line 1: the photo has no caption"),
    ],
)
def test_faulty_metadata_is_an_error_that_names_the_line(
    tmp_path: Path, name: str, metadata: str, message: str
) -> None:
    folder = make_folder(tmp_path, "a.jpg", metadata, name)
    with pytest.raises(CaptionDataError, match=message):
        load(folder)


def test_skipping_leaves_out_the_faulty_rows_only(tmp_path: Path) -> None:
    metadata = json_lines(
        {"file_name": "a.jpg", "captions": ["A dog .", " ", "A brown dog ."]},
        {"file_name": "z.jpg", "text": "No photo ."},
        ["not an object"],
        {"file_name": "b.jpg", "text": "A cat ."},
    )
    folder = make_folder(tmp_path, "a.jpg b.jpg", metadata, "metadata.jsonl")
    skipped: list[SkippedItem] = []
    found = load(folder, on_error="skip", skipped=skipped)
    assert found == {"a.jpg": ["A dog .", "A brown dog ."], "b.jpg": ["A cat ."]}
    assert sorted((item.line, item.name) for item in skipped if item.name) == [(1, "a.jpg"), (2, "z.jpg")]
    assert [item.line for item in skipped if item.name is None] == [3]


def test_two_metadata_files_in_one_folder_are_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "a.jpg", "file_name,text\na.jpg,A dog .\n")
    (folder / "metadata.jsonl").write_text(json_lines({"file_name": "a.jpg", "text": "A dog ."}), "utf-8")
    with pytest.raises(CaptionDataError, match=r"holds both metadata\.csv and metadata\.jsonl; keep one"):
        load(folder)

"""`load_captions` on small Karpathy and COCO JSON files, whole and faulty."""

import json
from pathlib import Path
from typing import Any

import pytest

from nic_hf.data import CaptionDataError, SkippedItem, load_captions


def make_photos(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"not decoded here")


def write_json(file: Path, document: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document), "utf-8")
    return file


def karpathy_image(name: str, split: str = "train", *captions: str, **more: Any) -> dict[str, Any]:
    return {
        "filename": name,
        "split": split,
        "sentences": [{"raw": text} for text in captions or ("A dog .",)],
        **more,
    }


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    make_photos(tmp_path / "Images", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    images = [
        karpathy_image("b.jpg", "restval", "A cat .", "A tabby ."),
        karpathy_image("a.jpg", "train"),
        karpathy_image("c.jpg", "val"),
        karpathy_image("d.jpg", "test"),
    ]
    return write_json(tmp_path / "dataset_flickr8k.json", {"images": images, "dataset": "flickr8k"})


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    make_photos(tmp_path / "val2017", "1.jpg", "2.jpg")
    document = {
        "images": [{"id": 22, "file_name": "2.jpg"}, {"id": 11, "file_name": "1.jpg"}],
        "annotations": [
            {"image_id": 11, "id": 1, "caption": "A dog .\n"},
            {"image_id": 22, "id": 2, "caption": "A cat ."},
            {"image_id": 11, "id": 3, "caption": "A brown dog ."},
        ],
    }
    return write_json(tmp_path / "annotations" / "captions_val2017.json", document)


def load(file: Path, split: str | None = None, **kwargs: Any) -> dict[str, list[str]]:
    folder = file if file.is_dir() else file.parent
    dataset = load_captions(file, split, cache_dir=folder / "cache", **kwargs)
    return dict(zip(dataset["image_id"], dataset["captions"], strict=True))


def photo_paths(dataset: Any) -> list[str]:
    return [image["path"] for image in dataset.with_format("arrow")[:]["image"].to_pylist()]


def edit(file: Path, **changes: Any) -> None:
    write_json(file, json.loads(file.read_text("utf-8")) | changes)


def test_karpathys_restval_counts_as_train(karpathy: Path) -> None:
    assert load(karpathy, "train") == {"b.jpg": ["A cat .", "A tabby ."], "a.jpg": ["A dog ."]}
    assert list(load(karpathy)) == ["b.jpg", "a.jpg", "c.jpg", "d.jpg"]
    with pytest.raises(CaptionDataError, match="no split 'extra'; available: test, train, validation"):
        load(karpathy, "extra")


@pytest.mark.parametrize("split", ["val", "dev", "validation"])
def test_the_spellings_of_validation_are_one_split(karpathy: Path, split: str) -> None:
    assert list(load(karpathy, split)) == ["c.jpg"]


def test_a_folder_with_a_karpathy_file_is_enough(karpathy: Path) -> None:
    assert load(karpathy.parent, "test") == {"d.jpg": ["A dog ."]}


@pytest.mark.parametrize("below", ["val2014", "."])
def test_karpathys_coco_photos_are_found_with_and_without_their_folder(tmp_path: Path, below: str) -> None:
    make_photos(tmp_path / "photos" / below, "COCO_1.jpg")
    image = karpathy_image("COCO_1.jpg", filepath="val2014", cocoid=391895, imgid=0)
    file = write_json(tmp_path / "dataset_coco.json", {"images": [image]})
    dataset = load_captions(file, "train", images=tmp_path / "photos", cache_dir=tmp_path)
    assert dataset["image_id"][:] == ["391895"]
    assert [Path(path) for path in photo_paths(dataset)] == [tmp_path / "photos" / below / "COCO_1.jpg"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, r"images\[0\]: expected an object and found 3"),
        ({"sentences": [], "split": "train"}, r"images\[0\]: no photo name \(found None\)"),
        (karpathy_image("../a.jpg"), r"images\[0\]: photo name '\.\./a\.jpg' leads out of the photo folder"),
        (karpathy_image("a.jpg", filepath="../val"), r"images\[0\]: photo name '\.\./val' leads out"),
        ({"filename": "a.jpg", "split": "train"}, r"images\[0\]: \"sentences\" is not a list \(found None\)"),
        (karpathy_image("a.jpg", "train", " "), r"images\[0\]\.sentences\[0\]: blank caption \(a\.jpg\)"),
        (karpathy_image("a.jpg", "train", "A", "\ud83d"), r"images\[0\]\.sentences\[1\]: .* is not valid Unicode"),
        (
            {**karpathy_image("a.jpg"), "sentences": ["A"]},
            r"sentences\[0\]: expected an object with \"raw\" and found",
        ),
        ({**karpathy_image("a.jpg"), "sentences": []}, r"images\[0\]: the photo has no caption that can be used"),
        (karpathy_image("z.jpg"), r"images\[0\]: photo not found: .*Images.z\.jpg"),
        (karpathy_image("b.jpg"), r"images\[1\]: image b\.jpg is already at images\[0\]"),
    ],
)
def test_a_faulty_karpathy_entry_is_named_or_skipped(karpathy: Path, image: Any, message: str) -> None:
    edit(karpathy, images=[image, karpathy_image("b.jpg"), karpathy_image("c.jpg", "val")])
    with pytest.raises(CaptionDataError, match=message):
        load(karpathy, "train")
    skipped: list[SkippedItem] = []
    found = load(karpathy, "train", on_error="skip", skipped=skipped)
    assert found["b.jpg"] == ["A dog ."]
    assert found.keys() <= {"a.jpg", "b.jpg"} and (skipped[0].entry or "").startswith("images[")


def test_faults_of_other_karpathy_splits_do_not_hurt(karpathy: Path) -> None:
    edit(karpathy, images=[karpathy_image("z.jpg", "val", " "), karpathy_image("a.jpg")])
    assert list(load(karpathy, "train")) == ["a.jpg"]


def test_coco_captions_are_gathered_under_their_image(coco: Path) -> None:
    assert list(load(coco).items()) == [("22", ["A cat ."]), ("11", ["A dog .", "A brown dog ."])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [7]}, r"images\[0\]: expected an object and found 7"),
        ({"images": [{"file_name": "1.jpg"}]}, r"images\[0\]: \"id\" is neither a number nor text \(found None\)"),
        ({"images": [{"id": 11}]}, r"images\[0\]: no photo name"),
        ({"images": [{"id": 11, "file_name": "../1.jpg"}]}, r"images\[0\]: photo name '\.\./1\.jpg' leads out"),
        ({"images": [{"id": 1, "file_name": "1.jpg"}] * 2}, r"images\[1\]: image 1 is already at images\[0\]"),
        ({"annotations": ["x"]}, r"annotations\[0\]: expected an object and found 'x'"),
        (
            {"annotations": [{"image_id": 5, "caption": "A"}]},
            r"annotations\[0\]: image 5 is not in the list \"images\"",
        ),
        ({"annotations": [{"image_id": 11, "caption": ""}]}, r"annotations\[0\]: blank caption \(1\.jpg\)"),
        ({"annotations": [{"image_id": 11}]}, r"annotations\[0\]: blank caption"),
        ({"annotations": [{"image_id": 11, "caption": 5}]}, r"annotations\[0\]: the caption is 5, not text"),
        ({"annotations": []}, r"images\[0\]: the photo has no caption that can be used \(2\.jpg\)"),
    ],
)
def test_a_faulty_coco_entry_is_named(coco: Path, changes: dict[str, Any], message: str) -> None:
    edit(coco, **changes)
    with pytest.raises(CaptionDataError, match=message):
        load(coco)


def test_skipping_a_coco_annotation_keeps_the_others(coco: Path) -> None:
    annotations = json.loads(coco.read_text("utf-8"))["annotations"]
    edit(coco, annotations=[*annotations, {"image_id": 11, "caption": None}, {"image_id": 99, "caption": "A"}])
    skipped: list[SkippedItem] = []
    assert load(coco, on_error="skip", skipped=skipped) == {"22": ["A cat ."], "11": ["A dog .", "A brown dog ."]}
    assert [(item.entry, item.name) for item in skipped] == [("annotations[3]", "1.jpg"), ("annotations[4]", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "captions.json: the file is empty"),
        (b'{"images":\n[,]}', "captions.json: line 2: not valid JSON: Expecting value"),
        (b'{"images": "caf\xe9",\n "x": "caf\xc3\xa9"}', "captions.json: not valid UTF-8"),
        (b"[1, 2]", "captions.json: expected a list of objects with an image and a caption key, or a JSON object"),
        (b'{"a": 1, "b": 2}', "and found the keys a, b"),
        (b'{"images": {}}', 'a JSON object with a list "images"'),
        (b'{"images": []}', 'captions.json: the list "images" is empty'),
        (b'{"images": [{"id": 1}], "licenses": []}', "and found the keys images, licenses"),
        (b"[" * 100_000, "captions.json: not caption data: the JSON is nested too deeply"),
    ],
)
def test_json_of_another_shape_says_what_was_found(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "captions.json"
    file.write_bytes(content)
    with pytest.raises(CaptionDataError) as caught:
        load_captions(file)
    assert message in str(caught.value)


def test_json_with_a_byte_order_mark_is_accepted(karpathy: Path) -> None:
    karpathy.write_bytes(b"\xef\xbb\xbf" + karpathy.read_bytes())
    assert list(load(karpathy, "test")) == ["d.jpg"]

"""Files of captions: readable by others, whole after any end of a run, gone on with exactly, never mixed."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nic_hf.captioning import CaptionFile, PhotoItem, SidecarFiles
from nic_hf.captioning.caption_formats import FORMATS, coco_number
from nic_hf.evaluation.predictions_and_references import load_predictions

MADE_BY = {"captioner": "abc", "num_beams": 3}
NAMES = [f"photos/{number}.jpg" for number in range(8)]


def item(number: int, name: str | None = None) -> PhotoItem:
    return PhotoItem(NAMES[number] if name is None else name, "", (0, number))


def text(number: int) -> list[str]:
    return [f'a "dog", number {number}\u2028 ü']


def write(path: Path, numbers: Sequence[int], finish: bool = True, **settings: object) -> CaptionFile:
    """What a run does: all photos are met, those that have no captions get some."""
    file = CaptionFile(path, MADE_BY, **settings)  # type: ignore[arg-type]
    file.clear()
    file.open()
    file.begin()
    for number in range(8):
        if not file.is_done(item(number)) and number in numbers:
            file.add(item(number), text(number))
    file.flush()
    file.close()
    if finish:
        file.finish(True)
    return file


def rows(path: Path) -> list[tuple[str, str]]:
    """The file as other programs read it."""
    content = path.read_bytes().decode() if path.suffix != ".parquet" else ""
    if path.suffix == ".csv":
        table = list(csv.reader(content.split("\n")[:-1]))
        assert table[0] == ["image_id", "caption"]
        return [(row[0], row[1]) for row in table[1:]]
    if path.suffix == ".parquet":
        found = pq.read_table(path).to_pylist()
    elif path.suffix == ".json":
        found = json.loads(content)
        return [(row.get("file_name", row["image_id"]), row["caption"]) for row in found]
    else:
        found = [json.loads(line) for line in content.split("\n")[:-1]]
    return [(row["image_id"], row["caption"]) for row in found]


WHOLE = [(NAMES[number], text(number)[0]) for number in range(8)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_each_format_is_one_that_others_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"captions{suffix}"
    write(path, range(8))
    assert rows(path) == WHOLE
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.run.json"]
    run = json.loads((path.parent / f"{path.name}.run.json").read_text("utf-8"))
    assert run["made_by"] == MADE_BY and run["finished"] is True
    if suffix in (".json", ".jsonl"):
        loaded = load_predictions(path)
        assert list(loaded.values()) == [caption for _, caption in WHOLE]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_later_run_goes_on_and_the_order_is_that_of_the_photos(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"captions{suffix}"
    write(path, [1, 2, 6])
    second = write(path, [0, 4, 5, 7], finish=False)  # killed
    assert second.resumed == 3
    third = write(path, range(8))
    assert third.resumed == 7
    assert rows(path) == WHOLE
    before = path.read_bytes()
    assert write(path, range(8)).resumed == 8
    assert rows(path) == WHOLE and (suffix == ".parquet" or path.read_bytes() == before)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_whatever_was_cut_off_at_the_end_is_done_again(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"captions{suffix}"
    write(path, [0, 1, 2], finish=False)
    (part,) = [file for file in tmp_path.iterdir() if file.name in ("captions.jsonl", ".captions.csv.1.0.part")]
    content = part.read_bytes()
    second_line = content.index(b"\n") + 1
    for end in (0, 1, second_line - 1, second_line, second_line + 7, len(content) - 2):
        for file in tmp_path.iterdir():
            if file != part and not file.name.endswith(".run.json"):
                file.unlink()
        part.write_bytes(content[:end])
        whole = content[:end].count(b"\n")
        assert write(path, range(8)).resumed == whole
        assert rows(path) == WHOLE


def test_photos_that_are_gone_keep_their_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    file = CaptionFile(path, MADE_BY)
    file.open()
    file.begin()
    file.add(item(0, "old/photo.jpg"), ["an old one"])
    file.close()
    file.finish(True)
    write(path, range(8))
    assert rows(path) == [("old/photo.jpg", "an old one"), *WHOLE]


@pytest.mark.parametrize("suffix", FORMATS)
def test_captions_of_another_captioner_are_not_mixed_in(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"captions{suffix}"
    write(path, range(4))
    before = path.read_bytes()
    for made_by, change in [
        ({**MADE_BY, "captioner": "def"}, "captioner 'abc', now 'def'"),
        ({"captioner": "abc"}, "num_beams 3, now None"),
        ({**MADE_BY, "seed": 1}, "seed None, now 1"),
    ]:
        with pytest.raises(OSError, match=rf"cannot continue .*{change}.*--overwrite"):
            CaptionFile(path, made_by).open()
    assert path.read_bytes() == before
    write(path, [5], overwrite=True)
    assert rows(path) == [WHOLE[5]]


def test_a_file_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(OSError, match=r"it exists and is not from `nic caption`"):
        write(path, range(8))
    assert path.read_text() == "my notes\n"
    write(path, range(8), overwrite=True)
    assert rows(path) == WHOLE


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    write(path, range(3))
    path.write_bytes(b"\0" * 40 + b"\n" + path.read_bytes())
    with pytest.raises(OSError, match=r"captions\.jsonl: line 1 holds no caption"):
        write(path, range(8))


def test_what_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end in \.jsonl, \.csv, \.parquet, \.json"):
        CaptionFile(tmp_path / "captions.xml", MADE_BY)
    with pytest.raises(ValueError, match="COCO results hold one caption"):
        CaptionFile(tmp_path / "captions.json", MADE_BY, captions_a_photo=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot continue .*file"):
        CaptionFile(tmp_path / "file" / "captions.json", MADE_BY).open()


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    write(path, [3])
    files = [CaptionFile(path, MADE_BY, process=rank, processes=2) for rank in range(2)]
    for file in files:
        file.open()
    for file in files:
        file.begin()
    for number in (7, 5, 1, 3, 0, 2, 4, 6):
        file = files[number % 2]
        if not file.is_done(item(number)):
            file.add(item(number), text(number))
    for file in files:
        file.flush()
        file.close()
    files[0].finish(True)
    assert rows(path) == WHOLE
    assert len(list(tmp_path.iterdir())) == 2


def test_several_captions_a_photo(tmp_path: Path) -> None:
    captions = ["the best", "the second"]
    for suffix in (".jsonl", ".csv", ".parquet"):
        for _ in range(2):  # the second run reads what the first wrote
            file = CaptionFile(tmp_path / f"captions{suffix}", MADE_BY, captions_a_photo=2)
            file.open()
            file.begin()
            if not file.is_done(item(0)):
                file.add(item(0), captions)
            file.close()
            file.finish(True)
            assert file.find([NAMES[0]]) == {NAMES[0]: captions}
    assert json.loads((tmp_path / "captions.jsonl").read_text())["captions"] == captions
    assert (tmp_path / "captions.csv").read_text() == (
        "image_id,caption_0,caption_1\nphotos/0.jpg,the best,the second\n"
    )
    assert pq.read_table(tmp_path / "captions.parquet").to_pylist()[0]["captions"] == captions


def test_coco_results_have_numbers_where_all_photos_have_one() -> None:
    assert coco_number("val2014/COCO_val2014_000000391895.jpg") == 391895
    assert coco_number("000000000042.jpg") == coco_number("42") == 42
    assert coco_number("photo42.jpg") is None
    assert coco_number("https://host/a/42.jpg?size=1") is None


def test_coco_results_load_in_pycocotools(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    references = {
        "images": [{"id": number} for number in range(8)],
        "annotations": [{"id": 1, "image_id": 0, "caption": "a dog"}],
        "type": "captions",
        "info": {},
        "licenses": [],
    }
    (tmp_path / "references.json").write_text(json.dumps(references))
    write(tmp_path / "results.json", range(8))
    results = COCO(str(tmp_path / "references.json")).loadRes(str(tmp_path / "results.json"))
    assert [results.anns[key]["caption"] for key in sorted(results.anns)] == [caption for _, caption in WHOLE]

    file = CaptionFile(tmp_path / "mixed.json", MADE_BY)
    file.open()
    file.begin()
    for number, name in enumerate(["a/1.jpg", "b/1.jpg"]):
        file.add(item(number, name), ["a dog"])
    file.close()
    file.finish(True)
    assert [row["image_id"] for row in json.loads((tmp_path / "mixed.json").read_text())] == ["a/1.jpg", "b/1.jpg"]


def test_text_files_beside_photos(tmp_path: Path) -> None:
    sink = SidecarFiles()
    dog = PhotoItem((tmp_path / "dog.jpg").as_posix(), str(tmp_path / "dog.jpg"), (0, 0))
    assert not sink.is_done(dog)
    sink.add(dog, ["a dog", "a black dog"])
    assert (tmp_path / "dog.txt").read_text("utf-8") == "a dog\na black dog\n"
    assert SidecarFiles().is_done(dog)
    assert not SidecarFiles(overwrite=True).is_done(dog)
    cat = PhotoItem((tmp_path / "cat.jpg").as_posix(), str(tmp_path / "cat.jpg"), (0, 3))
    (tmp_path / "cat.txt").write_bytes(b"")  # as a power cut may leave it
    assert not SidecarFiles().is_done(cat)
    assert sink.find([dog.image_id]) == {dog.image_id: ["a dog", "a black dog"]}
    twin = PhotoItem((tmp_path / "dog.png").as_posix(), str(tmp_path / "dog.png"), (0, 1))
    with pytest.raises(ValueError, match=r"dog\.png: dog\.txt already has the captions of another photo"):
        sink.is_done(twin)
    with pytest.raises(ValueError, match="not a file"):
        sink.is_done(PhotoItem("https://host/a.jpg", "https://host/a.jpg", (0, 2)))

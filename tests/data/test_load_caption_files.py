"""`load_captions` on small captions.txt and token files, whole and faulty."""

import io
import logging
from pathlib import Path

import datasets
import pytest
from PIL import Image

from nic_hf.data import CaptionDataError, SkippedItem, load_captions

KAGGLE = "image,caption\na.jpg,A dog .\na.jpg,A brown dog .\nb.jpg,A cat .\n"


def make_folder(
    folder: Path, captions: str | bytes = KAGGLE, photos: str = "a b c d", name: str = "captions.txt"
) -> Path:
    (folder / "Images").mkdir()
    for photo in photos.split():
        (folder / "Images" / f"{photo}.jpg").write_bytes(b"not decoded here")
    (folder / name).write_bytes(captions if isinstance(captions, bytes) else captions.encode("utf-8"))
    return folder


def add_lists(folder: Path, **lists: str) -> None:
    for split, photos in lists.items():
        names = "".join(f"{photo}.jpg\n" for photo in photos.split())
        (folder / f"Flickr_8k.{split}Images.txt").write_text(names, "utf-8")


def load(source: Path, split: str | None = None, **kwargs: object) -> dict[str, list[str]]:
    folder = source if source.is_dir() else source.parent
    dataset = load_captions(source, split, cache_dir=folder / "cache", **kwargs)  # type: ignore[arg-type]
    return dict(zip(dataset["image_id"], dataset["captions"], strict=True))


def test_captions_of_a_photo_stay_together_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = 'image,caption\nb.jpg,"A cat, asleep ."\na.jpg,A dog .\nb.jpg,"It says ""no"" ."\n'
    found = load(make_folder(tmp_path, text))
    assert list(found.items()) == [("b.jpg", ["A cat, asleep .", 'It says "no" .']), ("a.jpg", ["A dog ."])]


def test_the_columns_are_image_image_id_and_captions(tmp_path: Path) -> None:
    dataset = load_captions(make_folder(tmp_path), cache_dir=tmp_path / "cache")
    assert dataset.features == datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("string"),
            "captions": datasets.List(datasets.Value("string")),
        }
    )


def test_byte_order_mark_windows_line_ends_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    text = "\ufeff" + KAGGLE.replace("\n", "\r\n") + "\r\n\r\n"
    assert load(make_folder(tmp_path, text)) == {"a.jpg": ["A dog .", "A brown dog ."], "b.jpg": ["A cat ."]}


def test_unicode_line_separators_do_not_end_a_caption(tmp_path: Path) -> None:
    text = "image,caption\na.jpg,Ein\u2028Hund in Köln \U0001f415\x85.\n"
    assert load(make_folder(tmp_path, text)) == {"a.jpg": ["Ein\u2028Hund in Köln \U0001f415\x85."]}


@pytest.mark.parametrize("quoted", [False, True])
def test_a_quoted_header_is_accepted(tmp_path: Path, quoted: bool) -> None:
    header = '"image","caption"\n"a.jpg","A dog ."\n' if quoted else "Image, Caption\na.jpg,A dog .\n"
    assert load(make_folder(tmp_path, header)) == {"a.jpg": ["A dog ."]}


@pytest.mark.parametrize("photos", ["Images", "Flicker8k_Dataset", "Flickr8k_Dataset"])
def test_a_token_file_is_read_from_its_folder_or_by_itself(tmp_path: Path, photos: str) -> None:
    text = "a.jpg#0\tA dog # 1 .\na.jpg#1\tA brown\tdog .\nb.jpg#0\tA cat .\n"
    make_folder(tmp_path, text, name="Flickr8k.token.txt")
    (tmp_path / "Images").rename(tmp_path / photos)
    expected = {"a.jpg": ["A dog # 1 .", "A brown\tdog ."], "b.jpg": ["A cat ."]}
    assert load(tmp_path) == load(tmp_path / "Flickr8k.token.txt") == expected


def test_a_token_file_of_another_name_is_known_by_its_lines(tmp_path: Path) -> None:
    make_folder(tmp_path, "a.jpg#0\tA dog .\n", name="mine.txt")
    assert load(tmp_path / "mine.txt") == {"a.jpg": ["A dog ."]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"captions\.txt: the file is empty; expected the header image,caption"),
        ("\n\r\n", r"captions\.txt: the file is empty"),
        ("A dog .\n", r"line 1: expected a header with an image and a caption column, .* and found 'A dog \.'"),
        ("image,label\n", r"line 1: no caption column: expected one of captions, .* and found image, label"),
        ("label,caption\n", r"line 1: no image column: expected one of image, .* and found label, caption"),
        ("image,caption\n", r"no photo with a caption"),
        (f"{KAGGLE}\na.jpg\n", r"captions\.txt: line 6: no comma between photo name and caption: 'a\.jpg'"),
        (f"{KAGGLE}a.jpg,\n", r"captions\.txt: line 5: blank caption \(a\.jpg\)"),
        (f"{KAGGLE}a.jpg,  \n", r"line 5: blank caption"),
        (f'{KAGGLE}a.jpg,"\t"\n', r"line 5: blank caption"),
        (f"{KAGGLE},A dog\n", r"line 5: no photo name \(found ''\)"),
        (f'{KAGGLE}a.jpg,"One", two\n', r"line 5: 3 fields where 2 are expected; .* quotes \(a\.jpg\)"),
        (f'{KAGGLE}a.jpg,"One\nb.jpg,two"\n', r"line 5: broken quotes .* \(a\.jpg\)"),
        (f"{KAGGLE}z.jpg,No photo\n", r"line 5: photo not found: .*Images.z\.jpg"),
        (b"image,caption\na.jpg,caf\xe9\na.jpg,caf\xc3\xa9", r"captions\.txt: line 2: not valid UTF-8 \(byte 0xe9\)"),
        ("image,caption\na.jpg,собака бежит\n".encode("cp1251"), r"captions\.txt: not UTF-8 \(byte 0xf1\); save the"),
        ("image,caption\na.jpg,A dog\n".encode("utf-16")[:-1], r"captions\.txt: not valid UTF-16-LE; save the file"),
    ],
)
def test_a_faulty_captions_file_is_an_error_that_names_the_place(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    make_folder(tmp_path, text)
    with pytest.raises(CaptionDataError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg A dog", r"line 2: expected name\.jpg#number, a tab and a caption, and found 'a\.jpg A dog'"),
        ("a.jpg#x\tA dog", r"line 2: expected name\.jpg#number"),
        ("a.jpg#1\t ", r"line 2: blank caption \(a\.jpg\)"),
        ("#1\tA dog", r"line 2: expected name\.jpg#number"),
    ],
)
def test_a_faulty_token_line_is_an_error_that_names_the_line(tmp_path: Path, line: str, message: str) -> None:
    make_folder(tmp_path, f"a.jpg#0\tA dog .\n{line}\n", name="Flickr8k.token.txt")
    with pytest.raises(CaptionDataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../x.jpg", "in/../../x.jpg", "..\\x.jpg", "C:\\..\\x.jpg", "a/.."])
def test_a_name_that_leads_out_of_the_photo_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.jpg").write_bytes(b"outside")
    make_folder(tmp_path, f"{KAGGLE}{name},A dog .\n")
    with pytest.raises(CaptionDataError, match=r"line 5: .* leads out of the photo folder"):
        load(tmp_path)
    assert list(load(tmp_path, on_error="skip")) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("name", ["/etc/x.jpg", "C:x.jpg", "D:\\photos\\x.jpg", "\\\\host\\share\\x.jpg"])
def test_an_absolute_path_is_looked_for_below_the_photo_folder_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.jpg").write_bytes(b"outside")
    data = tmp_path / "data"
    data.mkdir()
    make_folder(data, f"{KAGGLE}{name},A bird .\n")
    with pytest.raises(CaptionDataError, match=r"line 5: photo not found: .*Images"):
        load(data)
    (data / "Images" / "x.jpg").write_bytes(b"inside")
    dataset = load_captions(data, cache_dir=tmp_path / "cache").with_format("arrow")
    assert dataset[2]["image"].to_pylist() == [{"bytes": None, "path": str(data / "Images" / "x.jpg")}]


def test_a_photo_of_zero_bytes_is_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "Images" / "b.jpg").write_bytes(b"")
    with pytest.raises(CaptionDataError, match=r"line 4: photo .*b\.jpg is empty \(0 bytes\)"):
        load(tmp_path)


def test_a_folder_in_the_place_of_a_photo_is_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path, photos="a")
    (tmp_path / "Images" / "b.jpg").mkdir()
    with pytest.raises(CaptionDataError, match=r"photo not found: .*b\.jpg"):
        load(tmp_path)


def test_skipping_leaves_out_nothing_but_the_named_items(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        b'image,caption\na.jpg,A dog .\na.jpg,\na.jpg,caf\xe9\nno comma\nb.jpg,A caf\xc3\xa9 .\na.jpg,"One", two\n'
        b'c.jpg,  \nz.jpg,No photo .\nz.jpg,None .\na.jpg,"Open\na.jpg,A last dog .\nd.jpg,A bird .\n'
    )
    make_folder(tmp_path, text)
    (tmp_path / "Images" / "d.jpg").write_bytes(b"")
    skipped: list[SkippedItem] = []
    with caplog.at_level(logging.WARNING, logger="nic_hf"):
        found = load(tmp_path, on_error="skip", skipped=skipped)
    assert found == {"a.jpg": ["A dog .", "A last dog ."], "b.jpg": ["A café ."]}
    assert sorted((item.line, item.name) for item in skipped if item.line != 4 and item.line != 5) == [
        (3, "a.jpg"),
        (7, "a.jpg"),
        (8, "c.jpg"),
        (8, "c.jpg"),
        (9, "z.jpg"),
        (11, "a.jpg"),
        (13, "d.jpg"),
    ]
    assert sorted(item.line or 0 for item in skipped if item.name is None) == [4, 5]
    assert {item.file for item in skipped} == {str(tmp_path / "captions.txt")}
    assert any(item.name == "c.jpg" and "no caption that can be used" in item.reason for item in skipped)
    (record,) = caplog.records
    assert record.getMessage().startswith("9 item(s) of the caption data skipped")
    assert "captions.txt: line 3: blank caption (a.jpg)" in record.getMessage()


def test_the_warning_shows_the_first_twenty_skipped_items(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path, KAGGLE + "a.jpg,\n" * 25)
    with caplog.at_level(logging.WARNING, logger="nic_hf"):
        load(tmp_path, on_error="skip")
    message = caplog.records[0].getMessage()
    assert message.count("blank caption") == 20
    assert message.startswith("25 item") and message.endswith("and 5 more")


def test_whole_data_is_loaded_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    skipped: list[SkippedItem] = []
    load(make_folder(tmp_path), on_error="skip", skipped=skipped)
    assert not caplog.records and not skipped


def test_nothing_left_after_skipping_is_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path, "image,caption\na.jpg,\n")
    with pytest.raises(CaptionDataError, match="no photo with a caption that can be used"):
        load(tmp_path, on_error="skip")


def test_on_error_takes_two_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        load(make_folder(tmp_path), on_error="ignore")


def test_a_split_is_what_its_list_names_in_the_order_of_the_captions(tmp_path: Path) -> None:
    make_folder(tmp_path, KAGGLE + "c.jpg,A cow .\nd.jpg,A duck .\n")
    add_lists(tmp_path, train="c a", dev="b")
    assert list(load(tmp_path, "train")) == ["a.jpg", "c.jpg"]
    assert load(tmp_path, "dev") == load(tmp_path, "validation") == load(tmp_path, "val") == {"b.jpg": ["A cat ."]}
    assert list(load(tmp_path)) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_an_unknown_split_lists_the_available_ones(tmp_path: Path) -> None:
    make_folder(tmp_path)
    add_lists(tmp_path, train="a", dev="b")
    with pytest.raises(CaptionDataError, match=r"no split 'test'; available: train, validation"):
        load(tmp_path, "test")


def test_a_list_of_test_photos_alone_leaves_the_others_for_training(tmp_path: Path) -> None:
    make_folder(tmp_path, KAGGLE + "c.jpg,A cow .\nd.jpg,A duck .\n")
    add_lists(tmp_path, test="b")
    assert list(load(tmp_path, "test")) == ["b.jpg"]
    rest = [*load(tmp_path, "train"), *load(tmp_path, "dev")]
    assert sorted(rest) == ["a.jpg", "c.jpg", "d.jpg"]


@pytest.mark.parametrize("split", [None, "train", "test"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_lists_that_share_a_photo_are_always_an_error(tmp_path: Path, split: str | None, on_error: str) -> None:
    make_folder(tmp_path)
    add_lists(tmp_path, train="c a", dev="d", test="b a")
    message = r"a\.jpg is in two splits: .*trainImages\.txt \(line 2\) and .*testImages\.txt \(line 2\)"
    with pytest.raises(CaptionDataError, match=message):
        load(tmp_path, split, on_error=on_error)


def test_a_list_that_names_a_photo_without_captions_is_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path, KAGGLE + "d.jpg,A duck .\n")
    add_lists(tmp_path, train="a c", dev="d", test="b")
    with pytest.raises(CaptionDataError, match=r"trainImages\.txt: line 2: c\.jpg has no caption in .*captions\.txt"):
        load(tmp_path, "train")
    assert list(load(tmp_path, "train", on_error="skip")) == ["a.jpg"]
    assert list(load(tmp_path, "test")) == ["b.jpg"]


def test_a_list_that_names_a_photo_twice_is_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path)
    add_lists(tmp_path, train="a b a")
    with pytest.raises(CaptionDataError, match=r"trainImages\.txt: line 3: a\.jpg is already on line 1"):
        load(tmp_path, "train")


def test_faults_of_photos_in_other_splits_do_not_hurt(tmp_path: Path) -> None:
    make_folder(tmp_path, KAGGLE + "z.jpg,No photo .\nb.jpg,\nb.jpg,\nd.jpg,A duck .\n")
    add_lists(tmp_path, train="a", dev="d", test="b")
    assert load(tmp_path, "train") == {"a.jpg": ["A dog .", "A brown dog ."]}
    with pytest.raises(CaptionDataError, match="line 6"):
        load(tmp_path, "test")


def test_photos_are_decoded_when_their_row_is_read_and_not_before(tmp_path: Path) -> None:
    make_folder(tmp_path)
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG")
    (tmp_path / "Images" / "a.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "Images" / "b.jpg").write_bytes(buffer.getvalue()[:600])
    dataset = load_captions(tmp_path, cache_dir=tmp_path / "cache")
    assert dataset[0]["image"].size == (256, 256)
    assert dataset["captions"][1] == ["A cat ."]
    with pytest.raises(OSError, match="truncated"):
        dataset[1]


def test_the_photo_folder_can_be_named(tmp_path: Path) -> None:
    data, photos = tmp_path / "sets" / "dogs" / "text", tmp_path / "photos"
    data.mkdir(parents=True)
    make_folder(data)
    (data / "Images").rename(photos)
    with pytest.raises(CaptionDataError, match=r"no photo folder; looked for .*Images.*; name it with images="):
        load(data)
    with pytest.raises(CaptionDataError, match=r"images='.*nowhere' is not a folder"):
        load(data, images=tmp_path / "nowhere")
    assert list(load(data, images=photos)) == ["a.jpg", "b.jpg"]


def test_photos_next_to_the_captions_folder_are_never_taken_but_named(tmp_path: Path) -> None:
    """They may be those of another data set."""
    (tmp_path / "text").mkdir()
    make_folder(tmp_path / "text")
    (tmp_path / "text" / "Images").rename(tmp_path / "pictures")
    with pytest.raises(CaptionDataError, match=r"no photo folder; .* \(photos of these names are in .*pictures\)"):
        load(tmp_path / "text" / "captions.txt")
    # Whoever names the folder of both means these.
    assert list(load(tmp_path)) == ["a.jpg", "b.jpg"]


def test_photos_may_lie_in_subfolders(tmp_path: Path) -> None:
    make_folder(tmp_path, "image,caption\ndogs/a.jpg,A dog .\n./b.jpg,A cat .\nb.jpg,A kitten .\n")
    (tmp_path / "Images" / "dogs").mkdir()
    (tmp_path / "Images" / "a.jpg").rename(tmp_path / "Images" / "dogs" / "a.jpg")
    assert load(tmp_path) == {"dogs/a.jpg": ["A dog ."], "b.jpg": ["A cat .", "A kitten ."]}


@pytest.mark.parametrize("name", ["nowhere/captions.txt", "/nowhere/at/all", "../nowhere"])
def test_a_source_that_is_not_there_lists_the_supported_forms(name: str) -> None:
    with pytest.raises(
        CaptionDataError, match=r"no such file or folder; supported: a folder or file .*captions\.txt.*COCO"
    ):
        load_captions(name)


def test_a_file_of_another_kind_lists_the_supported_forms(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(CaptionDataError, match=r"photo\.jpg: not a captions file; supported: .*Karpathy"):
        load_captions(tmp_path / "photo.jpg")


def test_a_source_of_another_type_lists_the_supported_forms() -> None:
    with pytest.raises(CaptionDataError, match=r"from a dict; supported: .*Karpathy"):
        load_captions({"image": []})  # type: ignore[arg-type]

"""Which photos are meant: every way to name them, in a fixed order, dealt out to processes without loss."""

import io
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from shards import write_tar

from nic_hf.captioning import PhotoSources
from nic_hf.images import load_photo
from nic_hf.photo_files import is_photo_name, left_out_line


def ids(sources: PhotoSources) -> list[str]:
    return [item.image_id for item in sources.items()]


def encoded(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, "PNG")
    return stream.getvalue()


def shard(path: Path, *keys: str) -> str:
    members = [(f"{key}.png", encoded("red")) for key in keys]
    members.insert(1, (f"{keys[0]}.txt", b"a caption, which is of no use here"))
    return str(write_tar(path, members))


def test_a_folder_with_its_subfolders(photos: Path, paths: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden.png").write_bytes(encoded("red"))
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "a.png").write_bytes(encoded("red"))
    assert ids(PhotoSources([str(folder)])) == [(folder / path.relative_to(photos)).as_posix() for path in paths]
    assert PhotoSources([str(folder)]).count() == 13


NO_PHOTOS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
OPENED = [".jfif", ".jpe", ".jp2", ".mpo", ".heic", ".heif", ".avif", ".tga", ".ico", ".psd", ".dib", ".pgm", ".pnm"]


def test_a_photo_has_the_suffix_of_any_format_that_can_be_opened(tmp_path: Path) -> None:
    for suffix in OPENED:
        (tmp_path / f"x{suffix}").write_bytes(b"")
        (tmp_path / f"y{suffix.upper()}").write_bytes(b"")
    for suffix in (".txt", ".pdf", ".eps", ".mpg", ".h5", ""):
        (tmp_path / f"x{suffix}").write_bytes(b"")
    Image.init()
    for suffix, kind in Image.registered_extensions().items():
        assert is_photo_name(f"x{suffix}") or kind in {"PDF", "PALM", *NO_PHOTOS}, suffix
    sources = PhotoSources([str(tmp_path)])
    assert {Path(name).suffix.lower() for name in ids(sources)} == set(OPENED)
    assert sources.count() == 2 * len(OPENED)
    assert sources.left_out == Counter({".txt": 1, ".pdf": 1, ".eps": 1, ".mpg": 1, ".h5": 1, "": 1})


def test_what_is_left_out_of_folders_and_patterns_is_counted(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("a.txt", "sub/b.txt", "c.mp4", "README", ".hidden"):
        (tmp_path / "photos" / name).write_text("no photo")
    wanted = Counter({".txt": 2, ".mp4": 1, "": 1})
    folder = PhotoSources([str(tmp_path / "photos")])
    assert len(ids(folder)) == 13 and folder.count() == 13 and folder.left_out == wanted
    assert len(ids(folder)) == 13 and folder.left_out == wanted, "not twice as many the second time"
    pattern = PhotoSources([str(tmp_path / "photos" / "*.*"), "https://host/a.jpg"])
    assert len(ids(pattern)) == 11 and pattern.left_out == Counter({".txt": 1, ".mp4": 1})
    assert left_out_line(wanted) == "4 other files left out (.txt: 2, .mp4: 1, no suffix: 1)"
    assert left_out_line(Counter({".md": 1})) == "1 other file left out (.md: 1)" and left_out_line(Counter()) == ""


def test_what_lies_beside_tar_files_is_counted(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", "1")
    (tmp_path / "index.json").write_text("{}")
    sources = PhotoSources([str(tmp_path)])
    assert len(ids(sources)) == 1 and sources.left_out == Counter({".json": 1})


def test_photos_of_any_suffix_are_found_in_tar_files(tmp_path: Path) -> None:
    members = [(f"{number}{suffix}", encoded("red")) for number, suffix in enumerate(OPENED)]
    sources = PhotoSources([str(write_tar(tmp_path / "0.tar", [*members, ("notes.md", b"no photo")]))])
    assert [Path(name).suffix for name in ids(sources)] == OPENED


def test_files_patterns_and_addresses(photos: Path) -> None:
    first = photos / "photo00.png"
    assert ids(PhotoSources([str(photos / "photo0?.png")])) == [
        (photos / f"photo0{number}.png").as_posix() for number in (0, 1, 2, 4, 5, 6, 8, 9)
    ]
    assert len(ids(PhotoSources([str(photos / "**" / "*.png")]))) == 13
    assert ids(PhotoSources([str(photos / "photo{01,00}.png")])) == [
        (photos / name).as_posix() for name in ("photo01.png", "photo00.png")
    ]
    both = PhotoSources(["https://host/a.jpg?size=1", str(first)])
    assert ids(both) == ["https://host/a.jpg?size=1", first.as_posix()] and both.count() == 2
    assert [item.key for item in both.items()] == [(0, 0), (1, 0)]


def test_a_name_with_brackets_is_a_name_where_there_is_such_a_file(tmp_path: Path) -> None:
    path = tmp_path / "photo[1].png"
    path.write_bytes(encoded("red"))
    assert ids(PhotoSources([str(path)])) == [path.as_posix()]


def test_lists_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "a b.jpg\r\n\nhttps://host/c.jpg\n  leading.jpg\nü.jpg"
    (tmp_path / "list.txt").write_text("\ufeff" + lines, "utf-8", newline="")
    sources = PhotoSources(lists=[tmp_path / "list.txt"])
    assert ids(sources) == ["a b.jpg", "https://host/c.jpg", "  leading.jpg", "ü.jpg"]
    assert sources.count() == 4
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    stdin = PhotoSources(["-"])
    assert stdin.uses_stdin and stdin.count() is None
    assert ids(stdin) == ids(sources)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_utf8_is_found_and_written_with_escapes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/gr\xfcn.png"
    with open(name, "wb") as file:  # noqa: PTH123 - a name of bytes
        file.write(encoded("green"))
    (tmp_path / "list.txt").write_bytes(name)
    for sources in (PhotoSources([str(tmp_path)]), PhotoSources(lists=[tmp_path / "list.txt"])):
        (item,) = sources.items()
        assert item.image_id == f"{tmp_path.as_posix()}/gr\\xfcn.png"
        assert load_photo(item.source).getpixel((0, 0)) == (0, 128, 0)


def test_tar_files(tmp_path: Path) -> None:
    first, second = shard(tmp_path / "s" / "0.tar", "1", "2"), shard(tmp_path / "s" / "1.tar", "1")
    names = [f"{Path(first).as_posix()}/1.png", f"{Path(first).as_posix()}/2.png", f"{Path(second).as_posix()}/1.png"]
    for path in (str(tmp_path / "s"), str(tmp_path / "s" / "*.tar"), str(tmp_path / "s" / "{0..1}.tar")):
        items = list(PhotoSources([path]).items())
        assert [item.image_id for item in items] == names
        assert load_photo(items[1].source).getpixel((0, 0)) == (255, 0, 0)


def test_a_damaged_tar_file_costs_what_is_behind_the_damage(tmp_path: Path) -> None:
    path = Path(shard(tmp_path / "0.tar", "1", "2", "3"))
    path.write_bytes(path.read_bytes()[:2600])
    whole = shard(tmp_path / "1.tar", "1")
    items = list(PhotoSources([str(path), whole]).items())
    assert items[0].problem is None and items[-1].problem is None
    assert [item.problem for item in items[1:-1] if item.problem and "damaged" in item.problem]


def test_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    (tmp_path / "data" / "test" / "a.png").write_bytes(encoded("blue"))
    (tmp_path / "data" / "test" / "metadata.csv").write_text("file_name,caption\na.png,blue\n")
    (item,) = PhotoSources(data=str(tmp_path / "data"), split="test").items()
    assert item.image_id.endswith("a.png")
    assert load_photo(item.source).getpixel((0, 0)) == (0, 0, 255)


def test_what_is_not_there_is_said_at_once(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no photo")
    for path, message in [
        ("nowhere/photo.jpg", "nowhere/photo.jpg: no such file or folder"),
        ("nowhere/*.jpg", "no file matches"),
        ("nowhere.tar", "nowhere.tar: no such file"),
        (str(tmp_path / "empty"), "empty: no photos in this folder"),
        (str(tmp_path / "notes"), r"notes: no photos in this folder; 1 other file left out \(.txt: 1\)"),
    ]:
        with pytest.raises((FileNotFoundError, ValueError), match=message.replace("*", r"\*")):
            PhotoSources([path])
    with pytest.raises(ValueError, match="no photos: name files"):
        PhotoSources()
    with pytest.raises(ValueError, match="once only"):
        PhotoSources(["-", "-"])
    with pytest.raises(FileNotFoundError, match=r"list\.txt: no such file"):
        PhotoSources(lists=["list.txt"])


def test_a_folder_that_cannot_be_read_is_a_broken_photo(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    sources = PhotoSources([str(tmp_path / "photos")])
    shutil.rmtree(tmp_path / "photos")
    (item,) = sources.items()
    assert item.source is None and item.problem is not None and "the folder cannot be read" in item.problem


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_photos_without_loss(
    processes: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [shard(tmp_path / f"{number}.tar", *"abc") for number in range(5)]
    monkeypatch.chdir(photos.parent)  # photos are shared by a hash of their names: give them the same in each run
    for paths in ([photos.name], shards, [*shards[:1], photos.name]):
        sources = PhotoSources(paths)
        shares = [list(sources.items(rank, processes)) for rank in range(processes)]
        together = sorted((item for share in shares for item in share), key=lambda item: item.key)
        assert together == list(sources.items())
        assert all(shares)


def test_a_photo_stays_with_its_process_when_others_are_added(photos: Path) -> None:
    few, all_ = PhotoSources([str(photos / "sub")]), PhotoSources([str(photos)])
    for rank in range(2):
        assert {item.image_id for item in few.items(rank, 2)} <= {item.image_id for item in all_.items(rank, 2)}


def test_a_source_that_is_named_twice_is_read_once(photos: Path) -> None:
    assert len(ids(PhotoSources([str(photos), str(photos)]))) == 13

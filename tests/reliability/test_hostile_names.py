"""Names that lead elsewhere, links, markup in captions: none gets where it should not."""

import gzip
import io
import json
import re
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hard_images import encoded, photo

import nic_hf
from nic_hf.captioning.photo_sources import PhotoSources
from nic_hf.data import CaptionDataError, SkippedItem, load_captions
from nic_hf.data.tar_shards import tar_rows
from nic_hf.images import load_photo

OUTSIDE = [
    "../secret.jpg",
    "/etc/passwd",
    "C:secret.jpg",
    "C:\\secret.jpg",
    "a/../../secret.jpg",
    "\\\\host\\x.jpg",
    "..\\secret.jpg",
    "a.jpg\0.png",
]


def caption_files(name: str) -> dict[str, str]:
    return {
        "captions.txt": f'image,caption\n"{name}",a dog\na.jpg,a cat\n',
        "Flickr8k.token.txt": f"{name}#0\ta dog\na.jpg#0\ta cat\n",
        "Images/metadata.jsonl": "\n".join(json.dumps({"file_name": n, "caption": "a cat"}) for n in (name, "a.jpg")),
        "dataset_coco.json": json.dumps(
            {"images": [{"filename": n, "sentences": [{"raw": "a cat"}]} for n in (name, "a.jpg")]}
        ),
        "captions.jsonl": "\n".join(json.dumps({"image": n, "caption": "a cat"}) for n in (name, "a.jpg")),
        "list.json": json.dumps([{"image": n, "caption": "a cat"} for n in (name, "a.jpg")]),
        "names.json": json.dumps({name: ["a dog"], "a.jpg": ["a cat"]}),
        "results.csv": f"image_name| comment_number| comment\n{name}| 0| a dog\na.jpg| 0| a cat\n",
        "captions_x.json": json.dumps(
            {
                "images": [{"id": 1, "file_name": name}, {"id": 2, "file_name": "a.jpg"}],
                "annotations": [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a cat"}],
            }
        ),
    }


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("file", list(caption_files("")))
def test_no_name_leads_out_of_the_photo_folder(name: str, file: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "Images" / "a").mkdir(parents=True)
    for path in (root / "Images" / "a.jpg", tmp_path / "secret.jpg"):
        path.write_bytes(b"photo")
    (root / file).write_text(caption_files(name)[file])
    skipped: list[SkippedItem] = []
    rows = load_captions(root / file, on_error="skip", skipped=skipped, cache_dir=tmp_path / "cache")
    photo = {"bytes": None, "path": str(root / "Images" / "a.jpg")}
    assert rows.with_format("arrow")[:]["image"].to_pylist() == [photo]
    # An absolute path is looked for below the photo folder, and a name with dots nowhere.
    assert any(re.search("leads out of the photo folder|photo not found", str(item)) for item in skipped), skipped
    with pytest.raises(CaptionDataError, match=r"leads out of the photo folder|photo not found"):
        load_captions(root / file, cache_dir=tmp_path / "cache")


def test_nothing_of_an_archive_is_unpacked_and_its_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    shard = tmp_path / "folder" / "shard.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as tar:
        for name in ("../../evil.jpg", "/evil.jpg", "a/../evil.jpg"):
            for suffix, content in ((".jpg", encoded(photo(), "JPEG")), (".txt", b"a dog")):
                member = tarfile.TarInfo(name.replace(".jpg", suffix))
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    rows = list(tar_rows([str(shard)], "skip"))
    assert len(rows) == 3 and all(row["captions"] == ["a dog"] for row in rows)
    assert not any(b"secret" in row["image"]["bytes"] for row in rows)
    assert len(list(PhotoSources([str(shard)]).items())) == 3
    assert sorted(tmp_path.rglob("*")) == before and not Path("/evil.jpg").exists()


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    """The header of a member that claims `size` bytes, and what is there of it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    ("name", "kind", "problem"),
    [
        ("a.jpg", tarfile.REGTYPE, "a: a.jpg has 419,430,400 bytes; 209,715,200 are the most"),
        ("a.txt", tarfile.REGTYPE, "a: a.txt has 419,430,400 bytes; 209,715,200 are the most"),
        ("a", tarfile.GNUTYPE_LONGNAME, "a name or a header in it claims 419,430,400 bytes"),
        ("a", tarfile.GNUTYPE_LONGLINK, "a name or a header in it claims 419,430,400 bytes"),
        ("a", tarfile.XHDTYPE, "a name or a header in it claims 419,430,400 bytes"),
    ],
)
def test_a_small_archive_that_unpacks_to_much_fills_no_memory(
    name: str, kind: bytes, problem: str, tmp_path: Path
) -> None:
    shard, size, sound = tmp_path / "shard.tar.gz", 400 * 2**20, encoded(photo(), "JPEG")
    with gzip.open(shard, "wb", compresslevel=1) as file:
        file.write(member(name, size, kind))
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
        file.write(member("b.jpg", len(sound), content=sound) + member("b.txt", 5, content=b"a dog") + bytes(1024))
    assert shard.stat().st_size < 4 * 2**20
    tracemalloc.start()
    try:
        rows = list(tar_rows([str(shard)], "skip"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(shard) in rows[0]["problem"] and problem in rows[0]["problem"]
    assert kind != tarfile.REGTYPE or rows[1]["captions"] == ["a dog"], "what comes behind it is read"
    assert peak < 32 * 2**20


def test_an_archive_with_a_hole_in_it_fills_no_memory(tmp_path: Path) -> None:
    """A sparse file of a terabyte, of which nothing is stored."""
    fields = b"".join(
        f"{len(line) + 3} {line}".encode()  # its own length first, here of two digits
        for line in ("GNU.sparse.size=1099511627776\n", "GNU.sparse.numblocks=0\n", "GNU.sparse.map=0,0\n")
    )
    shard = tmp_path / "shard.tar"
    shard.write_bytes(member("x", len(fields), tarfile.XHDTYPE, fields) + member("a.jpg", 0) + bytes(1024))
    (row,) = tar_rows([str(shard)], "skip")
    assert row["image"] is None and f"{shard}: a: a.jpg has 1,099,511,627,776 bytes" in row["problem"]


def test_links_in_a_folder_end_and_do_not_loop(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo().save(tmp_path / "photos" / "a.jpg")
    try:
        (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos", target_is_directory=True)
        (tmp_path / "photos" / "nothing.jpg").symlink_to(tmp_path / "missing")
    except OSError:
        pytest.skip("this system makes no links")
    items = list(PhotoSources([str(tmp_path / "photos")]).items())
    assert [Path(item.image_id).name for item in items] == ["a.jpg", "nothing.jpg"]
    with pytest.raises(OSError, match=r"nothing\.jpg"):
        load_photo(items[1].source)


def test_the_report_escapes_whatever_it_is_given() -> None:
    folder = Path(nic_hf.__file__).parent / "evaluation" / "suite"
    template = (folder / "templates" / "report.html.jinja").read_text("utf-8")
    assert not re.search(r"\|\s*safe|autoescape\s+false|<script", template)
    marked = re.findall(r"Markup\((.*?)\)", (folder / "report.py").read_text("utf-8"))
    assert marked == ["plots.svg(figure"], "only plots are put in as they are"

"""Names that lead elsewhere, links, markup in captions: none gets where it should not."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from hard_images import encoded, photo

import nic_hf
from nic_hf.bulk.sources import PhotoSources
from nic_hf.data.loading import _read_file
from nic_hf.data.problems import CaptionDataError, Problems, SkippedItem
from nic_hf.data.tar_shards import tar_rows
from nic_hf.images_nic import load_photo

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
    for path in (root / "Images" / "a.jpg", root / "secret.jpg", root / "Images" / "secret.jpg"):
        path.write_bytes(b"photo")
    (root / file).write_text(caption_files(name)[file])
    skipped: list[SkippedItem] = []
    rows = _read_file(root / file, None, None, Problems("skip", skipped))
    assert [row.path for row in rows] == [str(root / "Images" / "a.jpg")]
    assert any("leads out of the photo folder" in str(item) for item in skipped), skipped
    with pytest.raises(CaptionDataError, match="leads out of the photo folder"):
        _read_file(root / file, None, None, Problems("raise"))


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
    marked = re.findall(r"Markup\((.*?)\)", (folder / "pages.py").read_text("utf-8"))
    assert marked == ["figures.svg(figure"], "only plots are put in as they are"

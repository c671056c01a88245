"""Where `load_captions` keeps its rows: memory-mapped, never stale, never half written."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest

from nic_hf.data import arrow_files, load_captions

ROWS = 2500


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """More rows than one batch of the Arrow file."""
    (tmp_path / "data" / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(ROWS):
        (tmp_path / "data" / "Images" / f"{number}.jpg").write_bytes(b"SECRET OF THE PHOTO")
        lines.append(f"{number}.jpg,Caption {number} .")
    (tmp_path / "data" / "captions.txt").write_text("\n".join(lines), "utf-8")
    return tmp_path / "data"


def arrow_file(dataset: Any) -> Path:
    (file,) = dataset.cache_files
    return Path(file["filename"])


def test_the_rows_are_memory_mapped_from_a_file_without_photo_bytes(folder: Path, tmp_path: Path) -> None:
    dataset = load_captions(folder, cache_dir=tmp_path / "cache")
    assert dataset["captions"][:] == [[f"Caption {number} ."] for number in range(ROWS)]
    assert arrow_file(dataset).parent == tmp_path / "cache"
    assert isinstance(dataset.data, datasets.table.MemoryMappedTable)
    assert b"SECRET" not in arrow_file(dataset).read_bytes()


def test_the_default_place_is_the_cache_of_datasets(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    assert arrow_file(load_captions(folder)).parent == tmp_path / "hf" / "nic_hf"


def test_an_unchanged_source_is_written_once(folder: Path, tmp_path: Path) -> None:
    first = load_captions(folder, cache_dir=tmp_path / "cache")
    written = arrow_file(first).stat().st_mtime_ns
    again = load_captions(folder, cache_dir=tmp_path / "cache")
    assert arrow_file(again) == arrow_file(first)
    assert arrow_file(again).stat().st_mtime_ns == written
    assert again._fingerprint == first._fingerprint


def test_an_edited_captions_file_gives_its_present_captions(folder: Path, tmp_path: Path) -> None:
    before = load_captions(folder, cache_dir=tmp_path / "cache")
    file = folder / "captions.txt"
    times = file.stat()
    file.write_text(file.read_text("utf-8").replace("Caption 7 .", "CAPTION 7 ."), "utf-8")
    # The same length and the same time: only the content tells.
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load_captions(folder, cache_dir=tmp_path / "cache")
    assert (before["captions"][7], after["captions"][7]) == (["Caption 7 ."], ["CAPTION 7 ."])
    assert before._fingerprint != after._fingerprint


def test_an_edited_split_list_gives_its_present_photos(folder: Path, tmp_path: Path) -> None:
    for names in ("1.jpg\n2.jpg\n", "2.jpg\n3.jpg\n"):
        (folder / "Flickr_8k.testImages.txt").write_text(names, "utf-8")
        dataset = load_captions(folder, "test", cache_dir=tmp_path / "cache")
        assert dataset["image_id"][:] == names.split()


def test_a_replaced_photo_changes_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    before = load_captions(folder, cache_dir=tmp_path / "cache")
    (folder / "Images" / "5.jpg").write_bytes(b"another photo")
    # What map() cached from the photo is found by this fingerprint.
    assert load_captions(folder, cache_dir=tmp_path / "cache")._fingerprint != before._fingerprint


def test_a_relative_source_still_opens_after_a_change_of_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    dataset = load_captions(folder.name, cache_dir="cache")
    monkeypatch.chdir(folder)
    image = dataset.cast_column("image", datasets.Image(decode=False))[3]["image"]
    assert Path(image["path"]).samefile(folder / "Images" / "3.jpg")


def test_a_failure_while_writing_leaves_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = arrow_files._batches

    def disk_full(records: Any) -> Any:
        yield next(iter(whole(records)))
        raise OSError("no space left on device")

    monkeypatch.setattr(arrow_files, "_batches", disk_full)
    with pytest.raises(OSError, match="no space left"):
        load_captions(folder, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert len(load_captions(folder, cache_dir=tmp_path / "cache")) == ROWS


def test_a_file_that_windows_will_not_replace_is_taken_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    replace, refused = os.replace, []

    def other_process_was_first(source: Path, target: Path) -> None:
        replace(source, target)
        Path(source).write_bytes(b"what this process wrote")
        refused.append(target)
        raise PermissionError(13, "in use", str(target))

    monkeypatch.setattr(os, "replace", other_process_was_first)
    dataset = load_captions(folder, cache_dir=cache)
    assert refused == [arrow_file(dataset)]
    assert len(dataset) == ROWS
    assert list(cache.iterdir()) == [arrow_file(dataset)]


def test_two_loads_at_once_agree_on_one_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    both_write = threading.Barrier(2, timeout=30)
    write = arrow_files._write

    def write_together(*args: Any) -> None:
        both_write.wait()
        write(*args)

    # Neither sees the file of the other when it decides to write.
    monkeypatch.setattr(arrow_files, "_write", write_together)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(load_captions, folder, cache_dir=cache) for _ in range(2)]
        one, other = (job.result() for job in jobs)
    assert one["captions"][:] == other["captions"][:] and len(one) == ROWS
    assert list(cache.iterdir()) == [arrow_file(one)] == [arrow_file(other)]


def test_function_and_data_set_can_be_sent_to_another_process(folder: Path, tmp_path: Path) -> None:
    dataset = load_captions(folder, cache_dir=tmp_path / "cache")
    assert pickle.loads(pickle.dumps(load_captions)) is load_captions
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000  # the place of the rows and not the rows
    assert pickle.loads(sent)["captions"][:] == dataset["captions"][:]

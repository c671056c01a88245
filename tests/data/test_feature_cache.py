"""The feature cache: right, reused, rebuilt when and only when it must be, and safe to kill."""

import copy
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from subset import real_backbone, real_captioner
from tiny import tiny_model, tiny_photos, tiny_processor
from torch.utils.data import DataLoader
from transformers import AutoModel

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import (
    CaptionCollator,
    FeatureTable,
    PhotoDataset,
    cache_features,
    default_views,
    feature_cache,
    feature_files,
    photo_digests,
)

NUMBER = 10
A_CHUNK = 4
CHUNKS = 3


@pytest.fixture
def model() -> NICForConditionalGeneration:
    return tiny_model()


@pytest.fixture(scope="module")
def processor() -> NICProcessor:
    return tiny_processor()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten photos, three chunks of at most four."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, photo in enumerate(tiny_photos(NUMBER)):
        photo.save(folder / f"{number}.png")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def dataset_of(folder: Path) -> datasets.Dataset:
    names = sorted(path.name for path in folder.iterdir())
    rows = {
        "image": [str(folder / name) for name in names],
        "image_id": names,
        "captions": [[f"a dog runs {name}"] for name in names],
    }
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


@contextmanager
def counted(model: NICForConditionalGeneration) -> Iterator[list[int]]:
    """The number of photos of each run of the backbone."""
    runs: list[int] = []
    hook = model.encoder.backbone.register_forward_hook(
        # Photos are encoded in inference mode; the one random image that shows how to fold BatchNorm is not.
        lambda module, args, kwargs, output: (
            runs.append(len(kwargs["pixel_values"])) if torch.is_inference_mode_enabled() else None
        ),
        with_kwargs=True,
    )
    try:
        yield runs
    finally:
        hook.remove()


def everything(table: FeatureTable) -> torch.Tensor:
    return torch.stack([table[row] for row in range(len(table))])


def plain_features(model: NICForConditionalGeneration, processor: NICProcessor, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                model.get_image_features(processor(images=str(path), return_tensors="pt")["pixel_values"])
                for path in sorted(folder.iterdir())
            ]
        )


def chunk_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.safetensors"))


def leftovers(cache: Path) -> list[Path]:
    known = (".safetensors", ".sqlite")
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix not in known]


def test_features_are_the_pooled_output_of_the_bare_backbone(
    test_data: Path, flickr8k: Path, cache: Path, tmp_path: Path
) -> None:
    model, processor = real_captioner(test_data, ["a dog"], hidden_size=8, embedding_size=8)
    names = sorted(path.name for path in (flickr8k / "Images").iterdir())[:5]
    (tmp_path / "some").mkdir()
    for name in names:
        shutil.copyfile(flickr8k / "Images" / name, tmp_path / "some" / name)
    table = cache_features(model, processor, dataset_of(tmp_path / "some"), cache, photos_a_chunk=3)

    # Independent: the backbone as its authors would load it, its preprocessing by Pillow and numpy.
    backbone = AutoModel.from_pretrained(real_backbone(test_data)).eval()
    for row, name in enumerate(names):
        photo = Image.open(flickr8k / "Images" / name).resize((146, 146), Image.Resampling.BILINEAR)
        pixels = np.asarray(photo.crop((9, 9, 137, 137)), dtype=np.float32) / 255 * 2 - 1
        with torch.no_grad():
            pooled = backbone(torch.from_numpy(pixels.transpose(2, 0, 1))[None]).pooler_output.flatten()
        assert table[row].shape == (256,)
        torch.testing.assert_close(table[row], pooled, rtol=1e-4, atol=1e-4)


def test_a_second_call_runs_the_backbone_zero_times(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    state = torch.get_rng_state()
    with counted(model) as runs:
        first = cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
        assert runs == [4, 4, 2]
        assert torch.equal(torch.get_rng_state(), state)  # what follows must not depend on what was cached
        again = cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
        assert runs == [4, 4, 2]
    torch.testing.assert_close(everything(first), plain_features(model, processor, folder), rtol=1e-5, atol=1e-6)
    assert torch.equal(everything(first), everything(again))
    assert len(chunk_files(cache)) == CHUNKS and leftovers(cache) == []


def test_the_batch_size_changes_nothing(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, tmp_path: Path
) -> None:
    one = cache_features(model, processor, dataset_of(folder), tmp_path / "1", batch_size=3, photos_a_chunk=A_CHUNK)
    other = cache_features(model, processor, dataset_of(folder), tmp_path / "2", batch_size=8)
    torch.testing.assert_close(everything(one), everything(other), rtol=1e-5, atol=1e-6)


def test_another_weight_gives_other_features(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    before = cache_features(model, processor, dataset_of(folder), cache)
    next(model.encoder.backbone.parameters()).data.flatten()[0] += 1.0
    with counted(model) as runs:
        after = cache_features(model, processor, dataset_of(folder), cache)
    assert sum(runs) == NUMBER
    torch.testing.assert_close(everything(after), plain_features(model, processor, folder), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(everything(before), everything(after))


def test_another_batch_norm_buffer_gives_other_features(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    cache_features(model, processor, dataset_of(folder), cache)
    buffer = next(b for name, b in model.encoder.named_buffers() if name.endswith("running_mean"))
    buffer += 0.5
    with counted(model) as runs:
        cache_features(model, processor, dataset_of(folder), cache)
    assert sum(runs) == NUMBER


def test_other_preprocessing_gives_other_features(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    cache_features(model, processor, dataset_of(folder), cache)
    brighter = copy.deepcopy(processor)
    brighter.image_processor.image_mean = [0.1, 0.1, 0.1]
    with counted(model) as runs:
        after = cache_features(model, brighter, dataset_of(folder), cache)
    assert sum(runs) == NUMBER
    torch.testing.assert_close(everything(after), plain_features(model, brighter, folder), rtol=1e-5, atol=1e-6)


def test_the_captioner_around_the_backbone_does_not_matter(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path, tmp_path: Path
) -> None:
    cache_features(model, processor, dataset_of(folder), cache)
    model.lm_head.weight.data.zero_()
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    loaded.encoder.backbone.config._name_or_path = "the same backbone, downloaded"
    with counted(loaded) as runs:
        cache_features(loaded, NICProcessor.from_pretrained(tmp_path / "checkpoint"), dataset_of(folder), cache)
    assert runs == []


def test_a_changed_photo_is_computed_again_and_other_chunks_are_not(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    before = cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
    times = {path: path.stat().st_mtime_ns for path in chunk_files(cache)}
    photo = folder / "5.png"  # in the second chunk
    stamp = photo.stat()
    tiny_photos(1, seed=9)[0].save(photo)
    os.utime(photo, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a program that keeps times would
    with counted(model) as runs:
        after = cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
    assert runs == [A_CHUNK]
    same = [row for row in range(NUMBER) if torch.equal(before[row], after[row])]
    assert same == [row for row in range(NUMBER) if row != 5]
    assert {path: path.stat().st_mtime_ns for path in times} == times


@contextmanager
def read_photos(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the photos whose content is read for a digest."""
    names: list[str] = []
    real = photo_digests._digest_of_file
    with monkeypatch.context() as patch:
        patch.setattr(photo_digests, "_digest_of_file", lambda path: names.append(Path(path).name) or real(path))
        yield names


def test_photos_are_read_once_and_not_once_a_view_or_a_start(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(photo_digests, "_SETTLED_NS", -1)
    dataset, views = dataset_of(folder), default_views(4)
    with read_photos(monkeypatch) as read:
        for _ in range(2):
            for view in views:
                cache_features(model, processor, dataset, cache, photos_a_chunk=A_CHUNK, view=view)
        assert read == [f"{number}.png" for number in range(NUMBER)]
        # Another selection of the same photos, from another folder, by relative paths.
        monkeypatch.chdir(folder)
        few = dataset_of(Path()).select([4, 2])
        assert photo_digests.photo_digests(few, cache) == [
            photo_digests.photo_digests(dataset, cache)[row] for row in (4, 2)
        ]
        assert len(read) == NUMBER
        tiny_photos(1, seed=9)[0].save(folder / "5.png")
        cache_features(model, processor, dataset, cache, photos_a_chunk=A_CHUNK)
        assert read[NUMBER:] == ["5.png"]


def test_a_photo_that_changed_just_now_is_read_again(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path, monkeypatch: Any
) -> None:
    """Within a step of the file system's clock another change may leave all times as they are."""
    with read_photos(monkeypatch) as read:
        for _ in range(2):
            cache_features(model, processor, dataset_of(folder), cache)
    assert len(read) == 2 * NUMBER


def test_a_change_that_keeps_size_and_time_shows_all_the_same(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.name != "posix":
        pytest.skip("needs the time of a change of the inode")
    monkeypatch.setattr(photo_digests, "_SETTLED_NS", -1)
    photo = folder / "5.png"
    before, stamp = photo_digests.photo_digests(dataset_of(folder), cache), photo.stat()
    content = bytearray(photo.read_bytes())
    content[-20] ^= 1
    time.sleep(0.05)  # more than a step of the clock
    photo.write_bytes(content)
    os.utime(photo, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (photo.stat().st_size, photo.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
    after = photo_digests.photo_digests(dataset_of(folder), cache)
    assert [row for row in range(NUMBER) if before[row] != after[row]] == [5]


@pytest.mark.parametrize("content", [b"", b"no database", bytes(4096)])
def test_a_damaged_index_costs_time_and_nothing_else(
    content: bytes, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(photo_digests, "_SETTLED_NS", -1)
    before = photo_digests.photo_digests(dataset_of(folder), cache)
    (cache / photo_digests.INDEX).write_bytes(content)
    with read_photos(monkeypatch) as read:
        for _ in range(2):
            assert photo_digests.photo_digests(dataset_of(folder), cache) == before
    assert len(read) == NUMBER
    assert all(str(cache / photo_digests.INDEX) in record.getMessage() for record in caplog.records)


def test_processes_that_start_at_once_share_an_index(folder: Path, cache: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(photo_digests, "_SETTLED_NS", -1)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(photo_digests.photo_digests, dataset_of(folder), cache) for _ in range(8)]
        assert len({tuple(job.result()) for job in jobs}) == 1
    with read_photos(monkeypatch) as read:
        photo_digests.photo_digests(dataset_of(folder), cache)
    assert read == []


def test_photos_that_a_data_set_holds_are_read_once_for_all_views(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = [{"bytes": path.read_bytes(), "path": None} for path in sorted(folder.iterdir())]
    held = datasets.Dataset.from_dict({"image": content}).cast_column("image", datasets.Image())
    digests = []
    real = photo_digests.raw_digest
    monkeypatch.setattr(photo_digests, "raw_digest", lambda content: digests.append(1) or real(content))
    first = photo_digests.photo_digests(held, cache)
    assert photo_digests.photo_digests(held, cache) == first and len(digests) == NUMBER
    assert first == photo_digests.photo_digests(dataset_of(folder), cache)


def test_the_same_photos_in_another_folder_are_not_computed_again(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path, tmp_path: Path
) -> None:
    before = cache_features(model, processor, dataset_of(folder), cache)
    moved = folder.rename(tmp_path / "elsewhere")
    with counted(model) as runs:
        after = cache_features(model, processor, dataset_of(moved), cache)
    assert runs == [] and torch.equal(everything(before), everything(after))


def test_photos_held_as_bytes_have_the_features_of_their_files(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    before = cache_features(model, processor, dataset_of(folder), cache)
    content = [{"bytes": path.read_bytes(), "path": None} for path in sorted(folder.iterdir())]
    held = datasets.Dataset.from_dict({"image": content}).cast_column("image", datasets.Image())
    with counted(model) as runs:
        after = cache_features(model, processor, held, cache)
    assert runs == [] and torch.equal(everything(before), everything(after))


def encode(folder: Path, cache: Path) -> FeatureTable:
    return cache_features(
        tiny_model(), tiny_processor(), dataset_of(folder), cache, batch_size=2, photos_a_chunk=A_CHUNK
    )


def die_while_encoding(folder: Path, cache: Path) -> None:
    batches = []

    def die_in_the_second_chunk(*args: Any) -> None:
        batches.append(args)
        if len(batches) == 4:  # two batches a chunk
            os.kill(os.getpid(), signal.SIGKILL)

    def count(module: torch.nn.Module, args: Any) -> None:
        if (
            type(module).__name__ in ("NICEncoder", "OptimizedEncoder") and torch.is_inference_mode_enabled()
        ):  # as in `counted`
            die_in_the_second_chunk()

    torch.nn.modules.module.register_module_forward_pre_hook(count)
    encode(folder, cache)


def die_while_writing(folder: Path, cache: Path) -> None:
    def write_half_and_die(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)

    feature_files.save_file = write_half_and_die
    encode(folder, cache)


def encode_when_all_are_ready(folder: Path, cache: Path, barrier: Any) -> None:
    encode(folder, cache)
    barrier.wait(60)
    encode(folder, cache.with_name("together"))


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that start at once: the imports are done once, in the server that they are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nic_hf.data"])
    return context


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_a_run_that_was_killed_goes_on_from_its_whole_chunks(
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    folder: Path,
    cache: Path,
    tmp_path: Path,
    processes: Any,
) -> None:
    uninterrupted = encode(folder, tmp_path / "other")
    for run, garbage in ((die_while_encoding, 0), (die_while_writing, 1)):
        process = processes.Process(target=run, args=(folder, cache))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert (len(chunk_files(cache)), len(leftovers(cache))) == (1, garbage)

    with counted(model) as runs:
        resumed = cache_features(model, processor, dataset_of(folder), cache, batch_size=2, photos_a_chunk=A_CHUNK)
    assert sum(runs) == NUMBER - A_CHUNK
    assert torch.equal(everything(resumed), everything(uninterrupted))
    assert leftovers(cache) == [] and len(chunk_files(cache)) == CHUNKS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_two_processes_at_once_agree(folder: Path, tmp_path: Path, processes: Any) -> None:
    barrier = processes.Barrier(2)
    both = [
        processes.Process(target=encode_when_all_are_ready, args=(folder, tmp_path / name, barrier)) for name in "ab"
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    together = tmp_path / "together"
    assert leftovers(together) == [] and len(chunk_files(together)) == CHUNKS
    times = [path.stat().st_mtime_ns for path in chunk_files(together)]
    assert torch.equal(everything(encode(folder, together)), everything(encode(folder, tmp_path / "a")))
    assert [path.stat().st_mtime_ns for path in chunk_files(together)] == times


def test_two_runs_that_write_the_same_chunk_at_the_same_moment_both_succeed(
    processor: NICProcessor, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_written = threading.Barrier(2, timeout=30)
    save = feature_files.save_file

    def save_together(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        both_written.wait()  # the first to go on finds the other's unfinished file and tidies it away

    monkeypatch.setattr(feature_files, "save_file", save_together)
    models = [tiny_model(), tiny_model()]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(cache_features, model, processor, dataset_of(folder), cache) for model in models]
        one, other = (job.result() for job in jobs)
    assert torch.equal(everything(one), everything(other))
    assert leftovers(cache) == [] and len(chunk_files(cache)) == 1


def test_unfinished_files_of_others_stay_for_an_hour(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    cache_features(model, processor, dataset_of(folder), cache)
    (home,) = (path for path in cache.iterdir() if path.is_dir())
    being_written, abandoned = home / ".a.00000000-1-01234567.tmp", home / ".b.00000000-2-01234567.tmp"
    for path in (being_written, abandoned):
        path.write_bytes(b"half")
    long_ago = time.time() - 4000
    os.utime(abandoned, (long_ago, long_ago))
    tiny_photos(1, seed=5)[0].save(folder / "0.png")
    cache_features(model, processor, dataset_of(folder), cache)
    assert leftovers(cache) == [being_written]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, blank, empty])
def test_a_file_that_is_not_whole_is_computed_again(
    damage: Any, model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    before = everything(cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK))
    damage(chunk_files(cache)[0])
    with counted(model) as runs:
        after = everything(cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK))
        assert len(runs) == 1
        cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
        assert len(runs) == 1
    assert torch.equal(before, after)


def test_the_same_features_are_the_same_file(tmp_path: Path) -> None:
    features, readable = torch.randn(A_CHUNK, 7), torch.ones(A_CHUNK, dtype=torch.uint8)
    paths = [tmp_path / f"{number}.safetensors" for number in range(20)]
    for path in paths:
        feature_files.write_file(path, features, readable)
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("read", [lambda table: table[1], lambda table: list(table.chunks())])
def test_a_damaged_feature_is_refused_when_it_is_read_and_computed_again_at_the_next_start(
    read: Any, model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    before = everything(cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK))
    damaged = cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
    path = damaged.files[0].path
    flip(path, damaged.files[0].offset + 50)  # in the feature of the second photo
    with counted(model) as runs:
        table = cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
        assert runs == [], "nobody has read it yet"
        assert torch.equal(table[0], before[0]) and torch.equal(table[NUMBER - 1], before[NUMBER - 1])
        with pytest.raises(OSError, match=rf"{path.name}: .*not what was written; it was removed, and the next start"):
            read(pickle.loads(pickle.dumps(table)))
        after = cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
        assert runs == [A_CHUNK]
    assert torch.equal(everything(after), before)


def test_whatever_byte_of_a_file_flips_no_feature_is_ever_another(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, tmp_path: Path
) -> None:
    table = cache_features(model, processor, dataset_of(folder), tmp_path, photos_a_chunk=A_CHUNK)
    before, statistics, path = [table[row] for row in range(A_CHUNK)], table.statistics(), table.files[0].path
    content = path.read_bytes()
    outcomes = set()
    for place in range(0, len(content), 3):
        path.write_bytes(content)
        flip(path, place)
        file = feature_files.open_file(path)
        if file is None:
            outcomes.add("not opened")
            continue
        damaged = FeatureTable([file, *table.files[1:]], NUMBER, A_CHUNK)
        assert damaged.unreadable_rows() == []
        assert all(torch.equal(one, other) for one, other in zip(damaged.statistics(), statistics, strict=True))
        for row in range(A_CHUNK):
            try:
                assert torch.equal(damaged[row], before[row])
                outcomes.add("read")
            except OSError as error:
                assert "not what was written" in str(error)
                outcomes.add("refused")
                path.write_bytes(content)
    assert outcomes == {"not opened", "refused", "read"}


def test_a_file_cut_short_while_in_use_says_so(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    table = cache_features(model, processor, dataset_of(folder), cache)
    (path,) = chunk_files(cache)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match=f"{path.name}: was truncated"):
        table[NUMBER - 1]


def test_a_relative_cache_still_opens_after_a_change_of_folder(
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    table = cache_features(model, processor, dataset_of(folder), "cache")
    before = everything(table)
    monkeypatch.chdir(folder)
    assert torch.equal(everything(table), before) and len(chunk_files(tmp_path / "cache")) == 1


def test_rows_outside_the_table_are_refused(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    table = cache_features(model, processor, dataset_of(folder), cache)
    for row in (-1, NUMBER):
        with pytest.raises(IndexError, match=f"photo {row} of {NUMBER}"):
            table[row]


def test_the_table_holds_neither_features_nor_mappings(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    table = cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
    everything(table)
    table.statistics()
    assert len(pickle.dumps(table)) < 2000
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(cache) not in maps.read_text("utf-8")


def test_spawned_workers_read_the_same_features(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    dataset = dataset_of(folder)
    table = cache_features(model, processor, dataset, cache, photos_a_chunk=A_CHUNK)
    loader: DataLoader = DataLoader(
        PhotoDataset(dataset, processor, table),
        batch_size=3,
        num_workers=2,
        multiprocessing_context="spawn",
        collate_fn=CaptionCollator(),
    )
    assert torch.equal(torch.cat([batch["encoder_outputs"] for batch in loader]), everything(table))


@pytest.mark.parametrize("content", [b"", b"this is no photo", None], ids=["empty", "text", "truncated"])
def test_an_unreadable_photo_stops_the_run_with_its_name(
    content: bytes | None, model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    whole = (folder / "6.png").read_bytes()
    (folder / "6.png").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(OSError, match=r"6\.png: cannot read it as an image"):
        cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK)
    assert len(chunk_files(cache)) == 1  # the chunk before it is kept


def test_workers_give_the_same_features_and_the_same_error(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path, tmp_path: Path
) -> None:
    alone = cache_features(model, processor, dataset_of(folder), tmp_path / "alone", photos_a_chunk=A_CHUNK)
    (folder / "8.png").write_bytes(b"this is no photo")
    with pytest.raises(OSError, match=r"8\.png: cannot read it as an image") as caught:
        cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK, num_workers=2)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
    kept = cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=A_CHUNK, on_error="skip")
    assert torch.equal(everything(kept)[:8], everything(alone)[:8])


def break_photos(folder: Path) -> None:
    (folder / "2.png").write_bytes(b"this is no photo")
    (folder / "8.png").write_bytes((folder / "8.png").read_bytes()[:60])


def test_skipped_photos_are_listed_and_left_out(
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    folder: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = plain_features(model, processor, folder)
    break_photos(folder)
    dataset = dataset_of(folder)
    for _ in range(2):  # computed, then taken from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            table = cache_features(model, processor, dataset, cache, photos_a_chunk=A_CHUNK, on_error="skip")
        (warning,) = [record.message for record in caplog.records if "cannot be read" in record.message]
        assert warning == f"2 of 10 photos cannot be read: {folder / '2.png'}, {folder / '8.png'}"
        assert table.unreadable_rows() == [2, 8] and len(table) == NUMBER

    photos = PhotoDataset(dataset, processor, table)
    left = [row for row in range(NUMBER) if row not in (2, 8)]
    assert photos.image_ids() == [f"{row}.png" for row in left] == list(photos.references())
    features = torch.stack([photos[index]["encoder_outputs"] for index in range(len(photos))])
    torch.testing.assert_close(features, whole[left], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(list(table.chunks())), features)

    mean, std = table.statistics()
    numbers = features.numpy().astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), numbers.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(std.numpy(), numbers.std(0), rtol=1e-4, atol=1e-6)

    with pytest.raises(OSError, match=r"2\.png: cannot read it as an image"):
        cache_features(model, processor, dataset, cache, photos_a_chunk=A_CHUNK)


def test_a_photo_that_became_readable_by_other_settings_is_not_taken_for_zeros(
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    folder: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.new("RGB", (300, 300)).save(folder / "4.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a "decompression bomb", until the limit is raised
    table = cache_features(model, processor, dataset_of(folder), cache, on_error="skip")
    assert table.unreadable_rows() == [4]
    monkeypatch.undo()
    with pytest.raises(OSError, match=rf"4\.png: could not be read when .* remove .*{chunk_files(cache)[0].name}"):
        cache_features(model, processor, dataset_of(folder), cache)


def test_a_missing_photo_is_named_and_found_once_it_is_back(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    dataset = dataset_of(folder)
    content = (folder / "3.png").read_bytes()
    (folder / "3.png").unlink()
    with pytest.raises(OSError, match=r"3\.png"):
        cache_features(model, processor, dataset, cache)
    assert cache_features(model, processor, dataset, cache, on_error="skip").unreadable_rows() == [3]
    (folder / "3.png").write_bytes(content)
    assert cache_features(model, processor, dataset, cache).unreadable_rows() == []


def test_photos_none_of_which_can_be_read_are_an_error(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"no photo")
    with pytest.raises(OSError, match=r"none of 10 photos can be read; the first is .*0\.png"):
        cache_features(model, processor, dataset_of(folder), cache, on_error="skip")


def test_zero_photos_are_an_error(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    with pytest.raises(ValueError, match="no photos"):
        cache_features(model, processor, dataset_of(folder).select([]), cache)


def test_an_unknown_on_error_is_an_error(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    with pytest.raises(ValueError, match=r"on_error is 'ignore'; it must be \"raise\" or \"skip\""):
        cache_features(model, processor, dataset_of(folder), cache, on_error="ignore")


def test_a_backbone_that_learns_is_refused(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    model.set_backbone_frozen(False)
    with pytest.raises(ValueError, match=r"not frozen.*set_backbone_frozen\(True\)"):
        cache_features(model, processor, dataset_of(folder), cache)
    model.set_backbone_frozen(True)
    next(model.encoder.backbone.parameters()).requires_grad_(True)
    with pytest.raises(ValueError, match="not frozen"):
        cache_features(model, processor, dataset_of(folder), cache)


def test_a_folder_that_cannot_be_written_is_named(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder", "utf-8")
    with pytest.raises(OSError, match=f"cannot write features to {tmp_path / 'file' / 'cache'}"):
        cache_features(model, processor, dataset_of(folder), tmp_path / "file" / "cache")


def test_a_full_cache_needs_no_right_to_write(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path, monkeypatch: Any
) -> None:
    before = everything(cache_features(model, processor, dataset_of(folder), cache))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(feature_files, "save_file", refuse)
    assert torch.equal(everything(cache_features(model, processor, dataset_of(folder), cache)), before)


def test_a_chunk_that_cannot_be_put_in_place_leaves_nothing(
    model: NICForConditionalGeneration,
    processor: NICProcessor,
    folder: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError("in use")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match=f"cannot write features to {cache}.*: in use"):
        cache_features(model, processor, dataset_of(folder), cache)
    assert leftovers(cache) == chunk_files(cache) == []


def check_full_disk(model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path) -> None:
    """The last chunk does not fit: a clear error, nothing half-written, the chunks before it kept."""
    with pytest.raises(OSError, match=f"cannot write features to {cache}"):
        cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=8)
    assert leftovers(cache) == []


def test_a_file_size_limit_is_a_clear_error(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, cache: Path
) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        check_full_disk(model, processor, folder, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert chunk_files(cache) == []
    cache_features(model, processor, dataset_of(folder), cache, photos_a_chunk=8)


def test_a_full_disk_is_a_clear_error(
    model: NICForConditionalGeneration, processor: NICProcessor, folder: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk to fill: {mounted.stderr.strip()}")
    try:
        cache_features(model, processor, dataset_of(folder).select(range(8)), disk, photos_a_chunk=8)
        (kept,) = chunk_files(disk)
        content = kept.read_bytes()
        with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
            while True:
                ballast.write(bytes(512))
        (disk / "ballast").rename(disk / "ballast.safetensors")
        check_full_disk(model, processor, folder, disk)
        assert kept.read_bytes() == content
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_default_place_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NIC_HF_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert feature_cache.default_cache_dir() == tmp_path / "hf" / "nic_hf" / "features"
    monkeypatch.setenv("NIC_HF_CACHE", str(tmp_path / "own"))
    assert feature_cache.default_cache_dir() == tmp_path / "own"

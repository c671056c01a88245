"""Streams of captioned photos: what is read, who reads it, in which order, and what becomes of faults."""

import gzip
import io
import json
import logging
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from shards import write_shards, write_tar
from tiny import CAPTIONS, tiny_photos, tiny_processor

from nic_hf.data import (
    CaptionCollator,
    CaptionDataError,
    CaptionDataset,
    PhotoDataset,
    StreamingCaptionDataset,
    StreamLoader,
    load_captions,
    stream_captions,
)
from nic_hf.data.tar_shards import expand_braces, find_shards
from nic_hf.tokenization import train_tokenizer

SIZES = (5, 7, 3, 8)
PROCESSOR = tiny_processor()


def jpeg(photo: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos() -> list[dict[str, Any]]:
    """23 photos with one to three captions, each with words of its own."""
    return [
        {
            "image": jpeg(photo),
            "image_id": f"{number:06d}.jpg",
            "captions": [f"{CAPTIONS[number % 4]} {CAPTIONS[n]}" for n in range(1 + number % 3)],
        }
        for number, photo in enumerate(tiny_photos(sum(SIZES)))
    ]


@pytest.fixture(scope="module")
def shards(photos: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), photos, SIZES)


def samples(stream: datasets.IterableDataset, **settings: Any) -> StreamingCaptionDataset:
    return StreamingCaptionDataset(stream, PROCESSOR, PROCESSOR.tokenizer, **{"shuffle_photos": 4, **settings})


def seen(given: Iterable[dict[str, Any]]) -> list[tuple]:
    """Samples as values that can be counted and compared."""
    return [(sample["pixel_values"].double().sum().item(), tuple(sample["labels"].tolist())) for sample in given]


def test_rows_are_those_of_load_captions(shards: list[str], photos: list[dict[str, Any]]) -> None:
    stream = stream_captions(shards)
    assert stream.num_shards == 4
    rows = list(stream)
    assert [(row["image_id"], row["captions"]) for row in rows] == [
        (r["image_id"][:-4], r["captions"]) for r in photos
    ]
    assert all(row["image"].size == (48, 40) and row["problem"] is None for row in rows)


def test_samples_are_those_of_a_caption_dataset(
    shards: list[str], photos: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    lines = []
    for row in photos:
        (tmp_path / row["image_id"]).write_bytes(row["image"])
        lines.append(json.dumps({"file_name": row["image_id"], "captions": row["captions"]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    table = PhotoDataset(load_captions(tmp_path, cache_dir=tmp_path / "cache"), PROCESSOR)
    for number in (1, 2):
        expected = CaptionDataset(table, PROCESSOR.tokenizer, 6, captions_per_sample=number)
        given = list(
            samples(
                stream_captions(shards),
                max_caption_length=6,
                shuffle_photos=0,
                passes=1,
                captions_per_sample=number,
            )
        )
        assert len(given) == len(expected)
        for sample, other in zip(given, expected, strict=True):
            assert torch.equal(sample["pixel_values"], other["pixel_values"])
            batch, other_batch = CaptionCollator()([sample]), CaptionCollator()([other])
            assert torch.equal(batch["labels"], other_batch["labels"])
    assert PROCESSOR.tokenizer.backend_tokenizer.truncation is None


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_each_pass_gives_every_sample_to_exactly_one_process(shards: list[str], processes: int) -> None:
    stream = stream_captions(shards)
    every = Counter(seen(samples(stream, shuffle_photos=0, passes=1)))
    assert sum(every.values()) == sum(1 + n % 3 for n in range(sum(SIZES)))
    shares = [Counter(seen(samples(stream, passes=1).share(n, processes))) for n in range(processes)]
    assert sum(shares, Counter()) == every
    twice = [Counter(seen(samples(stream, passes=2).share(n, processes))) for n in range(processes)]
    assert sum(twice, Counter()) == every + every
    assert all(sum(share.values()) > 0 for share in twice)


def test_order_follows_seed_and_pass(shards: list[str]) -> None:
    stream = stream_captions(shards)
    plain, one, same, other = (
        seen(samples(stream, passes=2, **settings)) for settings in ({"shuffle_photos": 0}, {}, {}, {"seed": 1})
    )
    assert one == same
    assert one != other and sorted(one) == sorted(other)
    half = len(one) // 2
    assert plain[:half] == plain[half:]
    assert one[:half] not in (plain[:half], one[half:]) and sorted(one[:half]) == sorted(plain[:half])


@pytest.mark.parametrize("shuffle_photos", [0, 4, 1000])
def test_going_on_from_a_position_gives_the_samples_that_follow(shards: list[str], shuffle_photos: int) -> None:
    """Anywhere: within a block, at its end, at the end of a shard and of a pass, and twice."""
    stream = stream_captions(shards)
    settings = {"shuffle_photos": shuffle_photos, "seed": 5}
    whole = seen(islice(samples(stream, **settings).share(1, 3), 60))
    for stop in range(0, 50, 3):
        first = samples(stream, **settings).share(1, 3)
        iterator = iter(first)
        given = seen(islice(iterator, stop + 1))
        for _ in range(2):
            state = json.loads(json.dumps(first.state_dict()))
            first = samples(stream, **settings).share(1, 3)
            first.load_state_dict(state)
            given += seen(islice(first, 4))
        assert given == whole[: len(given)], f"stopped after {stop + 1}"


@pytest.mark.parametrize("kind", ["parquet", "mapped", "json lines"])
def test_other_streams_of_datasets_go_on_exactly_too(kind: str, photos: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = [{**row, "image": {"bytes": row["image"], "path": row["image_id"]}} for row in photos]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("string"),
            "captions": datasets.List(datasets.Value("string")),
        }
    )
    if kind == "json lines":
        for row in photos:
            (tmp_path / row["image_id"]).write_bytes(row["image"])
        for number in range(3):
            lines = [
                {"id": row["image_id"], "image": str(tmp_path / row["image_id"]), "caption": row["captions"][0]}
                for row in photos[number::3]
            ]
            (tmp_path / f"train-{number}.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
        files = sorted(map(str, tmp_path.glob("*.jsonl")))
        source = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    else:
        for number in range(3):
            table = datasets.Dataset.from_list(rows[number::3], features=features)
            table.to_parquet(tmp_path / "data" / f"train-{number}.parquet", batch_size=3)
        source = str(tmp_path / "data")
        if kind == "mapped":
            source = datasets.load_dataset(source, split="train", streaming=True)
            source = source.filter(lambda row: row["image_id"] != "000004.jpg").map(
                lambda row: {"captions": [caption.upper() for caption in row["captions"]]}
            )
    stream = stream_captions(source, None if kind != "parquet" else "train")
    assert stream.num_shards == 3
    assert len(list(stream)) == (len(photos) if kind != "mapped" else len(photos) - 1)
    whole = seen(islice(samples(stream), 60))
    for stop in (1, 6, 17, 22, 23, 30, 45):
        first = samples(stream)
        iterator = iter(first)
        given = seen(islice(iterator, stop))
        second = samples(stream)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert given + seen(islice(second, 10)) == whole[: stop + 10], f"stopped after {stop}"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_behind_the_batch_given_last(shards: list[str], workers: int) -> None:
    """Workers have read ahead by then; those batches come again."""
    stream = stream_captions(shards)

    def loader(state: Any = None) -> StreamLoader:
        # Spawned ones take seconds to start; tests/training/test_stream_training.py has those.
        context = multiprocessing.get_all_start_methods()[0] if workers else None
        return StreamLoader(
            samples(stream), 3, CaptionCollator(), state, num_workers=workers, multiprocessing_context=context
        )

    def sums(batches: Iterable[dict[str, torch.Tensor]]) -> list[float]:
        return [batch["pixel_values"].double().sum().item() for batch in batches]

    before = torch.get_rng_state()
    first = loader()
    iterator = iter(first)
    whole, states = [], []
    for _ in range(12):
        whole += sums([next(iterator)])
        states.append(json.loads(json.dumps(first.state_dict())))
    del iterator
    stop = 5  # with two workers, it is the second one's turn
    assert whole[stop:] == sums(islice(loader(states[stop - 1]), 12 - stop))
    assert torch.equal(before, torch.get_rng_state()), "reading draws nothing from the generator of dropout"
    assert first.passes() == pytest.approx(12 * 3 / 45, abs=0.4)
    if workers:
        with pytest.raises(ValueError, match="2 data loader workers, not 1: set dataloader_num_workers=2"):
            StreamLoader(samples(stream), 3, CaptionCollator(), states[0])


def test_a_position_means_nothing_in_another_order(shards: list[str]) -> None:
    stream = stream_captions(shards)
    first = samples(stream)
    next(iter(first))
    for other, message in [
        (samples(stream, seed=2), "seed was 0 and is 2"),
        (samples(stream).share(0, 2), "readers was 1 and is 2"),
        (samples(stream_captions(shards[:3])), "shards was 4 and is 3"),
    ]:
        other.load_state_dict(first.state_dict())
        with pytest.raises(ValueError, match=message):
            next(iter(other))


def test_memory_is_bounded_by_a_block(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No more photos are read ahead than a block has."""
    read = []
    shard = datasets.IterableDataset.iter

    def counting(self: Any, batch_size: int) -> Any:
        for batch in shard(self, batch_size):
            read.append(batch["image_id"])
            yield batch

    monkeypatch.setattr(datasets.IterableDataset, "iter", counting)
    next(iter(samples(stream_captions(shards), shuffle_photos=6)))
    assert len(read) == 6


def test_a_stream_can_be_pickled(shards: list[str]) -> None:
    one = samples(stream_captions(shards), passes=1)
    assert seen(pickle.loads(pickle.dumps(one))) == seen(one)


def test_a_vocabulary_is_learned_from_a_stream(shards: list[str]) -> None:
    stream = stream_captions(shards).select_columns(["captions"])
    tokenizer = train_tokenizer((caption for row in stream for caption in row["captions"]), min_frequency=1)
    assert tokenizer.get_vocab().keys() == PROCESSOR.tokenizer.get_vocab().keys()


# Shards and their faults.

PHOTO = jpeg(tiny_photos(1)[0])
GOOD = [("good.jpg", PHOTO), ("good.txt", b"a black dog\n\n a dog runs \n")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("bad.jpg", PHOTO)], "bad: no captions: neither a .txt nor a .json"),
        ([("bad.txt", b"a dog")], "bad: no photo"),
        ([("bad.jpg", b""), ("bad.txt", b"a dog")], r"bad: the photo is empty \(0 bytes\)"),
        ([("bad.jpg", PHOTO), ("bad.txt", b" \n")], "bad: the photo has no caption that can be used"),
        ([("bad.jpg", PHOTO), ("bad.txt", b"caf\xe9")], "bad: bad.txt is not valid UTF-8"),
        ([("bad.jpg", PHOTO), ("bad.json", b'{"caption": ')], "bad: bad.json is not valid JSON"),
        ([("bad.jpg", PHOTO), ("bad.json", b'{"width": 3}')], "bad: no caption column"),
        ([("bad.jpg", PHOTO), ("bad.json", b'{"caption": 7}')], "bad: the caption is 7, not text"),
        ([("bad.jpg", b"no photo"), ("bad.txt", b"a dog")], "bad: tar://bad.jpg::.*cannot read it as an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_is_that_of_one_key(
    members: list[tuple[str, bytes]], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = str(write_tar(tmp_path / "s-000.tar", [*members, *GOOD]))
    with pytest.raises(CaptionDataError, match=message) as caught:
        list(samples(stream_captions(shard), passes=1))
    assert shard in str(caught.value)
    with caplog.at_level(logging.WARNING):
        stream = samples(stream_captions(shard, on_error="skip"), passes=2, on_error="skip")
        loader = StreamLoader(stream, 1, CaptionCollator())
        assert len(list(loader)) == 4, "two captions of the good photo, twice"
    assert loader.skipped() >= 1
    assert len(caplog.records) == 1 and shard in caplog.text and "bad" in caplog.text


def test_json_and_text_captions(tmp_path: Path) -> None:
    documents = [b'{"caption": "a dog", "width": 3}', b'["a dog"]', b'"a dog"', b'{"captions": [{"raw": "a dog"}]}']
    members = []
    for number, document in enumerate(documents):
        members += [(f"x/{number}.seg.jpg", PHOTO), (f"x/{number}.json", document), (f"x/{number}.txt", b"not this")]
    members += [("x/4.png", PHOTO), ("x/4.json", b'{"width": 3}'), ("x/4.txt", b"a dog"), ("x/._4.txt", b"\x00")]
    rows = list(stream_captions(str(write_tar(tmp_path / "a.tar", members))))
    assert [(row["image_id"], row["captions"]) for row in rows] == [(f"x/{n}", ["a dog"]) for n in range(5)]


@pytest.mark.parametrize("cut", [100, 700, 1024 + 512, -1])
def test_a_shard_that_was_cut_short_is_not_taken_for_a_shorter_one(
    cut: int, photos: list[dict[str, Any]], tmp_path: Path
) -> None:
    paths = write_shards(tmp_path, photos[:8], (4, 4))
    content = Path(paths[0]).read_bytes()
    end = content.rstrip(b"\0")
    # Cut in a header, in a photo, at the end of a member, and before the mark of the end.
    keep = cut if cut > 0 else -(-len(end) // 512) * 512
    Path(paths[0]).write_bytes(content[:keep])
    with pytest.raises(CaptionDataError, match=r"train-000\.tar: damaged"):
        list(stream_captions(paths))
    rows = list(stream_captions(paths, on_error="skip"))
    assert [row["image_id"] for row in rows if row["captions"]][-4:] == [r["image_id"][:-4] for r in photos[4:8]]
    assert len([row for row in rows if row["problem"]]) >= 1


def test_compressed_shards(photos: list[dict[str, Any]], tmp_path: Path) -> None:
    path = Path(write_shards(tmp_path, photos[:3], (3,))[0])
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    rows = list(stream_captions(packed))
    assert [row["image_id"] for row in rows] == [row["image_id"][:-4] for row in photos[:3]]
    packed.write_bytes(packed.read_bytes()[:-900])
    with pytest.raises(CaptionDataError, match=r"packed\.tar\.gz: damaged"):
        list(stream_captions(packed))


def test_a_stream_of_which_nothing_can_be_used_does_not_go_on_for_ever(tmp_path: Path) -> None:
    shard = str(write_tar(tmp_path / "s.tar", [("bad.jpg", b"no photo"), ("bad.txt", b"a dog")]))
    with pytest.raises(CaptionDataError, match="nothing in the stream can be used"):
        next(iter(samples(stream_captions(shard), on_error="skip")))


def test_faults_of_workers_are_one_line(tmp_path: Path) -> None:
    shard = str(write_tar(tmp_path / "s.tar", [("bad.jpg", b"no photo"), ("bad.txt", b"a dog")]))
    loader = StreamLoader(
        samples(stream_captions(shard)),
        1,
        CaptionCollator(),
        num_workers=1,
        multiprocessing_context=multiprocessing.get_all_start_methods()[0],
    )
    with pytest.raises(CaptionDataError) as caught:
        next(iter(loader))
    assert str(caught.value).startswith("shard 0 of 1: bad: tar://bad.jpg::") and "\n" not in str(caught.value)


def test_names_of_shards(tmp_path: Path) -> None:
    assert expand_braces("{a,b}-{8..10}.tar") == [f"{x}-{n}.tar" for x in "ab" for n in (8, 9, 10)]
    for name in ("train-000.tar", "train-001.tar", "val/000.tar", "x-test-0.tar.gz", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def names(source: Any, split: str | None) -> list[str]:
        return [Path(shard).name for shard in find_shards(source, split)]

    assert names(tmp_path, "train") == ["train-000.tar", "train-001.tar"]
    assert names(tmp_path, "dev") == ["000.tar"]
    assert names(str(tmp_path / "*"), None) == []
    assert names(str(tmp_path / "*.tar"), None) == ["train-000.tar", "train-001.tar"]
    assert names(str(tmp_path / "train-{000..001}.tar"), "train") == ["train-000.tar", "train-001.tar"]
    assert names([tmp_path / "val", tmp_path / "train-000.tar"], None) == ["000.tar", "train-000.tar"]
    for source, split, message in [
        (tmp_path / "train-{000..002}.tar", None, "train-002.tar: no such file"),
        (tmp_path / "none-*.tar", None, "no file matches"),
        (tmp_path / "train-000.tar", "test", "no split 'test'; available: train"),
    ]:
        with pytest.raises(CaptionDataError, match=message):
            find_shards(source, split)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/shards", "/nowhere/shards: no such file or folder; "),
        ([], "no tar files among them"),
        (datasets.IterableDataset.from_generator(lambda: iter([{"text": "a"}])), "no image column: .* found text"),
    ],
    ids=["path", "empty", "columns"],
)
def test_sources_that_cannot_be_used(source: Any, message: str) -> None:
    with pytest.raises(CaptionDataError, match=message):
        stream_captions(source)

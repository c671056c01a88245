"""Samples for Trainer: a caption and its photo each, from tables on disk."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_photos, tiny_processor, tiny_tokenizer

from nic_hf import NICProcessor
from nic_hf.data import CaptionCollator, CaptionDataset, FeatureTable, PhotoDataset, cache_features, load_captions
from nic_hf.data.length_grouped_sampler import BATCHES_A_POOL, LengthGroupedSampler
from nic_hf.tokenization import train_tokenizer

CAPTIONS = {
    "a.png": ["A black dog runs .", "Two children play !", "a dog", "The woman smiles .", "snow"],
    "b.png": ["A man rides his red bicycle through the snow .", "a bicycle", "a man", "a red coat", "his zeppelin"],
    "c.png": ["two children on a sunny beach", "children", "the beach", "a sunny beach", "two play"],
}
FLAT = [caption for captions in CAPTIONS.values() for caption in captions]


@pytest.fixture(scope="module")
def processor() -> NICProcessor:
    return tiny_processor()


def write_folder(folder: Path, captions: dict[str, list[str]]) -> Path:
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    for (name, _), photo in zip(captions.items(), tiny_photos(len(captions)), strict=True):
        photo.save(folder / "Images" / name)
    lines = [f'{name},"{caption}"' for name, texts in captions.items() for caption in texts]
    (folder / "captions.txt").write_text("\n".join(["image,caption", *lines]), "utf-8")
    return folder


def load(folder: Path) -> datasets.Dataset:
    return load_captions(folder, cache_dir=folder.with_name("arrow"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", CAPTIONS)


@pytest.fixture
def rows(folder: Path) -> datasets.Dataset:
    return load(folder)


@pytest.fixture
def features(rows: datasets.Dataset, processor: NICProcessor, tmp_path: Path) -> FeatureTable:
    return cache_features(tiny_model(), processor, rows, tmp_path / "features", photos_a_chunk=2)


@pytest.fixture
def samples(rows: datasets.Dataset, processor: NICProcessor, features: FeatureTable) -> CaptionDataset:
    return CaptionDataset(PhotoDataset(rows, processor, features), processor.tokenizer)


def ids_by_hand(processor: NICProcessor, caption: str) -> list[int]:
    """The vocabulary looked up word by word; the captions here hold no words that need more than that."""
    vocabulary = processor.tokenizer.get_vocab()
    return [vocabulary.get(word, 3) for word in caption.lower().split() if word.isalpha()] + [2]


def table_file(dataset: CaptionDataset) -> Path:
    (file,) = dataset.pairs.cache_files
    return Path(file["filename"])


def test_a_photo_with_five_captions_is_five_samples(
    samples: CaptionDataset, processor: NICProcessor, features: FeatureTable
) -> None:
    assert len(samples) == 15
    for index, caption in enumerate(FLAT):
        sample = samples[index]
        assert set(sample) == {"encoder_outputs", "labels"}
        assert sample["labels"].tolist() == ids_by_hand(processor, caption)
        assert torch.equal(sample["encoder_outputs"], features[index // 5])


def test_lengths_are_those_of_the_labels(samples: CaptionDataset) -> None:
    assert samples.lengths().tolist() == [len(samples[index]["labels"]) for index in range(len(samples))]


def test_several_samples_at_once_are_the_samples_one_by_one(samples: CaptionDataset) -> None:
    order = [7, 0, 14, 1, 7]  # photos repeat, and so does a sample
    together = samples.__getitems__(order)
    assert len(together) == len(order)
    for sample, index in zip(together, order, strict=True):
        assert torch.equal(sample["encoder_outputs"], samples[index]["encoder_outputs"])
        np.testing.assert_array_equal(sample["labels"], samples[index]["labels"])
    # Labels of one length come out of the table as a matrix.
    alike = [index for index, length in enumerate(samples.lengths()) if length == 3]
    assert [sample["labels"].tolist() for sample in samples.__getitems__(alike)] == [
        samples[index]["labels"].tolist() for index in alike
    ]


def test_a_sample_of_several_captions_holds_those_of_one_photo(
    rows: datasets.Dataset, processor: NICProcessor, features: FeatureTable
) -> None:
    photos = PhotoDataset(rows, processor, features)
    samples = CaptionDataset(photos, processor.tokenizer, captions_per_sample=2)
    assert len(samples) == 9  # two, two and one caption of each photo
    order = [8, 3, 0, 1]
    wanted = [[14], [5, 6], [0, 1], [2, 3]]
    together = samples.__getitems__(order)
    for sample, index, captions in zip(together, order, wanted, strict=True):
        ids = [ids_by_hand(processor, FLAT[caption]) for caption in captions]
        assert [labels.tolist() for labels in sample["labels"]] == ids
        assert torch.equal(sample["encoder_outputs"], features[index // 3])
        assert samples.lengths()[index] == max(map(len, ids))

    batch = CaptionCollator()(together)
    assert batch["encoder_outputs"].shape[0] == 4
    assert batch["labels"].shape == (4, 2, samples.lengths()[order].max())
    assert (batch["labels"][0, 1] == -100).all()
    for labels, captions in zip(batch["labels"], wanted, strict=True):
        for row, caption in zip(labels, captions, strict=False):
            assert row[row != -100].tolist() == ids_by_hand(processor, FLAT[caption])


@pytest.mark.parametrize("number", [1, 2, 3, 5, 9])
def test_samples_of_several_captions_hold_each_caption_once(
    rows: datasets.Dataset, processor: NICProcessor, number: int
) -> None:
    photos = PhotoDataset(rows, processor)
    one_each = CaptionDataset(photos, processor.tokenizer)
    samples = CaptionDataset(photos, processor.tokenizer, captions_per_sample=number)
    labels = [samples[index]["labels"] for index in range(len(samples))]
    held = [ids.tolist() for each in labels for ids in (each if number > 1 else [each])]
    assert held == [one_each[index]["labels"].tolist() for index in range(len(one_each))]


def test_a_cut_caption_still_ends(rows: datasets.Dataset, processor: NICProcessor, features: FeatureTable) -> None:
    samples = CaptionDataset(PhotoDataset(rows, processor, features), processor.tokenizer, max_caption_length=4)
    for index, caption in enumerate(FLAT):
        whole = ids_by_hand(processor, caption)
        expected = whole if len(whole) <= 4 else [*whole[:3], 2]
        assert samples[index]["labels"].tolist() == expected


def test_the_tokenizer_is_left_as_it_was(rows: datasets.Dataset, processor: NICProcessor) -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    CaptionDataset(PhotoDataset(rows, processor), tokenizer, max_caption_length=4)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_no_room_for_a_word_is_an_error(rows: datasets.Dataset, processor: NICProcessor) -> None:
    with pytest.raises(ValueError, match=r"max_caption_length must be at least 2.*not 1"):
        CaptionDataset(PhotoDataset(rows, processor), processor.tokenizer, max_caption_length=1)
    with pytest.raises(ValueError, match="captions_per_sample must be at least 1, not 0"):
        CaptionDataset(PhotoDataset(rows, processor), processor.tokenizer, captions_per_sample=0)


def test_a_batch_pads_labels_with_what_the_loss_leaves_out(samples: CaptionDataset, features: FeatureTable) -> None:
    batch = CaptionCollator()(samples.__getitems__([5, 2, 14]))
    labels = [samples[index]["labels"].tolist() for index in (5, 2, 14)]
    longest = max(map(len, labels))
    assert batch["labels"].tolist() == [ids + [-100] * (longest - len(ids)) for ids in labels]
    assert batch["labels"].dtype == torch.long
    assert torch.equal(batch["encoder_outputs"], torch.stack([features[1], features[0], features[2]]))


def test_a_batch_of_photos_alone_has_no_labels(
    rows: datasets.Dataset, processor: NICProcessor, features: FeatureTable
) -> None:
    photos = PhotoDataset(rows, processor, features)
    batch = CaptionCollator()([photos[2], photos[0]])
    assert list(batch) == ["encoder_outputs"]
    assert torch.equal(batch["encoder_outputs"], torch.stack([features[2], features[0]]))


def test_without_features_photos_go_through_the_processor(
    rows: datasets.Dataset, processor: NICProcessor, folder: Path
) -> None:
    samples = CaptionDataset(PhotoDataset(rows, processor), processor.tokenizer)
    for index in (0, 4, 5, 14):
        path = folder / "Images" / list(CAPTIONS)[index // 5]
        expected = processor(images=Image.open(path), return_tensors="pt")["pixel_values"][0]
        assert set(samples[index]) == {"pixel_values", "labels"}
        assert torch.equal(samples[index]["pixel_values"], expected)
    assert CaptionCollator()(samples.__getitems__([0, 14]))["pixel_values"].shape == (2, 3, 32, 32)


def test_kept_pixels_are_read_once(rows: datasets.Dataset, processor: NICProcessor, folder: Path) -> None:
    kept = PhotoDataset(rows, processor, keep_pixels=True)
    first = [kept[index]["pixel_values"] for index in range(3)]
    read_again = PhotoDataset(rows, processor)
    for path in (folder / "Images").iterdir():
        path.unlink()
    assert all(torch.equal(kept[index]["pixel_values"], first[index]) for index in range(3))
    with pytest.raises(OSError, match=r"a\.png: no such file"):
        read_again[0]


def test_without_features_an_unreadable_photo_is_named_or_left_out(
    folder: Path, processor: NICProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "Images" / "b.png").write_bytes(b"this is no photo")
    rows = load(folder)
    photos = PhotoDataset(rows, processor)
    with pytest.raises(OSError, match=r"b\.png: cannot read it as an image"):
        photos[1]
    some = PhotoDataset(rows, processor, on_error="skip")
    assert some.image_ids() == ["a.png", "c.png"]
    assert f"1 of 3 photos cannot be read: {folder / 'Images' / 'b.png'}" in caplog.text
    assert torch.equal(some[1]["pixel_values"], photos[2]["pixel_values"])


def test_captions_of_photos_left_out_are_no_samples(
    folder: Path, processor: NICProcessor, features: FeatureTable, tmp_path: Path
) -> None:
    (folder / "Images" / "a.png").write_bytes(b"this is no photo")
    rows = load(folder)
    whole = CaptionDataset(PhotoDataset(rows, processor), processor.tokenizer)
    table = cache_features(tiny_model(), processor, rows, tmp_path / "features", on_error="skip")
    samples = CaptionDataset(PhotoDataset(rows, processor, table), processor.tokenizer)
    assert (len(whole), len(samples)) == (15, 10)
    for index, caption in enumerate(FLAT[5:]):
        assert samples[index]["labels"].tolist() == ids_by_hand(processor, caption)
        torch.testing.assert_close(samples[index]["encoder_outputs"], features[1 + index // 5])


def test_references_are_the_captions_by_photo(rows: datasets.Dataset, processor: NICProcessor) -> None:
    photos = PhotoDataset(rows, processor)
    assert photos.references() == CAPTIONS and photos.image_ids() == list(CAPTIONS)
    few = photos.first(2)
    assert (len(few), few.image_ids(), list(few.references())) == (2, ["a.png", "b.png"], ["a.png", "b.png"])
    assert len(photos) == 3


def test_features_of_other_photos_are_refused(
    rows: datasets.Dataset, processor: NICProcessor, features: FeatureTable
) -> None:
    with pytest.raises(ValueError, match="features of 3 photos do not fit a dataset of 2"):
        PhotoDataset(rows.select(range(2)), processor, features)


def test_the_table_is_written_once_and_mapped(
    folder: Path, processor: NICProcessor, features: FeatureTable, samples: CaptionDataset
) -> None:
    assert isinstance(samples.pairs.data, datasets.table.MemoryMappedTable)
    written = table_file(samples).stat().st_mtime_ns
    again = CaptionDataset(PhotoDataset(load(folder), processor, features), processor.tokenizer)
    assert table_file(again) == table_file(samples)
    assert table_file(again).stat().st_mtime_ns == written


def test_memory_does_not_grow_with_the_captions(tmp_path: Path, processor: NICProcessor) -> None:
    sizes = []
    for number in (20, 400):
        names = [f"{index}.png" for index in range(number)]
        folder = write_folder(tmp_path / str(number), dict.fromkeys(names, ["a dog runs", "two children"] * 3))
        rows = load(folder)
        table = cache_features(tiny_model(), processor, rows, tmp_path / "features")
        samples = CaptionDataset(PhotoDataset(rows, processor, table), processor.tokenizer)
        assert len(samples) == 6 * number
        for index in range(len(samples)):
            samples[index]
        sizes.append(len(pickle.dumps(samples)))
    assert sizes[1] - sizes[0] < 200


def test_a_copy_sent_to_another_process_gives_the_same_samples(samples: CaptionDataset) -> None:
    sent = pickle.loads(pickle.dumps(samples))
    assert len(sent) == len(samples)
    for index in range(len(samples)):
        assert torch.equal(sent[index]["encoder_outputs"], samples[index]["encoder_outputs"])
        np.testing.assert_array_equal(sent[index]["labels"], samples[index]["labels"])


def test_edited_captions_are_never_taken_from_an_old_table(
    folder: Path, processor: NICProcessor, samples: CaptionDataset
) -> None:
    assert samples[2]["labels"].tolist() == ids_by_hand(processor, "a dog")
    file = folder / "captions.txt"
    file.write_text(file.read_text("utf-8").replace('"a dog"', '"a coat"'), "utf-8")
    after = CaptionDataset(PhotoDataset(load(folder), processor), processor.tokenizer)
    assert after[2]["labels"].tolist() == ids_by_hand(processor, "a coat")


def test_another_vocabulary_or_length_gives_another_table(
    rows: datasets.Dataset, processor: NICProcessor, samples: CaptionDataset
) -> None:
    photos = PhotoDataset(rows, processor)
    other_words = train_tokenizer(["snow snow dog"], min_frequency=1)
    assert CaptionDataset(photos, other_words)[2]["labels"].tolist() == [3, other_words.get_vocab()["dog"], 2]
    shorter = CaptionDataset(photos, processor.tokenizer, max_caption_length=2)
    assert shorter[2]["labels"].tolist() == [processor.tokenizer.get_vocab()["a"], 2]
    assert samples[2]["labels"].tolist() == ids_by_hand(processor, "a dog")


def batches_of(sampler: LengthGroupedSampler, batch_size: int) -> Iterator[list[int]]:
    order = list(sampler)
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


@pytest.mark.parametrize("number", [1, 7, 8, 64, 1003])
def test_each_sample_comes_once_an_epoch(number: int) -> None:
    lengths = np.random.default_rng(0).integers(2, 20, number)
    sampler = LengthGroupedSampler(lengths, batch_size=8, seed=3)
    assert len(sampler) == number
    assert sorted(sampler) == list(range(number))


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = list(range(40)) * 3

    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGroupedSampler(lengths, batch_size=8, seed=seed)
        sampler.set_epoch(epoch)
        torch.rand(3)  # whatever else draws random numbers meanwhile
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_batches_hold_captions_of_like_length_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(2, 26, 8 * BATCHES_A_POOL * 2 + 5)
    batches = list(batches_of(LengthGroupedSampler(lengths, batch_size=8), 8))
    shortest, longest = [[int(pick(lengths[batch])) for batch in batches[:-1]] for pick in (np.min, np.max)]
    assert np.subtract(longest, shortest).mean() < 1.5  # of random batches it is 18
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    assert len(batches[-1]) == 5  # the short batch is the last

"""`StreamingCaptionDataset`: samples from a stream of captioned photos, shuffled, and resumed exactly.

`datasets` provides the shards and the position within one. Its own shuffling is not used because a run could not be
resumed exactly: `IterableDataset.shuffle` does not keep its buffer in `state_dict()`. After resuming, none of the next
512 photos was the expected one, and 390 of them did not come in that pass (`benchmarks/stream_resume.py`, Datasets
5.2). Its webdataset reader decodes while it reads, so one broken caption ends a shard without saying which.
`split_dataset_by_node` lets every process read every shard if the shards cannot be distributed evenly. torchdata's
`StatefulDataLoader` can resume this dataset too, but Trainer cannot be told to use it.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import datasets
import numpy as np
from datasets import Image
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from ..images import load_photo
from ..model.processor import NICProcessor
from .caption_streams import stream_captions
from .errors import ITEMS_IN_WARNING, CaptionDataError, ErrorCollector, OnError
from .feature_cache import load_photo_row, photo_name

logger = logging.getLogger(__name__)

_PHOTOS_UNSHUFFLED = 32  # block size without shuffling
# When to give up on a stream without usable photos: the share of a small one may be empty in some passes.
_BARREN_PASSES = 10
_BARREN_PHOTOS = 1000


class StreamingCaptionDataset(IterableDataset):
    """Samples of [`CaptionDataset`] from a stream: model inputs of a photo and one of its captions.

    The dataset is endless. Each pass has its own order of shards, which are distributed over the readers: all workers
    of all processes. If there are fewer shards than readers, several read the same shard and each keeps a part of its
    photos. In a pass every photo is read by exactly one reader; readers do not wait for each other.

    Samples are shuffled in blocks: the order of the captions of `shuffle_photos` photos of a reader depends on seed,
    pass and number of the block. Memory is bounded by one block of encoded photos per reader.

    `state_dict()` is the position after the last sample, and `load_state_dict()` continues exactly there: `datasets`
    restores the position in the shard, and one block is read again. What precedes it in a tar file is read without
    decoding.

    Args:
        stream: what [`stream_captions`] returns, or a `datasets.IterableDataset` that it accepts.
        processor: the preprocessing.
        tokenizer: turns captions into labels, which end with `<eos>`.
        max_caption_length: captions are truncated to this number of tokens, including `<eos>`.
        captions_per_sample: captions of one photo per sample, as in [`CaptionDataset`]. More than one is much cheaper,
            as the backbone runs during training.
        shuffle_photos: photos per block; 0 keeps the order of shards, photos and captions.
        seed: seed of the order.
        passes: number of passes; None for an endless dataset, as training needs it.
        on_error: "raise" stops at a photo that cannot be decoded, "skip" leaves it out. Skipped items, here and in the
            stream, are counted, and the first of them logged with shard and key.

    Raises:
        ValueError: an argument is out of range; on reading, if the state is of a dataset in another order.
        CaptionDataError: on reading, an error in the data, or nothing can be used; the message names the shard.
        OSError: on reading, if a shard cannot be opened or read; never skipped.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        processor: NICProcessor,
        tokenizer: PreTrainedTokenizerBase,
        max_caption_length: int = 50,
        captions_per_sample: int = 1,
        *,
        shuffle_photos: int = 512,
        seed: int = 0,
        passes: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        ErrorCollector(on_error)
        if max_caption_length < 2:
            raise ValueError(f"max_caption_length must be at least 2, a word and <eos>, not {max_caption_length}")
        if captions_per_sample < 1:
            raise ValueError(f"captions_per_sample must be at least 1, not {captions_per_sample}")
        if shuffle_photos < 0:
            raise ValueError(f"shuffle_photos must be 0 or more, not {shuffle_photos}")
        self.stream = stream_captions(stream, on_error=on_error).cast_column("image", Image(decode=False))
        self.processor, self.tokenizer = processor, tokenizer
        self.max_caption_length, self.captions_per_sample = max_caption_length, captions_per_sample
        self.shuffle_photos, self.seed, self.passes, self.on_error = shuffle_photos, seed, passes, on_error
        self.process, self.processes = 0, 1
        self.first_worker = 0
        self._start: dict[str, Any] | None = None
        self._state: dict[str, Any] = {}
        self._logged: set[str] = set()

    def share(self, process: int, processes: int) -> "StreamingCaptionDataset":
        """Return the share of one of several processes."""
        part = copy.copy(self)
        part.process, part.processes = process, processes
        return part

    def worker(self) -> int:
        """Return the number of the current reader within this process."""
        info = get_worker_info()
        return 0 if info is None else (info.id + self.first_worker) % info.num_workers

    def recipe(self) -> dict[str, Any]:
        """Return everything that the order of samples depends on, except the data."""
        info = get_worker_info()
        return {
            "readers": self.processes * (1 if info is None else info.num_workers),
            "shards": self.stream.num_shards,
            "seed": self.seed,
            "shuffle_photos": self.shuffle_photos,
            "captions_per_sample": self.captions_per_sample,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this reader after the last sample, as plain JSON values."""
        return copy.deepcopy(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after a position in the next iteration."""
        self._start = copy.deepcopy(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield `pixel_values` of a photo and `labels`, an array of token ids or a list of such arrays."""
        recipe = self.recipe()
        beginning = {"recipe": recipe, "pass": 0, "share": [0, 1], "skipped": 0, **_pass_begins()}
        self._state, self._start = self._start or beginning, None
        _check_recipe(self._state["recipe"], recipe)
        reader = self.process * (recipe["readers"] // self.processes) + self.worker()
        barren = barren_rows = 0
        while self.passes is None or self._state["pass"] < self.passes:
            parts, units = self._share_of_pass(self._state["pass"], reader, recipe["readers"])
            rows = _Rows(self.stream, parts, units, self._state["place"], self.on_error)
            found = self._state["block"] > 0 or self._state["sample"] > 0
            while block := list(islice(rows, self.shuffle_photos or _PHOTOS_UNSHUFFLED)):
                for sample in self._samples(block, reader):
                    found = True
                    yield sample
                self._state.update(
                    block=self._state["block"] + 1,
                    sample=0,
                    place=rows.place(),
                    share=[rows.unit, len(units)],
                    skipped=self._state["skipped"] + len(self._state["broken"]),
                    broken=[],
                )
            barren, barren_rows = (0, 0) if found else (barren + 1, barren_rows + rows.read)
            if barren == _BARREN_PASSES or barren_rows > _BARREN_PHOTOS:
                raise CaptionDataError(
                    f"nothing in the stream can be used: {barren_rows} photos of {barren} passes gave no sample"
                )
            self._state.update({"pass": self._state["pass"] + 1, "share": [0, 1], **_pass_begins()})

    def _share_of_pass(self, number: int, reader: int, readers: int) -> tuple[int, list[tuple[int, int]]]:
        """Return the number of parts per shard, and the pairs of shard and part for a reader to read."""
        shards = self.stream.num_shards
        parts = -(-readers // shards)
        units = [(shard, part) for shard in range(shards) for part in range(parts)]
        if self.shuffle_photos:
            order = np.random.default_rng([self.seed, number]).permutation(len(units)).tolist()
            units = [units[index] for index in order]
        # The readers that get one more than others change from pass to pass.
        return parts, units[(reader + number) % readers :: readers]

    def _samples(self, block: list[dict[str, Any]], reader: int) -> Iterator[dict[str, Any]]:
        """Yield the samples of a block of photos from the position in the state, and update the state."""
        broken = set(self._state["broken"])
        for number, row in enumerate(block):
            if row["problem"]:
                broken.add(number)
                self._report(row["problem"], row["problem"])
        self._state["broken"] = sorted(broken)
        labels = self._tokenized([caption for row in block for caption in row["captions"]])
        samples = [
            (number, [next(labels) for _ in row["captions"][first : first + self.captions_per_sample]])
            for number, row in enumerate(block)
            for first in range(0, len(row["captions"]), self.captions_per_sample)
        ]
        order: Sequence[int] = range(len(samples))
        if self.shuffle_photos:
            seeds = [self.seed, self._state["pass"], reader, self._state["block"]]
            order = np.random.default_rng(seeds).permutation(len(samples)).tolist()
        for index in order[self._state["sample"] :]:
            number, own = samples[index]
            self._state["sample"] += 1
            try:
                photo = _decoded(block[number]["image"])
            except OSError as error:
                row = block[number]
                name = f"{photo_name(row['image'])}: " if isinstance(row["image"], dict) else ""
                problem = f"{row['origin']}: {row['image_id']}: {name}{error}"
                if self.on_error == "raise":
                    raise CaptionDataError(problem) from error
                self._report(f"{row['origin']}: {row['image_id']}", problem)
                self._state["broken"] = sorted({number, *self._state["broken"]})
                continue
            pixel_values = self.processor(images=photo, return_tensors="pt")["pixel_values"][0]
            yield {"pixel_values": pixel_values, "labels": own if self.captions_per_sample > 1 else own[0]}

    def _tokenized(self, captions: list[str]) -> Iterator[np.ndarray]:
        if not captions:
            return iter(())
        try:
            encoded = self.tokenizer(captions, truncation=True, max_length=self.max_caption_length)
        finally:
            # Otherwise the tokenizer would remember the length and save it with the checkpoint.
            self.tokenizer.backend_tokenizer.no_truncation()
        return (np.asarray(ids, dtype=np.int32) for ids in encoded.input_ids)

    def _report(self, place: str, problem: str) -> None:
        """Log one problem per place, and not millions of them."""
        if place not in self._logged and len(self._logged) < ITEMS_IN_WARNING:
            self._logged.add(place)
            logger.warning("skipped: %s", problem)


def _decoded(image: Any) -> Any:
    """Decode a `datasets.Image` value, unless a mapped stream has decoded it already."""
    return load_photo_row(image) if isinstance(image, dict) else load_photo(image)


def _pass_begins() -> dict[str, Any]:
    """Return the state at the beginning of a pass.

    `place` is the start of the current block: unit of the share, row of its shard, and the shard's own state. `sample`
    counts the samples of the block that were yielded or skipped; `broken` lists its photos with errors.
    """
    return {"block": 0, "sample": 0, "place": [0, 0, None], "broken": []}


def _check_recipe(before: dict[str, Any], now: dict[str, Any]) -> None:
    differences = [
        f"{name} was {before.get(name)} and is {value}" for name, value in now.items() if before.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"the position in the stream is for another order: {', '.join(differences)}"
            " (readers are processes times data loader workers)"
        )


class _Rows:
    """The photos of a reader's share of a pass, starting at a place."""

    def __init__(
        self,
        stream: datasets.IterableDataset,
        parts: int,
        units: list[tuple[int, int]],
        place: list,
        on_error: OnError,
    ) -> None:
        self.stream, self.parts, self.units, self.on_error = stream, parts, units, on_error
        self.unit, self.row, shard_state = place
        self.read = 0
        self.shard: datasets.IterableDataset | None = None
        if shard_state is not None:
            self._open(shard_state)

    def place(self) -> list[Any]:
        """Return the unit, the row of its shard, and the state of that shard, before the next row."""
        return [self.unit, self.row, None if self.shard is None else self.shard.state_dict()]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        while True:
            if self.shard is None:
                if self.unit == len(self.units):
                    raise StopIteration
                self._open(None)
            number, part = self.units[self.unit]
            origin = f"shard {number} of {self.stream.num_shards}"
            try:
                batch = next(self.rows)
            except StopIteration:
                self._close()
                continue
            except ValueError as error:  # of Arrow, or broken text
                if self.on_error == "raise" or isinstance(error, CaptionDataError):
                    raise CaptionDataError(f"{origin}: {error}") from error
                self._close()
                return {"captions": [], "problem": f"{origin}: damaged: {error}"}
            except OSError as error:
                raise OSError(f"{origin}: {error}") from error
            row = self.row
            self.row += 1
            if row % self.parts == part:
                self.read += 1
                return {"problem": None, "origin": origin, **{name: cell[0] for name, cell in batch.items()}}

    def _open(self, state: dict[str, Any] | None) -> None:
        number, _ = self.units[self.unit]
        self.shard = self.stream.shard(num_shards=self.stream.num_shards, index=number)
        if state is not None:
            self.shard.load_state_dict(state)
        # Not iter(): in a worker, Datasets would distribute shards once more.
        self.rows = self.shard.iter(batch_size=1)

    def _close(self) -> None:
        self.unit, self.row, self.shard = self.unit + 1, 0, None

"""`StreamingCaptionDataset`: samples from a stream of captioned photos, shuffled, and resumed exactly.

`datasets` provides the shards and the position within one. Its own shuffling is not used because a run could not be
resumed exactly: `IterableDataset.shuffle` does not keep its buffer in `state_dict()`. After resuming, none of the next
512 photos was the expected one, and 390 of them did not come in that pass (`benchmarks/stream_resume.py`, Datasets
5.2). Its webdataset reader decodes while it reads, so one broken caption ends a shard without saying which.
`split_dataset_by_node` lets every process read every shard where the shards cannot be dealt out evenly. The
`StatefulDataLoader` of torchdata resumes this data set too, but Trainer cannot be told to use it.
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

_PHOTOS_UNSHUFFLED = 32  # a block where nothing is shuffled
# When to give up on a stream of which nothing can be used: a share of a small one may be empty in some passes.
_BARREN_PASSES = 10
_BARREN_PHOTOS = 1000


class StreamingCaptionDataset(IterableDataset):
    """What [`CaptionDataset`] gives, from a stream: model inputs of a photo and one of its captions a sample.

    It never ends. Each pass takes the shards in an order of its own and deals them out to the readers, which are all
    processes times their workers; where there are fewer shards than readers, a shard is read by several, each keeping
    its part of the photos. Within a pass every photo is in the share of exactly one reader; readers do not wait for
    each other between passes.

    Samples are shuffled in blocks: the captions of `shuffle_photos` photos of a reader, put in an order that follows
    from seed, pass and number of the block. Memory is bounded by one block of encoded photos a reader. A buffer that
    is refilled as it is emptied, such as that of `IterableDataset.shuffle`, mixes a little further, but holds what
    cannot be found again from a position, so that a resumed run would see other samples.

    `state_dict()` is the position behind the sample given last, and `load_state_dict()` goes on from there, exactly:
    the shard's own position comes from `datasets`, one block is read again. Of a tar shard what lies before is read
    over, without decoding.

    Args:
        stream: what [`stream_captions`] gives, or takes as a `datasets.IterableDataset`.
        processor: the preprocessing.
        tokenizer: turns captions into labels, `<eos>` last.
        max_caption_length: longer captions are cut to so many tokens, `<eos>` included.
        captions_per_sample: captions of one photo that make up a sample, as in [`CaptionDataset`]. Where the backbone
            runs in training, as it does here, more than one is much cheaper.
        shuffle_photos: photos a block; 0 takes shards, photos and captions as they come.
        seed: of the order.
        passes: end after so many; None never ends, as training needs it.
        on_error: "raise" stops at a photo that is no image, "skip" leaves it out. What was skipped, here or by the
            stream, is counted, and the first of it logged with shard and key.

    Raises:
        ValueError: an argument is out of range; on reading, where the position to go on from was one in another order.
        CaptionDataError: on reading, with the shard: a fault, or that nothing can be used.
        OSError: on reading, with the shard: it cannot be opened or read on. That is never skipped, being no fault in
            the data.
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
        """The share of one of several processes."""
        part = copy.copy(self)
        part.process, part.processes = process, processes
        return part

    def worker(self) -> int:
        """Number, within this process, of the reader that runs here."""
        info = get_worker_info()
        return 0 if info is None else (info.id + self.first_worker) % info.num_workers

    def recipe(self) -> dict[str, Any]:
        """All that the order of samples follows from, besides the data."""
        info = get_worker_info()
        return {
            "readers": self.processes * (1 if info is None else info.num_workers),
            "shards": self.stream.num_shards,
            "seed": self.seed,
            "shuffle_photos": self.shuffle_photos,
            "captions_per_sample": self.captions_per_sample,
        }

    def state_dict(self) -> dict[str, Any]:
        """Position behind the sample given last, of this reader: plain values, which JSON keeps."""
        return copy.deepcopy(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind a position the next time that this is iterated over."""
        self._start = copy.deepcopy(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Inputs of a photo (`pixel_values`) and `labels`, an array of token ids, or a list of such arrays."""
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
                    f"nothing of the stream can be used: {barren_rows} photos of {barren} passes gave no sample"
                )
            self._state.update({"pass": self._state["pass"] + 1, "share": [0, 1], **_pass_begins()})

    def _share_of_pass(self, number: int, reader: int, readers: int) -> tuple[int, list[tuple[int, int]]]:
        """Into how many parts shards are cut, and the pairs of shard and part for a reader to read."""
        shards = self.stream.num_shards
        parts = -(-readers // shards)
        units = [(shard, part) for shard in range(shards) for part in range(parts)]
        if self.shuffle_photos:
            order = np.random.default_rng([self.seed, number]).permutation(len(units)).tolist()
            units = [units[index] for index in order]
        # Who gets one more than others changes from pass to pass.
        return parts, units[(reader + number) % readers :: readers]

    def _samples(self, block: list[dict[str, Any]], reader: int) -> Iterator[dict[str, Any]]:
        """Samples of a block of photos, from the one that the state says; keeps the state."""
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
            # It remembers the length, and would save it with the checkpoint as if captions had to be cut.
            self.tokenizer.backend_tokenizer.no_truncation()
        return (np.asarray(ids, dtype=np.int32) for ids in encoded.input_ids)

    def _report(self, place: str, problem: str) -> None:
        """Log the problem of a place once, and not every problem of millions."""
        if place not in self._logged and len(self._logged) < ITEMS_IN_WARNING:
            self._logged.add(place)
            logger.warning("skipped: %s", problem)


def _decoded(image: Any) -> Any:
    """The photo of an undecoded `datasets.Image` value, or of what a mapped stream has decoded already."""
    return load_photo_row(image) if isinstance(image, dict) else load_photo(image)


def _pass_begins() -> dict[str, Any]:
    """State at the beginning of a pass.

    `place` is where the block at hand begins: unit of the share, row of its shard, and the shard's own state. `sample`
    counts samples of the block that were given or skipped; `broken` are the photos of it at fault.
    """
    return {"block": 0, "sample": 0, "place": [0, 0, None], "broken": []}


def _check_recipe(before: dict[str, Any], now: dict[str, Any]) -> None:
    differences = [
        f"{name} was {before.get(name)} and is {value}" for name, value in now.items() if before.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"the position in the stream is one in another order: {', '.join(differences)}"
            " (readers are processes times data loader workers)"
        )


class _Rows:
    """The photos of a reader's share of a pass, from a place on."""

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
        """Unit, row of its shard and state of that shard; the next row is the one behind."""
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
            except ValueError as error:  # Arrow's, and those of broken text, are of this kind
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
        # Not iter(): inside a worker Datasets would deal out shards once more.
        self.rows = self.shard.iter(batch_size=1)

    def _close(self) -> None:
        self.unit, self.row, self.shard = self.unit + 1, 0, None

"""Captioned photos that fit no disk: read shard by shard, shuffled by position, and resumed exactly."""

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Image
from datasets.exceptions import DatasetsError
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from ..images_nic import load_photo
from ..processing_nic import NICProcessor
from .arrow_files import SHARD_FEATURES
from .columns import caption_columns, cell_captions
from .errors import ITEMS_IN_WARNING, SUPPORTED, CaptionDataError, ErrorCollector, OnError, RejectedError
from .feature_cache import load_photo_row, photo_name
from .hf_datasets import ID_COLUMNS
from .names import canonical_split
from .splits import check_split
from .tar_shards import clean_captions, find_shards, tar_rows

logger = logging.getLogger(__name__)

_PHOTOS_UNSHUFFLED = 32  # a block where nothing is shuffled
# When to give up on a stream of which nothing can be used: a share of a small one may be empty in some passes.
_BARREN_PASSES = 10
_BARREN_PHOTOS = 1000


def stream_captions(
    source: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | datasets.IterableDataset",
    split: str | None = None,
    *,
    on_error: OnError = "raise",
) -> datasets.IterableDataset:
    """Photos with their captions, read while they are used; `load_captions` for sets that fit no disk.

    Nothing is downloaded ahead and nothing is kept. The data set has as many shards as the source has files.

    Args:
        source: One of

            - WebDataset tar files, of `key.jpg` (or another suffix of a photo) and `key.txt`, a caption a line, or
              `key.json`, with captions named as in [`load_captions`]: a file, a folder of them, a pattern such as
              `shards/train-*.tar` or `https://host/train-{000..099}.tar`, or a list of such;
            - a Hub id or a local folder that `datasets.load_dataset(streaming=True)` opens;
            - a `datasets.IterableDataset` with an image column and caption columns.
        split: "train", "validation" (also "dev" or "val") or "test". Tar files are of the split that is in their name
            or that of their folder; None takes all of them, and of other sources the only split there is.
        on_error: "raise" stops at the first fault in a row. "skip" leaves out the caption, photo or rest of a shard at
            fault and says so in the row's `problem`; [`StreamingCaptionDataset`] counts and logs them.

    Returns:
        A `datasets.IterableDataset` with `image` (decoded when read: a photo that is no image shows only then),
        `image_id`, `captions`, which is empty where there is nothing to use, and `problem` (None mostly).

    Raises:
        CaptionDataError: the source is in no supported form or has no such split; on reading, the first fault, with
            shard and key.
    """
    ErrorCollector(on_error)  # checks it
    if isinstance(source, datasets.IterableDataset):
        return _normalised(source, on_error, "IterableDataset")
    shards = find_shards(source, split)
    if shards:
        return datasets.IterableDataset.from_generator(
            tar_rows, features=SHARD_FEATURES, gen_kwargs={"shards": shards, "on_error": on_error}
        )
    if not isinstance(source, (str, os.PathLike)):
        raise CaptionDataError(f"cannot stream captions from {source!r}: no tar files among them")
    label = os.fspath(source)
    try:
        parts = datasets.load_dataset(label, streaming=True)
    except (DatasetsError, OSError, ValueError) as error:
        what = "Hugging Face Datasets cannot stream it" if Path(label).exists() else "no such file, folder or Hub id"
        raise CaptionDataError(f"{label}: {what} ({error}); supported: tar files, {SUPPORTED}") from error
    by_split = {canonical_split(name): part for name, part in parts.items()}
    if split is None and len(by_split) > 1:
        raise CaptionDataError(f"{label}: name one of the splits {', '.join(sorted(by_split))}")
    wanted = next(iter(by_split)) if split is None else canonical_split(split)
    check_split(wanted, by_split, label)
    return _normalised(by_split[wanted], on_error, label)


def _normalised(stream: datasets.IterableDataset, on_error: OnError, label: str) -> datasets.IterableDataset:
    """A stream of any columns as one of `SHARD_FEATURES`."""
    names = stream.column_names or list(next(iter(stream), {}))
    if stream.features is not None and set(SHARD_FEATURES) <= set(names):
        return stream
    typed = [name for name, feature in (stream.features or {}).items() if isinstance(feature, Image)]
    image = "image" if "image" in names else typed[0] if len(typed) == 1 else None
    if image is None:
        raise CaptionDataError(
            f"{label}: no image column: expected image and found {', '.join(names) or 'no columns'}"
        )
    others = [name for name in names if name != image]
    texts = [name for name in ("txt", "json") if name in others]  # of a WebDataset on the Hub
    try:
        columns = caption_columns(others)
    except RejectedError as rejected:
        if not texts:
            raise CaptionDataError(f"{label}: {rejected}") from None
        columns = texts[:1]
    key = next((name for name in (*ID_COLUMNS, "__key__") if name in names), None)
    reader = _RowReader(image, columns, key, on_error, label)
    if stream.features is not None:  # of a mapped stream they are unknown, and photos are decoded already
        stream = stream.cast_column(image, Image(decode=False))
    return stream.map(reader, with_indices=True, remove_columns=names, features=SHARD_FEATURES)


class _RowReader:
    """Brings a row into the form of `SHARD_FEATURES`; a class, so that spawned workers can unpickle it."""

    def __init__(self, image: str, columns: list[str], key: str | None, on_error: OnError, label: str) -> None:
        self.image, self.columns, self.key, self.on_error, self.label = image, columns, key, on_error, label

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        image = row[self.image]
        file = image if isinstance(image, dict) else {}
        image_id = row[self.key] if self.key else file.get("path") or f"row {index}"
        problems: list[str] = []
        captions: list[str] = []
        if row.get("problem"):
            return {"image": None, "image_id": str(image_id), "captions": [], **row}
        try:
            if image is None or (file and not file.get("path") and not file.get("bytes")):
                raise RejectedError("no photo" if image is None else "the photo is empty (0 bytes)")
            captions = clean_captions(cell_captions([row[name] for name in self.columns]), problems)
        except RejectedError as rejected:
            problems.append(str(rejected))
        problem = f"{self.label}: {image_id}: {'; '.join(problems)}" if problems else None
        if problem and self.on_error == "raise":
            raise CaptionDataError(problem)
        return {"image": image, "image_id": str(image_id), "captions": captions, "problem": problem}


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

"""Datasets and collator for Trainer: a sample is a photo and one of its captions."""

import copy
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..configuration_nic import IGNORED_LABEL
from ..digests import digest_of
from ..languages import mirrored_word
from ..model.processor import NICProcessor
from .augmentation import PhotoView
from .feature_cache import load_photo_row, warn_unreadable
from .feature_files import FeatureTable

# What a sample has for each of its captions: dtype and padding.
_OF_CAPTIONS = {
    "labels": (torch.long, IGNORED_LABEL),
    "teacher_words": (torch.long, 0),
    "teacher_probabilities": (torch.float, 0.0),
}


class PhotoDataset(Dataset):
    """Model inputs of photos: cached features as `encoder_outputs`, or `pixel_values` computed on the fly.

    The names are those of the model's `forward`, so Trainer keeps them regardless of `remove_unused_columns`.

    Args:
        photos: a dataset with columns `image`, `image_id` and `captions` (see [`nic_hf.data.load_captions`]).
        processor: the preprocessing, used if there are no features.
        features: cached features of the same photos in the same order. Photos that the cache could not read are left
            out.
        keep_pixels: without features, keep preprocessed photos in memory. For small sets, whose photos are then
            preprocessed once instead of once per epoch.
        views: augmented views of the photos, each with its features, or None if photos are preprocessed on the fly.
            [`CaptionDataset`] draws a view, or the photo itself, for each sample; everything else uses the photos.
        on_error: without features, `"skip"` reads every photo once to leave out, and list in the log, those that
            cannot be read; `"raise"` stops at the first of them when it is accessed.

    Raises:
        ValueError: the number of features differs from the number of photos.
        OSError: on access, if the photo cannot be read; the message names its file.
    """

    def __init__(
        self,
        photos: datasets.Dataset,
        processor: NICProcessor,
        features: FeatureTable | None = None,
        keep_pixels: bool = False,
        on_error: str = "raise",
        views: Sequence[tuple[PhotoView, FeatureTable | None]] = (),
    ) -> None:
        for _, view_features in views:
            if (view_features is None) != (features is None):
                raise ValueError("either all views and the photos have features, or none of them")
            if view_features is not None and len(view_features) != len(photos):
                raise ValueError(f"features of {len(view_features)} photos do not fit a dataset of {len(photos)}")
        if features is not None and len(features) != len(photos):
            raise ValueError(f"features of {len(features)} photos do not fit a dataset of {len(photos)}")
        self.photos = photos.cast_column("image", datasets.Image(decode=False))
        unreadable: list[int] = []
        if features is not None:
            unreadable = features.unreadable_rows()
        elif on_error == "skip":
            unreadable = _unreadable_rows(self.photos)
        # Eight bytes per row; a list would take five times as much.
        self.rows: range | array[int] = range(len(photos))
        if unreadable:
            self.rows = array("q", sorted(set(self.rows).difference(unreadable)))
        self.processor = processor
        self.features = features
        self.views = list(views)
        self.kept: dict[tuple[int, int], torch.Tensor] | None = {} if keep_pixels else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `encoder_outputs` of shape `(feature_size,)` or `pixel_values` of shape `(channels, height, width)`.

        For a model with attention, `encoder_outputs` has shape `(num_regions, feature_size)`.
        """
        return self.inputs(self.rows[index])

    def inputs(self, row: int, view: int = 0) -> dict[str, torch.Tensor]:
        """Return model inputs of the photo at `row` of the dataset, or of its view of that number, counted from 1."""
        features = self.features if view == 0 else self.views[view - 1][1]
        if features is not None:
            return {features.input_name: features[row]}
        if self.kept is not None and (row, view) in self.kept:
            return {"pixel_values": self.kept[row, view]}
        photo = load_photo_row(self.photos[row]["image"])
        if view > 0:
            photo = self.views[view - 1][0](photo)
        pixel_values = self.processor(images=photo, return_tensors="pt")["pixel_values"][0]
        if self.kept is not None:
            self.kept[row, view] = pixel_values
        return {"pixel_values": pixel_values}

    def first(self, number: int) -> "PhotoDataset":
        """Return the first photos as a dataset."""
        few = copy.copy(self)
        few.rows = self.rows[:number]
        return few

    def image_ids(self) -> list[str]:
        """Return the ids of the photos, in order."""
        return self.photos.select_columns("image_id").select(self.rows)["image_id"][:]

    def references(self) -> dict[str, list[str]]:
        """Return the captions of each photo, by id."""
        table = self.photos.select_columns(["image_id", "captions"]).select(self.rows)
        return {row["image_id"]: row["captions"] for row in table}


@dataclass
class SoftTargets:
    """Probabilities of words to learn, for each word of each caption (see [`nic_hf.training.soft_targets`]).

    Attributes:
        starts: where the words of each caption begin, and where the last ones end: shape `(num_captions + 1,)`.
        words: ids of the likeliest words, of shape `(num_words, k)`.
        probabilities: their probabilities, which sum to 1, of shape `(num_words, k)`.
    """

    starts: np.ndarray
    words: np.ndarray
    probabilities: np.ndarray

    def __getitem__(self, caption: int) -> tuple[np.ndarray, np.ndarray]:
        """Return words and probabilities of a caption."""
        place = slice(self.starts[caption], self.starts[caption + 1])
        return self.words[place].astype(np.int64), self.probabilities[place].astype(np.float32)


class CaptionDataset(Dataset):
    """Pairs of a photo and one of its captions; a photo with five captions gives five samples.

    If the photos have views, one is drawn for each sample and epoch (see [`CaptionDataset.set_epoch`]). Captions of a
    mirrored view have "left" and "right" swapped, and the words for them in other languages
    ([`nic_hf.languages.mirrored_word`]).

    With `soft_targets` samples also have `teacher_words` and `teacher_probabilities`.

    Args:
        photos: the photos.
        tokenizer: turns captions into labels, which end with `<eos>`.
        max_caption_length: captions are truncated to this number of tokens, including `<eos>`.
        captions_per_sample: captions of one photo per sample. They share a pass of the backbone, which pays off if it
            is trained: a photo with five captions gives one sample of five, or three of two, two and one. Each caption
            still occurs once per epoch.

    Raises:
        ValueError: `max_caption_length` or `captions_per_sample` is too small.
    """

    def __init__(
        self,
        photos: PhotoDataset,
        tokenizer: PreTrainedTokenizerBase,
        max_caption_length: int = 50,
        captions_per_sample: int = 1,
    ) -> None:
        if max_caption_length < 2:
            raise ValueError(f"max_caption_length must be at least 2, a word and <eos>, not {max_caption_length}")
        if captions_per_sample < 1:
            raise ValueError(f"captions_per_sample must be at least 1, not {captions_per_sample}")
        self.photos = photos
        self.captions_per_sample = captions_per_sample
        self.soft_targets: SoftTargets | None = None
        self.pairs = _tokenized_pairs(photos, tokenizer, max_caption_length).with_format("numpy")
        # Where each sample's captions begin in the table, and where the last one's end.
        self.bounds: Sequence[int] | np.ndarray = range(len(self.pairs) + 1)
        # Shared memory: persistent workers have their own copies of the dataset.
        self._epoch = torch.zeros(1, dtype=torch.int64)
        if photos.views:
            self._epoch.share_memory_()
        self._views_of, self._views = -1, np.empty(0, dtype=np.uint16)
        words = tokenizer.get_vocab()
        self.mirrored_ids = np.arange(len(tokenizer))
        for word, index in words.items():
            self.mirrored_ids[index] = words.get(mirrored_word(word), index)
        if captions_per_sample > 1:
            self.bounds = _bounds(self.pairs.data.column("row").to_numpy(), captions_per_sample)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def set_epoch(self, epoch: int) -> None:
        """Draw the views of an epoch; called by [`nic_hf.training.CaptioningTrainer`].

        They depend on the epoch and the number of the sample only, not on batch size, workers or resuming.
        """
        self._epoch[0] = epoch

    def lengths(self) -> np.ndarray:
        """Return the number of labels of each sample's longest caption, including `<eos>`."""
        lengths = pc.list_value_length(self.pairs.data.column("labels")).to_numpy()
        return lengths if self.captions_per_sample == 1 else np.maximum.reduceat(lengths, self.bounds[:-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the inputs of the photo and `labels`, an array of token ids or a list of such arrays."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several samples, with one access to the table of captions."""
        wanted = [range(self.bounds[index], self.bounds[index + 1]) for index in indices]
        pairs = self.pairs[[pair for captions in wanted for pair in captions]]
        rows, labels = pairs["row"].tolist(), list(pairs["labels"])
        views = self._draw_views(indices)
        seen: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
        samples, start = [], 0
        for captions, view in zip(wanted, views, strict=True):
            own, place = {"labels": labels[start : start + len(captions)]}, (rows[start], view)
            if place not in seen:
                seen[place] = self.photos.inputs(*place)
            if self.soft_targets is not None:
                taught = [self.soft_targets[caption] for caption in captions]
                own["teacher_words"] = [words for words, _ in taught]
                own["teacher_probabilities"] = [probabilities for _, probabilities in taught]
            if view > 0 and self.photos.views[view - 1][0].mirrored:
                for name in own.keys() - {"teacher_probabilities"}:
                    own[name] = [self.mirrored_ids[ids] for ids in own[name]]
            several = self.captions_per_sample > 1
            samples.append({**seen[place], **{name: each if several else each[0] for name, each in own.items()}})
            start += len(captions)
        return samples

    def _draw_views(self, indices: Sequence[int]) -> list[int]:
        """Return the view of each sample in this epoch."""
        if not self.photos.views:
            return [0] * len(indices)
        epoch = int(self._epoch)
        if epoch != self._views_of:
            generator = np.random.default_rng(epoch)
            self._views = generator.integers(1 + len(self.photos.views), size=len(self), dtype=np.uint16)
            self._views_of = epoch
        return self._views[indices].tolist()


class CaptionCollator:
    """Stack samples, and pad labels with -100, which the loss ignores."""

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of `encoder_outputs` or `pixel_values`, and of `labels` if given.

        Labels have shape `(batch_size, sequence_length)`, or `(batch_size, num_captions, sequence_length)` if samples
        hold several captions; samples with fewer captions are padded. Soft targets have a last dimension more.
        """
        batch: dict[str, torch.Tensor] = {
            name: torch.stack([sample[name] for sample in samples])
            for name in ("encoder_outputs", "pixel_values")
            if name in samples[0]
        }
        for name, (dtype, padding) in _OF_CAPTIONS.items():
            if name not in samples[0]:
                continue
            captions = [sample[name] for sample in samples]
            if not isinstance(captions[0], list):
                batch[name] = _pad(captions, dtype, padding)
                continue
            number = max(map(len, captions))
            none = captions[0][0][:0]
            padded = [each for own in captions for each in (*own, *[none] * (number - len(own)))]
            batch[name] = _pad(padded, dtype, padding).unflatten(0, (len(samples), number))
        return batch


def _bounds(rows: np.ndarray, captions_per_sample: int) -> np.ndarray:
    """Return the bounds of samples of one photo's captions, which are consecutive."""
    photo_starts = np.flatnonzero(np.diff(rows, prepend=-1))
    position = np.arange(len(rows)) - np.repeat(photo_starts, np.diff(photo_starts, append=len(rows)))
    return np.append(np.flatnonzero(position % captions_per_sample == 0), len(rows))


def _pad(captions: Sequence[Any], dtype: torch.dtype, padding: float) -> torch.Tensor:
    tensors = [torch.as_tensor(caption, dtype=dtype) for caption in captions]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def _unreadable_rows(photos: datasets.Dataset) -> list[int]:
    rows = []
    for row, image in enumerate(photos.select_columns("image")):
        try:
            load_photo_row(image["image"])
        except OSError:
            rows.append(row)
    if rows:
        warn_unreadable(photos, rows)
    return rows


def _tokenized_pairs(
    photos: PhotoDataset, tokenizer: PreTrainedTokenizerBase, max_caption_length: int
) -> datasets.Dataset:
    """Return a table of `row` (of the photo) and `labels` on disk, so that memory does not grow with the captions."""
    rows = photos.rows
    table = photos.photos.select_columns("captions")
    if len(rows) < len(table):
        table = table.select(rows)

    def tokenize(batch: dict[str, list], positions: list[int]) -> dict[str, list]:
        pairs = [
            (rows[position], caption)
            for position, captions in zip(positions, batch["captions"], strict=True)
            for caption in captions
        ]
        encoded = tokenizer([caption for _, caption in pairs], truncation=True, max_length=max_caption_length)
        return {"row": [row for row, _ in pairs], "labels": encoded.input_ids}

    # Without the truncation and padding last used with the tokenizer: they are set by this call.
    words = {**json.loads(tokenizer.backend_tokenizer.to_str()), "truncation": None, "padding": None}
    recipe = json.dumps([photos.photos._fingerprint, words, max_caption_length], sort_keys=True)
    try:
        return table.map(
            tokenize,
            batched=True,
            with_indices=True,
            remove_columns=table.column_names,
            features=datasets.Features(
                {"row": datasets.Value("int32"), "labels": datasets.List(datasets.Value("int32"))}
            ),
            new_fingerprint=digest_of([recipe.encode(), array("q", rows)]),
            desc="Tokenizing captions",
        )
    finally:
        # Otherwise the tokenizer would remember the length and save it with the checkpoint.
        tokenizer.backend_tokenizer.no_truncation()

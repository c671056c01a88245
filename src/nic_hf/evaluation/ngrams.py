"""Captions as arrays of n-gram ids, so that BLEU and CIDEr-D are computed without Python loops over n-grams."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

MAX_ORDER = 4

Caption = str | Sequence[Hashable]  # words separated by spaces, or a sequence of words or token ids


@dataclass(frozen=True)
class NgramCounts:
    """Counts of the n-grams of one order in each caption, one entry per caption and n-gram that occurs in it.

    Attributes:
        captions: Row of the caption, shape `(num_entries,)`; sorted.
        ngrams: Id of the n-gram, shape `(num_entries,)`; sorted within a caption.
        counts: Number of occurrences, shape `(num_entries,)`.
    """

    captions: np.ndarray
    ngrams: np.ndarray
    counts: np.ndarray


class NgramIndex:
    """Assigns ids to the n-grams of orders 1 to 4 that occur in the captions.

    The n-gram "w1 ... wn" has the key `id("w1 ... wn-1") * vocabulary size + id(wn)`, and its id is the position of
    that key among the sorted keys of its order.

    Args:
        captions: the tokenized captions.
    """

    def __init__(self, captions: Iterable[Caption]) -> None:
        self.vocabulary: dict[Hashable, int] = {}
        number = self.vocabulary.setdefault
        split = (caption.split() if isinstance(caption, str) else caption for caption in captions)
        rows = [[number(word, len(self.vocabulary)) for word in words] for words in split]
        self.lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        words = np.fromiter(chain.from_iterable(rows), np.int64, int(self.lengths.sum()))
        del rows
        captions_of_words = np.repeat(np.arange(len(self.lengths)), self.lengths)
        words_left = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(words))

        size = max(len(self.vocabulary), 1)
        self.keys = [np.arange(len(self.vocabulary))]
        self.occurrences: list[NgramCounts] = []
        starts, ngrams = np.arange(len(words)), words
        for order in range(1, MAX_ORDER + 1):
            if order > 1:
                longer = words_left[starts] >= order
                starts = starts[longer]
                keys, ngrams = np.unique(ngrams[longer] * size + words[starts + order - 1], return_inverse=True)
                self.keys.append(keys)
            self.occurrences.append(_count(captions_of_words[starts], ngrams, len(self.keys[-1])))

    def translate(self, other: "NgramIndex") -> list[np.ndarray]:
        """For each order, the ids in `other` of this index's n-grams; -1 for those that `other` does not have."""
        words = np.fromiter(
            (other.vocabulary.get(word, -1) for word in self.vocabulary), np.int64, len(self.vocabulary)
        )
        size, other_size = max(len(self.vocabulary), 1), max(len(other.vocabulary), 1)
        numbers = [words]
        for keys, other_keys in zip(self.keys[1:], other.keys[1:], strict=True):
            prefixes, last = numbers[-1][keys // size], words[keys % size]
            places, found = find_sorted(other_keys, prefixes * other_size + last)
            numbers.append(np.where(found & (prefixes >= 0) & (last >= 0), places, -1))
        return numbers


def find_sorted(haystack: np.ndarray, needles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position of each needle in the sorted haystack, and whether it was found; other positions are arbitrary."""
    if not len(haystack):
        return np.zeros(len(needles), np.int64), np.zeros(len(needles), bool)
    places = np.minimum(np.searchsorted(haystack, needles), len(haystack) - 1)
    return places, haystack[places] == needles


def _count(captions: np.ndarray, ngrams: np.ndarray, num_ngrams: int) -> NgramCounts:
    size = max(num_ngrams, 1)
    pairs, counts = np.unique(captions * size + ngrams, return_counts=True)
    return NgramCounts(pairs // size, pairs % size, counts)


class CaptionTable:
    """Predictions and references of a corpus that share n-gram ids.

    Args:
        predictions: the tokenized predictions.
        references: the tokenized reference captions of each photo.
        photo_of_prediction: row of the photo of each prediction. Defaults to one prediction per photo, in order.

    Raises:
        ValueError: if a photo has no references.
    """

    def __init__(
        self,
        predictions: Sequence[Caption],
        references: Sequence[Sequence[Caption]],
        photo_of_prediction: np.ndarray | None = None,
    ) -> None:
        self.num_predictions, self.num_photos = len(predictions), len(references)
        self.index = NgramIndex(chain(predictions, *references))
        num_references = np.fromiter(map(len, references), np.int64, self.num_photos)
        if not num_references.all():
            raise ValueError(f"photo {int(np.argmin(num_references))} has no reference captions")
        # shape: (num_references,): row of the photo of each reference
        self.photo_of_reference = np.repeat(np.arange(self.num_photos), num_references)
        self.photo_of_prediction = np.arange(self.num_photos) if photo_of_prediction is None else photo_of_prediction
        # Each prediction is compared with the references of its photo; shape: (num_pairs,)
        self.references_of_prediction = num_references[self.photo_of_prediction]
        first_reference = (np.cumsum(num_references) - num_references)[self.photo_of_prediction]
        self.pair_predictions = np.repeat(np.arange(self.num_predictions), self.references_of_prediction)
        self.pair_references = ranges(first_reference, self.references_of_prediction)
        self.prediction_lengths = self.index.lengths[: self.num_predictions]
        self.reference_lengths = self.index.lengths[self.num_predictions :]
        self.predictions: list[NgramCounts] = []
        self.references: list[NgramCounts] = []
        for entries in self.index.occurrences:
            cut = int(np.searchsorted(entries.captions, self.num_predictions))
            columns = entries.captions, entries.ngrams, entries.counts
            self.predictions.append(NgramCounts(*(column[:cut] for column in columns)))
            captions, ngrams, counts = (column[cut:] for column in columns)
            self.references.append(NgramCounts(captions - self.num_predictions, ngrams, counts))

    def per_photo(self, order: int) -> NgramCounts:
        """The largest count of each n-gram in any reference of a photo.

        The `captions` of the result are rows of photos. `order` starts at 0.
        """
        entries = self.references[order]
        pairs = self.pairs(self.photo_of_reference[entries.captions], entries.ngrams, order)
        by_pair = np.argsort(pairs, kind="stable")
        pairs = pairs[by_pair]
        first = np.flatnonzero(np.diff(pairs, prepend=-1))
        most = np.maximum.reduceat(entries.counts[by_pair], first) if len(first) else entries.counts[:0]
        size = max(len(self.index.keys[order]), 1)
        return NgramCounts(pairs[first] // size, pairs[first] % size, most)

    def pairs(self, rows: np.ndarray, ngrams: np.ndarray, order: int) -> np.ndarray:
        """One number for each pair of a row and an n-gram; sorted pairs give sorted numbers."""
        return rows * max(len(self.index.keys[order]), 1) + ngrams


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenated integer ranges."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)

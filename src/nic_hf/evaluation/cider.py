"""CIDEr-D as coco-caption's `Cider()` computes it (Vedantam et al., arXiv 1411.5726; n = 1 to 4, sigma = 6).

Caption scores, rewards of self-critical training and consensus decoding all use this implementation.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .ngrams import MAX_ORDER, Caption, CaptionTable, NgramIndex, find_sorted, ranges
from .words import caption_words

SIGMA = 6.0
SCALE = 10.0


class DocumentFrequencies:
    """For each n-gram, the number of photos whose references contain it.

    Args:
        references: the captions of each photo.
        tokenize: splits a caption into words. Use `list` for captions that are lists of words or token ids.

    Attributes:
        num_documents: Number of photos.

    Raises:
        ValueError: if there are no photos.

    Example:
        >>> frequencies = DocumentFrequencies([["A dog.", "A brown dog."], ["A cat."]])
        >>> frequencies.num_documents, frequencies["a"], frequencies["brown dog"], frequencies["bird"]
        (2, 2, 1, 0)
    """

    def __init__(
        self, references: Iterable[Sequence[Any]], tokenize: Callable[[Any], Sequence[Any]] = caption_words
    ) -> None:
        photos = [[_joined(tokenize(caption)) for caption in captions] for captions in references]
        if not photos:
            raise ValueError("document frequencies need the captions of at least one photo")
        self.num_documents = len(photos)
        self._index = NgramIndex(caption for captions in photos for caption in captions)
        photo_of_caption = np.repeat(np.arange(len(photos)), [len(captions) for captions in photos])
        self._counts = []
        for keys, entries in zip(self._index.keys, self._index.occurrences, strict=True):
            size = max(len(keys), 1)
            pairs = np.unique(photo_of_caption[entries.captions] * size + entries.ngrams)
            self._counts.append(np.bincount(pairs % size, minlength=len(keys)))
        # Only ids and counts are needed later.
        self._index.occurrences = []

    def __getitem__(self, ngram: str) -> int:
        """Number of photos with this n-gram of one to four words separated by spaces; 0 if it is unknown."""
        order = len(ngram.split())
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"an n-gram has 1 to {MAX_ORDER} words, {ngram!r} has {order}")
        return int(self._of(NgramIndex([ngram]))[order - 1][0])

    def weights(self, index: NgramIndex) -> list[np.ndarray]:
        """For each order, the log inverse document frequency of each n-gram of `index`."""
        return [inverse_frequencies(counts, self.num_documents) for counts in self._of(index)]

    def _of(self, index: NgramIndex) -> list[np.ndarray]:
        """For each order, the number of photos with each n-gram of `index`; 0 for unknown ones."""
        return [
            np.where(numbers >= 0, counts[numbers], 0) if len(counts) else np.zeros(len(numbers), np.int64)
            for numbers, counts in zip(index.translate(self._index), self._counts, strict=True)
        ]


def cider_scores(table: CaptionTable, frequencies: DocumentFrequencies | None = None) -> np.ndarray:
    """CIDEr-D of each prediction, shape `(num_predictions,)`, 0 to 10; the corpus score is the mean.

    Args:
        table: predictions and references.
        frequencies: document frequencies. Defaults to those of the references in the table.
    """
    if frequencies is not None:
        weights = frequencies.weights(table.index)
    else:
        weights = [
            inverse_frequencies(np.bincount(table.per_photo(order).ngrams, minlength=len(keys)), table.num_photos)
            for order, keys in enumerate(table.index.keys)
        ]
    sums = np.bincount(table.pair_predictions, pair_similarities(table, weights), table.num_predictions)
    return SCALE * sums / table.references_of_prediction


def pair_similarities(table: CaptionTable, weights: Sequence[np.ndarray]) -> np.ndarray:
    """CIDEr-D, without its factor of 10, of each prediction with each reference of its photo, shape `(num_pairs,)`.

    Args:
        table: predictions and references.
        weights: for each order, the weight of each n-gram of the table.
    """
    total = np.zeros(len(table.pair_predictions))
    for order in range(MAX_ORDER):
        total += _cosines(table, order, weights[order])
    # coco-caption takes the number of bigrams as the length.
    lengths, reference_lengths = (
        np.maximum(words - 1, 0) for words in (table.prediction_lengths, table.reference_lengths)
    )
    differences = lengths[table.pair_predictions] - reference_lengths[table.pair_references]
    return total / MAX_ORDER * np.exp(-(differences**2) / (2 * SIGMA**2))


def inverse_frequencies(counts: np.ndarray, num_documents: int) -> np.ndarray:
    """log(num_documents / counts), with counts of at least 1."""
    return np.log(num_documents) - np.log(np.maximum(counts, 1))


def _joined(words: Sequence[Any]) -> Caption:
    """A caption for `NgramIndex`, which splits tokens that contain a no-break space."""
    return " ".join(words) if words and isinstance(words[0], str) else words


def _cosines(table: CaptionTable, order: int, weights: np.ndarray) -> np.ndarray:
    """Clipped cosine similarity of each pair for the n-grams of one order, shape `(num_pairs,)`."""
    predicted, referred = table.predictions[order], table.references[order]
    vectors = predicted.counts * weights[predicted.ngrams]
    reference_vectors = referred.counts * weights[referred.ngrams]
    num_references, num_pairs = len(table.photo_of_reference), len(table.pair_predictions)
    norms = np.sqrt(np.bincount(predicted.captions, vectors**2, table.num_predictions))
    reference_norms = np.sqrt(np.bincount(referred.captions, reference_vectors**2, num_references))
    # For each pair, look up the n-grams of the reference in the prediction.
    sizes = np.bincount(referred.captions, minlength=num_references)
    lookups = sizes[table.pair_references]
    entries = ranges((np.cumsum(sizes) - sizes)[table.pair_references], lookups)
    pairs = np.repeat(np.arange(num_pairs), lookups)
    places, found = find_sorted(
        table.pairs(predicted.captions, predicted.ngrams, order),
        table.pairs(table.pair_predictions[pairs], referred.ngrams[entries], order),
    )
    own = reference_vectors[entries[found]]
    products = np.bincount(pairs[found], np.minimum(vectors[places[found]], own) * own, num_pairs)
    scale = norms[table.pair_predictions] * reference_norms[table.pair_references]
    return np.divide(products, scale, out=np.zeros(num_pairs), where=scale != 0)

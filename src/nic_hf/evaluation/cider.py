"""CIDEr-D as coco-caption's `Cider()` computes it (Vedantam et al., arXiv 1411.5726; n = 1 to 4, sigma = 6)."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .ngrams import MAX_ORDER, CaptionTable, NgramIndex, find_sorted
from .words import caption_words

SIGMA = 6.0
SCALE = 10.0


class DocumentFrequencies:
    """In how many photos' references each n-gram occurs; computed once, say from the training split, and reused.

    Args:
        references: the captions of each photo.
        tokenize: turns a caption into words.

    Attributes:
        num_documents: Number of photos.

    Raises:
        ValueError: where there are no photos.

    Example:
        >>> frequencies = DocumentFrequencies([["A dog.", "A brown dog."], ["A cat."]])
        >>> frequencies.num_documents, frequencies["a"], frequencies["brown dog"], frequencies["bird"]
        (2, 2, 1, 0)
    """

    def __init__(
        self, references: Iterable[Sequence[str]], tokenize: Callable[[str], list[str]] = caption_words
    ) -> None:
        photos = [[" ".join(tokenize(caption)) for caption in captions] for captions in references]
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
        # Only numbers and counts are needed from here on.
        self._index.occurrences = []

    def __getitem__(self, ngram: str) -> int:
        """Number of photos with this n-gram, its one to four words joined by spaces; 0 for an unknown one."""
        order = len(ngram.split())
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"an n-gram has 1 to {MAX_ORDER} words, {ngram!r} has {order}")
        own = NgramIndex([ngram])
        return int(self.of(own)[order - 1][0])

    def of(self, index: NgramIndex) -> list[np.ndarray]:
        """For each order, the number of photos with each n-gram numbered by `index`; 0 for unknown ones."""
        return [
            np.where(numbers >= 0, counts[numbers], 0) if len(counts) else np.zeros(len(numbers), np.int64)
            for numbers, counts in zip(index.translate(self._index), self._counts, strict=True)
        ]


def cider_scores(table: CaptionTable, frequencies: DocumentFrequencies | None = None) -> np.ndarray:
    """CIDEr-D of each photo, shape `(num_photos,)`, 0 to 10; the corpus score is the mean.

    Args:
        table: predictions and references.
        frequencies: document frequencies; those of the table's own references where None.
    """
    num_documents = table.num_photos if frequencies is None else frequencies.num_documents
    given = None if frequencies is None else frequencies.of(table.index)
    # coco-caption counts a caption's bigrams for its length.
    lengths = np.maximum(table.prediction_lengths - 1, 0)
    reference_lengths = np.maximum(table.reference_lengths - 1, 0)
    total = np.zeros(len(table.photo_of_reference))
    for order in range(MAX_ORDER):
        if given is None:
            counts = np.bincount(table.per_photo(order).ngrams, minlength=len(table.index.keys[order]))
        else:
            counts = given[order]
        weights = np.log(num_documents) - np.log(np.maximum(counts, 1))
        total += _similarities(table, order, weights)
    total *= np.exp(-((lengths[table.photo_of_reference] - reference_lengths) ** 2) / (2 * SIGMA**2))
    sums = np.bincount(table.photo_of_reference, total, table.num_photos)
    return SCALE * sums / (MAX_ORDER * table.num_references)


def _similarities(table: CaptionTable, order: int, weights: np.ndarray) -> np.ndarray:
    """Clipped cosine similarity of each reference with its photo's prediction, shape `(num_references,)`."""
    predicted, referred = table.predictions[order], table.references[order]
    vectors = predicted.counts * weights[predicted.ngrams]
    reference_vectors = referred.counts * weights[referred.ngrams]
    photos, num_references = table.photo_of_reference, len(table.photo_of_reference)
    norms = np.sqrt(np.bincount(predicted.captions, vectors**2, table.num_photos))[photos]
    reference_norms = np.sqrt(np.bincount(referred.captions, reference_vectors**2, num_references))
    places, found = find_sorted(
        table.pairs(predicted.captions, predicted.ngrams, order),
        table.pairs(photos[referred.captions], referred.ngrams, order),
    )
    own = reference_vectors[found]
    products = np.bincount(referred.captions[found], np.minimum(vectors[places[found]], own) * own, num_references)
    scale = norms * reference_norms
    return np.divide(products, scale, out=np.zeros(num_references), where=scale != 0)

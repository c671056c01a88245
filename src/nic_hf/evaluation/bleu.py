"""BLEU-1 to BLEU-4 as coco-caption computes them (Papineni et al. 2002; reference length: the closest)."""

import numpy as np

from .ngrams import MAX_ORDER, CaptionTable, find_sorted

# coco-caption's guards against division by zero (bleu_scorer.py), needed for equal scores.
SMALL, TINY = 1e-9, 1e-15


def bleu_statistics(table: CaptionTable) -> np.ndarray:
    """Sufficient statistics of BLEU; those of a corpus are the sum over its predictions.

    Returns:
        Shape `(num_predictions, 10)`: length of the prediction, length of the closest reference (the shorter one of a
        tie), number of n-grams of the prediction for n = 1 to 4, and their clipped matches in the references.
    """
    statistics = np.zeros((table.num_predictions, 2 + 2 * MAX_ORDER), np.int64)
    lengths = table.prediction_lengths
    statistics[:, 0] = lengths
    statistics[:, 1] = _closest_lengths(table)
    for order in range(MAX_ORDER):
        statistics[:, 2 + order] = np.maximum(lengths - order, 0)
        predicted, referred = table.predictions[order], table.per_photo(order)
        places, found = find_sorted(
            table.pairs(referred.captions, referred.ngrams, order),
            table.pairs(table.photo_of_prediction[predicted.captions], predicted.ngrams, order),
        )
        clipped = np.minimum(predicted.counts[found], referred.counts[places[found]])
        statistics[:, 2 + MAX_ORDER + order] = np.bincount(predicted.captions[found], clipped, table.num_predictions)
    return statistics


def bleu_from_statistics(statistics: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 as fractions, shape `(..., 4)`, from statistics of shape `(..., 10)`."""
    predicted_words, reference_words = statistics[..., :1], statistics[..., 1:2]
    guessed, correct = statistics[..., 2 : 2 + MAX_ORDER], statistics[..., 2 + MAX_ORDER :]
    precisions = np.cumprod((correct + TINY) / (guessed + SMALL), axis=-1) ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (predicted_words + TINY) / (reference_words + SMALL)
    with np.errstate(over="ignore"):
        return precisions * np.exp(np.minimum(1 - 1 / ratio, 0))


def _closest_lengths(table: CaptionTable) -> np.ndarray:
    lengths = table.reference_lengths[table.pair_references]
    distances = np.abs(lengths - table.prediction_lengths[table.pair_predictions])
    order = np.lexsort((lengths, distances, table.pair_predictions))
    first = np.cumsum(table.references_of_prediction) - table.references_of_prediction
    return lengths[order[first]]

"""ROUGE-L as coco-caption computes it (Lin 2004; beta = 1.2)."""

from collections.abc import Sequence

BETA = 1.2


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L of one caption: F-measure of the best precision and best recall of the longest common subsequence.

    Args:
        prediction: words separated by single spaces.
        references: at least one reference in the same form.

    Example:
        >>> round(rouge_l("a dog runs", ["a brown dog runs"]), 4)
        0.8356
    """
    # As in coco-caption, an empty caption is one empty word.
    words = prediction.split(" ")
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    best_precision = best_recall = 0.0
    for reference in references:
        reference_words = reference.split(" ")
        common = _common_subsequence(places, len(words), reference_words)
        best_precision = max(best_precision, common / len(words))
        best_recall = max(best_recall, common / len(reference_words))
    if not best_precision:
        return 0.0
    return (1 + BETA**2) * best_precision * best_recall / (best_recall + BETA**2 * best_precision)


def _common_subsequence(places: dict[str, int], num_words: int, others: Sequence[str]) -> int:
    """Length of the longest common subsequence, with a row of the table in the bits of one integer.

    Source: Hyyrö, "Bit-parallel LCS-length computation revisited" (2004). `places` maps each word to the bits of its
    positions.
    """
    all_bits = (1 << num_words) - 1
    row = all_bits
    for word in others:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & all_bits
    return num_words - row.bit_count()

"""CIDEr-D and BLEU-4 of captions as token ids: the reward of self-critical training."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ..evaluation.bleu import bleu_from_statistics

Caption = Sequence[int]
MAX_ORDER = 4
SIGMA = 6.0  # of the Gaussian on lengths, Vedantam et al. 2015, section 6


class CaptionReward:
    """A weighted mix of CIDEr-D and BLEU-4, caption by caption.

    Captions are token ids with `<eos>` as their last word: without it in the reward a model learns to stop in the
    middle ("a man in a"). The formulas are those of `nic_hf.evaluation`, on ids instead of text.

    Args:
        photos: the reference captions of each training photo; CIDEr-D's document frequencies are theirs.
        cider_weight, bleu_weight: of the mix.

    Raises:
        ValueError: where there are no photos, or both weights are 0.
    """

    def __init__(
        self, photos: Iterable[Sequence[Caption]], cider_weight: float = 1.0, bleu_weight: float = 0.0
    ) -> None:
        if cider_weight == 0 and bleu_weight == 0:
            raise ValueError("the reward needs a weight for CIDEr-D or BLEU-4 that is not 0")
        self.cider_weight, self.bleu_weight = cider_weight, bleu_weight
        self.documents = 0
        self.frequencies: Counter[tuple[int, ...]] = Counter()
        for captions in photos:
            self.documents += 1
            self.frequencies.update({ngram for caption in captions for ngram in _ngrams(caption)})
        if self.documents == 0:
            raise ValueError("document frequencies need the captions of at least one photo")
        self.log_documents = math.log(self.documents)

    def __call__(
        self, predictions: Sequence[Sequence[Caption]], references: Sequence[Sequence[Caption]]
    ) -> np.ndarray:
        """Rewards of several captions of each photo.

        Args:
            predictions: for each photo as many captions.
            references: for each photo its reference captions.

        Returns:
            Shape `(num_photos, captions_per_photo)`.
        """
        return np.array([self._rewards(own, others) for own, others in zip(predictions, references, strict=True)])

    def _rewards(self, predictions: Sequence[Caption], references: Sequence[Caption]) -> list[float]:
        counted = [_ngrams(reference) for reference in references]
        vectors = [self._vector(counts) for counts in counted]
        most: Counter[tuple[int, ...]] = Counter()
        for counts in counted:
            most |= counts
        rewards = []
        for prediction in predictions:
            counts = _ngrams(prediction)
            reward = 0.0
            if self.cider_weight:
                own = self._vector(counts)
                lengths = [len(prediction) - len(reference) for reference in references]
                similar = (_similarity(own, v, d) for v, d in zip(vectors, lengths, strict=True))
                reward += self.cider_weight * 10 * sum(similar) / len(references)
            if self.bleu_weight:
                reward += self.bleu_weight * _bleu_4(prediction, counts, most, references)
            rewards.append(reward)
        return rewards

    def _vector(self, counts: Counter[tuple[int, ...]]) -> tuple[dict[tuple[int, ...], float], list[float]]:
        """TF-IDF weights by n-gram, and their norm for each order."""
        weights, squares = {}, [0.0] * MAX_ORDER
        for ngram, count in counts.items():
            weight = count * (self.log_documents - math.log(max(1, self.frequencies.get(ngram, 0))))
            weights[ngram] = weight
            squares[len(ngram) - 1] += weight * weight
        return weights, [math.sqrt(square) for square in squares]


def _ngrams(caption: Caption) -> Counter[tuple[int, ...]]:
    words = tuple(caption)
    return Counter(
        words[start : start + order] for order in range(1, MAX_ORDER + 1) for start in range(len(words) - order + 1)
    )


def _similarity(
    prediction: tuple[dict[tuple[int, ...], float], list[float]],
    reference: tuple[dict[tuple[int, ...], float], list[float]],
    length_difference: int,
) -> float:
    """CIDEr-D of one pair, without its factor 10."""
    (own, own_norms), (other, other_norms) = prediction, reference
    products = [0.0] * MAX_ORDER
    for ngram, weight in own.items():
        if ngram in other:
            products[len(ngram) - 1] += min(weight, other[ngram]) * other[ngram]
    cosines = (p / (a * b) if a and b else 0.0 for p, a, b in zip(products, own_norms, other_norms, strict=True))
    return sum(cosines) / MAX_ORDER * math.exp(-(length_difference**2) / (2 * SIGMA**2))


def _bleu_4(
    prediction: Caption,
    counts: Counter[tuple[int, ...]],
    most: Counter[tuple[int, ...]],
    references: Sequence[Caption],
) -> float:
    """BLEU-4 of one caption; `most` holds the largest count of each n-gram in any reference."""
    closest = min((len(reference) for reference in references), key=lambda n: (abs(n - len(prediction)), n))
    guessed = [max(len(prediction) - order, 0) for order in range(MAX_ORDER)]
    correct = [0] * MAX_ORDER
    for ngram, count in counts.items():
        correct[len(ngram) - 1] += min(count, most.get(ngram, 0))
    return float(bleu_from_statistics(np.array([len(prediction), closest, *guessed, *correct]))[3])

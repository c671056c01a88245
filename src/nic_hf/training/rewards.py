"""CIDEr-D and BLEU-4 of captions as token ids: the reward of self-critical training."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ..decoding.similarity import MAX_ORDER, Caption, CaptionSimilarity, ngrams
from ..evaluation.bleu import bleu_from_statistics


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
        self.similarity = CaptionSimilarity(photos)

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
        vectors = [self.similarity.vector(reference) for reference in references] if self.cider_weight else []
        most: Counter[tuple[int, ...]] = Counter()
        for reference in references if self.bleu_weight else ():
            most |= ngrams(reference)
        rewards = []
        for prediction in predictions:
            reward = 0.0
            if self.cider_weight:
                own = self.similarity.vector(prediction)
                similar = sum(self.similarity.between(own, vector) for vector in vectors)
                reward += self.cider_weight * 10 * similar / len(references)
            if self.bleu_weight:
                reward += self.bleu_weight * _bleu_4(prediction, ngrams(prediction), most, references)
            rewards.append(reward)
        return rewards


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

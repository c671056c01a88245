"""CIDEr-D and BLEU-4 of captions as token ids: the reward of self-critical training."""

from collections.abc import Iterable, Sequence

import numpy as np

from ..evaluation.bleu import bleu_from_statistics, bleu_statistics
from ..evaluation.cider import DocumentFrequencies, cider_scores
from ..evaluation.ngrams import Caption, CaptionTable


class CaptionReward:
    """A weighted sum of CIDEr-D and BLEU-4 for each caption.

    Captions are token ids with `<eos>` as their last word: without it in the reward a model learns to stop in the
    middle ("a man in a").

    Args:
        photos: the reference captions of each training photo; they give CIDEr-D's document frequencies.
        cider_weight, bleu_weight: weights of the sum.

    Raises:
        ValueError: if there are no photos, or both weights are 0.
    """

    def __init__(
        self, photos: Iterable[Sequence[Caption]], cider_weight: float = 1.0, bleu_weight: float = 0.0
    ) -> None:
        if cider_weight == 0 and bleu_weight == 0:
            raise ValueError("the reward needs a weight for CIDEr-D or BLEU-4 that is not 0")
        self.cider_weight, self.bleu_weight = cider_weight, bleu_weight
        self.frequencies = DocumentFrequencies(photos, tokenize=list)

    def __call__(
        self, predictions: Sequence[Sequence[Caption]], references: Sequence[Sequence[Caption]]
    ) -> np.ndarray:
        """Rewards of several captions of each photo.

        Args:
            predictions: captions of each photo, the same number for all.
            references: the reference captions of each photo.

        Returns:
            Shape `(num_photos, captions_per_photo)`.

        Raises:
            ValueError: if a photo has no references, or the numbers of photos or captions do not match.
        """
        if len(predictions) != len(references):
            raise ValueError(f"got captions of {len(predictions)} photos and references of {len(references)}")
        numbers = [len(own) for own in predictions]
        table = CaptionTable(
            [caption for own in predictions for caption in own],
            references,
            np.repeat(np.arange(len(numbers)), numbers),
        )
        rewards = np.zeros(table.num_predictions)
        if self.cider_weight:
            rewards += self.cider_weight * cider_scores(table, self.frequencies)
        if self.bleu_weight:
            rewards += self.bleu_weight * bleu_from_statistics(bleu_statistics(table))[:, 3]
        return rewards.reshape(len(predictions), -1)

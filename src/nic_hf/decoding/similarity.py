"""CIDEr-D of captions that are lists of token ids, pair by pair (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726)."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Caption = Sequence[int]
MAX_ORDER = 4
SIGMA = 6.0  # of the Gaussian on lengths, section 6 of the paper


@dataclass
class NgramVector:
    """A caption as TF-IDF weights of its n-grams.

    Attributes:
        weights: by n-gram.
        norms: of the n-grams of each order.
        length: number of words.
    """

    weights: dict[tuple[int, ...], float]
    norms: list[float]
    length: int


class CaptionSimilarity:
    """CIDEr-D between two captions, without its factor 10.

    Args:
        photos: the reference captions of each photo, in whose number document frequencies are counted; None to weigh
            all n-grams alike.

    Raises:
        ValueError: where there are no photos.
    """

    def __init__(self, photos: Iterable[Sequence[Caption]] | None = None) -> None:
        self.frequencies: Counter[tuple[int, ...]] = Counter()
        self.log_documents = 1.0
        if photos is None:
            return
        documents = 0
        for captions in photos:
            documents += 1
            self.frequencies.update({ngram for caption in captions for ngram in ngrams(caption)})
        if documents == 0:
            raise ValueError("document frequencies need the captions of at least one photo")
        self.log_documents = math.log(documents)

    def vector(self, caption: Caption) -> NgramVector:
        """The weights of a caption's n-grams."""
        weights, squares = {}, [0.0] * MAX_ORDER
        for ngram, count in ngrams(caption).items():
            weight = count * (self.log_documents - math.log(max(1, self.frequencies.get(ngram, 0))))
            weights[ngram] = weight
            squares[len(ngram) - 1] += weight * weight
        return NgramVector(weights, [math.sqrt(square) for square in squares], len(caption))

    @staticmethod
    def between(prediction: NgramVector, reference: NgramVector) -> float:
        """Between 0 and 1; not symmetric: what a prediction repeats earns nothing."""
        products = [0.0] * MAX_ORDER
        for ngram, weight in prediction.weights.items():
            other = reference.weights.get(ngram)
            if other is not None:
                products[len(ngram) - 1] += min(weight, other) * other
        norms = zip(products, prediction.norms, reference.norms, strict=True)
        cosines = (product / (own * other) if own and other else 0.0 for product, own, other in norms)
        return sum(cosines) / MAX_ORDER * math.exp(-((prediction.length - reference.length) ** 2) / (2 * SIGMA**2))


def ngrams(caption: Caption) -> Counter[tuple[int, ...]]:
    """How often a caption has each n-gram of one to four words."""
    words = tuple(caption)
    return Counter(
        words[start : start + order] for order in range(1, MAX_ORDER + 1) for start in range(len(words) - order + 1)
    )

"""Diversity of captions: over a set of photos, and within the N-best list of one photo."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .cider import DocumentFrequencies
from .ngrams import NgramIndex
from .predictions_and_references import EvaluationDataError
from .words import caption_words


@dataclass(frozen=True)
class DiversityScores:
    """Diversity of a set of captions, compared after tokenization.

    Attributes:
        distinct_captions: Share of distinct captions.
        in_training: Share of captions that are also training captions; None if no training captions were given.
        vocabulary: Number of distinct words.
        distinct_1: Share of distinct words.
        distinct_2: Share of distinct bigrams (Li et al., arXiv 1510.03055); 0 if there are no bigrams.
    """

    distinct_captions: float
    in_training: float | None
    vocabulary: int
    distinct_1: float
    distinct_2: float


def diversity_scores(
    captions: Iterable[str],
    training_captions: Iterable[str] | None = None,
    tokenize: Callable[[str], list[str]] = caption_words,
) -> DiversityScores:
    """Compute the diversity of captions.

    Args:
        captions: the captions, one or several per photo.
        training_captions: the captions that the model was trained on.
        tokenize: splits a caption into words.

    Raises:
        EvaluationDataError: if a caption is not text, or `captions` is not a list of captions.
        ValueError: if `captions` or `training_captions` is empty.

    Example:
        >>> scores = diversity_scores(["A dog.", "a dog", "A cat.", "a bird"], ["A dog ."])
        >>> scores.distinct_captions, scores.in_training, scores.vocabulary, scores.distinct_1, scores.distinct_2
        (0.75, 0.5, 4, 0.5, 0.75)
    """
    tokenized = [" ".join(tokenize(caption)) for caption in _texts(captions, "captions")]
    if not tokenized:
        raise ValueError("diversity needs at least one caption")
    in_training = None
    if training_captions is not None:
        training = {" ".join(tokenize(caption)) for caption in _texts(training_captions, "training captions")}
        if not training:
            raise ValueError("training_captions is empty; leave it out if they are unknown")
        seen = training.intersection(tokenized)
        in_training = sum(caption in seen for caption in tokenized) / len(tokenized)
    index = NgramIndex(tokenized)
    totals = [int(entries.counts.sum()) for entries in index.occurrences]
    return DiversityScores(
        distinct_captions=len(set(tokenized)) / len(tokenized),
        in_training=in_training,
        vocabulary=len(index.vocabulary),
        distinct_1=len(index.keys[0]) / totals[0] if totals[0] else 0.0,
        distinct_2=len(index.keys[1]) / totals[1] if totals[1] else 0.0,
    )


def self_cider(
    captions: Sequence[str],
    frequencies: DocumentFrequencies,
    tokenize: Callable[[str], list[str]] = caption_words,
) -> float:
    """Self-CIDEr diversity of the captions of one photo: 0 if all are the same, 1 if none share an n-gram.

    With the eigenvalues l_1 >= l_2 >= ... of the matrix K of CIDEr similarities (cosines from 0 to 1) between m
    captions, it is -log(sqrt(l_1) / sum sqrt(l_i)) / log(m).

    Source: Wang and Chan, "Describing like Humans: on Diversity in Image Captioning" (arXiv 1903.12020), section 3.2.
    CIDEr-D's Gaussian on lengths is not used: K must be a kernel, and the cosine of plain CIDEr is one.

    Args:
        captions: at least two captions.
        frequencies: document frequencies, from references of many photos.
        tokenize: splits a caption into words.

    Raises:
        EvaluationDataError: if a caption is not text, or `captions` is not a list of captions.
        ValueError: if there are fewer than two captions, or one has no word with a weight above 0.
    """
    captions = list(_texts(captions, "captions"))
    if len(captions) < 2:
        raise ValueError(f"self-CIDEr needs at least two captions, not {len(captions)}")
    similarities = cider_similarities(captions, frequencies, tokenize)
    empty = np.flatnonzero(np.diag(similarities) == 0)
    if len(empty):
        raise ValueError(f"caption {empty[0]} has no word with a CIDEr weight above 0: {captions[empty[0]]!r}")
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(similarities), 0))
    return float(max(0.0, -np.log(roots.max() / roots.sum()) / np.log(len(captions))))


def _texts(captions: Iterable[str], name: str) -> Iterator[str]:
    """Yield the captions after checking that each is text."""
    if isinstance(captions, str | bytes | Mapping) or not isinstance(captions, Iterable):
        raise EvaluationDataError(f"{name} must be a list of captions, not {captions!r:.200}")
    for place, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise EvaluationDataError(f"{name}: number {place} is not text: {caption!r:.200}")
        yield caption


def cider_similarities(
    captions: Sequence[str],
    frequencies: DocumentFrequencies,
    tokenize: Callable[[str], list[str]] = caption_words,
) -> np.ndarray:
    """Cosine similarities of TF-IDF vectors, averaged over n-gram orders; shape `(num_captions, num_captions)`.

    They are normalized to 1 on the diagonal, since a caption of three words has no 4-grams.
    """
    index = NgramIndex(" ".join(tokenize(caption)) for caption in captions)
    total = np.zeros((len(captions), len(captions)))
    for entries, weights in zip(index.occurrences, frequencies.weights(index), strict=True):
        vectors = np.zeros((len(captions), len(weights)))
        vectors[entries.captions, entries.ngrams] = entries.counts * weights[entries.ngrams]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
        total += vectors @ vectors.T
    own = np.sqrt(np.diag(total))
    scale = np.outer(own, own)
    return np.divide(total, scale, out=np.zeros_like(total), where=scale > 0)

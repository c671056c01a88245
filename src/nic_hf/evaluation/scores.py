"""Score captions like pycocoevalcap, without Java."""

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from ..languages import is_unspaced
from .bleu import bleu_from_statistics, bleu_statistics
from .cider import DocumentFrequencies, cider_scores
from .java_metrics import JavaUnavailableError, check_java, meteor_scores, spice_scores
from .ngrams import CaptionTable
from .predictions_and_references import EvaluationDataError, check_captions, check_text
from .ptb import ptb_tokenize, ptb_tokenize_all
from .rouge import rouge_l
from .score_names import BLEU_NAMES, DEFAULT_METRICS, JAVA_METRICS, check_metrics
from .words import caption_words, caption_words_all

logger = logging.getLogger(__name__)

IDS_IN_MESSAGE = 5

Id = TypeVar("Id", bound=Hashable)
Tokenizer = Callable[[str], list[str]]


@dataclass(frozen=True)
class CaptionStatistics:
    """Statistics of each photo from which corpus scores are computed.

    Attributes:
        ids: Ids of the photos.
        bleu: Statistics of BLEU (see `bleu_statistics`), shape `(num_photos, 10)`; None if BLEU is not computed.
        columns: Scores of each photo for the other metrics, shape `(num_photos,)`; the corpus score is their mean.
    """

    ids: list[Any]
    bleu: np.ndarray | None
    columns: dict[str, np.ndarray]

    def scores(self) -> dict[str, float]:
        """Corpus scores by name."""
        scores: dict[str, float] = {}
        if self.bleu is not None:
            corpus = bleu_from_statistics(self.bleu.sum(axis=0))
            scores.update(zip(BLEU_NAMES, corpus.tolist(), strict=True))
        scores.update((name, float(column.mean())) for name, column in self.columns.items())
        return scores

    def photo_scores(self) -> dict[str, np.ndarray]:
        """Scores of each photo by name, shape `(num_photos,)`."""
        scores: dict[str, np.ndarray] = {}
        if self.bleu is not None:
            scores.update(zip(BLEU_NAMES, bleu_from_statistics(self.bleu).T, strict=True))
        return scores | self.columns


def score_captions(
    predictions: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    per_image: bool = False,
    *,
    allow_partial: bool = False,
    document_frequencies: DocumentFrequencies | None = None,
    tokenize: Tokenizer = caption_words,
) -> dict[str, Any]:
    """Score one caption per photo against its references, with the values of pycocoevalcap 1.2 up to rounding.

    Args:
        predictions: one caption by image id. An empty caption scores 0, with a warning.
        references: captions by image id, at least one each. The order of the two mappings does not matter.
        metrics: any of `"bleu"`, `"rouge_l"`, `"cider"` (CIDEr-D), `"meteor"`, `"spice"`. The last two need Java and
            pycocoevalcap. If these are missing, a warning is logged first and the other metrics are computed.
        per_image: add the scores of each photo under `"per_image"`, by id.
        allow_partial: ignore photos that have references but no prediction instead of raising. CIDEr-D's document
            frequencies are then those of the scored photos.
        document_frequencies: for CIDEr-D, instead of those of the references. With the references of a single photo
            CIDEr-D is 0, and a warning is logged.
        tokenize: splits a caption into words. Defaults to [`nic_hf.evaluation.caption_words`].

    Returns:
        `bleu_1` to `bleu_4`, `rouge_l`, `cider`, `meteor` and `spice`, as requested. All are fractions, except that
        CIDEr-D ranges from 0 to 10.

    Raises:
        EvaluationDataError: if there are no predictions, an id has no prediction or no references, or a caption is
            not text; the message names the id.
        ValueError: if a metric is unknown.

    Example:
        >>> scores = score_captions({"1.jpg": "A dog runs."}, {"1.jpg": ["A brown dog runs."]}, metrics=["rouge_l"])
        >>> round(scores["rouge_l"], 4)
        0.8356
    """
    _, scores, photo_scores = scored_captions(
        predictions, references, metrics, allow_partial, document_frequencies, tokenize
    )
    return {**scores, "per_image": photo_scores} if per_image else scores


def scored_captions(
    predictions: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    metrics: Sequence[str],
    allow_partial: bool = False,
    document_frequencies: DocumentFrequencies | None = None,
    tokenize: Tokenizer = caption_words,
) -> tuple[CaptionStatistics, dict[str, Any], dict[Id, dict[str, float]]]:
    """Statistics for resampling (without Java metrics), corpus scores, and the scores of each photo.

    Raises:
        EvaluationDataError, ValueError: as in `score_captions`.
    """
    check_metrics(metrics)
    java_metrics = _available_java_metrics(metrics)
    ids, predicted, referred = tokenized_captions(predictions, references, allow_partial, tokenize)
    statistics = _statistics(ids, predicted, referred, metrics, document_frequencies)
    scores = statistics.scores()
    if scores.get("cider") == 0 and any(predicted):
        _warn_that_cider_is_0(referred, document_frequencies)
    columns = statistics.photo_scores()
    for name in java_metrics:
        scorer = meteor_scores if name == "meteor" else spice_scores
        try:
            scores[name], columns[name] = scorer(predicted, referred)
        except JavaUnavailableError as error:
            logger.warning("%s is left out: %s", name, error)
    for name, value in scores.items():
        if not math.isfinite(value):
            column = columns.get(name, np.zeros(0))
            bad = [image_id for image_id, score in zip(ids, column, strict=False) if not math.isfinite(score)]
            raise EvaluationDataError(f"{name} is {value}{f', through {_listed(bad)}' if bad else ''}")
    lists = {name: column.tolist() for name, column in columns.items()}
    photo_scores = {i: {name: own[row] for name, own in lists.items()} for row, i in enumerate(ids)}
    return statistics, scores, photo_scores


def default_metrics() -> list[str]:
    """BLEU, ROUGE-L and CIDEr-D, plus METEOR if Java is available; otherwise a warning says what is missing."""
    return [*DEFAULT_METRICS, *_available_java_metrics(["meteor"])]


def caption_statistics(
    predictions: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    allow_partial: bool = False,
    document_frequencies: DocumentFrequencies | None = None,
    tokenize: Tokenizer = caption_words,
) -> CaptionStatistics:
    """Per-photo statistics for resampling, with the arguments of `score_captions`.

    Raises:
        EvaluationDataError: as in `score_captions`.
        ValueError: if a metric is not one of `"bleu"`, `"rouge_l"` and `"cider"`.
    """
    check_metrics(metrics, DEFAULT_METRICS)
    ids, predicted, referred = tokenized_captions(predictions, references, allow_partial, tokenize)
    return _statistics(ids, predicted, referred, metrics, document_frequencies)


def tokenized_captions(
    predictions: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    allow_partial: bool = False,
    tokenize: Tokenizer = caption_words,
) -> tuple[list[Id], list[str], list[list[str]]]:
    """Check and tokenize captions.

    Returns:
        Ids in the order of the predictions, and the prediction and references of each, as words separated by spaces.

    Raises:
        EvaluationDataError: as in `score_captions`.
    """
    _check_ids(predictions, references, allow_partial)
    lists = []
    for image_id in predictions:
        captions = references[image_id]
        check_captions(captions, "of {!r}", image_id)
        lists.append(captions)
    for image_id, caption in predictions.items():
        check_text(caption, "prediction of {!r}", image_id)
    predicted = _tokenized(list(predictions.values()), tokenize)
    words = iter(_tokenized([caption for captions in lists for caption in captions], tokenize))
    referred = [list(islice(words, len(captions))) for captions in lists]
    empty = [image_id for image_id, caption in zip(predictions, predicted, strict=True) if not caption]
    if empty:
        logger.warning("predictions without words score 0: %s", _listed(empty))
    return list(predictions), predicted, referred


def _tokenized(captions: list[str], tokenize: Tokenizer) -> list[str]:
    """Words of captions, separated by spaces. Our own tokenizers read all captions at once, like the Java tool."""
    together = None
    if tokenize in (caption_words, ptb_tokenize):
        together = caption_words_all if tokenize is caption_words else ptb_tokenize_all
    if together is caption_words_all and any(map(is_unspaced, captions)):
        _say_once("captions in a script without spaces are scored by character")
    lists = map(tokenize, captions) if together is None else together(captions)
    return [" ".join(words) for words in lists]


def _warn_that_cider_is_0(references: list[list[str]], document_frequencies: DocumentFrequencies | None) -> None:
    """Warn that CIDEr-D, which weights n-grams by how few photos' references contain them, is 0."""
    number = len(references) if document_frequencies is None else document_frequencies.num_documents
    if number == 1:
        _say_once(
            "CIDEr-D of a single photo is 0: words are weighted by how few photos' references contain them."
            " Score more photos, or pass document_frequencies of others"
        )
    elif document_frequencies is None and len({frozenset(own) for own in references}) == 1:
        _say_once(
            f"CIDEr-D is 0 because all {number:,} photos have the same references: words are weighted by how few"
            " photos' references contain them"
        )


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _statistics(
    ids: list[Id],
    predictions: list[str],
    references: list[list[str]],
    metrics: Sequence[str],
    document_frequencies: DocumentFrequencies | None,
) -> CaptionStatistics:
    if not isinstance(document_frequencies, DocumentFrequencies | None):
        kind = type(document_frequencies).__name__
        raise ValueError(f"document_frequencies must be a DocumentFrequencies, not {kind}")
    bleu, columns = None, {}
    table = CaptionTable(predictions, references) if {"bleu", "cider"} & set(metrics) else None
    if table is not None and "bleu" in metrics:
        bleu = bleu_statistics(table)
    if "rouge_l" in metrics:
        columns["rouge_l"] = np.array(list(map(rouge_l, predictions, references)))
    if table is not None and "cider" in metrics:
        columns["cider"] = cider_scores(table, document_frequencies)
    return CaptionStatistics(ids, bleu, columns)


def _available_java_metrics(metrics: Sequence[str]) -> list[str]:
    available = []
    for name in JAVA_METRICS:
        if name in metrics:
            try:
                check_java(name)
                available.append(name)
            except JavaUnavailableError as error:
                logger.warning("%s is left out: %s", name, error)
    return available


def _check_ids(predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]], allow_partial: bool) -> None:
    for name, captions in (("predictions", predictions), ("references", references)):
        if not isinstance(captions, Mapping):
            raise EvaluationDataError(f"{name} must be a mapping by image id, not {type(captions).__name__}")
        if not captions:
            raise EvaluationDataError(f"{name} are empty: there is nothing to score")
    without_references = [image_id for image_id in predictions if image_id not in references]
    if without_references:
        message = f"predictions without references: {_listed(without_references)}"
        if {str(image_id) for image_id in without_references} & {str(image_id) for image_id in references}:
            message += "; the references have this id with another type: make both text or both numbers"
        raise EvaluationDataError(message)
    if not allow_partial and len(predictions) < len(references):
        missing = [image_id for image_id in references if image_id not in predictions]
        raise EvaluationDataError(
            f"references without a prediction: {_listed(missing)}; allow_partial=True scores only the others"
        )


def _listed(ids: Iterable[Any]) -> str:
    ids = list(ids)
    more = f" and {len(ids) - IDS_IN_MESSAGE} more" if len(ids) > IDS_IN_MESSAGE else ""
    return ", ".join(map(repr, ids[:IDS_IN_MESSAGE])) + more

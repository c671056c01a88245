"""Scores of captions without Java: BLEU, ROUGE-L and CIDEr-D as pycocoevalcap gives them, and what surrounds them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cider import DocumentFrequencies
    from .clip_score import clip_scores
    from .diversity import DiversityScores, diversity_scores, self_cider
    from .files import EvaluationDataError, load_predictions, load_references
    from .human_judgments import (
        Judgment,
        RankCorrelation,
        judgment_correlation,
        load_crowdflower_judgments,
        load_expert_judgments,
        load_token_captions,
        rank_correlation,
    )
    from .java_metrics import JavaUnavailableError
    from .metric import CaptionMetric
    from .neighbours import nearest_words
    from .ptb import ptb_tokenize
    from .ranking import (
        RankingScores,
        annotation_ranking,
        caption_log_likelihoods,
        normalise_by_marginal,
        search_ranking,
    )
    from .score_file import score_file
    from .scores import default_metrics, score_captions
    from .significance import Interval, PairedDifference, bootstrap_intervals, paired_test
    from .words import caption_words

# Loaded when first asked for: `evaluate` is an extra, and who ranks captions needs no tokenizer.
_MODULES = {
    "CaptionMetric": "metric",
    "DiversityScores": "diversity",
    "DocumentFrequencies": "cider",
    "EvaluationDataError": "files",
    "Interval": "significance",
    "JavaUnavailableError": "java_metrics",
    "Judgment": "human_judgments",
    "PairedDifference": "significance",
    "RankCorrelation": "human_judgments",
    "RankingScores": "ranking",
    "annotation_ranking": "ranking",
    "bootstrap_intervals": "significance",
    "caption_log_likelihoods": "ranking",
    "caption_words": "words",
    "clip_scores": "clip_score",
    "default_metrics": "scores",
    "diversity_scores": "diversity",
    "judgment_correlation": "human_judgments",
    "load_crowdflower_judgments": "human_judgments",
    "load_expert_judgments": "human_judgments",
    "load_predictions": "files",
    "load_references": "files",
    "load_token_captions": "human_judgments",
    "nearest_words": "neighbours",
    "normalise_by_marginal": "ranking",
    "paired_test": "significance",
    "ptb_tokenize": "ptb",
    "rank_correlation": "human_judgments",
    "score_captions": "scores",
    "score_file": "score_file",
    "search_ranking": "ranking",
    "self_cider": "diversity",
}

__all__ = [
    "CaptionMetric",
    "DiversityScores",
    "DocumentFrequencies",
    "EvaluationDataError",
    "Interval",
    "JavaUnavailableError",
    "Judgment",
    "PairedDifference",
    "RankCorrelation",
    "RankingScores",
    "annotation_ranking",
    "bootstrap_intervals",
    "caption_log_likelihoods",
    "caption_words",
    "clip_scores",
    "default_metrics",
    "diversity_scores",
    "judgment_correlation",
    "load_crowdflower_judgments",
    "load_expert_judgments",
    "load_predictions",
    "load_references",
    "load_token_captions",
    "nearest_words",
    "normalise_by_marginal",
    "paired_test",
    "ptb_tokenize",
    "rank_correlation",
    "score_captions",
    "score_file",
    "search_ranking",
    "self_cider",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)

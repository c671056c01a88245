"""Scores of captions without Java: BLEU, ROUGE-L and CIDEr-D as pycocoevalcap gives them, and what surrounds them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cider import DocumentFrequencies
    from .diversity import DiversityScores, diversity_scores, self_cider
    from .files import EvaluationDataError, load_predictions, load_references
    from .java_metrics import JavaUnavailableError
    from .metric import CaptionMetric
    from .ptb import ptb_tokenize
    from .scores import score_captions
    from .significance import Interval, PairedDifference, bootstrap_intervals, paired_test

# Loaded when first asked for: `evaluate` is an extra, and who ranks captions needs no tokenizer.
_MODULES = {
    "CaptionMetric": "metric",
    "DiversityScores": "diversity",
    "DocumentFrequencies": "cider",
    "EvaluationDataError": "files",
    "Interval": "significance",
    "JavaUnavailableError": "java_metrics",
    "PairedDifference": "significance",
    "bootstrap_intervals": "significance",
    "diversity_scores": "diversity",
    "load_predictions": "files",
    "load_references": "files",
    "paired_test": "significance",
    "ptb_tokenize": "ptb",
    "score_captions": "scores",
    "self_cider": "diversity",
}

__all__ = [
    "CaptionMetric",
    "DiversityScores",
    "DocumentFrequencies",
    "EvaluationDataError",
    "Interval",
    "JavaUnavailableError",
    "PairedDifference",
    "bootstrap_intervals",
    "diversity_scores",
    "load_predictions",
    "load_references",
    "paired_test",
    "ptb_tokenize",
    "score_captions",
    "self_cider",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)

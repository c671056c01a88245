"""Caption metrics: BLEU, ROUGE-L and CIDEr-D equal to pycocoevalcap's, without Java, and METEOR, SPICE and CLIP-S."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .calibration import calibrate, reliability
    from .cider import DocumentFrequencies
    from .clip_score import clip_scores
    from .diversity import DiversityScores, diversity_scores, self_cider
    from .evaluate_metric import CaptionMetric
    from .file_scores import score_file
    from .java_metrics import JavaUnavailableError
    from .paper.human_judgments import (
        Judgment,
        RankCorrelation,
        judgment_correlation,
        load_crowdflower_judgments,
        load_expert_judgments,
        load_token_captions,
        rank_correlation,
    )
    from .paper.ranking import (
        RankingScores,
        annotation_ranking,
        caption_log_likelihoods,
        normalise_by_marginal,
        search_ranking,
    )
    from .paper.word_neighbours import nearest_words
    from .predictions_and_references import EvaluationDataError, load_predictions, load_references
    from .ptb import ptb_tokenize
    from .scores import default_metrics, score_captions
    from .significance import Interval, PairedDifference, bootstrap_intervals, paired_test
    from .words import caption_words

# Imported on first use: `evaluate` is an optional dependency, and scoring a file needs no torch.
_MODULES = {
    "CaptionMetric": "evaluate_metric",
    "DiversityScores": "diversity",
    "DocumentFrequencies": "cider",
    "EvaluationDataError": "predictions_and_references",
    "Interval": "significance",
    "JavaUnavailableError": "java_metrics",
    "Judgment": "paper.human_judgments",
    "PairedDifference": "significance",
    "RankCorrelation": "paper.human_judgments",
    "RankingScores": "paper.ranking",
    "annotation_ranking": "paper.ranking",
    "bootstrap_intervals": "significance",
    "calibrate": "calibration",
    "caption_log_likelihoods": "paper.ranking",
    "caption_words": "words",
    "clip_scores": "clip_score",
    "default_metrics": "scores",
    "diversity_scores": "diversity",
    "judgment_correlation": "paper.human_judgments",
    "load_crowdflower_judgments": "paper.human_judgments",
    "load_expert_judgments": "paper.human_judgments",
    "load_predictions": "predictions_and_references",
    "load_references": "predictions_and_references",
    "load_token_captions": "paper.human_judgments",
    "nearest_words": "paper.word_neighbours",
    "normalise_by_marginal": "paper.ranking",
    "paired_test": "significance",
    "ptb_tokenize": "ptb",
    "rank_correlation": "paper.human_judgments",
    "reliability": "calibration",
    "score_captions": "scores",
    "score_file": "file_scores",
    "search_ranking": "paper.ranking",
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
    "calibrate",
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
    "reliability",
    "score_captions",
    "score_file",
    "search_ranking",
    "self_cider",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

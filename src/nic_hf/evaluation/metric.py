"""The scores as a metric of the library `evaluate`."""

from typing import Any

import datasets
import evaluate

from .scores import DEFAULT_METRICS, score_captions


class CaptionMetric(evaluate.Metric):
    """`score_captions` as an `evaluate.Metric`, without a download; `evaluate.combine` takes it.

    `compute(predictions=[...], references=[[...], ...])` takes a caption, and a list of captions, for each photo in
    the same order. Other arguments are those of `score_captions`; with `per_image=True` the ids are rows.

    Raises:
        EvaluationDataError: on computing, as `score_captions`, naming the row.

    Example:
        >>> scores = CaptionMetric().compute(predictions=["A dog runs."], references=[["A brown dog runs."]])
        >>> round(scores["rouge_l"], 4)
        0.8356
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of image captions, equal to pycocoevalcap.",
            citation="",
            inputs_description="predictions: a caption a photo; references: a list of captions a photo.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(
        self, *, predictions: list[str], references: list[list[str]], metrics: Any = DEFAULT_METRICS, **options: Any
    ) -> dict[str, Any]:
        return score_captions(dict(enumerate(predictions)), dict(enumerate(references)), metrics, **options)

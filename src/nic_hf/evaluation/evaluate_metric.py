"""Caption scores as a metric of the `evaluate` library."""

from typing import Any

import datasets
import evaluate

from .predictions_and_references import check_captions, check_text
from .score_names import DEFAULT_METRICS
from .scores import score_captions


class CaptionMetric(evaluate.Metric):
    """`score_captions` as an `evaluate.Metric`, for `evaluate.combine` for example. Nothing is downloaded.

    `compute(predictions=[...], references=[[...], ...])` takes one caption and one list of references per photo, in
    the same order. Other arguments are those of `score_captions`; with `per_image=True` the ids are row numbers.

    Raises:
        EvaluationDataError: when adding a caption that is not text (`evaluate` itself would convert all but the first
            to text, NaN to "nan"), or as in `score_captions`; the message names the row.

    Example:
        >>> scores = CaptionMetric().compute(predictions=["A dog runs."], references=[["A brown dog runs."]])
        >>> round(scores["rouge_l"], 4)
        0.8356
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of image captions, equal to pycocoevalcap's.",
            citation="",
            inputs_description="predictions: one caption per photo; references: a list of captions per photo.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add several photos: a list of captions, and a list with the references of each."""
        for row, prediction in enumerate(predictions if predictions is not None else [], start=len(self)):
            check_text(prediction, "prediction of row {}", row)
        for row, captions in enumerate(references if references is not None else [], start=len(self)):
            check_captions(captions, "of row {}", row)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one photo: its caption as `prediction` and a list of captions as `references`."""
        check_text(prediction, "prediction of row {}", len(self))
        check_captions(kwargs.get("references", reference), "of row {}", len(self))
        super().add(prediction=prediction, reference=reference, **kwargs)

    def _compute(
        self, *, predictions: list[str], references: list[list[str]], metrics: Any = DEFAULT_METRICS, **options: Any
    ) -> dict[str, Any]:
        return score_captions(dict(enumerate(predictions)), dict(enumerate(references)), metrics, **options)

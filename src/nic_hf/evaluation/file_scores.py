"""Score a file of captions against a file of references."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..writing import write_text
from .predictions_and_references import load_predictions, load_references
from .score_names import DEFAULT_METRICS
from .scores import default_metrics
from .significance import paired_test, scores_with_intervals


def score_file(
    predictions: str | os.PathLike[str],
    references: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    compare: str | os.PathLike[str] | None = None,
    per_image: str | os.PathLike[str] | None = None,
    allow_partial: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a file of captions, with confidence intervals, and optionally compare it with another file.

    Args:
        predictions: file for `load_predictions`.
        references: file for `load_references`.
        metrics: as for `score_captions`. Defaults to BLEU, ROUGE-L, CIDEr-D and, if Java is available, METEOR.
        compare: another file of predictions, for a paired randomization test.
        per_image: JSON-lines file to write the scores of each photo to.
        allow_partial: score only the photos that have a prediction instead of raising.
        seed: random seed of the bootstrap and the test.

    Returns:
        `scores`, `intervals` (low and high) and, with `compare`, `compared` (the fields of `PairedDifference`), each
        by name of the score.

    Raises:
        EvaluationDataError: as in `load_predictions`, `load_references` and `score_captions`.
        OSError: if a file cannot be read or written.
    """
    ours, captions = load_predictions(predictions), load_references(references)
    if allow_partial:
        captions = {image_id: own for image_id, own in captions.items() if image_id in ours}
    theirs = None if compare is None else load_predictions(compare)
    metrics = default_metrics() if metrics is None else metrics
    result = scores_with_intervals(ours, captions, metrics, seed)
    rows = result.pop("per_image")
    if theirs is not None:
        resampled = [name for name in metrics if name in DEFAULT_METRICS] or DEFAULT_METRICS
        differences = paired_test(ours, theirs, captions, resampled, seed=seed)
        result["compared"] = {name: asdict(difference) for name, difference in differences.items()}
    if per_image is not None:
        lines = (
            json.dumps({"image_id": image_id, **row}, ensure_ascii=False) + "\n" for image_id, row in rows.items()
        )
        write_text(per_image, "".join(lines))
    return result

"""Names of scores and metrics and how they are printed, for results, reports, model cards and plots."""

from collections.abc import Sequence
from typing import NamedTuple


class Score(NamedTuple):
    """One score.

    Attributes:
        title: Name in reports.
        metric: Name that `score_captions` takes; BLEU gives four scores.
        hub_type: Type of the metric in a model card's metadata.
    """

    title: str
    metric: str
    hub_type: str


# By name in results and files, in the order of tables. Values are fractions, CIDEr-D's up to 10; reports show percent.
SCORES = {
    "bleu_1": Score("BLEU-1", "bleu", "bleu"),
    "bleu_2": Score("BLEU-2", "bleu", "bleu"),
    "bleu_3": Score("BLEU-3", "bleu", "bleu"),
    "bleu_4": Score("BLEU-4", "bleu", "bleu"),
    "meteor": Score("METEOR", "meteor", "meteor"),
    "rouge_l": Score("ROUGE-L", "rouge_l", "rouge"),
    "cider": Score("CIDEr-D", "cider", "cider"),
    "spice": Score("SPICE", "spice", "spice"),
}
BLEU_NAMES = tuple(name for name, score in SCORES.items() if score.metric == "bleu")

DEFAULT_METRICS = ("bleu", "rouge_l", "cider")
JAVA_METRICS = ("meteor", "spice")
METRICS = (*DEFAULT_METRICS, *JAVA_METRICS)


def check_metrics(metrics: Sequence[str], known: Sequence[str] = METRICS) -> None:
    """Check names of metrics.

    Raises:
        ValueError: if a name is unknown, or there is none.
    """
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise ValueError(f"metrics must be a list of names, not {metrics!r}")
    unknown = [name for name in metrics if name not in known]
    if unknown or not metrics:
        raise ValueError(f"metrics are {list(metrics)}; they must be one or more of {', '.join(known)}")


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def percent_with_interval(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A score in percent, followed by its interval if there is one.

    >>> percent_with_interval(0.196, [0.182, 0.211])
    '19.6 (18.2 – 21.1)'
    """
    if value is None or interval is None:
        return percent(value)
    low, high = interval
    return f"{percent(value)} ({percent(low)} – {percent(high)})"

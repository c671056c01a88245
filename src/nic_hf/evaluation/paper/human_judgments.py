"""Rank correlation of caption metrics with the human judgments of Flickr8k (Hodosh, Young and Hockenmaier 2013).

The data set has two sets of judged pairs of a photo and a caption, which often belongs to another photo:

- Flickr8k-Expert: three experts rate each pair from 1 to 4. As in SPICE (Anderson et al. 2016, arXiv 1607.08822) and
  CLIPScore (Hessel et al. 2021, arXiv 2104.08718, appendix A), each rating counts separately, pairs whose caption is a
  reference of the photo are left out, and the correlation is Kendall's tau-c.
- Flickr8k-CF: at least three crowd workers say whether the caption describes the photo, and the rating is the share of
  "yes". As in CLIPScore, no pair is left out; instead, a photo's judged captions are removed from its references. The
  correlation is tau-b.
"""

import codecs
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from ..cider import DocumentFrequencies
from ..predictions_and_references import EvaluationDataError
from ..score_names import DEFAULT_METRICS
from ..scores import score_captions
from ..words import caption_words

logger = logging.getLogger(__name__)

EXPERT_RATINGS = (1.0, 2.0, 3.0, 4.0)
SHARE_TOLERANCE = 1e-5

Captions = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Judgment:
    """Human ratings of one pair of a photo and a caption.

    Attributes:
        image_id: File name of the photo.
        caption_id: `name.jpg#k` for caption k (from 0) of a photo, which may be another one.
        ratings: Higher is better: three experts' ratings from 1 to 4, or one share of "yes".
    """

    image_id: str
    caption_id: str
    ratings: tuple[float, ...]

    @property
    def key(self) -> str:
        """Unique id of the pair in a file of judgments."""
        return f"{self.image_id} {self.caption_id}"


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b and tau-c (-1 to 1) and the number of judgments."""

    tau_b: float
    tau_c: float
    num_judgments: int


def load_token_captions(file: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read `Flickr8k.token.txt`, with one caption per line: `name.jpg#k<TAB>caption`.

    Returns:
        Captions by image id, with caption k at index k.

    Raises:
        EvaluationDataError: if a line is malformed, a caption is out of order or appears twice, or there are no
            captions.
        OSError: if the file cannot be read.
    """
    captions: dict[str, list[str]] = {}
    for place, line in _lines(Path(file)):
        caption_id, caption = _fields(line, 2, place)
        image_id, number = _caption_place(caption_id, place)
        known = captions.setdefault(image_id, [])
        if number != len(known):
            raise EvaluationDataError(f"{place}: expected {image_id}#{len(known)} and found {caption_id}")
        known.append(caption)
    if not captions:
        raise EvaluationDataError(f"{file}: contains no captions")
    return captions


def load_expert_judgments(file: str | os.PathLike[str], captions: Captions | None = None) -> list[Judgment]:
    """Read `ExpertAnnotations.txt`: tab-separated photo, caption id and three ratings from 1 to 4.

    Args:
        file: path of the file.
        captions: captions by image id. If given, ids of photos and captions must be among them.

    Raises:
        EvaluationDataError: if a line is malformed, an id is unknown, a pair appears twice, or there are no judgments;
            the message names the line.
        OSError: if the file cannot be read.
    """
    return _judgments(Path(file), _expert_ratings, captions)


def load_crowdflower_judgments(
    file: str | os.PathLike[str], captions: Captions | None = None, *, skip_malformed: bool = False
) -> list[Judgment]:
    """Read `CrowdFlowerAnnotations.txt`: tab-separated photo, caption id, share of "yes", numbers of "yes" and "no".

    Args:
        file: path of the file.
        captions: captions by image id. If given, ids of photos and captions must be among them.
        skip_malformed: skip malformed lines with a warning that counts them, instead of raising.

    Raises:
        EvaluationDataError: if a line is malformed, a share does not match the numbers, an id is unknown, a pair
            appears twice, or there are no judgments; the message names the line.
        OSError: if the file cannot be read.
    """
    return _judgments(Path(file), _share_of_yes, captions, skip_malformed)


def judgment_correlation(
    judgments: Sequence[Judgment],
    captions: Captions,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    own_captions: Literal["leave_out", "no_reference"] = "leave_out",
    document_frequencies: DocumentFrequencies | None = None,
    tokenize: Callable[[str], list[str]] = caption_words,
) -> dict[str, RankCorrelation]:
    """Kendall's tau between the metrics of `score_captions` and human judgments, by name of the score.

    Each pair is scored as a separate item, with the captions of its photo as references. As in pycocoevalcap, which
    CLIPScore used, CIDEr-D's document frequencies therefore count a photo once per pair, and BLEU of a single caption
    is not smoothed: it is near 0 if no 4-gram matches.

    Args:
        judgments: judgments of `load_expert_judgments` or `load_crowdflower_judgments`.
        captions: captions by image id.
        metrics: as for `score_captions`.
        own_captions: how to treat a caption that is a reference of the photo: `"leave_out"` the pair (the protocol of
            Flickr8k-Expert), or keep it and use the caption as `"no_reference"` of the photo (Flickr8k-CF).
        document_frequencies: for CIDEr-D, instead of those of the pairs.
        tokenize: splits a caption into words.

    Raises:
        EvaluationDataError: if an id is unknown, no pair is left, or all ratings or scores are the same.
        ValueError: if a metric or the value of `own_captions` is unknown.
    """
    judgments, predictions, references = judged_pairs(judgments, captions, own_captions)
    scores = score_captions(
        predictions,
        references,
        metrics,
        per_image=True,
        document_frequencies=document_frequencies,
        # Each caption is a reference of many pairs.
        tokenize=lru_cache(maxsize=None)(tokenize),
    )["per_image"]
    names = scores[judgments[0].key]
    return {name: rank_correlation(judgments, {key: row[name] for key, row in scores.items()}, name) for name in names}


def judged_pairs(
    judgments: Sequence[Judgment], captions: Captions, own_captions: Literal["leave_out", "no_reference"]
) -> tuple[list[Judgment], dict[str, str], dict[str, list[str]]]:
    """Judgments to use, with the caption and the references of each by its `key`; see `judgment_correlation`.

    Raises:
        EvaluationDataError: if an id is unknown, or no pair is left.
        ValueError: if the value of `own_captions` is unknown.
    """
    if own_captions not in ("leave_out", "no_reference"):
        raise ValueError(f'own_captions is {own_captions!r}; it must be "leave_out" or "no_reference"')
    for judgment in judgments:
        _check_ids(judgment, captions, f"judgment of {judgment.key}")
    texts = {judgment.key: _caption(judgment, captions) for judgment in judgments}
    references = {judgment.image_id: list(captions[judgment.image_id]) for judgment in judgments}
    if own_captions == "leave_out":
        judgments = [judgment for judgment in judgments if texts[judgment.key] not in references[judgment.image_id]]
    else:
        judged = {(judgment.image_id, texts[judgment.key]) for judgment in judgments}
        references = {i: [text for text in listed if (i, text) not in judged] for i, listed in references.items()}
    if not judgments:
        raise EvaluationDataError("no judgment is left to correlate with")
    return (
        list(judgments),
        {judgment.key: texts[judgment.key] for judgment in judgments},
        {judgment.key: references[judgment.image_id] for judgment in judgments},
    )


def rank_correlation(
    judgments: Sequence[Judgment], scores: Mapping[str, float], name: str = "the score"
) -> RankCorrelation:
    """Kendall's tau between any score of the pairs and their ratings; each rating counts separately.

    Args:
        judgments: the pairs.
        scores: score of each pair by its `key`.
        name: name of the score, for error messages.

    Raises:
        EvaluationDataError: if a pair has no score, a score is not finite, or all ratings or scores are the same.
        ImportError: if scipy is not installed.
    """
    try:
        from scipy.stats import kendalltau
    except ImportError as error:
        raise ImportError("Kendall's tau needs scipy: pip install 'nic_hf[evaluate]'") from error
    for judgment in judgments:
        if judgment.key not in scores:
            raise EvaluationDataError(f"{name}: no score of {judgment.key}")
        if not np.isfinite(scores[judgment.key]):
            raise EvaluationDataError(f"{name} of {judgment.key} is {scores[judgment.key]}")
    ratings = [rating for judgment in judgments for rating in judgment.ratings]
    repeated = [scores[judgment.key] for judgment in judgments for _ in judgment.ratings]
    for what, values in (("ratings", ratings), (name, repeated)):
        if len(set(values)) < 2:
            raise EvaluationDataError(f"{what}: all {len(values)} values are the same, so there is nothing to rank")
    tau_b, tau_c = (float(kendalltau(repeated, ratings, variant=variant).statistic) for variant in "bc")
    return RankCorrelation(tau_b, tau_c, len(ratings))


def _judgments(
    file: Path,
    parse: Callable[[list[str], str], tuple[float, ...]],
    captions: Captions | None,
    skip_malformed: bool = False,
) -> list[Judgment]:
    judgments: dict[str, Judgment] = {}
    places: dict[str, str] = {}
    faults: list[str] = []
    for place, line in _lines(file):
        try:
            fields = _fields(line, 5, place)
            judgment = Judgment(fields[0], fields[1], parse(fields[2:], place))
            _caption_place(judgment.caption_id, place)
            if captions is not None:
                _check_ids(judgment, captions, place)
            if judgment.key in places:
                raise EvaluationDataError(f"{place}: {judgment.key} has a judgment already, at {places[judgment.key]}")
        except EvaluationDataError as error:
            if not skip_malformed:
                raise
            faults.append(str(error))
            continue
        judgments[judgment.key], places[judgment.key] = judgment, place
    if faults:
        logger.warning("%s: %d malformed lines are skipped; the first: %s", file, len(faults), faults[0])
    if not judgments:
        raise EvaluationDataError(f"{file}: contains no judgments")
    return list(judgments.values())


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Place and bytes of each line that is not blank."""
    for number, line in enumerate(file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield f"{file}: line {number}", line.removesuffix(b"\r")


def _fields(line: bytes, num_fields: int, place: str) -> list[str]:
    try:
        fields = line.decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        fault = f"cannot be read as text: {error.reason} at byte {error.start} of the line"
        raise EvaluationDataError(f"{place}: {fault}") from None
    if len(fields) != num_fields:
        raise EvaluationDataError(
            f"{place}: expected {num_fields} tab-separated fields and found {len(fields)}: {line!r:.200}"
        )
    return fields


def _caption_place(caption_id: str, place: str) -> tuple[str, int]:
    """Image id and number of a caption id `name.jpg#k`."""
    image_id, mark, number = caption_id.rpartition("#")
    if not mark or not image_id or not (number.isascii() and number.isdigit()):
        raise EvaluationDataError(f"{place}: expected a caption id such as name.jpg#0 and found {caption_id!r:.200}")
    return image_id, int(number)


def _check_ids(judgment: Judgment, captions: Captions, place: str) -> None:
    if judgment.image_id not in captions:
        raise EvaluationDataError(f"{place}: the photo {judgment.image_id!r:.200} has no captions")
    image_id, number = _caption_place(judgment.caption_id, place)
    if image_id not in captions or number >= len(captions[image_id]):
        raise EvaluationDataError(f"{place}: there is no caption {judgment.caption_id!r:.200}")


def _caption(judgment: Judgment, captions: Captions) -> str:
    image_id, number = _caption_place(judgment.caption_id, judgment.key)
    return captions[image_id][number]


def _expert_ratings(fields: list[str], place: str) -> tuple[float, ...]:
    ratings = tuple(_number(field, place) for field in fields)
    for rating in ratings:
        if rating not in EXPERT_RATINGS:
            raise EvaluationDataError(f"{place}: an expert's rating is 1, 2, 3 or 4, not {rating:g}")
    return ratings


def _share_of_yes(fields: list[str], place: str) -> tuple[float, ...]:
    share, yes, no = (_number(field, place) for field in fields)
    if not (yes >= 0 and no >= 0 and yes + no > 0 and abs(share - yes / (yes + no)) < SHARE_TOLERANCE):
        raise EvaluationDataError(f'{place}: the share of "yes" is {share:g}, with {yes:g} "yes" and {no:g} "no"')
    return (share,)


def _number(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EvaluationDataError(f"{place}: expected a number and found {text!r:.200}") from None

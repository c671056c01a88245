"""Rank correlation of caption metrics with the human judgments of Flickr8k (Hodosh, Young and Hockenmaier 2013).

Two sets of judged pairs of a photo and a caption, often another photo's, come with that data set:

- Flickr8k-Expert: three experts rate each pair from 1 to 4. As in SPICE (Anderson et al. 2016, arXiv 1607.08822) and
  CLIPScore (Hessel et al. 2021, arXiv 2104.08718, appendix A), every expert's rating is a judgment of its own, pairs
  whose caption is among the photo's references are left out, and the correlation is Kendall's tau-c.
- Flickr8k-CF: at least three crowd workers say whether the caption describes the photo, and the share of yes is the
  rating. As in CLIPScore, no pair is left out: a photo's judged captions are taken from its references instead, and
  the correlation is tau-b.
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
    """What people said of one pair of a photo and a caption.

    Attributes:
        image_id: Name of the photo's file.
        caption_id: `name.jpg#k`: caption k, counted from 0, of a photo that may be another one.
        ratings: The higher, the better the caption describes the photo; experts' 1 to 4, or one share of yes.
    """

    image_id: str
    caption_id: str
    ratings: tuple[float, ...]

    @property
    def key(self) -> str:
        """Id of the pair, of its own in a file of judgments."""
        return f"{self.image_id} {self.caption_id}"


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b and tau-c, -1 to 1, and the number of judgments that they are over."""

    tau_b: float
    tau_c: float
    num_judgments: int


def load_token_captions(file: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read `Flickr8k.token.txt`, a caption a line: `name.jpg#k<TAB>caption`.

    Returns:
        Captions by image id, caption k at place k.

    Raises:
        EvaluationDataError: a malformed line, a caption that is out of order or comes twice, or no captions.
        OSError: the file cannot be read.
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
        raise EvaluationDataError(f"{file}: holds no captions")
    return captions


def load_expert_judgments(file: str | os.PathLike[str], captions: Captions | None = None) -> list[Judgment]:
    """Read `ExpertAnnotations.txt`: photo, caption id and three ratings from 1 to 4, with tabs between.

    Args:
        file: path of the file.
        captions: captions by image id; ids of photos and captions must be among them where they are given.

    Raises:
        EvaluationDataError: a malformed line, an unknown id, a pair that comes twice, or no judgments; with the line.
        OSError: the file cannot be read.
    """
    return _judgments(Path(file), _expert_ratings, captions)


def load_crowdflower_judgments(
    file: str | os.PathLike[str], captions: Captions | None = None, *, skip_malformed: bool = False
) -> list[Judgment]:
    """Read `CrowdFlowerAnnotations.txt`: photo, caption id, share of yes, number of yes and of no, with tabs between.

    Args:
        file: path of the file.
        captions: captions by image id; ids of photos and captions must be among them where they are given.
        skip_malformed: leave out lines that are not as they should be instead of raising, with a warning that counts
            them.

    Raises:
        EvaluationDataError: a malformed line, a share that is not that of the numbers, an unknown id, a pair that
            comes twice, or no judgments; with the line.
        OSError: the file cannot be read.
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
    """Kendall's tau of the metrics of `score_captions` with human judgments, by name of the score.

    Each pair is an item of its own, its photo's captions the references, so that document frequencies of CIDEr-D
    count a photo as often as it is judged: pycocoevalcap does so where it is given the pairs, as CLIPScore did.
    BLEU is that of one caption without smoothing, pycocoevalcap's too: near 0 where no 4-gram is found.

    Args:
        judgments: of `load_expert_judgments` or `load_crowdflower_judgments`.
        captions: captions by image id.
        metrics: as for `score_captions`; one that needs Java is left out with a warning where that is missing.
        own_captions: what becomes of a caption that is among its photo's references: `"leave_out"` the pair (the
            protocol of Flickr8k-Expert), or use the caption as `"no_reference"` of this photo (of Flickr8k-CF).
        document_frequencies: for CIDEr-D, in place of those of the pairs.
        tokenize: turns a caption into words.

    Raises:
        EvaluationDataError: an unknown id, no pair left, or ratings or scores that are all the same.
        ValueError: an unknown metric or value of `own_captions`.
    """
    judgments, predictions, references = judged_pairs(judgments, captions, own_captions)
    scores = score_captions(
        predictions,
        references,
        metrics,
        per_image=True,
        document_frequencies=document_frequencies,
        # A caption is a reference of many pairs.
        tokenize=lru_cache(maxsize=None)(tokenize),
    )["per_image"]
    names = scores[judgments[0].key]
    return {name: rank_correlation(judgments, {key: row[name] for key, row in scores.items()}, name) for name in names}


def judged_pairs(
    judgments: Sequence[Judgment], captions: Captions, own_captions: Literal["leave_out", "no_reference"]
) -> tuple[list[Judgment], dict[str, str], dict[str, list[str]]]:
    """Judgments that count, with the caption and the references of each by its `key`; see `judgment_correlation`.

    Raises:
        EvaluationDataError: an unknown id, or no pair left.
        ValueError: an unknown value of `own_captions`.
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
    """Kendall's tau of any score of the pairs with their ratings; each rating is a judgment of its own.

    Args:
        judgments: the pairs.
        scores: a score by the `key` of the pair.
        name: of the score, for errors.

    Raises:
        EvaluationDataError: a pair without a score, a score that is not finite, or ratings or scores that are all the
            same.
        ImportError: scipy is missing.
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
            raise EvaluationDataError(f"{what}: all {len(values)} values are the same, which leaves nothing to rank")
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
                raise EvaluationDataError(f"{place}: {judgment.key} is judged already, at {places[judgment.key]}")
        except EvaluationDataError as error:
            if not skip_malformed:
                raise
            faults.append(str(error))
            continue
        judgments[judgment.key], places[judgment.key] = judgment, place
    if faults:
        logger.warning("%s: %d malformed lines are left out; the first: %s", file, len(faults), faults[0])
    if not judgments:
        raise EvaluationDataError(f"{file}: holds no judgments")
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
            f"{place}: expected {num_fields} fields with tabs between and found {len(fields)}: {line!r:.200}"
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
        raise EvaluationDataError(f"{place}: there are no captions of the photo {judgment.image_id!r:.200}")
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
        raise EvaluationDataError(f"{place}: the share of yes is {share:g}, with {yes:g} yes and {no:g} no")
    return (share,)


def _number(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EvaluationDataError(f"{place}: expected a number and found {text!r:.200}") from None

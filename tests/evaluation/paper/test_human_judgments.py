"""Rank correlation with human judgments: Kendall's tau by its definition, and Flickr8k's own files."""

import itertools
import math
import random
import re

import pytest

from nic_hf.evaluation import EvaluationDataError, score_captions
from nic_hf.evaluation.paper.human_judgments import (
    Judgment,
    judged_pairs,
    judgment_correlation,
    load_crowdflower_judgments,
    load_expert_judgments,
    load_token_captions,
    rank_correlation,
)

pytest.importorskip("scipy")

CAPTIONS = {
    "a.jpg": ["a dog runs on grass", "the brown dog runs", "a dog"],
    "b.jpg": ["a cat sits", "the cat sits on a mat", "a dog"],
    "c.jpg": ["two birds fly", "birds in the sky", "two birds"],
}


def tau_by_definition(x: list[float], y: list[float]) -> tuple[float, float]:
    """Tau-b and tau-c from all pairs (Kendall 1945; Stuart 1953)."""
    concordant = discordant = untied_x = untied_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        product = (x[i] - x[j]) * (y[i] - y[j])
        concordant, discordant = concordant + (product > 0), discordant + (product < 0)
        untied_x, untied_y = untied_x + (x[i] != x[j]), untied_y + (y[i] != y[j])
    least = min(len(set(x)), len(set(y)))
    tau_b = (concordant - discordant) / math.sqrt(untied_x * untied_y)
    return tau_b, 2 * (concordant - discordant) / (len(x) ** 2 * (least - 1) / least)


@pytest.mark.parametrize("seed", range(4))
def test_tau_is_what_its_definition_gives(seed):
    rng = random.Random(seed)
    judgments = [Judgment(f"{i}.jpg", "a.jpg#0", tuple(rng.choices([1.0, 2.0, 3.0, 4.0], k=3))) for i in range(30)]
    scores = {judgment.key: round(rng.random() + 0.2 * sum(judgment.ratings), 1) for judgment in judgments}
    ratings = [rating for judgment in judgments for rating in judgment.ratings]
    repeated = [scores[judgment.key] for judgment in judgments for _ in range(3)]
    ours = rank_correlation(judgments, scores)
    assert (ours.tau_b, ours.tau_c) == pytest.approx(tau_by_definition(repeated, ratings), abs=1e-12)
    assert ours.num_judgments == 90
    assert 0.3 < ours.tau_b < 1


def test_correlation_of_a_metric_is_that_of_its_scores_of_the_pairs():
    judgments = [
        Judgment("a.jpg", "b.jpg#0", (1.0, 2.0)),
        Judgment("a.jpg", "b.jpg#1", (2.0, 1.0)),
        Judgment("b.jpg", "a.jpg#0", (1.0, 1.0)),
        Judgment("b.jpg", "a.jpg#1", (4.0, 3.0)),
        Judgment("c.jpg", "a.jpg#0", (1.0, 1.0)),
    ]
    captions = {number: CAPTIONS[j.caption_id[:5]][int(j.caption_id[-1])] for number, j in enumerate(judgments)}
    references = {number: CAPTIONS[j.image_id] for number, j in enumerate(judgments)}
    scores = score_captions(captions, references, per_image=True)["per_image"]
    ratings = [rating for judgment in judgments for rating in judgment.ratings]
    ours = judgment_correlation(judgments, CAPTIONS)
    assert set(ours) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
    for name, correlation in ours.items():
        tau_b, tau_c = tau_by_definition([scores[i][name] for i in scores for _ in range(2)], ratings)
        assert (correlation.tau_b, correlation.tau_c) == pytest.approx((tau_b, tau_c)), name


def test_own_captions_are_left_out_or_no_references():
    judgments = [Judgment("a.jpg", caption_id, (1.0,)) for caption_id in ("a.jpg#1", "b.jpg#2", "b.jpg#0")]
    left, texts, references = judged_pairs(judgments, CAPTIONS, "leave_out")
    # b.jpg#2 has the words of a.jpg#2.
    assert [judgment.caption_id for judgment in left] == ["b.jpg#0"]
    assert (texts[left[0].key], references[left[0].key]) == ("a cat sits", CAPTIONS["a.jpg"])
    kept, texts, references = judged_pairs(judgments, CAPTIONS, "no_reference")
    assert kept == judgments
    assert list(texts.values()) == ["the brown dog runs", "a dog", "a cat sits"]
    assert list(references.values()) == [["a dog runs on grass"]] * 3
    assert len(CAPTIONS["a.jpg"]) == 3


def test_every_expert_judgment_of_flickr8k_is_read(flickr8k):
    captions = load_token_captions(flickr8k / "Flickr8k.token.txt")
    assert len(captions) == 8092 and {len(texts) for texts in captions.values()} == {5}
    judgments = load_expert_judgments(flickr8k / "ExpertAnnotations.txt", captions)
    assert len(judgments) == 5822
    assert judgments[1] == Judgment("1056338697_4f7d7ce270.jpg", "2718495608_d8533e3ac5.jpg#2", (1.0, 1.0, 2.0))
    assert len({judgment.image_id for judgment in judgments}) == 1000
    counted, _, references = judged_pairs(judgments, captions, "leave_out")
    assert len(counted) == 5664
    assert {len(texts) for texts in references.values()} == {5}


def test_every_crowdflower_judgment_of_flickr8k_is_read(flickr8k, caplog):
    captions = load_token_captions(flickr8k / "Flickr8k.token.txt")
    file = flickr8k / "CrowdFlowerAnnotations.txt"
    lines = file.read_bytes().split(b"\n")
    fit = [line for line in lines if re.fullmatch(rb"\S+\.jpg\t\S+\.jpg#\d\t[\d.]+\t\d+\t\d+", line)]
    # The copy in the test data lacks 32 KiB in lines 32,419 to 32,483; the original has about 540 more pairs.
    assert len(fit) >= 47_288
    judgments = load_crowdflower_judgments(file, captions, skip_malformed=True)
    assert len(judgments) == len(fit)
    assert [f"{judgment.image_id}\t{judgment.caption_id}\t".encode() for judgment in judgments] == [
        b"\t".join(line.split(b"\t")[:2]) + b"\t" for line in fit
    ]
    assert judgments[0] == Judgment("1056338697_4f7d7ce270.jpg", "1056338697_4f7d7ce270.jpg#2", (1.0,))
    if len(fit) == 47_288:
        assert "65 malformed lines are skipped" in caplog.text
        with pytest.raises(EvaluationDataError, match=rf"{re.escape(str(file))}: line 32419: cannot be read as text"):
            load_crowdflower_judgments(file, captions)


def test_correlation_with_experts_is_the_published_one(flickr8k):
    captions = load_token_captions(flickr8k / "Flickr8k.token.txt")
    judgments = load_expert_judgments(flickr8k / "ExpertAnnotations.txt", captions)
    ours = judgment_correlation(judgments, captions)
    # CLIPScore (arXiv 2104.08718), table 1.
    published = {"bleu_1": 32.3, "bleu_4": 30.8, "rouge_l": 32.3, "cider": 43.9}
    for name, tau_c in published.items():
        assert 100 * ours[name].tau_c == pytest.approx(tau_c, abs=0.05001), name
        assert ours[name].num_judgments == 3 * 5664


def test_cider_agrees_with_the_crowd_more_than_bleu_on_some_photos(flickr8k):
    captions = load_token_captions(flickr8k / "Flickr8k.token.txt")
    judgments = load_crowdflower_judgments(flickr8k / "CrowdFlowerAnnotations.txt", skip_malformed=True)[:8000]
    ours = judgment_correlation(judgments, captions, ["bleu", "cider"], own_captions="no_reference")
    assert ours["cider"].tau_b > ours["bleu_4"].tau_b + 0.03 > 0.13


EXPERT_LINE = "a.jpg\tb.jpg#0\t1\t2\t4"
CROWD_LINE = "a.jpg\tb.jpg#0\t0.25\t1\t3"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg\tb.jpg#1\t1\t2", "expected 5 tab-separated fields and found 4"),
        ("a.jpg b.jpg#1 1 2 4", "expected 5 tab-separated fields and found 1"),
        ("a.jpg\tb.jpg#1\t1\t2\tthree", "expected a number and found 'three'"),
        ("a.jpg\tb.jpg#1\t1\t2\t5", "an expert's rating is 1, 2, 3 or 4, not 5"),
        ("a.jpg\tb.jpg#1\t1\t2\tnan", "an expert's rating is 1, 2, 3 or 4, not nan"),
        ("a.jpg\tb.jpg\t1\t2\t4", "expected a caption id such as name.jpg#0 and found 'b.jpg'"),
        ("a.jpg\tb.jpg#x\t1\t2\t4", "expected a caption id"),
        ("a.jpg\tb.jpg#3\t1\t2\t4", "there is no caption 'b.jpg#3'"),
        ("d.jpg\tb.jpg#1\t1\t2\t4", "the photo 'd.jpg' has no captions"),
        (EXPERT_LINE, "a.jpg b.jpg#0 has a judgment already, at .*line 1"),
        ("a.jpg\tb.jpg#1\t1\t2\t\xff", "cannot be read as text"),
    ],
)
def test_faults_in_a_file_of_expert_judgments_are_placed(tmp_path, line, message):
    file = tmp_path / "ExpertAnnotations.txt"
    file.write_bytes(f"{EXPERT_LINE}\n\n{line}\n".encode("latin-1"))
    with pytest.raises(EvaluationDataError, match=f"^{re.escape(str(file))}: line 3: {message}"):
        load_expert_judgments(file, CAPTIONS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg\tb.jpg#1\t0.5\t1\t3", 'the share of "yes" is 0.5, with 1 "yes" and 3 "no"'),
        ("a.jpg\tb.jpg#1\t0\t0\t0", 'the share of "yes" is 0, with 0 "yes" and 0 "no"'),
        ("a.jpg\tb.jpg#1\tnan\t1\t3", 'the share of "yes" is nan'),
        ("a.jpg\tb.jpg#1\t0.25\t1", "expected 5 tab-separated fields"),
    ],
)
def test_faults_in_a_file_of_crowd_judgments_are_placed_or_counted(tmp_path, caplog, line, message):
    file = tmp_path / "CrowdFlowerAnnotations.txt"
    file.write_text(f"{CROWD_LINE}\n{line}\n", "utf-8")
    with pytest.raises(EvaluationDataError, match=f"^{re.escape(str(file))}: line 2: {message}"):
        load_crowdflower_judgments(file, CAPTIONS)
    assert load_crowdflower_judgments(file, CAPTIONS, skip_malformed=True) == [Judgment("a.jpg", "b.jpg#0", (0.25,))]
    assert f"{file}: 1 malformed lines are skipped; the first: {file}: line 2: {message}" in caplog.text


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(f"\ufeff{EXPERT_LINE}\r\n".encode())
    assert load_expert_judgments(tmp_path / "a.txt", CAPTIONS) == [Judgment("a.jpg", "b.jpg#0", (1.0, 2.0, 4.0))]


@pytest.mark.parametrize("load", [load_expert_judgments, load_crowdflower_judgments, load_token_captions])
def test_a_file_without_a_line_is_an_error(tmp_path, load):
    (tmp_path / "a.txt").write_text("\n", "utf-8")
    with pytest.raises(EvaluationDataError, match=r"a\.txt: contains no (judgments|captions)"):
        load(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "b.txt")


@pytest.mark.parametrize("lines", ["a.jpg#0\tA dog.\na.jpg#2\tA cat.\n", "a.jpg#0\tA dog.\na.jpg#0\tA cat.\n"])
def test_captions_out_of_order_are_placed(tmp_path, lines):
    (tmp_path / "a.txt").write_text(lines, "utf-8")
    with pytest.raises(EvaluationDataError, match=r"a\.txt: line 2: expected a\.jpg#1 and found a\.jpg#[02]"):
        load_token_captions(tmp_path / "a.txt")


def test_what_cannot_be_ranked_is_named():
    a, b = Judgment("a.jpg", "b.jpg#0", (1.0, 2.0)), Judgment("b.jpg", "a.jpg#0", (1.0, 1.0))
    with pytest.raises(EvaluationDataError, match=r"cider: no score of b.jpg a.jpg#0"):
        rank_correlation([a, b], {a.key: 0.5}, "cider")
    with pytest.raises(EvaluationDataError, match=r"cider of b.jpg a.jpg#0 is nan"):
        rank_correlation([a, b], {a.key: 0.5, b.key: math.nan}, "cider")
    with pytest.raises(EvaluationDataError, match="cider: all 4 values are the same"):
        rank_correlation([a, b], {a.key: 0.5, b.key: 0.5}, "cider")
    with pytest.raises(EvaluationDataError, match="ratings: all 2 values are the same"):
        rank_correlation([b], {b.key: 0.5}, "cider")
    with pytest.raises(EvaluationDataError, match=r"judgment of d.jpg a.jpg#0: the photo .* has no captions"):
        judgment_correlation([Judgment("d.jpg", "a.jpg#0", (1.0,))], CAPTIONS)
    with pytest.raises(EvaluationDataError, match="no judgment is left"):
        judgment_correlation([Judgment("a.jpg", "a.jpg#0", (1.0,))], CAPTIONS)
    with pytest.raises(ValueError, match="own_captions is 'keep'"):
        judgment_correlation([a], CAPTIONS, own_captions="keep")

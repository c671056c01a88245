"""Tokens compared with the Java tool's: recorded ones and, if Java is available, those of perturbed captions."""

import importlib.util
import json
import random
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nic_hf.evaluation.ptb import ptb_tokenize, ptb_tokenize_all

GOLDEN = Path(__file__).parent.parent / "golden"
HARD = [json.loads(line) for line in (GOLDEN / "ptb_hard.jsonl").read_text().splitlines()]
DIGESTS = json.loads((GOLDEN / "ptb_digests.json").read_text())


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    """The script that recorded the Java tool's tokens."""
    spec = importlib.util.spec_from_file_location("make_ptb_golden", GOLDEN / "make_ptb_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpora(test_data: Path, golden: ModuleType) -> dict[str, list[str]]:
    return golden.corpora(test_data)


def test_hard_captions():
    tokenized = [" ".join(tokens) for tokens in ptb_tokenize_all(caption for caption, _ in HARD)]
    wrong = [(caption, java, ours) for (caption, java), ours in zip(HARD, tokenized, strict=True) if ours != java]
    assert len(HARD) >= 300
    assert wrong == []


@pytest.mark.parametrize("corpus", DIGESTS)
def test_real_captions(corpus, corpora, golden):
    tokens = [" ".join(tokens) for tokens in ptb_tokenize_all(corpora[corpus])]
    assert golden.digest(tokens) == DIGESTS[corpus]


@pytest.mark.parametrize(
    ("captions", "tokens"),
    [
        (["plan B.", "The dog"], ["plan b", "the dog"]),
        (["plan B.", "the dog"], ["plan b.", "the dog"]),
        (["plan B.", "", " ", "The dog"], ["plan b", "", "", "the dog"]),
        (["plan B.", "The"], ["plan b.", "the"]),
        (["plan B."], ["plan b."]),
        (["No.", "5 dogs"], ["no.", "5 dogs"]),
        (["1", "1/2 cup"], ["1", "1/2 cup"]),
        (["one.\rtwo\u2028three", "four\nfive"], ["one two three", "four five"]),
        ([""], [""]),
        ([], []),
    ],
)
def test_captions_are_read_as_one_text_but_stay_apart(captions, tokens):
    assert [" ".join(found) for found in ptb_tokenize_all(captions)] == tokens


CAPTIONS = st.one_of(
    st.text(max_size=40),
    st.text("abdnostABI159 .,'’-/&$#@:;()<>!?\"½\u00a0\u00ad\r\n", max_size=25),
    st.lists(st.sampled_from(sorted({word for caption, _ in HARD for word in caption.split()})), max_size=6).map(
        " ".join
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(CAPTIONS, max_size=4))
@example(["1 1/2", "B.", "The x"])
def test_any_text(captions):
    tokenized = ptb_tokenize_all(captions)
    assert len(tokenized) == len(captions)
    for caption, tokens in zip(captions, tokenized, strict=True):
        assert all(token and not set(token) & set(" \n\r") for token in tokens)
        assert [token.lower() for token in tokens] == tokens
        assert not {".", ",", "?", "!", ":", ";", "''", "``", "'", "`", "-", "--", "..."} & set(tokens)
        if "." not in caption:
            assert ptb_tokenize(caption) == tokens


def test_perturbed_captions_live(golden):
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    if shutil.which("java") is None:
        pytest.skip("there is no `java` on the PATH")
    rng = random.Random(0)
    words = sorted({word for caption, _ in HARD for word in caption.split() if word.isascii() and word.isalpha()})
    special = ["B.", "I.", "no.", "St.", "U.S.", "5", "1/2", "Wash.", "don't", "dogs'", "'em", "o'clock", "t-shirt"]
    captions = []
    for _ in range(4000):
        text = list(" ".join(rng.choice(special if rng.random() < 0.15 else words) for _ in range(rng.randint(1, 9))))
        for _ in range(rng.randint(0, 4)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.randint(0, 1)] = rng.choice(".,'\"-!?:;()&/ $%#0123456789ABé’")
        captions.append("".join(text))
    ours = [" ".join(tokens) for tokens in ptb_tokenize_all(captions)]
    java = golden.java_tokens(captions)
    assert [pair for pair in zip(captions, ours, java, strict=True) if pair[1] != pair[2]] == []

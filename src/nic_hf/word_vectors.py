"""Initialize the word embeddings of a captioner with pretrained word vectors.

The vectors come from a SentenceTransformer, which embeds any word, or from a GloVe or word2vec text file. The paper
saw no significant gain (section 4.3.1); it may help if there are few captions.
"""

import gzip
import os
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .lookup import look_up

_TEXT_SUFFIXES = {".gz", ".txt", ".vec"}
_WORD2VEC_HEADER = re.compile(rb"(\d+) (\d+)")
_LISTED_WORDS = 10


class SentenceEncoder(Protocol):
    """Protocol of a SentenceTransformer."""

    def encode(self, sentences: list[str], /) -> Any:
        """Return an array or tensor of shape (number of sentences, embedding size)."""


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Initial word embeddings for the vocabulary of a tokenizer.

    Attributes:
        weights: One row per token id, float32 of shape (vocab_size, embedding_size).
        found: The number of words in the source. Special tokens are not words.
        missing: The words that are not in the source, the most frequent first; their rows are random.
    """

    weights: torch.Tensor
    found: int
    missing: list[str]

    @property
    def coverage(self) -> float:
        """The share of the vocabulary that the source contains, between 0 and 1."""
        return self.found / (self.found + len(self.missing))

    def __str__(self) -> str:
        text = f"found {self.found:,} of {self.found + len(self.missing):,} words ({100 * self.coverage:.1f} %)"
        if not self.missing:
            return text
        more = len(self.missing) - _LISTED_WORDS
        rest = f" and {more:,} more" if more > 0 else ""
        return f"{text}; missing: {', '.join(self.missing[:_LISTED_WORDS])}{rest}"


def load_word_vectors(
    source: str | os.PathLike[str] | SentenceEncoder,
    tokenizer: PreTrainedTokenizerBase,
    *,
    initializer_range: float = 0.08,
    seed: int = 0,
) -> WordVectors:
    """Look up a vector for each word of a tokenizer's vocabulary.

    Words that are not in the source, and special tokens, get values drawn uniformly between plus and minus
    `initializer_range`, as in a new model; the row of the padding token is zero.

    Args:
        source: A SentenceTransformer (or anything with its `encode`), its folder or Hub id, or the path of a text
            file with lines `word v1 v2 ...`: GloVe, or word2vec with its first line `count size`; `.gz` as well. The
            file is read as a stream, and only the lines of the vocabulary's words are parsed. Words are compared
            exactly, and a word listed twice keeps its first vector.
        tokenizer: The tokenizer, from `train_tokenizer`.
        initializer_range: The bound of random values; 0.08 is also the default of `NICConfig`.
        seed: The seed of random values.

    Raises:
        ValueError: If the file is empty, damaged or in another format, if a vector is not finite, or if no word is
            found; the message contains the file and line.
        FileNotFoundError: If a `.txt`, `.vec` or `.gz` file does not exist.
        ImportError: If the source is a SentenceTransformer and sentence-transformers is not installed.
    """
    specials = set(tokenizer.all_special_ids)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = {word: index for word, index in vocabulary if index not in specials}
    if not words:
        raise ValueError("the vocabulary of the tokenizer has only special tokens")

    if isinstance(source, str | os.PathLike) and _is_text_file(path := Path(source)):
        known = _read_text_vectors(path, words.keys())
    else:
        encoder = _load_encoder(os.fspath(source)) if isinstance(source, str | os.PathLike) else source
        known = _encode_words(encoder, list(words))

    vectors = torch.stack(list(known.values()))  # shape: (found, embedding_size)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(len(tokenizer), vectors.shape[1])
    weights.uniform_(-initializer_range, initializer_range, generator=generator)
    weights[[words[word] for word in known]] = vectors
    if tokenizer.pad_token_id is not None:
        weights[tokenizer.pad_token_id] = 0.0
    return WordVectors(weights, found=len(known), missing=[word for word in words if word not in known])


def _is_text_file(path: Path) -> bool:
    """Whether a path is a file of vectors, not the folder or Hub id of a SentenceTransformer."""
    if path.is_file():
        return True
    if path.suffix in _TEXT_SUFFIXES and not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file of word vectors")
    return False


def _load_encoder(name: str) -> SentenceEncoder:
    """Load a SentenceTransformer by folder or Hub id."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"'{name}' is not a file, and loading it as a SentenceTransformer requires sentence-transformers: "
            "pip install 'nic_hf[vectors]'"
        ) from error
    is_short = not Path(name).exists() and "/" not in name  # SentenceTransformers then adds its own namespace
    return SentenceTransformer(name, **look_up(f"sentence-transformers/{name}" if is_short else name))


def _encode_words(encoder: SentenceEncoder, words: list[str]) -> dict[str, torch.Tensor]:
    """Embed each word as a sentence."""
    vectors = torch.as_tensor(encoder.encode(words)).detach().float().cpu()
    if vectors.ndim != 2 or len(vectors) != len(words):
        raise ValueError(f"the encoder returned shape {tuple(vectors.shape)}, not ({len(words)}, embedding size)")
    finite = vectors.isfinite().all(dim=1).tolist()
    if not all(finite):
        raise ValueError(f"the encoder returned NaN or Inf for the word '{words[finite.index(False)]}'")
    return dict(zip(words, vectors, strict=True))


def _read_text_vectors(path: Path, words: Collection[str]) -> dict[str, torch.Tensor]:
    """Read the vectors of some words from a GloVe or word2vec text file."""
    wanted = {word.encode(): word for word in words}
    known: dict[str, torch.Tensor] = {}
    size = promised = None  # values per line, and number of lines in a word2vec header
    lines = 0
    for number, line in enumerate(_stream_lines(path), start=1):
        if not line:
            continue
        if number == 1 and (header := _WORD2VEC_HEADER.fullmatch(line)):
            promised, size = int(header[1]), int(header[2])
            continue
        size = size or line.count(b" ")
        key = _split_word(line, size, f"{path}: line {number}")
        lines += 1
        word = wanted.get(key)
        if word is not None and word not in known:
            known[word] = _parse_values(line[len(key) + 1 :], f"{path}: line {number}")

    if not lines:
        raise ValueError(f"{path}: the file has no vectors")
    if promised not in (None, lines):
        raise ValueError(f"{path}: line 1 declares {promised:,} vectors, but the file has {lines:,}: is it complete?")
    if not known:
        raise ValueError(
            f"{path}: none of the {len(wanted):,} words of the vocabulary is among the {lines:,} in the file"
        )
    return known


def _stream_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a plain or gzip file, with a progress bar over its bytes."""
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=None) as progress,
    ):
        stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        try:
            # Bytes are split at "\n" only; text mode would also split at line separators that are words in GloVe.
            for number, line in enumerate(stream):
                if number % 1024 == 0:
                    progress.update(file.tell() - progress.n)
                yield line.rstrip(b" \r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: not a complete gzip file: {error}") from error
        progress.update(file.tell() - progress.n)


def _split_word(line: bytes, size: int, place: str) -> bytes:
    """Return the word in front of `size` values; words of glove.840B may contain spaces."""
    if size < 1:
        raise ValueError(f"{place}: expected `word v1 v2 ...`, as in a GloVe or word2vec text file, got {line!r:.80}")
    found = line.count(b" ")
    if found < size:
        raise ValueError(f"{place}: expected {size} values after the word, found {found}")
    if found == size:
        return line[: line.index(b" ")]
    word = line.rsplit(b" ", size)[0]
    if _is_number(word.rsplit(b" ", 1)[-1]):
        raise ValueError(f"{place}: expected {size} values after the word, found {found}")
    return word


def _parse_values(values: bytes, place: str) -> torch.Tensor:
    """Parse `v1 v2 ...` as a float32 vector."""
    fields = values.split(b" ")
    for index, field in enumerate(fields, start=1):
        if not _is_number(field):
            raise ValueError(f"{place}: value {index} is not a number: {field.decode(errors='replace')!r:.80}")
    vector = torch.tensor([float(field) for field in fields], dtype=torch.float32)
    finite = vector.isfinite().tolist()
    if not all(finite):
        index = finite.index(False)
        raise ValueError(f"{place}: value {index + 1} is not a finite 32-bit number: {fields[index].decode()}")
    return vector


def _is_number(field: bytes) -> bool:
    """Whether a field is a number, NaN and Inf included."""
    try:
        float(field)
    except ValueError:
        return False
    return True

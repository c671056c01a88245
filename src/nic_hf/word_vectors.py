"""Start a captioner's word embeddings from word vectors that others have trained.

The vectors come from a SentenceTransformer, which embeds any word, or from a GloVe or word2vec text file, which knows
the words it lists. The paper saw no significant gain from such a start (section 4.3.1); it is worth a try where
captions are few.
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

_TEXT_SUFFIXES = {".gz", ".txt", ".vec"}
_WORD2VEC_HEADER = re.compile(rb"(\d+) (\d+)")
_LISTED_WORDS = 10


class SentenceEncoder(Protocol):
    """What embeds texts the way a SentenceTransformer does."""

    def encode(self, sentences: list[str], /) -> Any:
        """Return an array or tensor of shape (number of sentences, embedding size)."""


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Initial word embeddings for the vocabulary of one tokenizer, and how many of them are more than noise.

    Attributes:
        weights: One row per token id, float32 of shape (vocab_size, embedding_size).
        found: The number of words that the source knew. Special tokens are not words.
        missing: The words it did not know, the most frequent first; their rows are random.
    """

    weights: torch.Tensor
    found: int
    missing: list[str]

    @property
    def coverage(self) -> float:
        """The share of the vocabulary's words that the source knew, between 0 and 1."""
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

    Words that the source does not know and the special tokens get values drawn uniformly between plus and minus
    `initializer_range`, as an untrained model would give them; the row of the padding token is zero.

    Args:
        source: A SentenceTransformer (or anything with its `encode`), its folder or Hub id, or the path of a text
            file with lines `word v1 v2 ...`: GloVe, or word2vec with its first line `count size`; `.gz` as well. The
            file is read as a stream, and only the lines of the vocabulary's words are parsed. Words are compared
            exactly, and a word listed twice keeps its first vector.
        tokenizer: The tokenizer whose vocabulary is wanted, as `train_tokenizer` makes it.
        initializer_range: The bound of random values; 0.08 is also the default of `NICConfig`.
        seed: The seed of random values.

    Raises:
        ValueError: If the file is empty, damaged or in another format, if a vector is not finite, or if not one word
            is found; the message gives the file and line.
        FileNotFoundError: If a `.txt`, `.vec` or `.gz` file does not exist.
        ImportError: If a SentenceTransformer is to be loaded and sentence-transformers is not installed.
    """
    specials = set(tokenizer.all_special_ids)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = {word: index for word, index in vocabulary if index not in specials}
    if not words:
        raise ValueError("the tokenizer's vocabulary holds no words, only special tokens")

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
    """Tell a file of vectors from the folder or Hub id of a SentenceTransformer."""
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
            f"'{name}' is not a file, and to load it as a SentenceTransformer takes sentence-transformers: "
            "pip install 'nic_hf[vectors]'"
        ) from error
    return SentenceTransformer(name)


def _encode_words(encoder: SentenceEncoder, words: list[str]) -> dict[str, torch.Tensor]:
    """Embed each word as a sentence of its own."""
    vectors = torch.as_tensor(encoder.encode(words)).detach().float().cpu()
    if vectors.ndim != 2 or len(vectors) != len(words):
        raise ValueError(f"the encoder returned shape {tuple(vectors.shape)}, not ({len(words)}, embedding size)")
    finite = vectors.isfinite().all(dim=1).tolist()
    if not all(finite):
        raise ValueError(f"the encoder returned NaN or infinity for the word '{words[finite.index(False)]}'")
    return dict(zip(words, vectors, strict=True))


def _read_text_vectors(path: Path, words: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the vectors that a GloVe or word2vec text file lists for words."""
    wanted = {word.encode(): word for word in words}
    known: dict[str, torch.Tensor] = {}
    size = promised = None  # values a line, and lines that a word2vec header counts
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
        raise ValueError(f"{path}: the file holds no vectors")
    if promised not in (None, lines):
        raise ValueError(f"{path}: line 1 promises {promised:,} vectors, the file holds {lines:,}: is it complete?")
    if not known:
        raise ValueError(
            f"{path}: none of the {len(wanted):,} words of the vocabulary is among the {lines:,} of the file"
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
            # Bytes are cut at "\n" only; text mode would also cut at the line separators that GloVe has as words.
            for number, line in enumerate(stream):
                if number % 1024 == 0:
                    progress.update(file.tell() - progress.n)
                yield line.rstrip(b" \r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: not a complete gzip file: {error}") from error
        progress.update(file.tell() - progress.n)


def _split_word(line: bytes, size: int, place: str) -> bytes:
    """Return the word in front of `size` values; words of glove.840B may hold spaces themselves."""
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
    """Turn `v1 v2 ...` into a float32 vector."""
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
    """Tell whether a field reads as a number, NaN and infinity included."""
    try:
        float(field)
    except ValueError:
        return False
    return True

r"""Learn a word-level tokenizer from captions.

Show and Tell predicts whole words: its vocabulary has every word that occurs at least five times in the training
captions (section 4.3.1 of the paper). The tokenizer consists of components of the `tokenizers` library, so
`tokenizer.json` is complete and `AutoTokenizer` loads it without this package.

In scripts without spaces (Chinese, Japanese, Thai, ...) ICU finds the words when the tokenizer is trained. Frequent
ones are stored in `tokenizer.json`, which splits a text into the longest of them and, between them, into characters.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Literal, get_args

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from .languages import (
    DOTLESS,
    DOTTED,
    INSTALL,
    can_segment,
    count_letters,
    is_compound,
    is_unspaced,
    unspaced_words,
)
from .tokenizer_style import (
    BOS_TOKEN,
    EOS_TOKEN,
    PAD_TOKEN,
    SPECIAL_TOKENS,
    UNK_TOKEN,
    Style,
    build_backend,
    build_run_splitter,
    build_splitter,
    style_of,
)

logger = logging.getLogger(__name__)

Segmentation = Literal["auto", "words", "characters", "spaces"]

# Shares of the letters above which captions count as written without spaces, and as Turkish.
_UNSPACED_SHARE = _DOTLESS_SHARE = 0.01
# Share of word occurrences without an id above which a warning is logged.
_MANY_UNKNOWN = 0.1
MIN_FREQUENCY = 5  # the paper's


def train_tokenizer(
    captions: Iterable[str],
    min_frequency: int | None = 5,
    *,
    keep_punctuation: bool = False,
    max_length: int = 64,
    segmentation: Segmentation = "auto",
) -> PreTrainedTokenizerFast:
    r"""Learn the vocabulary of captions and return a tokenizer.

    Text is normalized to NFKC, lower-cased, and split into words: letters and digits, joined by single `-`, `'`, `&`,
    `.` or `/` ("t-shirt", "o'clock", "at&t"). The possessive "'s" is a separate word. Everything else, such as full
    stops and emoji, is dropped. Ids 0 to 3 are `<pad> <bos> <eos> <unk>`; words follow by descending frequency, then
    in alphabetical order, so the order of the captions does not matter.

    Scripts without spaces are split according to `segmentation`, and decoded without spaces; this is logged. In
    captions with the dotless i of Turkish (1% of the letters or more), the capital I is lower-cased to it.

    `tokenizer(caption).input_ids` are the ids of the words and `<eos>`: the labels of the model, which adds `<bos>`
    itself. `add_special_tokens=False` omits `<eos>`, for the prefix of a caption. The text `<eos>` in a caption is
    read as the word "eos", never as the special token (`split_special_tokens=True`; if you load `tokenizer.json` with
    `tokenizers.Tokenizer.from_file`, set `encode_special_tokens = True`).

    Args:
        captions: The captions of the training split, read once.
        min_frequency: How often a word must occur to get an id; all others are `<unk>`. The paper uses 5. None uses
            the largest number up to 5 at which 90% of the word occurrences have an id.
        keep_punctuation: Keep each punctuation mark and symbol as a token instead of dropping it. Decoding then writes
            "a dog (wet), running." with the usual spaces; straight double quotes, which may open or close, keep a
            space on both sides.
        max_length: The number of ids, `<eos>` included, that `truncation=True` truncates a caption to. The model
            itself has no limit.
        segmentation: How Chinese, Japanese, Thai, Lao, Khmer and Burmese are split. `"words"`: into the frequent words
            that ICU finds, and single characters between them; it requires the extra `languages`. `"characters"`: into
            characters with their marks. `"spaces"`: at spaces and punctuation only. `"auto"`: words, or characters
            without the extra, if 1% or more of the letters are in these scripts; otherwise at spaces.

    Raises:
        ValueError: If there are no captions, if `captions` is a single string or a mapping, if a caption is not a
            string, if no word is frequent enough, or if an argument is out of range.
        ImportError: If `segmentation` is `"words"` and icu4py is not installed.

    Example:
        >>> tokenizer = train_tokenizer(["A man's dog runs .", "A dog sleeps ."], min_frequency=1)
        >>> tokenizer("The man's dog sleeps!").input_ids
        [3, 7, 6, 5, 9, 2]
        >>> tokenizer.decode([4, 7, 6, 5, 9, 2], skip_special_tokens=True)
        "a man's dog sleeps"
    """
    _check_positive(min_frequency=min_frequency, max_length=max_length)
    runs = count_words(build_run_splitter(keep_punctuation), captions)
    style = _style_for(runs, Style(keep_punctuation), segmentation)
    counts, frequent, min_frequency = _frequent_words(
        runs, style, min_frequency, _segmented(runs, style, segmentation)
    )
    if not frequent:
        raise ValueError(
            f"no word occurs {min_frequency} times: the captions have {len(counts):,} distinct words, which occur at "
            f"most {max(counts.values(), default=0)} times; lower min_frequency or add captions"
        )
    unknown = 1 - sum(counts[word] for word in frequent) / counts.total()
    if unknown > _MANY_UNKNOWN:
        logger.warning(
            f"{100 * unknown:.1f}% of the words in the captions become <unk>: min_frequency={min_frequency} keeps"
            f" {len(frequent):,} of {len(counts):,} distinct words. Lower it to keep more, or set it to None to"
            " keep nine words in ten"
        )
    frequent.sort(key=lambda word: (-counts[word], word))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *frequent])}
    return _wrap(build_backend(vocabulary, style), max_length)


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    captions: Iterable[str],
    min_frequency: int | None = 5,
    *,
    segmentation: Segmentation = "auto",
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the frequent words of other captions added; known words keep their ids.

    New words follow the old ones by descending frequency. Scripts without spaces that are new to the tokenizer are
    split according to `segmentation`, others as before. If there are no new words, that is not an error.

    Args:
        tokenizer: A tokenizer of `train_tokenizer`; it is not changed.
        captions: The captions to learn words from, read once.
        min_frequency: How often a new word must occur in them; None as for `train_tokenizer`.
        segmentation: As for `train_tokenizer`.

    Raises:
        ValueError: If `train_tokenizer` did not build the tokenizer, or as for `train_tokenizer`.
        ImportError: As for `train_tokenizer`.
    """
    _check_positive(min_frequency=min_frequency)
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    old_style = style_of(tokenizer, vocabulary)
    runs = count_words(build_run_splitter(old_style.keep_punctuation), captions)
    style = _style_for(runs, old_style, segmentation)
    if old_style.unspaced:
        segmentation = "auto" if any(map(is_compound, vocabulary)) else "characters"
    segmented = _segmented(runs, style, segmentation)
    counts, frequent, _ = _frequent_words(runs, style, min_frequency, segmented, vocabulary)
    new = [word for word in frequent if word not in vocabulary]
    for word in sorted(new, key=lambda word: (-counts[word], word)):
        vocabulary[word] = len(vocabulary)
    return _wrap(build_backend(vocabulary, style), tokenizer.model_max_length)


def vocabulary_coverage(tokenizer: PreTrainedTokenizerFast, captions: Iterable[str]) -> float:
    """Return the share of word occurrences in captions, between 0 and 1, that the vocabulary covers.

    Use it before training a captioner on other captions: at 0.95, about four in ten captions of ten words have an
    unknown word.

    Raises:
        ValueError: If there are no captions, if one is not a string, or if they have no words.
    """
    unknown, total = unknown_words(tokenizer, captions)
    return 1 - unknown.total() / total


def unknown_words(tokenizer: PreTrainedTokenizerFast, captions: Iterable[str]) -> tuple[Counter[str], int]:
    """Count the unknown words of captions, and all word occurrences.

    Raises:
        ValueError: If there are no captions, if one is not a string, or if they have no words.
    """
    counts = count_words(tokenizer.backend_tokenizer, captions)
    if not counts:
        raise ValueError("the captions have no words")
    vocabulary = tokenizer.get_vocab()
    return Counter({word: count for word, count in counts.items() if word not in vocabulary}), counts.total()


def _style_for(runs: Counter[str], style: Style, segmentation: Segmentation) -> Style:
    """Extend a style to what the runs of captions need."""
    if segmentation not in get_args(Segmentation):
        raise ValueError(f"segmentation must be one of {', '.join(get_args(Segmentation))}, got {segmentation!r}")
    foreign = {run: count for run, count in runs.items() if not run.isascii()}
    if not foreign:
        return style
    unspaced = letters = 0
    for run, count in runs.items():
        own, of_all = count_letters(run)
        unspaced, letters = unspaced + count * own, letters + count * of_all
    cut = unspaced > 0 and segmentation != "spaces"
    if segmentation == "auto":
        cut = cut and unspaced >= _UNSPACED_SHARE * letters
    dotless = sum(count * run.count(DOTLESS) for run, count in foreign.items())
    is_dotless = dotless > 0 and dotless >= _DOTLESS_SHARE * letters
    if is_dotless and not style.dotless:
        logger.info("captions contain the dotless i of Turkish: the capital I is lower-cased to it")
    return replace(
        style,
        unspaced=style.unspaced or cut,
        dotted=style.dotted or is_dotless or any(DOTTED in run for run in foreign),
        dotless=style.dotless or is_dotless,
    )


def _segmented(runs: Iterable[str], style: Style, segmentation: Segmentation) -> bool:
    """Whether to find words in scripts without spaces; log how these are split."""
    if not style.unspaced or not any(map(is_unspaced, runs)):
        return False
    if segmentation == "words" or (segmentation == "auto" and can_segment()):
        logger.info("captions in a script without spaces are split into words by ICU")
        return True
    if segmentation == "auto":
        logger.warning(
            "captions in a script without spaces are split into characters, since icu4py, which finds words, is not"
            f" installed: {INSTALL}"
        )
    else:
        logger.info("captions in a script without spaces are split into characters")
    return False


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _frequent_words(
    runs: Counter[str], style: Style, min_frequency: int | None, segmented: bool, known: Collection[str] = ()
) -> tuple[Counter[str], list[str], int]:
    """Return the counts of all words, the frequent words, and their minimum frequency."""
    minima = range(MIN_FREQUENCY, 0, -1) if min_frequency is None else (min_frequency,)
    for minimum in minima:
        counts = _learn_words(runs, style, minimum, segmented, known)
        unknown = sum(count for word, count in counts.items() if count < minimum and word not in known)
        if unknown <= _MANY_UNKNOWN * counts.total():
            break
    if min_frequency is None and minimum < MIN_FREQUENCY:
        logger.info(f"few captions: words that occur {minimum} times or more are learned, instead of {MIN_FREQUENCY}")
    return counts, [word for word, count in counts.items() if count >= minimum], minimum


def _learn_words(
    runs: Counter[str], style: Style, min_frequency: int, segmented: bool, known: Iterable[str] = ()
) -> Counter[str]:
    """Count words as the tokenizer will split them."""
    fixed = [word for word in known if is_compound(word)]
    found: Counter[str] = Counter()
    if segmented:
        normalizer = build_splitter((), style).normalizer
        for run, count in runs.items():
            if is_unspaced(run):
                for word in unspaced_words(normalizer.normalize_str(run)):
                    found[word] += count
    candidates = {word for word, count in found.items() if count >= min_frequency}.difference(fixed)
    while True:
        backend = build_splitter([*fixed, *candidates], style)
        counts: Counter[str] = Counter()
        for run, count in runs.items():
            for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(run)):
                counts[word] += count
        # Longer words replace shorter ones, which may then be too rare to get an id.
        rare = {word for word in candidates if counts[word] < min_frequency}
        if not rare:
            return counts
        candidates -= rare


def _wrap(backend: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
        padding_side="right",
        truncation_side="right",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,
        # The clean-up of Transformers is for English WordPiece: it would turn "do not" into "don't".
        clean_up_tokenization_spaces=False,
    )


def count_words(backend: Tokenizer, captions: Iterable[str]) -> Counter[str]:
    """Count the words of captions as the tokenizer splits them."""
    if isinstance(captions, str | bytes | Mapping):
        raise ValueError(f"captions must be an iterable of strings, such as a list, got {type(captions).__name__}")
    counts: Counter[str] = Counter()
    index = -1
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"caption {index} is a {type(caption).__name__}, not a string: {caption!r:.80}")
        try:
            text = backend.normalizer.normalize_str(caption)
        except UnicodeEncodeError as error:
            raise ValueError(f"caption {index} is not valid Unicode ({error}): {caption!r:.80}") from error
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    if index < 0:
        raise ValueError("no captions: at least one is needed")
    return counts

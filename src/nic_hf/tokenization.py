r"""Learn a word-level tokenizer from captions.

Show and Tell predicts whole words: its vocabulary is every word that the training captions hold at least five times
(section 4.3.1 of the paper). The tokenizer made here is built only of parts of the `tokenizers` library, so that the
saved `tokenizer.json` says all there is to say and `AutoTokenizer` loads it without this package.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")

# What people type for an apostrophe. NFKC turns the acute accent as a character of its own into space + U+0301.
_APOSTROPHES = "[`‘’‛ʼ′]| \u0301"

# A word starts with a letter or a digit, so that the variation selector behind an emoji (a mark) is not one.
# "'s" is a token of its own; `\b` is avoided because regular expression engines disagree on what a word character is.
_POSSESSIVE = r"'s(?![\p{L}\p{M}\p{N}])"
_RUN = r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*"
_WORD = rf"{_POSSESSIVE}|{_RUN}(?:(?!{_POSSESSIVE})[-'&./]{_RUN})*"
_PUNCTUATION = r"[\p{P}\p{S}]"

# Decoding removes the space in front of these tokens ...
_CLOSING = r"[.,!?;:%)\]}']"
# ... and the space behind these.
_OPENING = r"[(\[{#$]"


def train_tokenizer(
    captions: Iterable[str],
    min_frequency: int = 5,
    *,
    keep_punctuation: bool = False,
    max_length: int = 64,
) -> PreTrainedTokenizerFast:
    r"""Learn the vocabulary of captions and return the tokenizer that maps captions to word ids and back.

    Text is put in NFKC form, lower-cased, and cut into words: letters and digits, joined by single `-`, `'`, `&`,
    `.` or `/` ("t-shirt", "o'clock", "at&t"), with the possessive "'s" as a word of its own. Everything else, such as
    full stops and emoji, is dropped. Ids 0 to 3 are `<pad> <bos> <eos> <unk>`; words follow, the most frequent first
    and equally frequent ones in alphabetical order, so that the order of the captions does not matter.

    `tokenizer(caption).input_ids` are the words' ids and `<eos>`: the labels of the model, which puts `<bos>` in
    front itself. With `add_special_tokens=False` they are the words' ids alone, as a caption's prefix needs them.
    The text `<eos>` inside a caption is read as the word "eos", never as the control token
    (`split_special_tokens=True`; who loads the bare `tokenizer.json` with `tokenizers.Tokenizer.from_file` has to set
    `encode_special_tokens = True` for that).

    Args:
        captions: The captions of the training split, read once.
        min_frequency: How often a word must occur to get an id; all others are `<unk>`. The paper takes 5.
        keep_punctuation: Give each punctuation mark and symbol a token of its own instead of dropping it. Decoding
            then writes "a dog (wet), running." with the usual spaces; straight double quotes, which may open or
            close, keep a space on both sides.
        max_length: The number of ids, `<eos>` included, that `truncation=True` cuts a caption to. The model itself
            has no limit.

    Raises:
        ValueError: If there are no captions, if `captions` is a single string or a mapping, if a caption is not a
            string, if no word is frequent enough, or if `min_frequency` or `max_length` is less than 1.

    Example:
        >>> tokenizer = train_tokenizer(["A man's dog runs .", "A dog sleeps ."], min_frequency=1)
        >>> tokenizer("The man's dog sleeps!").input_ids
        [3, 7, 6, 5, 9, 2]
        >>> tokenizer.decode([4, 7, 6, 5, 9, 2], skip_special_tokens=True)
        "a man's dog sleeps"
    """
    for name, value in (("min_frequency", min_frequency), ("max_length", max_length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")

    backend = _build_backend({}, keep_punctuation)
    counts = count_words(backend, captions)
    frequent = [word for word, count in counts.items() if count >= min_frequency]
    if not frequent:
        raise ValueError(
            f"no word occurs {min_frequency} times: the captions hold {len(counts):,} distinct words, the most "
            f"frequent of them {max(counts.values(), default=0)} times; lower min_frequency or add captions"
        )
    frequent.sort(key=lambda word: (-counts[word], word))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *frequent])}
    return PreTrainedTokenizerFast(
        tokenizer_object=_build_backend(vocabulary, keep_punctuation),
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
        padding_side="right",
        truncation_side="right",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,
        # Transformers' own clean-up is for English WordPiece: it would turn "do not" into "don't".
        clean_up_tokenization_spaces=False,
    )


def vocabulary_coverage(tokenizer: PreTrainedTokenizerFast, captions: Iterable[str]) -> float:
    """Return the share of the captions' running words, between 0 and 1, that the vocabulary holds.

    It tells how well a captioner's vocabulary fits other captions before any of them is trained on: at 0.95, about
    four in ten captions of ten words hold an unknown one.

    Raises:
        ValueError: If there are no captions, if one is not a string, or if they hold no words.
    """
    counts = count_words(tokenizer.backend_tokenizer, captions)
    if not counts:
        raise ValueError("the captions hold no words, so that the vocabulary cannot cover a share of them")
    vocabulary = tokenizer.get_vocab()
    return sum(count for word, count in counts.items() if word in vocabulary) / counts.total()


def _build_backend(vocabulary: dict[str, int], keep_punctuation: bool) -> Tokenizer:
    """Assemble normaliser, word splitter, vocabulary, `<eos>` template and decoder."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK_TOKEN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(_APOSTROPHES), "'")]
    )
    token = f"{_WORD}|{_PUNCTUATION}" if keep_punctuation else _WORD
    # Inverted, the splitter keeps what matches and removes what lies between.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(token), behavior="removed", invert=True)
    if vocabulary:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS_TOKEN}", special_tokens=[(EOS_TOKEN, vocabulary[EOS_TOKEN])]
        )

    glued = f"'s|{_CLOSING}" if keep_punctuation else "'s"
    steps = [
        # No token starts with "##", so this puts a space in front of every token but the first.
        decoders.WordPiece(prefix="##", cleanup=False),
        decoders.Replace(Regex(f"^ (?=(?:{glued})$)"), ""),
    ]
    if keep_punctuation:
        steps += [decoders.Fuse(), decoders.Replace(Regex(f"(?<={_OPENING}) "), "")]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def count_words(backend: Tokenizer, captions: Iterable[str]) -> Counter[str]:
    """Count the words of captions as the tokenizer itself cuts them, so that vocabulary and encoding always agree."""
    if isinstance(captions, str | bytes | Mapping):
        raise ValueError(f"captions must be an iterable of strings, such as a list, not a {type(captions).__name__}")
    counts: Counter[str] = Counter()
    index = -1
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"caption {index} is not a string but a {type(caption).__name__}: {caption!r:.80}")
        try:
            text = backend.normalizer.normalize_str(caption)
        except UnicodeEncodeError as error:
            raise ValueError(f"caption {index} is not valid Unicode ({error}): {caption!r:.80}") from error
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    if index < 0:
        raise ValueError("no captions: at least one is needed")
    return counts

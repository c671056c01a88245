"""Build the parts of `tokenizer.json` that split captions into words and join words to captions."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .languages import DOTLESS, DOTTED, PIECE, UNSPACED, WORD_END, is_compound, longest_match

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")

# Variants of the apostrophe. NFKC turns a free-standing acute accent into space + U+0301.
_APOSTROPHES = "[`‘’‛ʼ′]| \u0301"

# A word starts with a letter or digit, so that the variation selector after an emoji (a mark) is not a word.
# "'s" is a token; `\b` is avoided because regular expression engines define word characters differently.
_POSSESSIVE = r"'s(?![\p{L}\p{M}\p{N}])"
_RUN = r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*"
_WORD = rf"{_POSSESSIVE}|{_RUN}(?:(?!{_POSSESSIVE})[-'&./]{_RUN})*"
_PUNCTUATION = r"[\p{P}\p{S}]"
# The same, but without the letters of scripts without spaces.
_SPACED_RUN = rf"(?!{UNSPACED})[\p{{L}}\p{{N}}](?:(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])*"
_SPACED_POSSESSIVE = rf"'s(?!(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])"
_SPACED_WORD = _WORD.replace(_RUN, _SPACED_RUN).replace(_POSSESSIVE, _SPACED_POSSESSIVE)
# NFKC decomposes the vowels Thai and Lao am.
_AM_VOWELS = (("\u0e4d\u0e32", "\u0e33"), ("\u0ecd\u0eb2", "\u0eb3"))
_UNSPACED_PUNCTUATION = "[\u3001-\u3003\u3008-\u3011\u3014-\u301b]"

# Decoding removes the space in front of these tokens ...
_CLOSING = r"[.,!?;:%)\]}']"
# ... and the space behind these.
_OPENING = r"[(\[{#$]"


@dataclass(frozen=True)
class Style:
    """How text is split into words, apart from the vocabulary.

    Attributes:
        keep_punctuation: punctuation marks are tokens.
        unspaced: scripts without spaces are split.
        dotted: the dotted capital I becomes i; default lower-casing leaves a dot above it.
        dotless: the capital I becomes the dotless i, as in Turkish.
    """

    keep_punctuation: bool = False
    unspaced: bool = False
    dotted: bool = False
    dotless: bool = False


def build_splitter(words: Iterable[str], style: Style) -> Tokenizer:
    """Build normalizer and word splitter; those of `words` in scripts without spaces are kept in one piece."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNK_TOKEN))
    lower: list = [normalizers.Replace(DOTTED, "i")] if style.dotted else []
    lower += [normalizers.Replace("I", DOTLESS)] if style.dotless else []
    lower += [normalizers.NFKC()] if lower else []  # of a removed dot and the marks after it
    am_vowels = [normalizers.Replace(*pair) for pair in _AM_VOWELS] if style.unspaced else []
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            *lower,
            normalizers.Lowercase(),
            normalizers.Replace(Regex(_APOSTROPHES), "'"),
            *am_vowels,
        ]
    )
    token = _WORD
    if style.unspaced:
        longest = longest_match([word for word in words if is_compound(word)])
        token = f"{f'{longest}{WORD_END}|' if longest else ''}{PIECE}|{_SPACED_WORD}"
    if style.keep_punctuation:
        token += f"|{_PUNCTUATION}"
    # Inverted, the splitter keeps matches and removes the rest.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(token), behavior="removed", invert=True)
    return tokenizer


def build_backend(vocabulary: dict[str, int], style: Style) -> Tokenizer:
    """Build normalizer, word splitter, vocabulary, `<eos>` template and decoder."""
    tokenizer = build_splitter(vocabulary, style)
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNK_TOKEN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS_TOKEN}", special_tokens=[(EOS_TOKEN, vocabulary[EOS_TOKEN])]
    )

    glued = f"'s|{_CLOSING}" if style.keep_punctuation else "'s"
    steps = [
        # No token starts with "##", so this adds a space before every token but the first.
        decoders.WordPiece(prefix="##", cleanup=False),
        decoders.Replace(Regex(f"^ (?=(?:{glued})$)"), ""),
    ]
    if style.keep_punctuation or style.unspaced:
        steps.append(decoders.Fuse())
    if style.keep_punctuation:
        steps.append(decoders.Replace(Regex(f"(?<={_OPENING}) "), ""))
    if style.unspaced:
        written = f"{UNSPACED[:-1]}{_UNSPACED_PUNCTUATION[1:]}"
        steps.append(decoders.Replace(Regex(f"(?<={written}) (?={written})"), ""))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def build_run_splitter(keep_punctuation: bool) -> Tokenizer:
    """Build a splitter at spaces and punctuation that keeps the case.

    In every style, words are parts of these runs.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNK_TOKEN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(_APOSTROPHES), "'")])
    # Finds the possessive in capitals too, and all letters of scripts without spaces.
    run = _WORD.replace(_POSSESSIVE, _POSSESSIVE.replace("'s", "'[sS]")).replace(r"\p{L}", rf"\p{{L}}{UNSPACED[1:-1]}")
    # A script without spaces may follow a possessive: how it is split depends on the style.
    run = rf"(?:'[sS](?={UNSPACED}))?(?:{run})"
    pattern = f"{run}|{_PUNCTUATION}" if keep_punctuation else run
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    return tokenizer


def style_of(tokenizer: PreTrainedTokenizerFast, vocabulary: dict[str, int]) -> Style:
    """Recognise the style of a tokenizer.

    Raises:
        ValueError: If `train_tokenizer` did not build it, so that words cannot be added.
    """
    backend = tokenizer.backend_tokenizer
    splitter, normalizer = _part(backend, "pre_tokenizer"), _part(backend, "normalizer")
    style = Style(
        keep_punctuation=_PUNCTUATION in splitter,
        unspaced=cuts_unspaced(tokenizer),
        dotted=DOTTED in normalizer,
        dotless=DOTLESS in normalizer,
    )
    if vocabulary.keys() >= set(SPECIAL_TOKENS):
        own = build_backend(vocabulary, style)
        if all(_part(own, part) == _part(backend, part) for part in ("normalizer", "pre_tokenizer", "decoder")):
            return style
    raise ValueError(
        "words can only be added to a tokenizer of nic_hf.tokenization.train_tokenizer; this one is different"
    )


def _part(backend: Tokenizer, name: str) -> str:
    """Return a part of `tokenizer.json` as text, without escapes."""
    return json.dumps(json.loads(backend.to_str())[name], ensure_ascii=False).replace("\\\\", "\\")


def cuts_unspaced(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a tokenizer splits scripts without spaces, whose captions may have more words than in English."""
    return _part(tokenizer.backend_tokenizer, "pre_tokenizer").find(UNSPACED) >= 0

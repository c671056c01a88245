"""How captions are cut into words and put together again: the parts of `tokenizer.json`, by the style of the text."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .languages import DOTLESS, DOTTED, PIECE, UNSPACED, WORD_END, is_compound, longest_match

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")

# What people type for an apostrophe. NFKC turns the acute accent as a character of its own into space + U+0301.
_APOSTROPHES = "[`‘’‛ʼ′]| \u0301"

# A word starts with a letter or a digit, so that the variation selector behind an emoji (a mark) is not one.
# "'s" is a token of its own; `\b` is avoided because regular expression engines disagree on what a word character is.
_POSSESSIVE = r"'s(?![\p{L}\p{M}\p{N}])"
_RUN = r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*"
_WORD = rf"{_POSSESSIVE}|{_RUN}(?:(?!{_POSSESSIVE})[-'&./]{_RUN})*"
_PUNCTUATION = r"[\p{P}\p{S}]"
# The same words, where letters of scripts without spaces are none of their letters.
_SPACED_RUN = rf"(?!{UNSPACED})[\p{{L}}\p{{N}}](?:(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])*"
_SPACED_POSSESSIVE = rf"'s(?!(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])"
_SPACED_WORD = _WORD.replace(_RUN, _SPACED_RUN).replace(_POSSESSIVE, _SPACED_POSSESSIVE)
# NFKC takes the vowels Thai and Lao am apart.
_AM_VOWELS = (("\u0e4d\u0e32", "\u0e33"), ("\u0ecd\u0eb2", "\u0eb3"))
_UNSPACED_PUNCTUATION = "[\u3001-\u3003\u3008-\u3011\u3014-\u301b]"

# Decoding removes the space in front of these tokens ...
_CLOSING = r"[.,!?;:%)\]}']"
# ... and the space behind these.
_OPENING = r"[(\[{#$]"


@dataclass(frozen=True)
class Style:
    """How text is cut into words, beside the vocabulary.

    Attributes:
        keep_punctuation: punctuation marks are words.
        unspaced: scripts without spaces are cut.
        dotted: the dotted capital i becomes i; plain lower-casing leaves a dot above it.
        dotless: the capital I becomes the dotless i, as in Turkish.
    """

    keep_punctuation: bool = False
    unspaced: bool = False
    dotted: bool = False
    dotless: bool = False


def build_splitter(words: Iterable[str], style: Style) -> Tokenizer:
    """Assemble normaliser and word splitter; of `words`, those of scripts without spaces are cut out whole."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNK_TOKEN))
    lower: list = [normalizers.Replace(DOTTED, "i")] if style.dotted else []
    lower += [normalizers.Replace("I", DOTLESS)] if style.dotless else []
    lower += [normalizers.NFKC()] if lower else []  # of a dot less and the marks that followed it
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
    # Inverted, the splitter keeps what matches and removes what lies between.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(token), behavior="removed", invert=True)
    return tokenizer


def build_backend(vocabulary: dict[str, int], style: Style) -> Tokenizer:
    """Assemble normaliser, word splitter, vocabulary, `<eos>` template and decoder."""
    tokenizer = build_splitter(vocabulary, style)
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNK_TOKEN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS_TOKEN}", special_tokens=[(EOS_TOKEN, vocabulary[EOS_TOKEN])]
    )

    glued = f"'s|{_CLOSING}" if style.keep_punctuation else "'s"
    steps = [
        # No token starts with "##", so this puts a space in front of every token but the first.
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
    """What cuts text into what lies between spaces and punctuation, in the case that it was written in.

    Text in any style is cut into words within these runs, and never across them.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNK_TOKEN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(_APOSTROPHES), "'")])
    # The possessive is found in capitals too, and letters are also those that are not yet known as such.
    run = _WORD.replace(_POSSESSIVE, _POSSESSIVE.replace("'s", "'[sS]")).replace(r"\p{L}", rf"\p{{L}}{UNSPACED[1:-1]}")
    # Behind a possessive a script without spaces may begin: what that is depends on the style.
    run = rf"(?:'[sS](?={UNSPACED}))?(?:{run})"
    pattern = f"{run}|{_PUNCTUATION}" if keep_punctuation else run
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    return tokenizer


def style_of(tokenizer: PreTrainedTokenizerFast, vocabulary: dict[str, int]) -> Style:
    """The style that a tokenizer was built in.

    Raises:
        ValueError: If it was not built here, so that nobody knows how to add words to it.
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
        "words can be added to a tokenizer of nic_hf.tokenization.train_tokenizer only; this one cuts text otherwise"
    )


def _part(backend: Tokenizer, name: str) -> str:
    """A part of `tokenizer.json`, as text with its backslashes and letters as they are."""
    return json.dumps(json.loads(backend.to_str())[name], ensure_ascii=False).replace("\\\\", "\\")


def cuts_unspaced(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a tokenizer cuts scripts without spaces, so that its captions have more or fewer words than English."""
    return _part(tokenizer.backend_tokenizer, "pre_tokenizer").find(UNSPACED) >= 0

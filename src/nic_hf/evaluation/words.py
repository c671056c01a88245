"""The words of captions as scores count them: Penn Treebank tokens, and characters in scripts without spaces."""

from collections.abc import Iterable

from ..languages import cut_pieces, in_own_case, is_unspaced
from .ptb import ptb_tokenize_all


def caption_words_all(captions: Iterable[str]) -> list[list[str]]:
    """Words of captions, lower-cased and without punctuation.

    They are the tokens of `ptb_tokenize_all`, which takes a sentence of a script without spaces for one word. Chinese,
    Japanese, Thai, Lao, Khmer and Burmese are therefore cut into characters, each with its marks, and scores do not
    depend on how anybody cuts words. Turkish is lower-cased as such.
    """
    captions = [in_own_case(caption) for caption in captions]
    unspaced = [is_unspaced(caption) for caption in captions]
    # Together, since what follows a caption may matter.
    words = ptb_tokenize_all("" if cut else caption for caption, cut in zip(captions, unspaced, strict=True))
    return [_cut(caption) if cut else own for caption, cut, own in zip(captions, unspaced, words, strict=True)]


def _cut(caption: str) -> list[str]:
    words: list[str] = []
    for place, part in enumerate(cut_pieces(caption)):
        words += [part] if place % 2 else ptb_tokenize_all([part])[0]
    return words


def caption_words(caption: str) -> list[str]:
    """Words of one caption by itself, lower-cased and without punctuation: see `caption_words_all`.

    >>> caption_words("A man's dog runs.")
    ['a', 'man', "'s", 'dog', 'runs']
    >>> caption_words("一只狗在跑。")
    ['一', '只', '狗', '在', '跑']
    """
    return caption_words_all([caption])[0]


def caption_length(caption: str) -> int:
    """Number of words of a caption as it stands: between spaces, or, in scripts without them, as scores count them."""
    return len(caption_words(caption) if is_unspaced(caption) else caption.split())

"""Splitting captions into words for scoring: Penn Treebank tokens, or characters in scripts without spaces."""

from collections.abc import Iterable

from ..languages import cut_pieces, in_own_case, is_unspaced
from .ptb import ptb_tokenize_all


def caption_words_all(captions: Iterable[str]) -> list[list[str]]:
    """Words of captions, lower-cased and without punctuation.

    They are the tokens of `ptb_tokenize_all`, which would treat a sentence in a script without spaces as one word.
    Chinese, Japanese, Thai, Lao, Khmer and Burmese are therefore split into characters, each with its marks, so that
    scores do not depend on word segmentation. Turkish captions are lower-cased by Turkish rules.
    """
    captions = [in_own_case(caption) for caption in captions]
    unspaced = [is_unspaced(caption) for caption in captions]
    # All at once: the tokens of a caption may depend on the next one.
    words = ptb_tokenize_all("" if cut else caption for caption, cut in zip(captions, unspaced, strict=True))
    return [_cut(caption) if cut else own for caption, cut, own in zip(captions, unspaced, words, strict=True)]


def _cut(caption: str) -> list[str]:
    words: list[str] = []
    for place, part in enumerate(cut_pieces(caption)):
        words += [part] if place % 2 else ptb_tokenize_all([part])[0]
    return words


def caption_words(caption: str) -> list[str]:
    """Words of a single caption, lower-cased and without punctuation. See `caption_words_all`.

    >>> caption_words("A man's dog runs.")
    ['a', 'man', "'s", 'dog', 'runs']
    >>> caption_words("一只狗在跑。")
    ['一', '只', '狗', '在', '跑']
    """
    return caption_words_all([caption])[0]


def caption_length(caption: str) -> int:
    """Number of words of a caption, separated by spaces; in scripts without spaces, as `caption_words` counts them."""
    return len(caption_words(caption) if is_unspaced(caption) else caption.split())

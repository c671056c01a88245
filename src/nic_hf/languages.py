r"""Support for scripts without spaces, and for the dotted and dotless i of Turkish.

Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without spaces between words. ICU finds their words if the
extra `languages` is installed (icu4py). Otherwise they are split into *pieces*: characters with their marks.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from importlib.util import find_spec

# Contents of character classes that mean the same in Python, Oniguruma and JavaScript.
_BASES = (
    "\u3005\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff"  # kana, zhuyin
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"  # Han
    "\u0e01-\u0e30\u0e32\u0e40-\u0e46"  # Thai
    "\u0e81-\u0eb0\u0eb2\u0ebd\u0ec0-\u0ec6\u0edc-\u0edf"  # Lao
    "\u1000-\u102a\u103f\u1050-\u1055\u105a-\u105d\u1061\u1065\u1066\u106e-\u1070\u1075-\u1081\u108e"  # Burmese
    "\ua9e0-\ua9e4\ua9e6-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa76\uaa7a"  # and related scripts
    "\u1780-\u17b3\u17d7\u17dc"  # Khmer
)
_MARKS = (
    "\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
    "\u0e31\u0e33-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb3-\u0ebc\u0ec8-\u0ece"
    "\u102b-\u1038\u103a-\u103e\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f"
    "\u109a-\u109d\ua9e5\uaa7b-\uaa7d\u17b6-\u17d1\u17d3\u17dd"
)
_STACKERS = "\u1039\u17d2"  # the next character is written below the one before
_PUNCTUATION = re.compile("[\u3000-\u3004\u3008-\u3020\u3030\u30a0\u30fb\u0e4f\u0e5a\u0e5b\u104a-\u104f\u17d4-\u17da]")

UNSPACED = f"[{_BASES}{_MARKS}{_STACKERS}]"
PIECE = f"[{_BASES}](?:[{_MARKS}]|[{_STACKERS}][{_BASES}])*"
WORD_END = f"(?![{_MARKS}{_STACKERS}])"

_BASE = re.compile(f"[{_BASES}]")
_RUN = re.compile(f"(?:{PIECE})+")
_PIECES = re.compile(PIECE)
_CUTS = re.compile(f"({PIECE})")
_SEVERAL_PIECES = re.compile(f"(?:{PIECE}){{2,}}")
_LONGEST_WORD = 32
_MANY = 30

# In Turkish and related languages, i has a dot in both cases and ı has none. English has neither letter.
DOTTED, DOTLESS = "İ", "ı"
_DOTLESS_CAPITAL = str.maketrans("I", DOTLESS)
_TURKISH = re.compile("[ığĞ]")
# Words that are swapped if a photo is mirrored.
_SIDES = (
    *(("left", "right"), ("links", "rechts"), ("linke", "rechte"), ("linken", "rechten"), ("linker", "rechter")),
    *(("gauche", "droite"), ("izquierda", "derecha"), ("esquerda", "direita"), ("sinistra", "destra")),
    *(("sol", "sağ"), ("solunda", "sağında"), ("soldaki", "sağdaki"), ("слева", "справа"), ("ซ้าย", "ขวา")),
)
_OTHER_SIDE = {**dict(_SIDES), **{right: left for left, right in _SIDES}}
_HAN_SIDES = str.maketrans("左右", "右左")
INSTALL = "pip install 'nic_hf[languages]'"


def is_unspaced(text: str) -> bool:
    """Whether a text has letters of a script without spaces."""
    return not text.isascii() and _BASE.search(text) is not None


def count_letters(text: str) -> tuple[int, int]:
    """Count the letters of a text in scripts without spaces, and all letters."""
    if text.isascii():
        return 0, sum(map(str.isalpha, text))
    pieces = len(_PIECES.findall(text))
    return pieces, pieces + sum(map(str.isalpha, _RUN.sub("", text)))


def is_compound(word: str) -> bool:
    """Whether a word consists of two or more pieces of a script without spaces."""
    return not word.isascii() and _SEVERAL_PIECES.fullmatch(word) is not None


def can_segment() -> bool:
    """Whether icu4py is installed."""
    return find_spec("icu4py") is not None


def unspaced_words(text: str) -> Iterator[str]:
    """Find words of two or more pieces in a text with ICU.

    Raises:
        ImportError: if icu4py is not installed.
    """
    try:
        from icu4py.breakers import WordBreaker
    except ImportError as error:
        raise ImportError(f"finding words in scripts without spaces requires icu4py: {INSTALL}") from error
    for run in _RUN.findall(text):
        for word in WordBreaker(run, "und"):
            if len(word) <= _LONGEST_WORD and is_compound(word):
                yield word


def longest_match(words: list[str]) -> str:
    """Build a regular expression that matches the longest of some words; common prefixes are shared for speed."""
    tree: dict = {}
    for word in words:
        node = tree
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _alternatives(tree)


def _alternatives(node: dict) -> str:
    letters = sorted(letter for letter in node if letter)
    if not letters:
        return ""
    parts = [letter + _alternatives(node[letter]) for letter in letters]
    if len(parts) > _MANY:  # alternatives are tried one by one: let whole groups be skipped
        size = math.isqrt(len(parts))
        starts = range(0, len(parts), size)
        groups = (f"(?:{'|'.join(parts[start : start + size])})" for start in starts)
        guards = (f"(?=[{letters[start]}-{letters[start : start + size][-1]}])" for start in starts)
        parts = [guard + group for guard, group in zip(guards, groups, strict=True)]
    joined = parts[0] if len(parts) == 1 and "" not in node else f"(?:{'|'.join(parts)})"
    return f"{joined}?" if "" in node else joined


def mirrored_word(word: str) -> str:
    """Swap left and right in a word; other words are returned unchanged.

    >>> mirrored_word("links"), mirrored_word("左边"), mirrored_word("dog")
    ('rechts', '右边', 'dog')
    """
    return _OTHER_SIDE.get(word, word).translate(_HAN_SIDES)


def in_own_case(text: str) -> str:
    """Prepare Turkish capitals of a text for lower-casing; other texts are returned unchanged."""
    if text.isascii():
        return text
    text = text.replace(DOTTED, "i")
    return text.translate(_DOTLESS_CAPITAL) if _TURKISH.search(text) else text


def cut_pieces(text: str) -> list[str]:
    """Split a text at its pieces, and keep them; punctuation of these scripts is removed.

    >>> cut_pieces("一只，two cats")
    ['', '一', '', '只', ',two cats']
    """
    return _CUTS.split(_PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text)))

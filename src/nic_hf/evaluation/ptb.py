"""Penn Treebank tokens of a caption, without Java.

An approximation of pycocoevalcap 1.2's `PTBTokenizer` (CoreNLP 3.4.1, lower case, punctuation dropped) for ordinary
English captions. Agreement with the Java tool is not established beyond those; known limits: URLs, e-mail, markup,
emoticons, phone numbers, dates, spaced fractions, entities and most abbreviations. British spellings are kept, as
the Java tool's command line keeps them.
"""

import re
from functools import lru_cache

_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
# Tried in order at each position; the longest match wins and the first pattern wins a tie.
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"[^\W\d_]*[a-mo-z](?=n['’`]t(?!\w))|n['’`]t(?![a-z])",
        r"['’](?:[msd]|re|ve|ll)(?![a-z])",
        r"[^\W\d_][^\W_]*(?:[.!?][^\W\d_][^\W_]*)*",
        r"(?:[a-z]\.)+(?=\s)|(?:[a-z]\.){2,}|(?:mr|mrs|ms|dr|st|vs|ft|mt|jr)\.(?=[\s,])",
        r"[-+]?(?:\d*(?:[.,]\d+)+|\d+(?:[.:,]\d+)*)",
        r"o['’]clock|[^\W_]+(?:[-_][^\W_]+)*",
        r"['’]n['’]?(?!\w)",
        r"[^\W_]+(?:\\?/[^\W_]+){1,2}",
        r"\.\.+|-+|[?!]+|=+|\*+|#+|@+|_+",
        r"''|``|[\"'`‘’“”.,;:()\[\]{}]",
        r"[$%&+/<>~^|\\£€]",
    )
)
_JOINED = re.compile(r"(can)(not)|(gon)(na)|(got)(ta)|(wan)(na)|(lem)(me)|(gim)(me)")
_ESCAPES = {"[": "-lsb-", "]": "-rsb-", "(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$"}
_QUOTES = re.compile(r"[\"'`‘’“”]+")


@lru_cache(maxsize=65536)
def _tokens(chunk: str) -> tuple[str, ...]:
    """The tokens of a stretch of text that ends in one space."""
    tokens: list[str] = []
    start = 0
    while start < len(chunk):
        ends = [match.end() for pattern in _PATTERNS if (match := pattern.match(chunk, start))]
        end = max(ends, default=start)
        if end > start:
            token = chunk[start:end].lower()
            if not _QUOTES.fullmatch(token):
                token = "..." if token.startswith("..") else "--" if token in ("---", "----") else token
                token = _ESCAPES.get(token, token).replace("’", "'").replace("/", "\\/").replace("*", "\\*")
                joined = _JOINED.fullmatch(token)
                tokens.extend(part for part in joined.groups() if part) if joined else tokens.append(token)
        start = max(end, start + 1)
    return tuple(token for token in tokens if token not in _DROPPED)


def ptb_tokenize(caption: str) -> list[str]:
    """The Penn Treebank tokens of one caption, lower-cased and without punctuation.

    Follows pycocoevalcap 1.2's `PTBTokenizer`; the module's docstring names the limits.

    >>> ptb_tokenize("A man's dog can't jump over the grey fence.")
    ['a', 'man', "'s", 'dog', 'ca', "n't", 'jump', 'over', 'the', 'grey', 'fence']
    """
    return [token for word in caption.split() for token in _tokens(word + " ")]

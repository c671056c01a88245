"""Penn Treebank tokens of a caption, without Java: those of pycocoevalcap 1.2's `PTBTokenizer`, found black-box."""

import re
from functools import lru_cache

# Words that keep their period, as the Java tool was found to treat them.
_ABBREVIATIONS = (
    "adj|adm|adv|al|ala|apr|ariz|ark|assn|assoc|asst|aug|ave|az|bhd|bldg|blvd|brig|bros|calif|capt|cf|cie|cmdr|co|"
    "col|colo|comdr|conn|corp|cos|cpl|ct|dak|dec|del|dept|dr|drs|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|govs|"
    "hon|ill|inc|ind|insp|intl|jan|jos|jr|jul|jun|kan|kans|ky|la|lt|ltd|maj|mar|mass|md|messrs|mfg|mich|minn|miss|"
    "mlle|mme|mo|mon|mont|mr|mrs|ms|mt|natl|neb|nev|nov|oct|okla|ore|pa|penn|pfc|ph|plc|pres|prof|profs|pty|pvt|rd|"
    "rep|reps|rev|rt|sen|sens|sep|sept|seq|sgt|spc|sq|sr|st|ste|supt|sys|tel|tenn|tex|thu|thurs|treas|tue|tues|univ|"
    "va|vs|vt|wash|wed|wis|wisc|wm|wyo"
)
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
# Tried in order at each position; the longest match wins and the first pattern wins a tie.
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"n['’`]t(?![a-z])",
        r"['’](?:[msd]|re|ve|ll)(?![a-z])",
        r"[^\W\d_][^\W_]*(?:[.!?][^\W\d_][^\W_]*)*",
        r"(?:[a-z]\.)+(?=\s)|(?:[a-z]\.){2,}",
        rf"(?:{_ABBREVIATIONS})\.(?=[\s,;:\"')\]])",
        r"[^\W_]+\.(?=[,;:])",
        r"[-+]?(?:\d*(?:[.,]\d+)+|\d+(?:[.:,]\d+)*)",
        r"o['’]clock|[^\W_]+(?:[-_][^\W_]+)*",
        r"['’]n['’]?(?!\w)",
        r"[^\W_]+(?:\\?/[^\W_]+){1,2}",
        r"\.\.+|-+|[?!]+|=+|\*+|#+|@+|_+",
        r"''|``|[\"'`‘’“”.,;:()\[\]{}]",
        r"[$%&+/<>~^|\\£€]",
    )
)
# The word before "n't": what follows it counts as matched, so it beats the whole run of letters.
_NEGATED = re.compile(r"([^\W\d_]*[a-mo-z])n['’`]t(?!\w)", re.IGNORECASE)
_JOINED = re.compile(r"(can)(not)|(gon)(na)|(got)(ta)|(wan)(na)|(lem)(me)|(gim)(me)")
_ESCAPES = {"[": "-lsb-", "]": "-rsb-", "(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$"}
_QUOTES = re.compile(r"[\"'`‘’“”]+")


@lru_cache(maxsize=65536)
def _tokens(chunk: str) -> tuple[str, ...]:
    """The tokens of a stretch of text that ends in one space."""
    tokens: list[str] = []
    start = 0
    while start < len(chunk):
        negated = _NEGATED.match(chunk, start)
        ends = (
            [negated.end(1)]
            if negated
            else [match.end() for pattern in _PATTERNS if (match := pattern.match(chunk, start))]
        )
        end = max(ends, default=start)
        if end > start:
            token = chunk[start:end].lower()
            if not _QUOTES.fullmatch(token):
                token = "..." if token.startswith("..") else "--" if token in ("---", "----") else token
                token = _ESCAPES.get(token, token).replace("’", "'")
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

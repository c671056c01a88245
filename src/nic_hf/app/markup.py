"""Captions as HTML; all that comes from a captioner or a visitor is escaped."""

from collections.abc import Sequence
from html import escape

from .explained import ExplainedCaption, ExplainedWord

CSS = """
.nic-caption { font-size: 1.5rem; line-height: 2.1; margin: 0.2rem 0 0.8rem; }
.nic-word { padding: 0.1em 0.28em; border-radius: 0.35em; color: #14201a; }
.nic-key { font-size: 0.8rem; opacity: 0.75; margin-bottom: 1rem; }
.nic-row { display: grid; grid-template-columns: 1fr 4.5rem; gap: 0.1rem 0.8rem; margin: 0.55rem 0; }
.nic-row span:last-child { text-align: right; font-variant-numeric: tabular-nums; opacity: 0.8; }
.nic-bar { grid-column: 1 / -1; height: 0.45rem; border-radius: 0.3rem; background: rgba(127, 127, 127, 0.18); }
.nic-bar div { height: 100%; border-radius: 0.3rem; background: #2a8c6a; min-width: 2px; }
.nic-empty { opacity: 0.6; }
"""


def captions_html(captions: Sequence[ExplainedCaption]) -> str:
    """The best caption, its words coloured by how likely each was, and a bar for each caption."""
    if not captions:
        return '<p class="nic-empty">The captioner has nothing to say.</p>'
    best = captions[0]
    words = " ".join(_word(word) for word in best.words) or "(an empty caption)"
    highest = max(caption.probability for caption in captions) or 1.0
    rows = "".join(_row(caption, caption.probability / highest) for caption in captions)
    return (
        f'<div class="nic-caption" role="status">{words}</div>'
        '<div class="nic-key">Green words were sure, red ones a guess; point at a word for its probability.</div>'
        f"{rows}"
    )


def percent(probability: float) -> str:
    """A probability for people, small ones too: `12 %`, `0.31 %`, `2e-05 %`."""
    return f"{100 * probability:.2g} %" if probability < 0.0999 else f"{100 * probability:.0f} %"


def _word(word: ExplainedWord) -> str:
    hue = 4 + 136 * word.probability  # red to green
    return (
        f'<span class="nic-word" style="background: hsl({hue:.0f} 62% 78%)" title="{percent(word.probability)}">'
        f"{escape(word.text)}</span>"
    )


def _row(caption: ExplainedCaption, share: float) -> str:
    return (
        f'<div class="nic-row"><span>{escape(caption.text)}</span><span>{percent(caption.probability)}</span>'
        f'<div class="nic-bar"><div style="width: {100 * share:.1f}%"></div></div></div>'
    )

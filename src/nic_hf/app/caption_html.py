"""Captions as HTML: words coloured by probability, bars and heat maps, with all text escaped."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .scored_captions import ScoredCaption

MAP_SIDE = 320
# Confidence from which on a caption has this hue, and what is said of it.
LEVELS = (
    (0.5, 150, "more likely right than wrong"),
    (0.25, 40, "it may well be wrong"),
    (0.0, 5, "probably wrong"),
)

STYLE = """
.nic-caption { font-size: 1.7rem; line-height: 1.25; display: flex; flex-wrap: wrap; gap: .35rem .3rem;
  margin: .2rem 0 .6rem }
.nic-word { display: inline-flex; flex-direction: column; align-items: center; padding: .05rem .4rem;
  border-radius: .45rem; overflow-wrap: anywhere }
.nic-word small { font-size: .72rem; line-height: 1.2; opacity: .75; font-variant-numeric: tabular-nums }
.nic-sure { display: flex; align-items: center; gap: .5rem; font-size: .95rem; margin-bottom: .4rem }
.nic-sure i { flex: 0 0 .9rem; height: .9rem; border-radius: 50% }
.nic-list { list-style: none; margin: 0; padding: 0 }
.nic-list li { margin: 0 0 .65rem }
.nic-line { display: flex; align-items: center; gap: .6rem; font-variant-numeric: tabular-nums }
.nic-line span { flex: 0 0 8rem; text-align: right } .nic-line small { flex: 0 0 9.5rem; opacity: .75 }
.nic-track { flex: 1; height: .5rem; border-radius: .25rem; background: rgb(128 128 128 / .2) }
.nic-bar { height: 100%; border-radius: .25rem }
.nic-maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .6rem }
.nic-maps figure { margin: 0 } .nic-maps img { width: 100%; border-radius: .4rem; display: block }
.nic-maps figcaption { text-align: center; padding-top: .1rem; overflow-wrap: anywhere }
.nic-table { width: 100%; border-collapse: collapse }
.nic-table, .nic-table :is(tbody, tr) { border: 0 !important } .nic-table td { padding: .25rem .4rem !important;
  vertical-align: top; border: 0 solid rgb(128 128 128 / .3) !important; border-top-width: 1px !important;
  overflow-wrap: anywhere }
.nic-table td:first-child { width: 35%; opacity: .8 }
@media (max-width: 40rem) { .nic-line { flex-wrap: wrap; gap: 0 .6rem } .nic-line small { flex-basis: 100% } }
#nic-best, #nic-bars, #nic-maps, #nic-summary { padding: 0 !important }
:is(#nic-best, #nic-bars, #nic-maps, #nic-summary) .html-container { padding: 0 !important }
.nic-title { font-size: 1.1rem; font-weight: 600; margin: .6rem 0 .8rem }
.nic-note { opacity: .75; font-size: .9rem; margin: .2rem 0 }
"""

# From black over purple and orange to light yellow, as thermal cameras draw: each row is a colour.
_HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=float)


def per_cent(probability: float) -> str:
    """Format a probability with two significant digits."""
    value = 100 * probability
    if value >= 10:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 1 else f"{value:.2g} %" if value >= 0.001 else "< 0.001 %"


def caption_html(caption: ScoredCaption) -> str:
    """Show the caption in the colour of its confidence, red to green, with the confidence in words below.

    A captioner that is not calibrated has grey captions: probable words may well be wrong.
    """
    colour = _colour(caption.confidence)
    words = "".join(
        f'<span class="nic-word" style="background:{colour}">{html.escape(word.text)}'
        f"<small>{per_cent(word.probability)}</small></span>"
        for word in caption.words
    )
    words = words or "(empty caption)"
    return (
        f'<div class="nic-caption" role="img" aria-label="{html.escape(caption.text)}">{words}</div>'
        f'<div class="nic-sure"><i style="background:{colour}"></i><span>{confidence_text(caption)}</span></div>'
    )


def confidence_text(caption: ScoredCaption) -> str:
    """Say how sure the captioner is, and why it is not."""
    if caption.confidence is None:
        return "confidence unknown: this captioner is not calibrated (<code>nic calibrate</code>)"
    text = f"confidence <b>{per_cent(caption.confidence)}</b>"
    if caption.is_unlike:
        return f"{text}: the photo is unlike the photos that it was trained on"
    return f"{text}: {next(words for least, _, words in LEVELS if caption.confidence >= least)}"


def _colour(confidence: float | None) -> str:
    if confidence is None:
        return "rgb(128 128 128 / .2)"
    hue = next(hue for least, hue, _ in LEVELS if confidence >= least)
    return f"hsl({hue} 75% 48% / .42)"


def titled(title: str, content: str) -> str:
    """Put a heading above the content; return "" if there is no content."""
    return f'<h3 class="nic-title">{html.escape(title)}</h3>{content}' if content else ""


def bars_html(captions: Sequence[ScoredCaption]) -> str:
    """List captions with their confidence as a bar, and the probability of the whole caption.

    Without a confidence, the bar is the probability per word, in grey.
    """
    lines = []
    for caption in captions:
        is_known = caption.confidence is not None
        share = caption.confidence if caption.confidence is not None else caption.probability_a_word
        lines.append(
            f"<li><div>{html.escape(caption.text) or '(empty caption)'}</div>"
            f'<div class="nic-line"><div class="nic-track"><div class="nic-bar" style="width:{100 * share:.1f}%;'
            f'background:{_colour(caption.confidence)}"></div></div>'
            f"<span><b>{per_cent(share)}</b> {'confidence' if is_known else 'per word'}</span>"
            f"<small>all words: {per_cent(caption.probability)}</small></div></li>"
        )
    return f'<ol class="nic-list">{"".join(lines)}</ol>'


def maps_html(photo: Image.Image, caption: ScoredCaption) -> str:
    """Show the photo once per word, with the regions that the model attended to before the word."""
    figures = []
    for word in caption.words:
        if word.attention is None:
            continue
        text = html.escape(word.text)
        source = _data_uri(heat_map(photo, word.attention))
        figures.append(
            f'<figure><img alt="Attention for: {text}" src="{source}"><figcaption>{text}</figcaption></figure>'
        )
    return f'<div class="nic-maps">{"".join(figures)}</div>' if figures else ""


def heat_map(photo: Image.Image, weights: np.ndarray) -> Image.Image:
    """Overlay weights of shape `(rows, columns)` on a grey photo, with the largest weight the brightest."""
    scaled = (weights / max(float(weights.max()), 1e-12) * 255).round().astype(np.uint8)
    heat = Image.fromarray(scaled).resize(photo.size, Image.Resampling.BICUBIC)
    level = np.asarray(heat, dtype=float)[..., None] / 255  # shape: (height, width, 1)
    grey = np.asarray(photo.convert("L"), dtype=float)[..., None] * 0.75
    places = np.linspace(0, 1, len(_HEAT))
    colour = np.concatenate([np.interp(level, places, channel) for channel in _HEAT.T], axis=-1)
    share = 0.65 * level
    return Image.fromarray(((1 - share) * grey + share * colour).clip(0, 255).astype(np.uint8))


def _data_uri(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def table_html(rows: Sequence[tuple[str, str]], note: str, shown: int = 50) -> str:
    """Show the first photos with their captions or errors in a table."""
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in rows[:shown]
    )
    more = f'<p class="nic-note">and {len(rows) - shown} more in the file</p>' if len(rows) > shown else ""
    return f'<p class="nic-note">{html.escape(note)}</p><table class="nic-table"><tbody>{lines}</tbody></table>{more}'

"""Plots and thumbnails of the report, in memory."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ..score_names import SCORES
from ..words import caption_words

OURS, THEIRS = "#2563a8", "#b9bec6"
WORDS_SHOWN = 25
THUMBNAIL = 200


def length_histogram(captions: Sequence[str], references: Sequence[str]) -> Figure:
    """Distribution of the number of words per caption, for the model and for people."""
    figure, axes = _axes(5, 3)
    ours, theirs = (Counter(len(caption_words(text)) for text in texts) for texts in (captions, references))
    lengths = range(min([*ours, *theirs]), min(30, max([*ours, *theirs])) + 1)
    for counts, shift, colour, label in ((theirs, 0.2, THEIRS, "people"), (ours, -0.2, OURS, "model")):
        shares = [100 * counts[n] / counts.total() for n in lengths]
        axes.bar([n + shift for n in lengths], shares, 0.4, color=colour, label=label)
    axes.set(xlabel="words per caption", ylabel="% of captions")
    axes.legend(frameon=False)
    return figure


def word_histogram(captions: Sequence[str], references: Sequence[str]) -> Figure:
    """Frequency of people's most frequent words, in captions of the model and of people."""
    figure, axes = _axes(5, 5.2)
    ours, theirs = (
        Counter(word for text in texts for word in caption_words(text)) for texts in (captions, references)
    )
    words = [word for word, _ in theirs.most_common(WORDS_SHOWN)][::-1]
    for counts, shift, colour, label in ((theirs, -0.2, THEIRS, "people"), (ours, 0.2, OURS, "model")):
        shares = [100 * counts[word] / max(counts.total(), 1) for word in words]
        axes.barh([row + shift for row in range(len(words))], shares, 0.4, color=colour, label=label)
    axes.set_yticks(range(len(words)), words)
    axes.set(xlabel="% of words")
    axes.legend(frameon=False, loc="lower right")
    return figure


def curve(points: Sequence[dict[str, Any]]) -> Figure:
    """CIDEr-D and BLEU-4 of a run's checkpoints against training time, or against steps if no time was logged."""
    figure, axes = _axes(6.5, 3.2)
    timed = all(point["seconds"] is not None for point in points)
    at = [point["seconds"] / 60 if timed else point["step"] for point in points]
    for name, colour in (("cider", OURS), ("bleu_4", "#c0642c")):
        values = [100 * point[name] for point in points]
        axes.plot(at, values, "o-", markersize=3.5, color=colour, label=SCORES[name].title)
    axes.set(xlabel="minutes of training" if timed else "steps", ylabel="score, %")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")
    return figure


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> Image.Image:
    """The figure as an image at 150 dpi."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(150)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def thumbnail(photo: Image.Image) -> str:
    """A small JPEG as a data URL."""
    small = ImageOps.contain(photo.convert("RGB"), (THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    # Not pyplot, which keeps every figure in memory and depends on the display's settings.
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes

"""The report as one self-contained HTML file, and as Markdown with image files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure

from ...contact_sheet import contact_sheet, save_picture
from ...data import PhotoDataset
from ...data.feature_cache import load_photo_row
from ...data.splits import is_flickr8k_split
from ...writing import markdown_text, write_text
from ..paper import published
from ..score_names import SCORES, percent, percent_with_interval
from . import plots

PHOTOS_A_SHEET = 10
REFERENCES_SHOWN = 2


def write_report(folder: Path, about: Mapping[str, Any], results: Mapping[str, Any], photos: PhotoDataset) -> None:
    """Write `report.html`, `report.md` and `report_files/` to a folder.

    Args:
        folder: an existing folder.
        about: description of what was evaluated.
        results: results of `evaluate_captioner` by part.
        photos: the captioned photos.

    Raises:
        OSError: if a file cannot be written or a photo cannot be read; the message names it.
    """
    shown = results.get(f"beam {about['beam']}")
    drawings, sheets = {}, {}
    if shown is not None:
        captions, references = shown["captions"], photos.references()
        people = [caption for own in references.values() for caption in own]
        drawings["lengths"] = plots.length_histogram(list(captions.values()), people)
        drawings["words"] = plots.word_histogram(list(captions.values()), people)
        sheets = _sheets(shown, references, photos)
    if "learning_curve" in results:
        drawings["curve"] = plots.curve(results["learning_curve"])
    context = {
        "about": about,
        "results": results,
        "shown": shown,
        "generation": [part for name, part in results.items() if name.startswith("beam ")],
        "transfers": [part for name, part in results.items() if name.startswith("transfer ")],
        "published": published,
        "beside_published": is_flickr8k_split(photos.image_ids(), "test"),
        "names": _columns(results),
        "sheets": sheets,
        "references": photos.references() if shown is not None else {},
    }
    drawn = {name: Markup(plots.svg(figure)) for name, figure in drawings.items()}
    thumbnails = {item["image_id"]: plots.thumbnail(item["photo"]) for sheet in sheets.values() for item in sheet}
    pictures = _save_pictures(folder, drawings, sheets)
    html = _template("report.html.jinja").render(context, plots=drawn, thumbnails=thumbnails)
    write_text(folder / "report.html", html)
    write_text(folder / "report.md", _template("report.md.jinja").render(context, pictures=pictures))


def _template(name: str) -> Template:
    """A template that escapes captions and names of photos and data."""
    is_html = name.startswith("report.html")
    pages = Environment(
        loader=PackageLoader("nic_hf.evaluation.suite"),
        autoescape=is_html,
        finalize=None if is_html else lambda value: markdown_text(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pages.filters.update(percent=percent, cell=_cell)
    return pages.get_template(name)


def _sheets(
    shown: Mapping[str, Any], references: Mapping[str, Sequence[str]], photos: PhotoDataset
) -> dict[str, list[dict[str, Any]]]:
    """The photos with the best, median and worst CIDEr-D, each photo once."""
    scores = {image_id: own["cider"] for image_id, own in shown["per_image"].items()}
    order = sorted(scores, key=lambda image_id: (-scores[image_id], image_id))
    number = max(1, min(PHOTOS_A_SHEET, len(order) // 3))
    best, rest = order[:number], order[number:]
    worst, rest = rest[-number:], rest[:-number]
    middle = max(0, len(rest) - PHOTOS_A_SHEET) // 2
    chosen = {"Best": best, "Median": rest[middle : middle + PHOTOS_A_SHEET], "Worst": worst}
    row_of = dict(zip(photos.image_ids(), photos.rows, strict=True))
    return {
        title: [
            {
                "image_id": image_id,
                "photo": load_photo_row(photos.photos[row_of[image_id]]["image"]),
                "caption": shown["captions"][image_id],
                "cider": scores[image_id],
                "references": references[image_id][:REFERENCES_SHOWN],
            }
            for image_id in ids
        ]
        for title, ids in chosen.items()
        if ids
    }


def _save_pictures(
    folder: Path, drawings: Mapping[str, Figure], sheets: Mapping[str, list[dict[str, Any]]]
) -> dict[str, str]:
    """Write the images of the Markdown page, and return their relative paths by name."""
    pictures = {name: plots.png(figure) for name, figure in drawings.items()}
    for title, items in sheets.items():
        pictures[title] = contact_sheet(
            [item["photo"] for item in items],
            [f"{item['caption']} (CIDEr-D {percent(item['cider'], 0)})" for item in items],
            notes=[item["references"][0] for item in items],
            columns=5,
        )
    for name, picture in pictures.items():
        save_picture(picture, folder / "report_files" / f"{name.lower()}.png")
    return {name: f"report_files/{name.lower()}.png" for name in pictures}


def _columns(results: Mapping[str, Any]) -> dict[str, str]:
    """Titles of the scores in any part, in the order of tables."""
    found = {name for part in results.values() if isinstance(part, dict) for name in part.get("scores", ())}
    return {name: score.title for name, score in SCORES.items() if name in found}


def _cell(part: Mapping[str, Any], name: str) -> str:
    """A score in percent, with its interval if there is one."""
    return percent_with_interval(part["scores"].get(name), part["intervals"].get(name))

"""The report: complete, offline, small, and rendered by a real browser."""

import base64
import html
import io
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from chromium import CHROMIUM
from evaluated import MARKUP, Evaluated
from PIL import Image
from tiny import tiny_processor

from nic_hf.data import PhotoDataset, load_captions
from nic_hf.evaluation import diversity_scores
from nic_hf.evaluation.paper import published
from nic_hf.evaluation.suite.report import write_report

ABOUT = {
    **dict.fromkeys(("checkpoint", "backbone", "data", "split"), "some"),
    **dict.fromkeys(("hidden_size", "vocab_size", "parameters", "photos", "beam", "length_penalty"), 3),
}
# Which tables go on beyond the edge: the scores, their diversity, ranking, transfer, neighbours, all captions.
MEASURE = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument;
  document.title = JSON.stringify({
    bad: [...page.images].filter(i => !i.naturalWidth).length,
    images: page.images.length,
    plots: page.querySelectorAll("svg").length,
    wide: page.documentElement.scrollWidth > frame.contentWindow.innerWidth + 1,
    cut: [...page.querySelectorAll(".scroll")].map(table => table.scrollWidth > table.clientWidth + 1),
  });
};
"""


def visible(page: str) -> str:
    text = html.unescape(re.sub(r"<style.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.DOTALL))
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="session")
def page(evaluated: Evaluated) -> str:
    return (evaluated.output / "report.html").read_text("utf-8")


def test_one_file_holds_everything(page: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    photos = [source for source in sources if source.startswith("data:image/jpeg;base64,")]
    assert len(photos) == 12
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "<script" not in page and "@import" not in page
    for photo in photos:
        with Image.open(io.BytesIO(base64.b64decode(photo.partition(",")[2]))) as image:
            assert max(image.size) == 200
            image.load()
    # 1,000 photos of a real test split have the same thumbnails, and one row of text each.
    assert len(page) + 1000 * 400 < 10_000_000


def test_figures_are_those_of_the_evaluation(page: str, evaluated: Evaluated) -> None:
    text = visible(page)
    scores = evaluated.results["beam 3"]["scores"]
    assert f"this model, beam 3 {100 * scores['bleu_1']:.1f}" in text
    for line in evaluated.results["ranking"]["directions"]:
        assert f"{100 * line['recall_10']:.1f} {line['median_rank']}" in text
    for caption in evaluated.results["beam 3"]["captions"].values():
        assert caption in text
    assert "zebroid not in the vocabulary" in text


def test_figures_stand_beside_the_papers_on_the_papers_photos_only(
    page: str, evaluated: Evaluated, flickr8k: Path, tmp_path: Path
) -> None:
    test_split = PhotoDataset(load_captions(flickr8k, "test"), tiny_processor())
    assert len(test_split) == 1000
    parts = {name: evaluated.results[name] for name in ("beam 1", "ranking")}
    write_report(tmp_path, ABOUT, parts, test_split)
    systems = {line["system"] for line in [*published.GENERATION, *published.RANKING]}
    for name in ("report.html", "report.md"):
        beside = (tmp_path / name).read_text("utf-8")
        assert all(system in beside for system in systems) and "Published results are" in beside
        alone = (evaluated.output / name).read_text("utf-8")  # 12 photos of that split
        assert not any(system in alone for system in systems) and "Published results" not in alone
    assert "GoogLeNet, beam 20, ensemble 63 41 27" in visible((tmp_path / "report.html").read_text("utf-8"))


@pytest.mark.parametrize(
    ("number", "best", "median", "worst"), [(1, 1, 0, 0), (2, 1, 0, 1), (3, 1, 1, 1), (12, 4, 4, 4), (31, 10, 10, 10)]
)
def test_each_photo_is_shown_once_with_its_named_figure(
    number: int, best: int, median: int, worst: int, tmp_path: Path
) -> None:
    sizes = {name: size for name, size in (("Best", best), ("Median", median), ("Worst", worst)) if size}
    for place in range(number):
        Image.new("RGB", (8, 8), (8 * place, 0, 0)).save(tmp_path / f"{place:02}.png")
        (tmp_path / f"{place:02}.txt").write_text("a dog runs\n")
    photos = PhotoDataset(load_captions(tmp_path, "all"), tiny_processor())
    scores = {name: place / 100 for place, name in enumerate(photos.image_ids())}
    captions = dict.fromkeys(scores, "a dog runs")
    part = {"per_image": {name: {"cider": score} for name, score in scores.items()}, "captions": captions}
    part |= {"num_beams": 3, "seconds": 1, "words": 3, "scores": {}, "intervals": {}}
    part["diversity"] = diversity_scores(captions.values(), None)
    write_report(tmp_path / "out", ABOUT, {"beam 3": part}, photos)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    groups = re.findall(r"<h3>(\w+)</h3>\n<div class=.photos.>(.*?)</div>", page, re.DOTALL)
    assert {title: group.count("<figure>") for title, group in groups} == sizes
    figures = [int(score) for _, group in groups for score in re.findall(r"CIDEr-D (\d+)<", group)]
    assert figures == sorted(figures, reverse=True) and len(set(figures)) == sum(sizes.values())
    assert (figures[0], figures[-1]) == (number - 1, 0)
    assert {file.stem for file in (tmp_path / "out" / "report_files").iterdir()} >= {name.lower() for name in sizes}


def test_names_and_captions_are_not_taken_for_markup(page: str, evaluated: Evaluated) -> None:
    assert "its own &lt;b&gt;dev&lt;/b&gt; photos" in page
    assert "<b>dev</b>" not in page
    assert page.count(html.escape(MARKUP)) >= 30 and MARKUP not in page
    markdown = (evaluated.output / "report.md").read_text("utf-8")
    assert "its own &lt;b>dev&lt;/b> photos" in markdown and "<b>" not in markdown


def test_markdown_says_the_same_and_its_pictures_are_there(evaluated: Evaluated) -> None:
    text = (evaluated.output / "report.md").read_text("utf-8")
    scores = evaluated.results["beam 3"]["scores"]
    assert f"| this model, beam 3 | {100 * scores['bleu_1']:.1f} (" in text
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert len(pictures) == 6
    for picture in pictures:
        with Image.open(evaluated.output / picture) as image:
            image.load()
            assert len(image.getcolors(1 << 24)) > 10
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for lines in tables:
        assert len({line.rstrip().count("|") for line in lines}) == 1, lines


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_it(evaluated: Evaluated, tmp_path: Path) -> None:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    # Images that do not load, or text wider than a phone, would affect these measurements.
    page = html.escape((evaluated.output / "report.html").read_text("utf-8").replace("<details>", "<details open>"))
    probe = tmp_path / "probe.html"
    for width in (1200, 390):  # a frame, as windows are not that narrow
        probe.write_text(f"<iframe width={width} height=4000 srcdoc='{page}'></iframe><script>{MEASURE}</script>")
        size = f"--window-size={width + 50},4000"
        done = subprocess.run(
            [*command, size, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))
        cut = found.pop("cut")
        assert found == {"bad": 0, "images": 12, "plots": 3, "wide": False}
        assert cut == [False] * 6 if width > 390 else not any(cut[number] for number in (0, 2, 4, 5)), cut
    shot = tmp_path / "shot.png"
    command += ["--window-size=1200,4000", f"--screenshot={shot}"]
    url = (evaluated.output / "report.html").as_uri()
    subprocess.run([*command, url], capture_output=True, timeout=120, check=True)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 5000, "photos and plots have many colours"

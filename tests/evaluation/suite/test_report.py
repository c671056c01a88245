"""The report: complete, offline, small, and rendered by a real browser."""

import base64
import html
import io
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from chromium import CHROMIUM
from evaluated import MARKUP, Evaluated
from PIL import Image


@pytest.fixture(scope="session")
def page(evaluated: Evaluated) -> str:
    return (evaluated.output / "report.html").read_text("utf-8")


def test_one_file_holds_everything(page: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    photos = [source for source in sources if source.startswith("data:image/jpeg;base64,")]
    assert len(photos) == 30
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "<script" not in page and "@import" not in page
    for photo in photos:
        with Image.open(io.BytesIO(base64.b64decode(photo.partition(",")[2]))) as image:
            assert max(image.size) == 200
            image.load()
    # 1,000 photos of a real test split have the same thumbnails, and one row of text each.
    assert len(page) + 1000 * 400 < 10_000_000


def test_figures_stand_beside_the_papers(page: str, evaluated: Evaluated) -> None:
    text = html.unescape(re.sub(r"<style.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.DOTALL))
    text = re.sub(r"\s+", " ", text)
    scores = evaluated.results["beam 3"]["scores"]
    assert f"this model, beam 3 {100 * scores['bleu_1']:.1f}" in text
    assert "GoogLeNet, beam 20, ensemble 63 41 27" in text
    for line in evaluated.results["ranking"]["directions"]:
        assert f"{100 * line['recall_10']:.1f} {line['median_rank']}" in text
    for caption in evaluated.results["beam 3"]["captions"].values():
        assert caption in text
    assert "zebroid not in the vocabulary" in text


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
    probe = tmp_path / "probe.html"
    measure = (
        "document.title = JSON.stringify({bad: [...document.images].filter(i => !i.naturalWidth).length,"
        " images: document.images.length, plots: document.querySelectorAll('svg').length,"
        " wide: document.documentElement.scrollWidth > innerWidth + 1})"
    )
    page = (evaluated.output / "report.html").read_text("utf-8")
    probe.write_text(page.replace("</body>", f"<script>addEventListener('load', () => {{{measure}}})</script></body>"))
    for width in (1200, 500):
        size = f"--window-size={width},4000"
        done = subprocess.run(
            [*command, size, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1])
        assert title == '{"bad":0,"images":30,"plots":3,"wide":false}'
    shot = tmp_path / "shot.png"
    command += ["--window-size=1200,4000", f"--screenshot={shot}"]
    url = (evaluated.output / "report.html").as_uri()
    subprocess.run([*command, url], capture_output=True, timeout=120, check=True)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 5000, "photos and plots have many colours"

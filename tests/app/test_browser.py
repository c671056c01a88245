"""The app in a real browser: a photo goes in, captions come out, a file is downloaded; and over its API."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny_checkpoint

from nic_hf import NICForConditionalGeneration, NICProcessor

pytest.importorskip("gradio", reason='the app needs gradio: pip install "nic_hf[app]"')

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STARTED = 90


class Served:
    """`nic app` in a process of its own."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.temporary = model, folder / "tmp"
        self.temporary.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        command = [
            sys.executable,
            "-m",
            "nic_hf",
            "app",
            str(model),
            "--port",
            str(self.port),
            "--max-file-size",
            "1mb",
        ]
        environment = {**os.environ, "TMPDIR": str(self.temporary), "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        end = time.monotonic() + STARTED
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.address, timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"nic app did not start: {Path(self.log.name).read_text()}")

    def kept(self) -> list[str]:
        return [path.name for path in self.temporary.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("app")
    save_tiny_checkpoint(folder / "captioner")
    app = Served(folder / "captioner", folder)
    try:
        app.wait()
        yield app
    finally:
        app.process.terminate()
        app.process.wait(30)
        app.log.close()


@pytest.fixture(scope="module")
def photos(flickr8k: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real ones, with names such as visitors have."""
    names = (flickr8k / "Flickr_8k.testImages.txt").read_text("utf-8").split()[:5]
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"visitor's photo {place}.jpg" for place in range(5)]
    for path, name in zip(paths, names, strict=True):
        shutil.copyfile(flickr8k / "Images" / name, path)
    return paths


def captions_of(served: Served, paths: list[Path], num_beams: int) -> list[str]:
    from nic_hf.images_nic import load_photo

    model = NICForConditionalGeneration.from_pretrained(served.model).eval()
    processor = NICProcessor.from_pretrained(served.model)
    pixels = processor(images=[load_photo(path) for path in paths], return_tensors="pt")
    return processor.tokenizer.batch_decode(model.generate(**pixels, num_beams=num_beams), skip_special_tokens=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_photo_is_captioned(
    served: Served, photos: list[Path], browser: Any, tmp_path: Path, width: int, height: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(served.address)
    page.locator("input[type=file]").first.set_input_files(photos[0])
    said = page.locator("#captions .nic-caption")
    said.wait_for(timeout=60_000)
    assert page.locator("#captions .nic-row span:first-child").first.inner_text() == said.inner_text()
    rows = page.locator("#captions .nic-row span:first-child").all_inner_texts()
    # The likeliest of five; the beam search goes by the length too.
    assert captions_of(served, photos[:1], 5)[0] in rows and said.inner_text() == rows[0] and len(rows) > 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it is wider than the screen"
    page.screenshot(path=tmp_path / f"app-{width}.png", full_page=True)
    abroad = [url for url in addresses if not url.startswith((served.address, "data:", "blob:"))]
    assert not abroad, "nothing is fetched from elsewhere"
    page.close()


def test_many_photos_give_a_file(served: Served, photos: list[Path], browser: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:600])
    page = browser.new_page()
    page.goto(served.address)
    page.get_by_role("tab", name="Many photos").click()
    page.locator("input[type=file]").last.set_input_files([*photos, broken])
    page.get_by_text("visitor").first.wait_for(timeout=30_000)
    page.get_by_role("button", name="Caption them").click()
    page.get_by_text("5 photos captioned.").wait_for(timeout=60_000)
    assert page.get_by_text("broken.jpg").count() > 0
    with page.expect_download() as download:
        page.locator("a[download]").last.click()
    target = tmp_path / "captions.csv"
    download.value.save_as(target)
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image_id", "caption"]
    assert [caption for _, caption in rows[1:]] == captions_of(served, photos, 3)
    page.close()


def test_programs_get_data(served: Served, photos: list[Path]) -> None:
    from gradio_client import Client, handle_file

    client = Client(served.address, verbose=False)
    found = client.predict(handle_file(photos[1]), 4, 4, 0, api_name="/caption")
    assert captions_of(served, photos[1:2], 4)[0] in [caption["caption"] for caption in found]
    assert all(0 < word["probability"] <= 1 for caption in found for word in caption["words"])
    with pytest.raises(Exception, match="There is no photo"):
        client.predict(None, 4, 4, 0, api_name="/caption")


def test_uploads_are_limited_and_files_of_the_server_are_not_read(served: Served, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1_500_000))
    client = Client(served.address, verbose=False)
    with pytest.raises(Exception, match=r"(?i)size|413|large"):
        client.predict(handle_file(large), 1, 1, 0, api_name="/caption")
    own = Path(__file__).parents[2] / "docs" / "images" / "learning-curve.png"
    body = json.dumps({"data": [{"path": str(own), "meta": {"_type": "gradio.FileData"}}, 1, 1, 0]}).encode()
    request = urllib.request.Request(
        f"{served.address}/gradio_api/call/caption", body, {"Content-Type": "application/json"}
    )
    event = json.load(urllib.request.urlopen(request, timeout=30))["event_id"]
    with urllib.request.urlopen(f"{served.address}/gradio_api/call/caption/{event}", timeout=30) as answer:
        text = answer.read().decode()
    assert "event: error" in text and "probability" not in text


def test_nothing_stays_when_it_ends(photos: list[Path], tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    save_tiny_checkpoint(tmp_path / "captioner")
    app = Served(tmp_path / "captioner", tmp_path)
    try:
        app.wait()
        Client(app.address, verbose=False).predict(handle_file(photos[0]), 1, 1, 0, api_name="/caption")
        assert any("visitor" in name for name in app.kept())
    finally:
        app.process.terminate()
        app.process.wait(30)
        app.log.close()
    assert not app.kept()

"""The app end to end: a real browser at `nic app`, and gradio's client at the Space."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM
from PIL import Image
from serving import SOURCE, Server, serving

from nic_hf.app import AppCaptioner
from nic_hf.app.caption_html import per_cent
from nic_hf.captioners import DEFAULT

sys.path.append(str(Path(__file__).parents[1] / "reliability"))
from load_generator import gradio_at_once

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
SPACE = Path(__file__).parents[2] / "examples" / "space"


@pytest.fixture(scope="module")
def app(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio", reason="the app needs gradio")
    command = ["-m", "nic_hf", "app", str(checkpoint), "--device", "cpu", "--max-upload", "1"]
    with serving(command, tmp_path_factory.mktemp("temporary")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive a browser")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        # Nothing but this machine can be reached, so that the page has to bring all it needs.
        alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        arguments = ["--no-sandbox", "--disable-gpu", alone, *CAMERA]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(app: Server, browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    elsewhere: list[str] = []
    page.on(
        "request", lambda asked: None if asked.url.startswith((app.url, "data:", "blob:")) else elsewhere.append(asked)
    )
    page.goto(app.url)
    yield page
    assert elsewhere == [], "nothing is asked of other servers"
    context.close()


def bottom(box: dict[str, float]) -> float:
    return box["y"] + box["height"]


def test_a_photo_gets_its_caption_bars_and_heat_maps(
    page: Any, captioner: AppCaptioner, test_data: Path, tmp_path: Path
) -> None:
    photo = test_data / "seed-examples" / "dog.png"
    page.set_input_files("#nic-photo input[type=file]", photo)
    page.wait_for_selector("#nic-maps img")
    found = captioner.describe(photo, 5, num_beams=5)
    assert page.get_attribute(".nic-caption", "aria-label") == found[0].text
    words = [text.split("\n") for text in page.locator(".nic-word").all_inner_texts()]
    assert words == [[word.text, per_cent(word.probability)] for word in found[0].words]
    assert page.locator("#nic-bars li > div:first-child").all_inner_texts() == [each.text for each in found]
    widths = page.eval_on_selector_all(
        ".nic-bar", "bars => bars.map(b => b.offsetWidth / b.parentElement.offsetWidth)"
    )
    assert widths == pytest.approx([each.probability_a_word for each in found], abs=0.01)
    assert page.eval_on_selector_all("#nic-maps img", "all => all.every(i => i.complete && i.naturalWidth > 50)")
    assert page.locator("#nic-maps img").count() == len(found[0].words)
    for width in (1200, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways for"
        assert "·" not in page.inner_text("footer"), "nothing stands between links of which one is hidden"
        photo_box, caption, controls, bars = (
            page.locator(f"#nic-{part}").bounding_box() for part in ("photo", "caption", "controls", "bars")
        )
        assert page.locator("#nic-controls .block").first.bounding_box()["width"] > 0.95 * controls["width"]
        assert bottom(photo_box) < controls["y"]
        if width == 390:  # the controls can be reached without passing the other captions
            assert bottom(photo_box) < caption["y"] < bottom(caption) < controls["y"] < bottom(controls) < bars["y"]
        else:
            assert bottom(caption) < bars["y"] < controls["y"] < bottom(bars) and bars["x"] > controls["x"]

    # A photo that is none takes the caption of the one before away.
    broken = tmp_path / "<i>broken.jpg"
    broken.write_text("no photo")
    page.click("#nic-photo button[aria-label='Remove Image']")
    page.wait_for_selector("#nic-best >> text=Drop or take a photo")
    page.set_input_files("#nic-photo input[type=file]", broken)
    page.wait_for_selector("#nic-best >> text=cannot read it as a photo")
    assert page.locator(".nic-word, #nic-bars li, #nic-maps img, #nic-best i").count() == 0


def test_a_picture_of_the_webcam_gets_its_caption(page: Any, captioner: AppCaptioner, tmp_path: Path) -> None:
    """A camera made up by the browser, whose picture moves: the caption is that of the picture taken."""
    page.click("#nic-photo button[aria-label='Capture from camera']")
    page.click("#nic-photo >> text=Click to Access Webcam")
    page.wait_for_function("document.querySelector('#nic-photo video')?.videoWidth > 0")
    page.click("#nic-photo button[aria-label='capture photo']")
    page.wait_for_selector("#nic-maps img")
    picture = tmp_path / "picture"
    picture.write_bytes(page.request.get(page.get_attribute("#nic-photo img", "src")).body())
    assert page.get_attribute(".nic-caption", "aria-label") == captioner.describe(picture, 5, num_beams=5)[0].text


def test_a_folder_gets_a_file(
    page: Any, captioner: AppCaptioner, photos: list[Path], test_data: Path, tmp_path: Path
) -> None:
    page.get_by_role("tab", name="Folder").click()
    real = test_data / "seed-examples" / "run.png"
    notes = tmp_path / "notes.txt"
    notes.write_text("no photo")
    page.set_input_files("#nic-photos input[type=file]", [*photos, notes, real])
    page.wait_for_selector("#nic-photos >> text=run")
    page.click("#nic-start")
    page.wait_for_selector(".nic-table")
    with page.expect_download() as download:
        page.click("#nic-file a[download]")
    assert download.value.suggested_filename == "captions.jsonl"
    rows = [json.loads(line) for line in Path(download.value.path()).read_text("utf-8").splitlines()]
    assert rows == [{"image_id": path.name, "caption": captioner.describe(path)[0].text} for path in [*photos, real]]
    assert "1 other file left out" in page.inner_text("#nic-summary")
    assert f"{rows[-1]['image_id']}\t{rows[-1]['caption']}" in page.inner_text(".nic-table")


def test_a_folder_of_all_sorts_is_captioned_and_the_log_has_no_traceback(
    checkpoint: Path, photos: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="the app needs gradio")
    from gradio_client import Client, handle_file

    cut, notes = tmp_path / "cut.jpg", tmp_path / "notes.txt"
    Image.effect_noise((300, 300), 50).convert("RGB").save(cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    notes.write_text("no photo")
    (tmp_path / "temporary").mkdir()
    command = ["-m", "nic_hf", "app", str(checkpoint), "--device", "cpu"]
    with (tmp_path / "log.txt").open("w+") as log, serving(command, tmp_path / "temporary", log) as server:
        client = Client(server.url, verbose=False, download_files=str(tmp_path / "downloads"))
        sent = [handle_file(path) for path in (photos[0], cut, notes, photos[1])]
        summary, file = client.predict(photos=sent, number=1, kind="JSON lines", api_name="/caption_files")
        assert len(Path(file).read_text("utf-8").splitlines()) == 2
        assert "2 of 3 photos captioned. 1 other file left out." in summary
        assert "cut.jpg" in summary and "image file is truncated" in summary and str(tmp_path) not in summary
        settings = {"number": 2, "method": "beam search", "beams": 3, "temperature": 1.0, "api_name": "/caption"}
        for photo, message in ((cut, r"cut\.jpg: cannot read it as a photo: image file is"), (notes, r"notes\.txt: ")):
            with pytest.raises(Exception, match=message):
                client.predict(photo=handle_file(photo), **settings)
        log.seek(0)
        assert "Traceback" not in log.read()


def test_uploads_have_a_size(app: Server) -> None:
    for size, answer in ((500_000, 200), (1_500_000, 413)):
        body = b"--b\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n"
        body += b"\0" * size + b"\r\n--b--\r\n"
        request = urllib.request.Request(f"{app.url}gradio_api/upload", body)
        request.add_header("Content-Type", "multipart/form-data; boundary=b")
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                assert reply.status == answer
        except urllib.error.HTTPError as error:
            assert error.code == answer


def test_a_photo_that_is_part_of_the_request_is_captioned(
    app: Server, captioner: AppCaptioner, photos: list[Path], tmp_path: Path
) -> None:
    ask = gradio_at_once(app.url, "caption", [1, "beam search", 3, 1.0])
    jpeg = tmp_path / "photo.jpg"  # a lossy file: were it stored once more, its pixels would change
    Image.open(photos[0]).save(jpeg)
    (expected,) = captioner.describe(jpeg, 1, num_beams=3)
    (found,) = ask(jpeg.read_bytes())[0]["captions"]
    assert found["caption"] == expected.text
    assert found["probability"] == pytest.approx(expected.to_json()["probability"], rel=1e-3)
    for broken, message in ((b"\0" * 1_500_000, "the photo is larger than 1 MB"), (b"no photo", "cannot read it")):
        with pytest.raises(OSError, match=f"/caption: 500 .*{message}"):
            ask(broken)


def test_the_space_runs_as_it_is_and_answers_many_at_once(
    captioner: AppCaptioner, checkpoint: Path, photos: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="the app needs gradio")
    from gradio_client import Client, handle_file

    space = shutil.copytree(SPACE, tmp_path / "space")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serving([str(space / "app.py")], temporary, NIC_HF_MODEL=str(checkpoint)) as server:
        settings = {"number": 2, "method": "beam search", "beams": 3, "temperature": 1.0}

        def new_client() -> Client:
            downloads = str(tmp_path / "downloads")
            return Client(server.url, verbose=False, download_files=downloads, httpx_kwargs={"timeout": 120})

        def ask(photo: Path) -> dict:
            # Each with a client of its own: when its stream ends, all its calls are cancelled.
            return new_client().predict(photo=handle_file(photo), **settings, api_name="/caption")

        order = [photos[number % len(photos)] for number in range(32)]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, order))
        expected = {photo: [each.text for each in captioner.describe(photo, 2, num_beams=3)] for photo in photos}
        for photo, answer in zip(order, answers, strict=True):
            assert [each["caption"] for each in answer["captions"]] == expected[photo]
        first = answers[0]["captions"][0]
        assert first["words"][0].keys() == {"word", "probability", "attention"}
        assert sum(map(sum, first["words"][0]["attention"])) == pytest.approx(1, abs=0.01)

        client = new_client()
        summary, file = client.predict(
            photos=[handle_file(photo) for photo in photos], number=1, kind="CSV", api_name="/caption_files"
        )
        lines = Path(file).read_text("utf-8").splitlines()
        assert lines[0] == "image_id,caption" and len(lines) == 1 + len(photos)
        assert "6 of 6 photos captioned" in summary
        with pytest.raises(Exception, match="not in the list of choices"):
            client.predict(photo=handle_file(photos[0]), **{**settings, "method": "magic"}, api_name="/caption")


def test_the_space_needs_no_settings(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the app needs gradio")
    with serving([str(SPACE / "app.py")], tmp_path) as server, urllib.request.urlopen(server.url, timeout=60) as reply:
        assert f"`{DEFAULT}`: " in reply.read().decode()


@pytest.mark.parametrize(
    ("blocked", "model", "message"),
    [
        (True, "flickr8k", 'nic app: the app needs gradio: pip install "nic_hf[app]"'),
        (False, "runs/none", "runs/none"),
    ],
)
def test_what_is_missing_is_said_in_a_line(blocked: bool, model: str, message: str) -> None:
    if not blocked:
        pytest.importorskip("gradio", reason="the app needs gradio")
    code = f"import sys\nif {blocked}: sys.modules['gradio'] = None\n"
    code += f"from nic_hf.cli import app\napp(['app', {model!r}])"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr

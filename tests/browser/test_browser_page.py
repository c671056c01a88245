"""The built page in headless Chromium, served as static files: photos, the camera, errors."""

import base64
import io
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser_captioner
import numpy as np
import pytest
from browser_captioner import ARGUMENTS, CHROMIUM, caption_of, hosting, open_page, wait_until_ready
from PIL import Image

from nic_hf.export import NICOnnxCaptioner

FAKE_CAMERA = "--use-fake-device-for-media-stream"
ALLOWED = "--use-fake-ui-for-media-stream"
DROP = """
async ([name, type, bytes]) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(bytes), (each) => each.charCodeAt(0))], name, { type }));
  const event = { dataTransfer: files, bubbles: true, cancelable: true };
  document.querySelector("#stage").dispatchEvent(new DragEvent("drop", event));
}
"""
FRAME = """
() => {
  const video = document.querySelector("#video");
  const size = { width: video.videoWidth, height: video.videoHeight };
  const canvas = Object.assign(document.createElement("canvas"), size);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas.toDataURL("image/png");
}
"""


@pytest.fixture(scope="module")
def url(site: Path, captioner: NICOnnxCaptioner) -> Iterator[str]:
    with hosting(site, {"model": captioner.folder}) as url:
        yield url


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    page = open_page(browser, "about:blank")
    elsewhere: list[str] = []
    page.on("request", lambda asked: None if asked.url.startswith((url, "blob:")) else elsewhere.append(asked.url))
    page.goto(url)
    wait_until_ready(page)
    yield page
    assert elsewhere == [], "nothing is asked of other hosts, nor of other folders of this one"
    page.close()


def best(captioner: NICOnnxCaptioner, photo: Any, number: int = 3) -> list[str]:
    found = captioner.caption(photo, num_beams=number, num_return_sequences=number)
    return [found] if number == 1 else found


def listed(page: Any) -> list[str]:
    return page.locator("#best li > span:first-child").all_inner_texts()


def test_a_chosen_photo_gets_the_captions_that_python_gives(
    page: Any, captioner: NICOnnxCaptioner, photos: list[Path]
) -> None:
    for photo in photos:
        expected = best(captioner, photo)
        assert caption_of(page, photo) == expected[0]
        assert listed(page) == expected
    assert len({captioner.caption(photo) for photo in photos}) > 2
    shares = [float(text.rstrip(" %")) for text in page.locator("#best li > span:nth-child(2)").all_inner_texts()]
    pixels = captioner.preprocess([photos[-1]])
    output = captioner.generate(pixels, num_return_sequences=3, return_dict_in_generate=True)
    assert shares == pytest.approx(100 * np.exp(output.sequences_scores), abs=0.51), "the mean of a word"
    assert re.fullmatch(r"\d+ ms: photo \d+, encoder \d+, words \d+", page.inner_text("#times"))
    assert "int8, dynamic; 27 words; 1 thread" in page.inner_text("#facts")


def test_a_dropped_photo_gets_a_caption_and_beams_can_be_changed(
    page: Any, captioner: NICOnnxCaptioner, test_data: Path
) -> None:
    photo = test_data / "seed-examples" / "dog.png"
    page.evaluate(DROP, ["dog.png", "image/png", base64.b64encode(photo.read_bytes()).decode()])
    page.wait_for_selector("#caption:not(.waiting)")
    assert page.inner_text("#caption") == captioner.caption(photo)
    assert page.evaluate("document.querySelector('#photo').naturalWidth") == Image.open(photo).width
    for beams in ("1", "5"):
        page.select_option("#beams", beams)
        page.wait_for_selector("#caption:not(.waiting)")
        assert page.inner_text("#caption") == best(captioner, photo, int(beams))[0]
        assert len(listed(page)) == (int(beams) if beams != "1" else 0)
    for width in (1200, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways for"


def test_of_many_photos_the_last_is_captioned(page: Any, captioner: NICOnnxCaptioner, photos: list[Path]) -> None:
    for photo in photos:
        page.set_input_files("#file", photo)
    page.wait_for_selector("#caption:not(.waiting)")
    assert page.get_attribute("#photo", "alt") == photos[-1].name
    assert page.inner_text("#caption") == captioner.caption(photos[-1])


def test_what_is_no_image_is_refused_by_name(
    page: Any, captioner: NICOnnxCaptioner, photos: list[Path], tmp_path: Path
) -> None:
    caption_of(page, photos[0])
    cut = photos[0].read_bytes()
    for name, content in (("<i>notes.txt", b"no photo"), ("empty.png", b""), ("header.png", cut[:20])):
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file", tmp_path / name)
        page.wait_for_selector("#error:visible")
        reason = "the file is empty" if not content else "this browser cannot read it as an image"
        assert page.inner_text("#error").startswith(f"{name}: {reason}")
        assert page.inner_text("#caption") == "" and listed(page) == [] and not page.is_visible("#photo")
        assert page.locator("#error i").count() == 0, "names are text"
    assert caption_of(page, photos[1]) == captioner.caption(photos[1])
    page.evaluate("document.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))")
    assert "That was not a file" in page.inner_text("#error")


def test_the_browser_lets_nothing_out(page: Any, site: Path) -> None:
    with hosting(site, {}) as other:
        asked = page.evaluate("url => fetch(url, { mode: 'no-cors' }).then(() => 'sent', () => 'refused')", other)
    assert asked == "refused"


def test_the_camera_is_captioned_live(
    driver: Any, url: str, captioner: NICOnnxCaptioner, test_data: Path, tmp_path: Path
) -> None:
    film = tmp_path / "film.mjpeg"
    Image.open(test_data / "seed-examples" / "run.png").convert("RGB").resize((320, 240)).save(film, format="jpeg")
    arguments = [*ARGUMENTS, FAKE_CAMERA, ALLOWED, f"--use-file-for-fake-video-capture={film}"]
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
    page = open_page(browser, url)
    wait_until_ready(page)
    page.click("#camera")
    for _ in range(2):
        page.evaluate("document.querySelector('#times').textContent = ''")
        page.wait_for_selector("#times >> text=/captions a second/")
    picture = Image.open(io.BytesIO(base64.b64decode(page.evaluate(FRAME).partition(",")[2])))
    assert picture.size == (320, 240)
    assert page.inner_text("#caption") == captioner.caption(picture)
    assert page.is_visible("#video") and page.get_attribute("#camera", "aria-pressed") == "true"
    page.click("#camera")
    assert not page.is_visible("#video") and page.inner_text("#caption") == ""
    assert page.evaluate("document.querySelector('#video').srcObject") is None, "its light goes out"
    browser.close()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([FAKE_CAMERA], "does not let this page use the camera"),
        ([f"{FAKE_CAMERA}=device-count=0", ALLOWED], "There is no camera on this machine"),
    ],
)
def test_without_a_camera_it_says_why(
    driver: Any, url: str, captioner: NICOnnxCaptioner, photos: list[Path], arguments: list[str], reason: str
) -> None:
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *arguments])
    page = open_page(browser, url)
    wait_until_ready(page)
    page.click("#camera")
    page.wait_for_selector("#error:visible")
    assert reason in page.inner_text("#error")
    assert caption_of(page, photos[0]) == captioner.caption(photos[0])
    browser.close()


def test_with_headers_it_uses_threads_and_says_the_same(
    browser: Any, site: Path, captioner: NICOnnxCaptioner, photos: list[Path]
) -> None:
    with hosting(site, {"models/mine": captioner.folder}, threads=True) as url:
        page = open_page(browser, f"{url}?model=models/mine")
        wait_until_ready(page)
        threads = page.evaluate("Math.min(navigator.hardwareConcurrency, 4)")
        assert page.inner_text("#facts").endswith(f"{threads} thread{'s' if threads > 1 else ''}")
        assert [caption_of(page, photo) for photo in photos] == [captioner.caption(photo) for photo in photos]
        page.close()


def test_progress_is_told(browser: Any, site: Path, captioner: NICOnnxCaptioner, photos: list[Path]) -> None:
    go_on = threading.Event()

    class Slow(browser_captioner._Host):
        def copyfile(self, source: Any, outputfile: Any) -> None:
            if self.path.endswith("encoder.onnx"):
                outputfile.write(source.read(1000))
                outputfile.flush()
                go_on.wait(60)
            super().copyfile(source, outputfile)

    with hosting(site, {"model": captioner.folder}, handler=Slow) as url:
        page = open_page(browser, url)
        page.wait_for_selector("#loaded >> text=/Loading the captioner: [\\d.]+ of [\\d.]+ MB/")
        end = time.monotonic() + 30  # and no wait_for_function: it polls by eval(), which the page forbids
        while (progress := page.evaluate("document.querySelector('#progress').value")) <= 0.9:  # all but one file
            assert time.monotonic() < end, f"progress stays at {progress}"
            page.wait_for_timeout(50)
        assert progress < 1
        page.set_input_files("#file", photos[0])  # a photo need not wait for the captioner
        go_on.set()
        wait_until_ready(page)
        page.wait_for_selector("#caption:not(.waiting)")
        assert page.inner_text("#caption") == captioner.caption(photos[0])
        page.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: shutil.rmtree(f), 'There is no captioner at .*/model/: put the folder that "nic export onnx'),
        (
            lambda f: (f / "nic_onnx.json").write_text("<html>"),
            "There is no captioner .* is not a JSON file",
        ),
        (lambda f: (f / "nic_onnx.json").write_text('{"format": 2}'), "reads format 1, not 2"),
        (lambda f: (f / "encoder.onnx").unlink(), "encoder.onnx cannot be loaded: the host answers 404"),
        (
            lambda f: (f / "first_step.onnx").write_bytes((f / "first_step.onnx").read_bytes()[:-9]),
            "first_step.onnx is not the file that nic_onnx.json lists",
        ),
        (lambda f: (f / "generation_config.json").write_text('{"do_sample": true}'), "do_sample=true is not known"),
    ],
)
def test_a_captioner_that_is_not_whole_is_refused(
    browser: Any, site: Path, captioner: NICOnnxCaptioner, tmp_path: Path, change: Any, reason: str
) -> None:
    folder = shutil.copytree(captioner.folder, tmp_path / "model")
    change(folder)
    with hosting(site, {"model": folder}) as url:
        page = open_page(browser, url)
        with pytest.raises(RuntimeError, match=reason):
            wait_until_ready(page)
        assert page.is_disabled("#camera") and page.is_disabled("#file")
        page.close()


def test_a_captioner_of_another_host_is_refused(browser: Any, url: str) -> None:
    page = open_page(browser, f"{url}?model=https://example.org/model")
    with pytest.raises(RuntimeError, match=r"https://example.org/model/ is on another host than this page"):
        wait_until_ready(page)
    page.close()

"""Compare captions in the browser with Python, and measure the time per caption.

    cd examples/browser && npm ci && npm run build && cd ../..
    nic export onnx runs/flickr8k captioner-int8 --int8
    python benchmarks/browser_captioner.py captioner-int8 --data path/to/flickr8k --json browser.json

Opens the built page of examples/browser in headless Chromium, captions photos of a split one by one, and compares the
captions with those of `NICOnnxCaptioner`: from PNG files, which have the same pixels everywhere, and from JPEG files,
which Chromium and Pillow may decode with a difference of one level. Prints a table and writes JSON.
"""

import argparse
import functools
import io
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onnxruntime
from PIL import Image

from nic_hf.data import load_captions
from nic_hf.export import NICOnnxCaptioner

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Nothing but this machine can be reached, so that the page has to bring all it needs.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
PAGE = Path(__file__).parents[1] / "examples" / "browser" / "dist"
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class _Host(SimpleHTTPRequestHandler):
    """Serves static files from several folders."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, folders: dict[str, Path], headers: dict[str, str], **options: Any) -> None:
        self.folders, self.more_headers = folders, headers
        super().__init__(*args, **options)

    def translate_path(self, path: str) -> str:
        for prefix, folder in self.folders.items():
            if path.startswith(prefix):
                self.directory = str(folder)
                return super().translate_path("/" + path.removeprefix(prefix))
        return os.devnull + "/none"

    def end_headers(self) -> None:
        for name, value in self.more_headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Disable logging."""


@contextmanager
def hosting(page: Path, models: dict[str, Path], threads: bool = False, handler: type = _Host) -> Iterator[str]:
    """Serve a built page with captioners in other folders, and return its address.

    Args:
        page: what `npm run build` wrote.
        models: folders of captioners, by their path below the page.
        threads: send the headers with which browsers let a page use threads.
        handler: answers requests.
    """
    folders = {f"/some/folder/{path}/": folder for path, folder in models.items()}
    folders["/some/folder/"] = page
    answer = functools.partial(handler, folders=folders, headers=ISOLATED if threads else {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/some/folder/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def open_page(browser: Any, url: str) -> Any:
    """The page, with a timeout of one minute."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(url)
    return page


def wait_until_ready(page: Any) -> None:
    """Wait until the captioner is loaded.

    Raises:
        RuntimeError: if it cannot be loaded, with the message of the page.
    """
    page.wait_for_selector("#loading", state="hidden")
    if page.is_visible("#error"):
        raise RuntimeError(page.inner_text("#error"))


def caption_of(page: Any, photo: Path) -> str:
    """Select a photo, and return its caption."""
    page.set_input_files("#file", photo)
    page.wait_for_selector("#caption:not(.waiting)")
    if page.is_visible("#error"):
        raise RuntimeError(page.inner_text("#error"))
    return page.inner_text("#caption")


def times_of(page: Any) -> dict[str, int]:
    """Milliseconds of the current caption and its parts."""
    text = page.inner_text("#times")
    found = re.fullmatch(r"(\d+) ms: photo (\d+), encoder (\d+), words (\d+).*", text)
    if found is None:
        raise RuntimeError(f"the page tells no times: {text!r}")
    return dict(zip(("total", "photo", "encoder", "words"), map(int, found.groups()), strict=True))


def captions_of(page: Any, photos: Sequence[Path], num_beams: int) -> tuple[list[str], dict[str, float]]:
    """Captions of photos, and median times in ms."""
    page.select_option("#beams", str(num_beams))
    captions, times = [], []
    for photo in photos:
        captions.append(caption_of(page, photo))
        times.append(times_of(page))
    return captions, {name: statistics.median(each[name] for each in times) for name in times[0]}


def write_photos(rows: Any, folder: Path) -> dict[str, list[Path]]:
    """Photos as PNG files and as the original JPEG files."""
    files: dict[str, list[Path]] = {"PNG": [], "JPEG": []}
    for number, row in enumerate(rows):
        source = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        for kind in files:
            files[kind].append(folder / f"{number}.{kind.lower()}")
        files["JPEG"][-1].write_bytes(source)
        Image.open(io.BytesIO(source)).convert("RGB").save(files["PNG"][-1])
    return files


def main() -> None:
    """Serve, caption, compare, print."""
    from datasets import Image as ImageColumn
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captioner", type=Path, help="folder that `nic export onnx` wrote")
    parser.add_argument("--data", required=True, help="captioned photos with splits, such as a Flickr8k folder")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--photos", type=int, default=100, help="number of photos")
    parser.add_argument("--page", type=Path, default=PAGE, help="output of `npm run build`")
    parser.add_argument("--json", type=Path, help="output file")
    args = parser.parse_args()
    if not (args.page / "index.html").is_file():
        parser.error(f"{args.page}: no page; run `npm ci && npm run build` in examples/browser")
    if CHROMIUM is None:
        parser.error("no Chromium on this machine")

    captioner = NICOnnxCaptioner.from_pretrained(args.captioner)
    own = captioner.generation_config.get("num_beams", 1)
    rows = load_captions(args.data, args.split)
    rows = rows.select(range(min(args.photos, len(rows)))).cast_column("image", ImageColumn(decode=False))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        photos = write_photos(rows, Path(temporary))
        expected = {
            (kind, beams): [captioner.caption(photo, num_beams=beams) for photo in files]
            for kind, files in photos.items()
            for beams in dict.fromkeys((own, 1))
        }
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        version = browser.version
        for threads in (False, True):
            with hosting(args.page, {"model": args.captioner}, threads=threads) as url:
                start = time.perf_counter()
                page = open_page(browser, url)
                wait_until_ready(page)
                loaded, facts = time.perf_counter() - start, page.inner_text("#facts")
                for (kind, beams), in_python in expected.items():
                    found, times = captions_of(page, photos[kind], beams)
                    same = sum(a == b for a, b in zip(found, in_python, strict=True))
                    result = {"threads": int(re.search(r"(\d+) threads?$", facts)[1]), "files": kind}
                    result |= {"num_beams": beams, "same_captions": same, "of": len(found), "ms": times}
                    results.append({**result, "loaded_s": round(loaded, 2)})
                page.close()
        browser.close()

    print(f"{len(rows)} photos of {args.split}, {captioner.manifest['precision']}; Chromium {version}\n")
    print("| threads | files | beams | same as Python | ms per caption | photo | encoder | words | loading, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for result in results:
        same, ms = f"{result['same_captions']} of {result['of']}", result["ms"]
        cells = [result["threads"], result["files"], result["num_beams"], same, *ms.values(), result["loaded_s"]]
        print(f"| {' | '.join(map(str, cells))} |")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "chromium": version,
        "onnxruntime": onnxruntime.__version__,
    }
    print(json.dumps(machine))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "split": args.split, "results": results}, indent=1))


if __name__ == "__main__":
    main()

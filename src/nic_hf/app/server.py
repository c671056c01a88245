"""Serve the page of the app."""

import importlib.util
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..captioners import captioner_path
from ..photo_warnings import name_photos_in_warnings
from .address import check_address
from .scored_captions import AppCaptioner

# Gradio keeps 170 KB of settings per visitor and API call; its default of 10,000 would take 1.7 GB.
KEPT_VISITORS = 128
MISSING = 'the app needs gradio: pip install "nic_hf[app]"'


def serve(
    model: str | os.PathLike[str] | AppCaptioner | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    device: str | None = None,
    max_upload: int = 20,
    keep_seconds: int = 600,
    open_browser: bool = False,
) -> None:
    """Serve the app until Ctrl-C or SIGTERM.

    Uploads are kept in a temporary folder, each for `keep_seconds`.

    Args:
        model: a checkpoint, a Hub id, or a captioner; the one that comes with the package if not given.
        host: address to listen on; `GRADIO_SERVER_NAME` if not given, else this machine only.
        port: port to listen on; `GRADIO_SERVER_PORT` if not given, else the first free one from 7860.
        device: device of the model; a GPU if available, else the CPU.
        max_upload: maximum size of a file in megabytes.
        keep_seconds: how long a file stays on disk.
        open_browser: open the page in a browser.

    Raises:
        ImportError: gradio is not installed.
        OSError, ValueError: there is no such captioner, or the port is in use.
    """
    check_gradio()
    check_address(host, port)
    name_photos_in_warnings()
    captioner = model if isinstance(model, AppCaptioner) else AppCaptioner.load(captioner_path(model), device)
    with tempfile.TemporaryDirectory(prefix="nic_app_", ignore_cleanup_errors=True) as folder, _environment(folder):
        from .page import CSS, THEME, build_page

        page = build_page(captioner, keep_seconds, max_upload)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                inbrowser=open_browser,
                max_file_size=f"{max_upload}mb",
                share=False,
                ssr_mode=False,
                enable_monitoring=False,
                footer_links=["api", "settings"],
                state_session_capacity=KEPT_VISITORS,
                theme=THEME,
                css=CSS,
                prevent_thread_lock=True,
                quiet=True,
                _frontend=False,  # skips a request to itself, which fails behind proxies and on busy machines
            )
            print(f"Captions at {page.local_url}  (Ctrl-C ends)", flush=True)
            _wait()
        finally:
            page.close(verbose=False)


def check_gradio() -> None:
    """Raise an ImportError that says what to install if gradio is missing."""
    _silence()
    if importlib.util.find_spec("gradio") is None:  # importing it would take seconds
        raise ImportError(MISSING)


def _silence() -> None:
    """Turn off analytics and the browser's history; gradio reads these variables when it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", str(KEPT_VISITORS))  # number of times kept, else 10,000


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


def _wait() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    ended: list[int] = []  # not a threading.Event: a handler could interrupt the holder of its lock, and wait forever

    def end(number: int, frame: Any) -> None:
        ended.append(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not ended:
            time.sleep(0.5)  # Windows delivers a signal only between waits
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

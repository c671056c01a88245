"""Many visitors of the app at once, by its HTTP interface: each gets the captions of its own photo."""

import io
import sys
from pathlib import Path

import psutil
import pytest
from load_generator import gradio, gradio_at_once, press
from tiny import save_tiny_checkpoint, tiny_photos

from nic_hf.app.server import KEPT_VISITORS

sys.path.append(str(Path(__file__).parents[1] / "app"))
from serving import serving

CLIENTS = 64
POOL = 40  # threads that gradio's pool may hold; it grows and shrinks by itself
KEPT_QUEUES = 2000  # calls whose queues of messages gradio keeps, 20 KB each
INPUTS = [2, "beam search", 2, 1.0]  # captions, method, beams, temperature


def check_app(seconds: float, answers_before: int, folder: Path) -> None:
    """The real app, a process of its own; `seconds` of load, after some that fills pools and caches."""
    save_tiny_checkpoint(folder / "captioner", attention="soft")
    (folder / "temporary").mkdir()
    photos = []
    for photo in tiny_photos(CLIENTS, seed=11):
        stream = io.BytesIO()
        photo.save(stream, "PNG")
        photos.append(stream.getvalue())
    command = ["-m", "nic_hf", "app", str(folder / "captioner"), "--device", "cpu"]
    with serving(command, folder / "temporary") as server:
        ask, process = gradio(server.url, "caption", INPUTS), psutil.Process(server.process.pid)
        alone = [ask(photo) for photo in photos]
        threads = process.num_threads()
        assert len({str(answer) for answer in alone}) == CLIENTS, "photos of one answer would hide a mix-up"
        errors: list[str] = []
        while answers_before > 0 and not errors:
            warm = press(ask, photos, alone, CLIENTS, seconds / 4)  # one answer a client at least
            answers_before -= warm.answers
            errors += warm.errors
        before = process.memory_info().rss
        load = press(ask, photos, alone, CLIENTS, seconds)
        growth = process.memory_info().rss / before - 1
        after = process.num_threads()
        at_once = press(gradio_at_once(server.url, "caption", INPUTS), photos, alone, CLIENTS, seconds / 4)
        print(f"in one request: {at_once}")
        print(f"{load}; memory {100 * growth:+.1f} % of {before / 2**20:.0f} MiB; threads {threads}, then {after}")
    assert errors + load.errors + at_once.errors == []
    assert load.answers >= CLIENTS and at_once.answers >= CLIENTS
    assert after <= threads + POOL
    assert growth < 0.05


def test_64_visitors_for_a_while(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the app needs gradio")
    check_app(8, KEPT_VISITORS, tmp_path)


@pytest.mark.soak
def test_64_visitors_for_ten_minutes(tmp_path: Path, soak_scale: float) -> None:
    pytest.importorskip("gradio", reason="the app needs gradio")
    check_app(600 * soak_scale, round(KEPT_QUEUES * soak_scale), tmp_path)

"""Many photos at once get the captions that each gets alone, in the order of their names."""

import errno
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.captioning import (
    ArrayCaptioner,
    BrokenPhotoError,
    Captioner,
    CaptionRun,
    PhotoItem,
    PhotoSources,
    TorchCaptioner,
)
from nic_hf.captioning.captioners import caption_batch, photo_size
from nic_hf.captioning.photo_loader import PhotoLoader
from nic_hf.model.encoder import OptimizedEncoder


class Kept:
    """A sink that remembers, in order."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, list[str]]] = []

    def is_done(self, item: PhotoItem) -> bool:
        return False

    def add(self, item: PhotoItem, captions: list[str]) -> None:
        self.rows.append((item.image_id, captions))

    def flush(self) -> None:
        pass

    def find(self, image_ids: Any) -> dict[str, list[str]]:
        return {image_id: captions for image_id, captions in self.rows if image_id in image_ids}


def captions_of(captioner: Captioner, paths: list[Path], **settings: Any) -> list[tuple[str, list[str]]]:
    sink = Kept()
    CaptionRun(captioner, PhotoSources([str(path) for path in paths]), sink, **settings).run()
    return sink.rows


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 2), (32, 3)])
def test_captions_are_those_of_the_pipeline(
    batch_size: int, workers: int, captioner: Captioner, paths: list[Path], expected: Callable
) -> None:
    rows = captions_of(captioner, paths, batch_size=batch_size, workers=workers)
    wanted = expected(paths)
    assert len(set(wanted.values())) > 5, "photos that all get one caption would hide a mixed-up order"
    assert rows == [(image_id, [caption]) for image_id, caption in wanted.items()]


def test_arguments_of_generate_have_their_way(captioner: Captioner, paths: list[Path], expected: Callable) -> None:
    rows = captions_of(captioner, paths, num_beams=1, max_new_tokens=4)
    assert dict(rows) == {name: [text] for name, text in expected(paths, num_beams=1, max_new_tokens=4).items()}
    several = captions_of(captioner, paths, num_captions=3, num_beams=3)
    best = expected(paths, num_beams=3)
    assert all(captions[0] == best[name] and len(set(captions)) == 3 for name, captions in several)


def test_samples_of_a_seed_do_not_depend_on_what_arrives_first(captioner: Captioner, paths: list[Path]) -> None:
    settings: dict[str, Any] = {"do_sample": True, "num_beams": 1, "batch_size": 3, "max_new_tokens": 6}
    first = captions_of(captioner, paths, seed=1, workers=1, **settings)
    assert captions_of(captioner, paths, seed=1, workers=4, **settings) == first
    assert captions_of(captioner, paths, seed=2, workers=4, **settings) != first


class Arrays:
    """A captioner that works with arrays, as that of ONNX Runtime does."""

    def __init__(self, checkpoint: str) -> None:
        self.model: Any = NICForConditionalGeneration.from_pretrained(checkpoint)
        self.processor = NICProcessor.from_pretrained(checkpoint)

    def preprocess(self, images: list[Image.Image]) -> np.ndarray:
        return self.processor(images=images, return_tensors="np")["pixel_values"]

    def generate(self, pixel_values: np.ndarray, **generation: Any) -> np.ndarray:
        import torch

        assert isinstance(pixel_values, np.ndarray)
        return self.model.generate(pixel_values=torch.from_numpy(pixel_values), **generation).numpy()

    def decode(self, ids: np.ndarray) -> list[str]:
        return self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_a_captioner_of_arrays_will_do(checkpoint: str, paths: list[Path], expected: Callable) -> None:
    rows = captions_of(ArrayCaptioner(Arrays(checkpoint)), paths, batch_size=5)
    assert dict(rows) == {name: [text] for name, text in expected(paths).items()}


def on_the_cpu() -> Any:
    return torch.empty(10**15)  # PyTorch's own exception for that is a plain RuntimeError


def raises(error: Exception) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "fail",
    [on_the_cpu, *map(raises, [torch.OutOfMemoryError("full"), MemoryError(), OSError(errno.ENOMEM, "full")])],
)
def test_a_batch_that_does_not_fit_into_memory_is_halved(
    fail: Callable, checkpoint: str, paths: list[Path], expected: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    class Small(Arrays):
        def generate(self, pixel_values: np.ndarray, **generation: Any) -> np.ndarray:
            if len(pixel_values) > 3:
                fail()
            return super().generate(pixel_values, **generation)

    rows = captions_of(ArrayCaptioner(Small(checkpoint)), paths, batch_size=13)
    assert dict(rows) == {name: [text] for name, text in expected(paths).items()}
    assert "a batch of 13 photos failed (" in caplog.text and "): trying 6 photos" in caplog.text


class Failing:
    """A captioner that cannot caption, and counts how often it was asked."""

    def __init__(self, error: Exception, device: str) -> None:
        self.error, self.tries = error, 0
        self.model = SimpleNamespace(device=torch.device(device))

    def caption(self, pixel_values: np.ndarray, **generation: Any) -> list[str]:
        self.tries += 1
        raise self.error


# What PyTorch says of a GPU that an earlier error has left in no state to compute has the word memory in it.
DEAD_GPU = RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(("error", "device"), [(DEAD_GPU, "cuda"), (OSError(errno.EIO, "memory"), "cpu")])
def test_what_is_no_lack_of_memory_is_not_tried_with_fewer_photos(error: Exception, device: str) -> None:
    captioner: Any = Failing(error, device)
    with pytest.raises(type(error), match="memory"):
        caption_batch(captioner, [np.zeros((3, 8, 8), dtype=np.float32)] * 8, 1)
    assert captioner.tries == 1


def test_the_users_model_is_left_as_it_was(checkpoint: str) -> None:
    model = NICForConditionalGeneration.from_pretrained(checkpoint)
    captioner = TorchCaptioner(model, NICProcessor.from_pretrained(checkpoint), device="cpu")
    assert isinstance(captioner.model.encoder, OptimizedEncoder) and not isinstance(model.encoder, OptimizedEncoder)


def test_the_digest_follows_weights_words_and_preprocessing(checkpoint: str, captioner: Captioner) -> None:
    import torch

    def digest(change: Callable[[Any, Any], Any] = lambda model, processor: None) -> str:
        model, processor = (
            NICForConditionalGeneration.from_pretrained(checkpoint),
            NICProcessor.from_pretrained(checkpoint),
        )
        with torch.no_grad():
            change(model, processor)
        return TorchCaptioner(model, processor, device="cpu").digest()

    changed = [
        digest(lambda model, _: model.lm_head.bias[3].add_(1)),
        digest(lambda _, processor: setattr(processor.image_processor, "image_mean", [0.1] * 3)),
        digest(lambda model, _: setattr(model.generation_config, "num_beams", 7)),
    ]
    assert digest() == captioner.digest()
    assert len({captioner.digest(), *changed}) == 4


class SlowWeb(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if "slow" in self.path:
            self.server.may_go.wait(20)
        self.send_response(200)
        self.end_headers()
        self.wfile.write((self.server.folder / self.path.strip("/").removeprefix("slow/")).read_bytes())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web(photos: Path) -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowWeb) as server:
        server.folder, server.may_go, server.daemon_threads = photos, threading.Event(), True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.may_go.set()
        server.shutdown()


def test_a_slow_photo_holds_up_its_own_place_in_the_output_and_nothing_else(
    web: Any, captioner: Captioner, expected: Callable, photos: Path
) -> None:
    names = [f"photo{number:02d}.png" for number in (0, 1, 2, 4, 5, 6)]
    host = f"http://127.0.0.1:{web.server_port}"
    addresses = [f"{host}/slow/{names[0]}", *(f"{host}/{name}" for name in names[1:])]
    captioned: list[int] = []

    class Watched:
        """Lets the slow photo come once all others have their captions."""

        def __getattr__(self, name: str) -> Any:
            return getattr(captioner, name)

        def caption(self, pixel_values: np.ndarray, **generation: Any) -> list[str]:
            captioned.append(len(pixel_values))
            if sum(captioned) == 5:
                web.may_go.set()
            return captioner.caption(pixel_values, **generation)

    sink = Kept()
    sources = PhotoSources(addresses)
    CaptionRun(Watched(), sources, sink, batch_size=2, workers=2, allow_private=True).run()
    wanted = expected([photos / name for name in names])
    assert [image_id for image_id, _ in sink.rows] == addresses
    assert [captions[0] for _, captions in sink.rows] == list(wanted.values())
    assert sum(captioned[:-1]) == 5 and captioned[-1] == 1


def test_broken_photos_are_listed_or_end_the_run(captioner: Captioner, paths: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    (tmp_path / "list.txt").write_text("\n".join(map(str, [paths[0], bad, tmp_path / "gone.jpg", paths[1]])))
    sources, sink = PhotoSources(lists=[tmp_path / "list.txt"]), Kept()
    summary = CaptionRun(captioner, sources, sink, batch_size=2).run()
    assert [image_id for image_id, _ in sink.rows] == [paths[0].as_posix(), paths[1].as_posix()]
    assert [photo.image_id for photo in summary.broken] == [bad.as_posix(), (tmp_path / "gone.jpg").as_posix()]
    assert "cannot read it as an image" in summary.broken[0].error
    sink = Kept()
    with pytest.raises(BrokenPhotoError, match=r"bad\.jpg"):
        CaptionRun(captioner, sources, sink, on_error="fail").run()
    assert [image_id for image_id, _ in sink.rows] == [paths[0].as_posix()]


def test_a_photo_named_twice_is_captioned_once(captioner: Captioner, photos: Path, paths: list[Path]) -> None:
    sink = Kept()
    summary = CaptionRun(captioner, PhotoSources([str(paths[3]), str(photos)]), sink).run()
    assert [image_id for image_id, _ in sink.rows] == [path.as_posix() for path in (paths[3], *paths[:3], *paths[4:])]
    assert summary.repeated == 1


def endless(log: list[int]) -> Iterator[PhotoItem]:
    for number in itertools.count():
        log.append(number)
        yield PhotoItem(str(number), b"", (0, number))


def test_no_more_photos_are_in_memory_than_two_batches(captioner: Captioner) -> None:
    """However slow the model is and however long the stream."""
    named: list[int] = []
    loader = PhotoLoader(endless(named), lambda item: np.zeros(3), batch_size=4, workers=2)
    taken = 0
    for batch in loader.batches():
        time.sleep(0.01)
        taken += len(batch)
        assert len(named) - taken <= 2 * 4 + 2 + 1
        loader.passed_on(len(batch))
        if taken >= 400:
            loader.stop()
    assert taken < 420


def test_a_handler_of_a_signal_may_stop_it_at_any_line() -> None:
    """A handler runs between two lines of the thread that takes batches, be it inside a lock of a semaphore."""
    items = [PhotoItem(str(number), b"", (number, 0)) for number in range(9)]

    def interrupted(at: int, lines: list[str], taken: list[int]) -> None:
        loader = PhotoLoader(items, lambda item: 0, batch_size=2, workers=1, patience=0.01)
        begun = False

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal begun
            begun = begun or frame.f_code is PhotoLoader.batches.__code__
            if begun and event == "line":
                if len(lines) == at:
                    loader.stop()
                lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            return trace

        sys.settrace(trace)
        try:
            taken.extend(len(batch) for batch in loader.batches())
        finally:
            sys.settrace(None)

    seen: set[str] = set()
    for at in itertools.count():
        lines: list[str] = []
        taken: list[int] = []
        thread = threading.Thread(target=interrupted, args=(at, lines, taken), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), f"a handler that interrupts {lines[at]} waits for ever"
        if len(lines) <= at:
            break
        seen.add(lines[at])
    assert sum(taken) == 9, "nothing stopped the last one"
    assert sum(line.startswith("threading.py") for line in seen) > 20, "also inside its locks"


def test_a_fault_in_the_names_of_photos_is_raised() -> None:
    def names() -> Iterator[PhotoItem]:
        yield PhotoItem("a", b"", (0, 0))
        raise ValueError("captions.txt: line 2: no caption")

    with pytest.raises(ValueError, match="line 2"):
        list(PhotoLoader(names(), lambda item: 0, batch_size=1, workers=1).batches())


def test_how_large_a_photo_has_to_be() -> None:
    assert photo_size({"do_resize": True, "size": {"height": 96, "width": 128}}) == (128, 96)
    assert photo_size({"do_resize": True, "size": {"shortest_edge": 256}}) == (256, 256)
    assert photo_size({"do_resize": False, "size": {"shortest_edge": 256}}) is None

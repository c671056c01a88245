"""Calls of several threads that run as one batch: in the app, in the pipeline, and what they share."""

import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_photos, tiny_processor

from nic_hf import ImageToTextPipeline
from nic_hf.app.scored_captions import AppCaptioner
from nic_hf.batching import BatchedCalls
from nic_hf.export import export_onnx


class Recorder:
    """Doubles numbers; the first batch lasts until `go` is set."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        if len(self.batches) == 1:
            self.started.set()
            assert self.go.wait(30)
        if -1 in items:
            raise ValueError("minus one")
        if -2 in items and threading.current_thread().name == "interrupted":
            raise KeyboardInterrupt
        return [2 * item for item in items]


@contextmanager
def first_batch_running(recorder: Recorder, calls: BatchedCalls) -> Iterator[Callable[..., list[Any]]]:
    """Yield a function that makes calls which all wait for the first batch, and then lets it end."""
    with ThreadPoolExecutor(32) as pool:
        first = pool.submit(calls, 0)
        assert recorder.started.wait(30)

        def together(items: list[Any], groups: list[Any] | None = None) -> list[Any]:
            futures = []
            for place, item in enumerate(items):
                futures.append(pool.submit(calls, item, groups[place] if groups else None))
                while len(calls._waiting) <= place:
                    threading.Event().wait(0.001)
            recorder.go.set()
            return [future.exception(30) or future.result() for future in futures]

        yield together
        assert first.result(30) == 0


def count_batches(calls: BatchedCalls) -> list[int]:
    """The sizes of the batches that run from now on."""
    sizes: list[int] = []
    run = calls.run

    def counted(items: list[Any]) -> Any:
        sizes.append(len(items))
        return run(items)

    calls.run = counted
    return sizes


def test_calls_that_arrive_meanwhile_are_one_batch_and_no_larger_than_allowed() -> None:
    recorder = Recorder()
    calls = BatchedCalls(recorder, most=4)
    with first_batch_running(recorder, calls) as together:
        assert together([1, 2, 3, 4, 5, 6]) == [2, 4, 6, 8, 10, 12]
    assert recorder.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert calls(7) == 14 and recorder.batches[-1] == [7]


def test_groups_do_not_mix_and_the_oldest_call_is_next() -> None:
    recorder = Recorder()
    calls = BatchedCalls(recorder)
    with first_batch_running(recorder, calls) as together:
        assert together([1, 2, 3, 4], ["a", "b", "a", "b"]) == [2, 4, 6, 8]
    assert recorder.batches == [[0], [1, 3], [2, 4]]


def test_an_error_is_of_its_own_call_alone() -> None:
    recorder = Recorder()
    calls = BatchedCalls(recorder)
    with first_batch_running(recorder, calls) as together:
        found = together([1, -1, 3])
    assert found[0] == 2 and found[2] == 6
    assert isinstance(found[1], ValueError) and str(found[1]) == "minus one"
    assert recorder.batches == [[0], [1, -1, 3], [1], [-1], [3]]


def test_an_interrupted_thread_leaves_the_calls_of_others() -> None:
    recorder = Recorder()
    recorder.go.set()
    calls, others, ends = BatchedCalls(recorder), [], []
    turn = calls._turn
    turn.acquire()  # as if a batch ran

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            calls(-2)
        ends.append("interrupted")

    first = threading.Thread(target=interrupted, name="interrupted")
    first.start()
    while len(calls._waiting) < 1:
        threading.Event().wait(0.001)
    second = threading.Thread(target=lambda: others.append(calls(5)))
    second.start()
    while len(calls._waiting) < 2:
        threading.Event().wait(0.001)
    turn.release()
    first.join(30)
    second.join(30)
    assert others == [10] and ends in (["interrupted"], []) and not first.is_alive() and not second.is_alive()


def test_it_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(BatchedCalls(sorted, most=2)))
    assert copy([3]) == [3] and copy.most == 2


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"return_scores": True}])
def test_threads_that_share_a_pipeline_share_batches(settings: dict[str, Any]) -> None:
    pipeline = ImageToTextPipeline(model=tiny_model(), processor=tiny_processor())
    photos = tiny_photos(24, seed=3)
    alone = [pipeline(photo, **settings) for photo in photos]
    sizes = count_batches(pipeline._batches)
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda photo: pipeline(photo, **settings), photos))
    assert sum(sizes) == 24 and max(sizes) > 1
    for own, other in zip(alone, together, strict=True):
        assert [each["generated_text"] for each in own] == [each["generated_text"] for each in other]
        assert [each.get("confidence") for each in own] == [each.get("confidence") for each in other]


def test_samples_and_prompts_are_not_shared() -> None:
    pipeline = ImageToTextPipeline(model=tiny_model(), processor=tiny_processor())
    pipeline._batches.run = None  # type: ignore[assignment]
    photo = tiny_photos(1)[0]
    torch.manual_seed(0)
    sample = pipeline(photo, do_sample=True)
    torch.manual_seed(0)
    assert pipeline(photo, do_sample=True) == sample
    assert pipeline(photo, prompt="a")[0]["generated_text"].startswith("a")
    assert len(pipeline([photo, photo], batch_size=2)) == 2


def test_an_onnx_captioner_that_samples_by_its_own_settings_is_not_shared(tmp_path: Path) -> None:
    captioner = export_onnx(tiny_model(), tmp_path / "onnx", processor=tiny_processor())
    pipeline = ImageToTextPipeline(model=captioner, processor=tiny_processor(), framework="pt")
    assert pipeline._can_share({"num_beams": 2})
    captioner.generation_config["do_sample"] = True
    assert not pipeline._can_share({"num_beams": 1}) and pipeline._can_share({"do_sample": False})


def test_visitors_of_the_app_share_batches() -> None:
    captioner = AppCaptioner(tiny_model(), tiny_processor())
    photos = tiny_photos(24, seed=5)
    alone = [captioner.describe(photo, 2, num_beams=3) for photo in photos]
    sizes = count_batches(captioner._batches)
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda photo: captioner.describe(photo, 2, num_beams=3), photos))
    assert sum(sizes) == 24 and max(sizes) > 1
    for own, other in zip(alone, together, strict=True):
        assert [each.text for each in own] == [each.text for each in other]
        assert [each.probability for each in own] == pytest.approx([each.probability for each in other], rel=1e-3)
    with ThreadPoolExecutor(8) as pool:
        samples = pool.map(lambda photo: captioner.describe(photo, 2, temperature=1.0, seed=1), photos[:8] * 2)
        texts = [[each.text for each in own] for own in samples]
    assert texts[:8] == texts[8:]

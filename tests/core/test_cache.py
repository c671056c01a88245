"""The static cache: the same captions, by a step that is compiled once."""

import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_pixels
from torch._dynamo.utils import counters
from transformers import CompileConfig

from nic_hf.modeling_nic import CACHE_NAME

CAPTIONERS: list[dict[str, Any]] = [{}, {"num_hidden_layers": 2}, {"attention": "soft"}]


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiling(**settings: Any) -> dict[str, Any]:
    """Arguments of `generate()` that compile its step on a CPU too, into one graph or not at all."""
    settings = {"backend": "aot_eager", "mode": None, **settings}  # traced and split as for machine code
    config = CompileConfig(fullgraph=True, **settings)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def graphs_compiled() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("changes", CAPTIONERS)
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"do_sample": True, "num_return_sequences": 3}])
def test_a_compiled_step_gives_the_same_captions(changes: dict[str, Any], settings: dict[str, Any]) -> None:
    model, pixel_values = tiny_model(**changes), tiny_pixels()
    torch.manual_seed(0)
    expected = model.generate(pixel_values=pixel_values, num_beams=1, **settings)
    torch.manual_seed(0)
    found = model.generate(pixel_values=pixel_values, num_beams=1, **settings, **compiling())
    assert torch.equal(found, expected)
    assert graphs_compiled() == 1


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "cl")), reason="torch.compile needs a C++ compiler"
)
def test_machine_code_gives_the_same_captions() -> None:
    model, pixel_values = tiny_model(), tiny_pixels()
    expected = model.generate(pixel_values=pixel_values, num_beams=1)
    found = model.generate(
        pixel_values=pixel_values, num_beams=1, **compiling(backend="inductor", mode="reduce-overhead")
    )
    assert torch.equal(found, expected)
    assert graphs_compiled() == 1


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_step_is_compiled_once_for_captions_of_any_length(batch_size: int) -> None:
    model, compiled = tiny_model(), compiling()
    for length in (3, 12, 7):
        model.generate(
            pixel_values=tiny_pixels(batch_size),
            num_beams=1,
            min_new_tokens=length,
            max_new_tokens=length,
            **compiled,
        )
        assert graphs_compiled() == 1


@pytest.mark.parametrize("changes", CAPTIONERS)
def test_beams_keep_their_places_in_memory(changes: dict[str, Any]) -> None:
    """Transformers does not compile beam search; `forward` can be, and has the static addresses a CUDA graph needs."""
    model, pixel_values = tiny_model(**changes), tiny_pixels()
    expected = model.generate(pixel_values=pixel_values, num_beams=3)
    assert torch.equal(model.generate(pixel_values=pixel_values, num_beams=3, **compiling()), expected)
    assert graphs_compiled() == 0

    with torch._dynamo.config.patch(allow_rnn=True):
        model.forward = torch.compile(model.forward, backend="aot_eager")
        for _ in range(2):
            found = model.generate(pixel_values=pixel_values, num_beams=3, cache_implementation="static")
            assert torch.equal(found, expected)
    in_a_step = 1
    reading_the_photo = graphs_compiled() - in_a_step  # the backbone and the first word, in a part or two
    assert 1 <= reading_the_photo <= 3


def test_the_next_call_finds_the_cache_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, addresses = tiny_model(), []
    prepare = model.prepare_inputs_for_generation

    def note_address(input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        addresses.append(kwargs[CACHE_NAME].hidden_state.data_ptr())
        return prepare(input_ids, **kwargs)

    monkeypatch.setattr(model, "prepare_inputs_for_generation", note_address)
    first = model.generate(pixel_values=tiny_pixels(), num_beams=3, cache_implementation="static")
    second = model.generate(pixel_values=tiny_pixels(), num_beams=3, cache_implementation="static")
    assert torch.equal(first, second)
    assert len(addresses) > 2
    assert len(set(addresses)) == 1


def test_a_cache_that_was_returned_is_the_users() -> None:
    model = tiny_model()
    settings = {"num_beams": 1, "cache_implementation": "static", "return_dict_in_generate": True}
    result = model.generate(pixel_values=tiny_pixels(), **settings)
    cache, state = result[CACHE_NAME], result[CACHE_NAME].hidden_state.clone()
    assert cache.get_seq_length() == result.sequences.shape[1] - 1  # the last word was not read
    other = model.generate(pixel_values=tiny_pixels(seed=1), **settings)[CACHE_NAME]
    model.generate(pixel_values=tiny_pixels(seed=1), num_beams=1, cache_implementation="static")
    assert torch.equal(cache.hidden_state, state)
    assert not torch.equal(other.hidden_state, state)


def test_what_each_step_returns_is_not_written_over() -> None:
    """Hidden states and attention are kept by `generate()` step by step, so that nothing is compiled for them."""
    model = tiny_model(attention="soft")
    settings = {"num_beams": 1, "return_dict_in_generate": True, "output_attentions": True}
    expected = model.generate(pixel_values=tiny_pixels(), **settings).cross_attentions
    found = model.generate(pixel_values=tiny_pixels(), **settings, **compiling()).cross_attentions
    assert graphs_compiled() == 0
    torch.testing.assert_close(found, expected)


def test_threads_do_not_share_a_static_cache() -> None:
    model, found = tiny_model(), {}
    expected = {seed: model.generate(pixel_values=tiny_pixels(seed=seed)) for seed in range(4)}

    def caption(seed: int) -> None:
        for _ in range(5):
            found[seed] = model.generate(pixel_values=tiny_pixels(seed=seed), cache_implementation="static")

    threads = [threading.Thread(target=caption, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], expected[seed]) for seed in range(4))


def test_a_static_cache_serves_inside_and_outside_of_inference_mode() -> None:
    model = tiny_model()
    with torch.inference_mode():
        first = model.generate(pixel_values=tiny_pixels(), cache_implementation="static").clone()
    assert torch.equal(model.generate(pixel_values=tiny_pixels(), cache_implementation="static"), first)


def test_a_static_cache_refuses_another_number_of_captions() -> None:
    settings = {"num_beams": 1, "cache_implementation": "static", "return_dict_in_generate": True}
    cache = tiny_model().generate(pixel_values=tiny_pixels(), **settings)[CACHE_NAME]
    cache.batch_repeat_interleave(1)
    for change in (lambda: cache.batch_repeat_interleave(2), lambda: cache.batch_select_indices(torch.tensor([0]))):
        with pytest.raises(ValueError, match="leave `cache_implementation` out"):
            change()

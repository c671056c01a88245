"""Greedy decoding and sampling without Transformers' loop: the same words, and its loop where a step is watched."""

from typing import Any

import pytest
import torch
from tiny import tiny_features, tiny_model, tiny_pixels
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer
from transformers.modeling_outputs import BaseModelOutput

from nic_hf import NICForConditionalGeneration
from nic_hf.model import generation
from nic_hf.model.cache import NICCache
from nic_hf.modeling_nic import CACHE_NAME

GREEDY = {"num_beams": 1, "max_new_tokens": 9}
SAMPLING = {**GREEDY, "do_sample": True}


class LongEnough(StoppingCriteria):
    """Stops each caption by its own words."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return (input_ids > 12).sum(dim=1) > 2


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> list:
    """One entry for each time that the own loop ran."""
    runs: list = []

    def spy(*args: Any) -> torch.Tensor:
        runs.append(args)
        return sample(*args)

    sample = generation.sample
    monkeypatch.setattr(generation, "sample", spy)
    return runs


def generate(model: NICForConditionalGeneration, **settings: Any) -> Any:
    torch.manual_seed(5)
    settings.setdefault("encoder_outputs", tiny_features(6))
    return model.generate(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        GREEDY,
        SAMPLING,
        {**SAMPLING, "num_return_sequences": 4, "temperature": 1.7, "top_k": 8, "top_p": 0.9},
        {**GREEDY, "min_new_tokens": 6, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {**GREEDY, "decoder_input_ids": torch.tensor([[1, 7, 9]]).expand(6, -1)},
        {**SAMPLING, "stopping_criteria": StoppingCriteriaList([LongEnough()])},
        {**GREEDY, "eos_token_id": [2, 8]},
        {**GREEDY, "renormalize_logits": True, "max_new_tokens": 1},
        {**GREEDY, "use_cache": True, "encoder_outputs": tiny_features(1)},
    ],
    ids=lambda settings: " ".join(settings),
)
@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 2}], ids=["", "2 layers"])
def test_words_are_those_of_transformers(
    settings: dict, changes: dict, quick_runs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(**changes)
    found = generate(model, **settings)
    assert len(quick_runs) == 1
    monkeypatch.delattr(generation.FastGenerationMixin, "_sample")
    expected = generate(model, **settings)
    assert len(quick_runs) == 1, "the loop of Transformers was to run"
    assert torch.equal(found, expected)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
def test_with_attention_too(settings: dict, quick_runs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(attention="soft")
    with torch.no_grad():
        settings = {**settings, "encoder_outputs": model.get_image_features(tiny_pixels(5))}
    found = generate(model, **settings)
    assert len(quick_runs) == 1
    monkeypatch.delattr(generation.FastGenerationMixin, "_sample")
    assert torch.equal(found, generate(model, **settings))


def test_a_cache_of_the_caller_goes_on_where_the_words_end(quick_runs: list) -> None:
    model, features = tiny_model(), tiny_features(1)
    cache = NICCache()
    words = generate(model, encoder_outputs=features, **{CACHE_NAME: cache}, **GREEDY)
    assert len(quick_runs) == 1
    assert cache.get_seq_length() == words.shape[1] - 1
    with torch.no_grad():
        expected = model(encoder_outputs=features, decoder_input_ids=words[:, :-1], use_cache=True).cache
    assert torch.allclose(cache.hidden_state, expected.hidden_state, atol=1e-6)
    assert torch.allclose(cache.cell_state, expected.cell_state, atol=1e-6)


def test_each_step_can_be_watched(quick_runs: list) -> None:
    model, steps = tiny_model(), []
    expected = generate(model, **GREEDY)
    quick_runs.clear()
    hook = model.register_forward_hook(lambda *_: steps.append(1))
    assert torch.equal(generate(model, **GREEDY), expected)
    assert len(steps) == expected.shape[1] - 1, "a hook sees each word"
    hook.remove()
    steps.clear()
    forward = model.forward
    model.forward = lambda *args, **kwargs: steps.append(1) or forward(*args, **kwargs)  # as Accelerate does
    assert torch.equal(generate(model, **GREEDY), expected)
    assert len(steps) == expected.shape[1] - 1
    del model.forward
    assert quick_runs == []


def test_a_subclass_has_the_last_word(quick_runs: list) -> None:
    class Stubborn(NICForConditionalGeneration):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits[..., 11] = 1e4
            return outputs

    model = Stubborn(tiny_model().config).eval()
    assert (generate(model, **GREEDY)[:, 1:] == 11).all()
    assert quick_runs == []


def test_outputs_and_streams_come_from_transformers(quick_runs: list) -> None:
    model = tiny_model()
    outputs = generate(model, output_scores=True, return_dict_in_generate=True, **GREEDY)
    assert len(outputs.scores) == outputs.sequences.shape[1] - 1

    class Words(TextStreamer):
        def __init__(self) -> None:
            self.words: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.words += value.flatten().tolist()

        def end(self) -> None:
            pass

    streamer, features = Words(), BaseModelOutput(last_hidden_state=tiny_features(1).unsqueeze(1))
    words = generate(model, encoder_outputs=features, streamer=streamer, **GREEDY)
    assert streamer.words == words[0].tolist()
    static = generate(model, cache_implementation="static", disable_compile=True, **GREEDY)
    assert torch.equal(static, outputs.sequences)
    assert quick_runs == []

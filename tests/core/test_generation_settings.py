"""Who says how long captions get and what `generate()` does, the caller, a configuration or the checkpoint."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny_checkpoint, tiny_features, tiny_model, tiny_photos, tiny_pixels, tiny_processor
from transformers import GenerationConfig

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration
from nic_hf.decoding import NICEnsemble, diverse_beam_search

NEVER = [0, 1, 2, 3]  # special words, the end of a caption among them


@contextlib.contextmanager
def nothing_warned_of() -> Iterator[None]:
    """Fail where Transformers warns or logs at WARNING or above."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logger.removeHandler(handler)
    assert records == []


@pytest.fixture(params=["captioner", "attention", "ensemble"])
def model(request: pytest.FixtureRequest) -> Any:
    if request.param == "ensemble":
        return NICEnsemble([tiny_model(), tiny_model(seed=3)])
    return tiny_model(attention="soft" if request.param == "attention" else None)


def words(model: Any, *args: Any, **settings: Any) -> int:
    """How many words the longest caption gets that does not end by itself; `<bos>` is none."""
    with nothing_warned_of():
        found = model.generate(*args, pixel_values=tiny_pixels(2), suppress_tokens=NEVER, **settings)
    return found.shape[1] - 1


def test_a_checkpoint_says_beam_3_and_20_words(model: Any) -> None:
    assert model.generation_config.num_beams == 3
    assert words(model) == 20
    assert words(model, num_beams=1) == 20
    assert words(model, decoder_input_ids=torch.tensor([[1, 5, 6]] * 2)) == 22


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_callers_length_beats_the_checkpoints(model: Any, num_beams: int) -> None:
    assert words(model, num_beams=num_beams, max_new_tokens=4) == 4
    assert words(model, num_beams=num_beams, max_new_tokens=30) == 30
    assert words(model, num_beams=num_beams, max_length=5) == 4  # `<bos>` counts
    assert words(model, num_beams=num_beams, max_length=40) == 39


def test_a_generation_configs_length_beats_the_checkpoints(model: Any) -> None:
    for lengths, expected in (({"max_length": 5}, 4), ({"max_new_tokens": 5}, 5)):
        settings = GenerationConfig(**lengths, suppress_tokens=NEVER)
        with nothing_warned_of():
            assert model.generate(pixel_values=tiny_pixels(2), generation_config=settings).shape[1] - 1 == expected


@pytest.mark.parametrize(("lengths", "expected"), [({"max_length": 5}, 4), ({"max_new_tokens": 5}, 5)])
def test_the_callers_length_beats_a_generation_configs(model: Any, lengths: dict[str, int], expected: int) -> None:
    for other in ({"max_length": 9}, {"max_new_tokens": 9}):
        settings = GenerationConfig(**other)
        found = model.generate(pixel_values=tiny_pixels(2), generation_config=settings, eos_token_id=-1, **lengths)
        assert found.shape[1] - 1 == expected


def test_a_models_own_length_beats_the_default(model: Any) -> None:
    model.generation_config.max_length = 7
    assert words(model) == 6
    model.generation_config.max_length = None
    model.generation_config.max_new_tokens = 7
    assert words(model) == 7
    assert words(model, max_length=4) == 3


def test_both_lengths_of_one_caller_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """What Transformers does: `max_new_tokens` counts."""
    model = tiny_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("transformers"), "propagate", True)
        found = model.generate(pixel_values=tiny_pixels(1), max_length=5, max_new_tokens=7, eos_token_id=-1)
    assert found.shape[1] == 8
    assert "Both `max_new_tokens` (=7) and `max_length`(=5)" in caplog.text


def test_a_length_can_be_switched_off(model: Any) -> None:
    assert words(model, max_new_tokens=None, max_length=6) == 5


@pytest.mark.parametrize("lengths", [{"max_new_tokens": 20}, {"max_new_tokens": 20, "max_length": 20}])
def test_checkpoints_of_any_age_obey_the_caller(tmp_path: Path, lengths: dict[str, int]) -> None:
    """Seq2SeqTrainer writes Transformers' default of `max_length` into a model it has evaluated."""
    save_tiny_checkpoint(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **lengths}))
    model = NICForConditionalGeneration.from_pretrained(tmp_path)
    assert words(model) == 20
    assert words(model, max_length=5) == 4
    assert words(model, max_new_tokens=5) == 5


def test_the_pipelines_length_beats_the_checkpoints() -> None:
    captioner = ImageToTextPipeline(model=tiny_model(), processor=tiny_processor())
    settings = {"num_beams": 1, "suppress_tokens": NEVER}
    for lengths, expected in (({"max_length": 5}, 4), ({"max_new_tokens": 5}, 5), ({}, 20)):
        (caption,) = captioner(tiny_photos(1)[0], generate_kwargs=settings, **lengths)
        assert len(caption["generated_text"].split()) == expected


def test_custom_decoding_gets_the_callers_length() -> None:
    settings = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "custom_generate": diverse_beam_search}
    assert words(tiny_model(), max_length=5, **settings) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scale": 1.5}, "`guidance_scale` .got 1.5.: a captioner has no input without the image"),
        ({"prefill_chunk_size": 2}, "`prefill_chunk_size`"),
        ({"assistant_early_exit": 1, "num_beams": 1}, "`assistant_early_exit`"),
        ({"cache_implementation": "quantized"}, "`cache_implementation` must be .*'dynamic'.* got 'quantized'"),
        ({"cache_implementation": "offloaded"}, "got 'offloaded'"),
        ({"cache_implementation": "offloaded_static"}, "got 'offloaded_static'"),
    ],
)
def test_what_no_captioner_can_do_is_refused(model: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(pixel_values=tiny_pixels(1), **settings)


def test_settings_that_ask_for_nothing_are_taken(model: Any) -> None:
    expected = model.generate(pixel_values=tiny_pixels(2))
    found = model.generate(pixel_values=tiny_pixels(2), guidance_scale=1, cache_implementation="dynamic")
    assert torch.equal(found, expected)


def test_an_ensemble_has_no_static_cache() -> None:
    with pytest.raises(ValueError, match="must be 'dynamic', 'dynamic_full' or None for NICEnsemble"):
        NICEnsemble([tiny_model()]).generate(pixel_values=tiny_pixels(1), cache_implementation="static")


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_stop_at_a_string(model: Any, num_beams: int) -> None:
    tokenizer = tiny_processor().tokenizer
    settings = {"pixel_values": tiny_pixels(4), "num_beams": num_beams, "suppress_tokens": NEVER}
    whole = tokenizer.batch_decode(model.generate(**settings), skip_special_tokens=True)
    word = whole[0].split()[3]
    # Part of a word, of a word and the next, and a word.
    for string in (word[1:], whole[0].split()[2][-1] + " " + word[:1], word):
        stopped = model.generate(**settings, stop_strings=string, tokenizer=tokenizer)
        found = tokenizer.batch_decode(stopped, skip_special_tokens=True)
        if num_beams == 1:  # with beams another caption may be best that ends early
            assert [caption.split() for caption in found] == [first_words_until(string, caption) for caption in whole]
        assert all(string in caption for caption in found if len(caption.split()) < 20)
        assert string in found[0]


def first_words_until(string: str, caption: str) -> list[str]:
    """The caption up to the word that completes the string."""
    split = caption.split()
    return next((split[:number] for number in range(1, len(split)) if string in " ".join(split[:number])), split)


def test_stop_strings_in_the_prefix_stop_nothing() -> None:
    model, tokenizer = tiny_model(), tiny_processor().tokenizer
    prefix = torch.tensor([[1, *tokenizer("a dog", add_special_tokens=False).input_ids]])
    settings = {"encoder_outputs": tiny_features(1), "decoder_input_ids": prefix, "num_beams": 1}
    expected = model.generate(**settings, bad_words_ids=[[word] for word in prefix[0, 1:].tolist()])
    found = model.generate(
        **settings,
        bad_words_ids=[[word] for word in prefix[0, 1:].tolist()],
        stop_strings=["a dog", "dog"],
        tokenizer=tokenizer,
    )
    assert torch.equal(found, expected)


def test_stop_strings_need_the_tokenizer() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        tiny_model().generate(pixel_values=tiny_pixels(1), stop_strings="dog")

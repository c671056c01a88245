"""Captions that go on from words of the user, of one length or of several: each as if its photo were alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_photos, tiny_processor
from transformers import pipeline

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.decoding import NICEnsemble, diverse_beam_search

PHOTOS = tiny_photos(4)
PREFIXES = ["two children", "", "a man rides his", "the"]
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 1},
    {"num_beams": 3},
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 1, "use_cache": False},
    {"num_beams": 2, "use_cache": False},
    {"num_beams": 1, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "custom_generate": diverse_beam_search},
]


@pytest.fixture(scope="module")
def processor() -> NICProcessor:
    return tiny_processor()


def captions(model: Any, processor: NICProcessor, places: list[int], settings: dict[str, Any], **options: Any) -> Any:
    inputs = processor(
        images=[PHOTOS[place] for place in places],
        text=[PREFIXES[place] for place in places],
        return_tensors="pt",
        **options,
    )
    return processor.batch_decode(model.generate(**inputs, **settings), skip_special_tokens=True)


def one_by_one(model: Any, processor: NICProcessor, settings: dict[str, Any]) -> list[str]:
    found = [captions(model, processor, [place], settings) for place in range(len(PHOTOS))]
    assert all(caption.startswith(prefix) for each, prefix in zip(found, PREFIXES, strict=True) for caption in each)
    return [caption for each in found for caption in each]


@pytest.mark.parametrize("settings", SEARCHES, ids=lambda settings: ", ".join(settings) or "greedy")
@pytest.mark.parametrize("attention", [None, "soft"])
@pytest.mark.parametrize("layers", [1, 2])
def test_in_a_batch_each_prefix_is_continued_as_if_alone(
    processor: NICProcessor, settings: dict[str, Any], attention: str | None, layers: int
) -> None:
    model = tiny_model(attention=attention, num_hidden_layers=layers)
    expected = one_by_one(model, processor, settings)
    assert captions(model, processor, [0, 1, 2, 3], settings) == expected
    for options in ({"padding": "max_length", "max_length": 9}, {"padding_side": "right"}):
        assert captions(model, processor, [0, 1, 2, 3], settings, **options) == expected


def test_an_ensemble_continues_each_prefix_as_if_alone(processor: NICProcessor) -> None:
    ensemble = NICEnsemble([tiny_model(), tiny_model(50)])
    for settings in SEARCHES[:3]:
        expected = one_by_one(ensemble, processor, settings)
        assert captions(ensemble, processor, [0, 1, 2, 3], settings) == expected


def test_padding_changes_no_logits_of_words(processor: NICProcessor) -> None:
    words = processor(text=PREFIXES, return_tensors="pt")
    pixels = processor(images=PHOTOS, return_tensors="pt")
    for model in (tiny_model(), tiny_model(attention="soft")):
        logits = model(**pixels, **words).logits
        for row, prefix in enumerate(PREFIXES):
            alone = model(pixels.pixel_values[row : row + 1], **processor(text=prefix, return_tensors="pt")).logits
            is_word = words.decoder_attention_mask[row].bool()
            torch.testing.assert_close(logits[row, is_word], alone[0])


def test_a_mask_of_past_words_too_may_be_given(processor: NICProcessor) -> None:
    """As decoders with attention take it: of what the cache has read and of what comes."""
    model, words = tiny_model(), processor(text=PREFIXES, return_tensors="pt")
    pixels = processor(images=PHOTOS, return_tensors="pt").pixel_values
    ids, mask = words.decoder_input_ids, words.decoder_attention_mask
    whole = model(pixels, decoder_input_ids=ids, decoder_attention_mask=mask).logits
    cache = model(pixels, decoder_input_ids=ids[:, :2], decoder_attention_mask=mask[:, :2], use_cache=True).cache
    rest = model(decoder_input_ids=ids[:, 2:], decoder_attention_mask=mask, cache=cache).logits
    torch.testing.assert_close(rest, whole[:, 2:])


def test_generation_in_training_mode_does_not_read_padding(processor: NICProcessor) -> None:
    model: NICForConditionalGeneration = tiny_model().train()
    expected = one_by_one(model, processor, {"num_beams": 1})
    assert captions(model, processor, [0, 1, 2, 3], {"num_beams": 1}) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_pipeline_takes_a_prompt_for_each_photo(processor: NICProcessor, batch_size: int, tmp_path: Path) -> None:
    model = tiny_model()
    captioner = ImageToTextPipeline(model=model, processor=processor)
    expected = [[{"generated_text": caption}] for caption in one_by_one(model, processor, {})]

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(PHOTOS)

        def __getitem__(self, index: int) -> Any:
            return PHOTOS[index]

    assert captioner(PHOTOS, prompt=PREFIXES, batch_size=batch_size) == expected
    assert captioner(tuple(PHOTOS), prompt=tuple(PREFIXES), batch_size=batch_size) == expected
    assert list(captioner(Photos(), prompt=PREFIXES, batch_size=batch_size)) == expected
    lazy = captioner((photo for photo in PHOTOS), prompt=(prefix for prefix in PREFIXES), batch_size=batch_size)
    assert not isinstance(lazy, list)
    assert list(lazy) == expected
    assert captioner(PHOTOS[2], prompt=[PREFIXES[2]]) == expected[2]
    for number, prefix in enumerate(PREFIXES):
        assert captioner(PHOTOS[number], prompt=prefix) == expected[number]


def test_a_column_of_photos_takes_a_column_of_prompts(processor: NICProcessor) -> None:
    datasets = pytest.importorskip("datasets")
    model = tiny_model()
    table = datasets.Dataset.from_dict({"image": PHOTOS, "start": PREFIXES})
    table = table.cast_column("image", datasets.Image())
    found = ImageToTextPipeline(model=model, processor=processor)(table["image"], prompt=table["start"], batch_size=3)
    assert [answer[0]["generated_text"] for answer in found] == one_by_one(model, processor, {})


def test_as_many_prompts_as_photos_are_needed(processor: NICProcessor) -> None:
    captioner = ImageToTextPipeline(model=tiny_model(), processor=processor)
    with pytest.raises(ValueError, match='2 prompts for 4 photos: give one per photo, "" for none'):
        captioner(PHOTOS, prompt=["two", "a"])
    with pytest.raises(ValueError, match="4 prompts for 2 photos"):
        captioner(PHOTOS[:2], prompt=PREFIXES)
    with pytest.raises(ValueError, match="4 prompts for 1 photos"):
        captioner(PHOTOS[0], prompt=PREFIXES)
    with pytest.raises(ValueError, match="zip"):
        list(captioner((photo for photo in PHOTOS), prompt=["a"]))
    with pytest.raises(ValueError, match='2 texts for 3 photos: give one per photo, "" for none'):
        processor(images=PHOTOS[:3], text=["two", "a"])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_native_pipeline_takes_texts_of_several_lengths(
    processor: NICProcessor, batch_size: int, tmp_path: Path
) -> None:
    model = tiny_model()
    native = pipeline("image-text-to-text", model=model, processor=processor)
    expected = one_by_one(model, processor, {})
    found = native(images=PHOTOS, text=PREFIXES, batch_size=batch_size)
    assert [answer["generated_text"] for answer in found] == expected
    pairs = ({"images": photo, "text": prefix} for photo, prefix in zip(PHOTOS, PREFIXES, strict=True))
    assert [answer[0]["generated_text"] for answer in native(pairs, batch_size=batch_size)] == expected
    chats = [
        [
            {"role": "user", "content": [{"type": "image", "image": photo}]},
            {"role": "assistant", "content": [{"type": "text", "text": prefix}]},
        ]
        for photo, prefix in zip(PHOTOS, PREFIXES, strict=True)
    ]
    answers = native(chats, batch_size=batch_size)
    assert [answer[0]["generated_text"][-1]["content"][0]["text"] for answer in answers] == expected

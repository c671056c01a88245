"""NICProcessor: photos to pixels, captions to labels, prefixes to decoder inputs."""

import base64
import io
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, tiny_model, tiny_photos, tiny_processor
from transformers import AutoProcessor
from transformers.utils.logging import warning_once

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.model.processor import build_image_processor, load_image_processor, squeeze_to

MEAN, STD = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])


@pytest.fixture(scope="module")
def processor() -> NICProcessor:
    return tiny_processor()


def pixels_by_hand(photo: Image.Image) -> np.ndarray:
    """Resized by Pillow, scaled to 0 to 1 and standardised: shape `(3, 32, 32)`."""
    resized = np.asarray(photo.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    return ((resized / 255 - MEAN) / STD).transpose(2, 0, 1)


def test_pixels_are_resized_and_standardised(processor: NICProcessor) -> None:
    photos = tiny_photos(2)
    found = processor(images=photos, return_tensors="pt").pixel_values
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.stack([pixels_by_hand(photo) for photo in photos]), atol=1e-5)


def test_photos_may_come_one_by_one_or_in_lists_of_any_form(processor: NICProcessor, tmp_path: Path) -> None:
    photo = tiny_photos(1)[0]
    photo.save(tmp_path / "photo.png")
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    expected = processor(images=[photo], return_tensors="pt").pixel_values
    forms: list[Any] = [
        photo,
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        stream.getvalue(),
        base64.b64encode(stream.getvalue()).decode(),
        np.asarray(photo),
        torch.from_numpy(np.array(photo)),
        photo.convert("RGBA"),
    ]
    for form in forms:
        assert torch.equal(processor(images=form, return_tensors="pt").pixel_values, expected)
    several = processor(images=tuple(forms), return_tensors="pt").pixel_values
    assert torch.equal(several, expected.expand(len(forms), -1, -1, -1))
    # Without `return_tensors` too, since a data set's transform collates later.
    assert np.asarray(processor(images=photo).pixel_values).shape == (1, 3, 32, 32)


def test_settings_of_the_image_processor_may_be_given_for_one_call(processor: NICProcessor) -> None:
    found = processor(images=tiny_photos(1), size={"height": 16, "width": 24}, return_tensors="pt").pixel_values
    assert found.shape == (1, 3, 16, 24)
    assert processor(images=tiny_photos(1), return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)


def test_an_unreadable_photo_is_named(processor: NICProcessor, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    with pytest.raises(OSError, match=r"broken\.jpg"):
        processor(images=[tiny_photos(1)[0], tmp_path / "broken.jpg"])


def test_labels_are_words_then_eos_then_padding_that_the_loss_leaves_out(processor: NICProcessor) -> None:
    vocabulary = processor.tokenizer.get_vocab()
    found = processor(text_target=["A dog runs .", "A zebra"], return_tensors="pt").labels
    a, dog, runs, eos, unk = (vocabulary[word] for word in ("a", "dog", "runs", "<eos>", "<unk>"))
    assert found.tolist() == [[a, dog, runs, eos], [a, unk, eos, -100]]
    assert processor(text_target="a dog").labels == [[a, dog, eos]]


def test_labels_made_here_are_what_the_model_learns(processor: NICProcessor) -> None:
    model = tiny_model(seed=1, initializer_range=0.3, freeze_backbone=True).train()
    inputs = processor(images=tiny_photos(4), text_target=CAPTIONS, return_tensors="pt")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    captions = model.eval().generate(pixel_values=inputs.pixel_values)
    assert processor.post_process_image_text_to_text(captions) == CAPTIONS


def test_a_prefix_is_bos_and_its_words(processor: NICProcessor) -> None:
    vocabulary = processor.tokenizer.get_vocab()
    found = processor(images=tiny_photos(2), text=["a dog", "two children"], return_tensors="pt")
    assert found.decoder_input_ids.tolist() == [
        [1, vocabulary["a"], vocabulary["dog"]],
        [1, vocabulary["two"], vocabulary["children"]],
    ]
    assert processor(text="a").decoder_input_ids == [[1, vocabulary["a"]]]
    assert processor(text="").decoder_input_ids == [[1]]


def test_a_prefix_starts_the_caption(processor: NICProcessor) -> None:
    inputs = processor(images=tiny_photos(2), text=["two children", "a man"], return_tensors="pt")
    captions = processor.batch_decode(tiny_model().generate(**inputs), skip_special_tokens=True)
    assert captions[0].startswith("two children ")
    assert captions[1].startswith("a man ")


def test_captions_given_as_text_are_answered_by_text_target(processor: NICProcessor) -> None:
    with pytest.raises(ValueError, match=r"5 texts for 1 photos: .*captions to learn go into `text_target`"):
        processor(images=tiny_photos(1)[0], text=["a dog"] * 5, return_tensors="pt")
    with pytest.raises(ValueError, match=r"1 texts for 2 photos: .*`text_target`, which gives `labels`"):
        processor(images=tiny_photos(2), text="a dog", return_tensors="pt")


def test_training_on_prefixes_says_that_labels_are_missing(
    processor: NICProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    warning_once.cache_clear()  # a test of this process may have been told already
    inputs = processor(images=tiny_photos(2), text=CAPTIONS[:2], return_tensors="pt")
    model = tiny_model().eval()
    assert model(**inputs).loss is None and "text_target" not in caplog.text
    assert model.train()(**inputs).loss is None
    assert "no `labels`, so no loss" in caplog.text and "`text_target`" in caplog.text


def test_a_prefix_of_unknown_words_says_so(processor: NICProcessor, caplog: pytest.LogCaptureFixture) -> None:
    ids = processor(text=["a Zebra’s black dog", "a black Gnu dog dogs"]).decoder_input_ids
    assert ids[0][:4] == [1, processor.tokenizer.get_vocab()["a"], 3, 3]
    assert "a prefix that the captioner does not know, and reads as <unk>: Zebra, ’s" in caplog.text
    assert "reads as <unk>: Gnu, dogs" in caplog.text
    caplog.clear()
    processor(text="a black dog", text_target="a black zebra")
    assert not caplog.messages


def test_prefixes_of_different_lengths_are_padded_on_the_left_of_their_words(processor: NICProcessor) -> None:
    vocabulary = processor.tokenizer.get_vocab()
    found = processor(text=["a dog", "two", ""])
    bos, pad, a, dog, two = (vocabulary[word] for word in ("<bos>", "<pad>", "a", "dog", "two"))
    assert found.decoder_input_ids == [[bos, a, dog], [bos, pad, two], [bos, pad, pad]]
    assert found.decoder_attention_mask == [[1, 1, 1], [1, 0, 1], [1, 0, 0]]
    on_the_right = processor(text=["a dog", "two"], padding_side="right")
    assert on_the_right.decoder_input_ids[1] == [bos, two, pad]
    assert processor(text=["a dog", "two"], padding=False).decoder_input_ids == [[bos, a, dog], [bos, two]]
    with pytest.raises(ValueError, match="padding=True"):
        processor(text=["a dog", "two"], padding=False, return_tensors="pt")


def test_text_is_padded_and_truncated_as_the_call_says(processor: NICProcessor) -> None:
    prefix = {"text": ["a man rides his bicycle", "the"], "return_tensors": "np"}
    caption = {"text_target": ["a man rides his bicycle", "the"], "return_tensors": "np"}
    assert processor(**prefix).decoder_input_ids.shape == (2, 6)  # with <bos>
    assert processor(**caption).labels.shape == (2, 6)  # with <eos>
    for options in (
        {"padding": "max_length", "max_length": 9},
        {"text_kwargs": {"padding": "max_length", "max_length": 9}},
    ):
        assert processor(**prefix, **options).decoder_attention_mask.sum(axis=1).tolist() == [6, 2]
        assert processor(**prefix, **options).decoder_input_ids.shape == (2, 9)
        labels = processor(**caption, **options).labels
        assert labels.shape == (2, 9)
        assert (labels != -100).sum(axis=1).tolist() == [6, 2]
    whole = processor(**prefix).decoder_input_ids[0].tolist()
    cut = processor(**prefix, truncation=True, max_length=4)
    assert cut.decoder_input_ids[0].tolist() == whole[:4]
    cut = processor(**caption, truncation=True, max_length=4)
    assert cut.labels[0].tolist() == [*whole[1:4], processor.tokenizer.eos_token_id]
    one = processor(text=["a man"], truncation=True, max_length=1, return_tensors="np")
    assert one.decoder_input_ids.tolist() == [whole[:1]]


def test_keywords_are_merged_as_other_processors_merge_them(
    processor: NICProcessor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    photos, size = tiny_photos(2), {"height": 16, "width": 24}
    for options in (
        {"size": size, "do_normalize": False, "return_tensors": "pt"},
        {"images_kwargs": {"size": size, "do_normalize": False}, "return_tensors": "pt"},
        {"images_kwargs": {"size": size}, "do_normalize": False, "common_kwargs": {"return_tensors": "pt"}},
    ):
        found = processor(images=photos, text=["a", "a dog"], text_target=CAPTIONS[:2], **options)
        assert found.pixel_values.shape == (2, 3, 16, 24)
        assert found.pixel_values.min() >= 0 and found.pixel_values.max() <= 1
        assert all(torch.is_tensor(value) for value in found.values())
    assert not caplog.records
    with pytest.raises(ValueError, match="size was passed two times"):
        processor(images=photos, size=size, images_kwargs={"size": size})
    # Another test may have been told, or have silenced Transformers, whose logger hands nothing up outside of CI.
    warning_once.cache_clear()
    theirs = logging.getLogger("transformers")
    theirs.addHandler(caplog.handler)
    try:
        with caplog.at_level("WARNING", logger="transformers"):
            processor(images=photos, do_resise=False)
    finally:
        theirs.removeHandler(caplog.handler)
    assert "Keyword argument `do_resise` is not a valid argument" in caplog.text


def test_a_photo_may_lie_in_a_list_of_one_as_for_processors_that_take_several(processor: NICProcessor) -> None:
    photos = tiny_photos(2)
    expected = processor(images=photos, return_tensors="pt").pixel_values
    assert torch.equal(processor(images=[[photo] for photo in photos], return_tensors="pt").pixel_values, expected)


def test_a_call_without_anything_is_refused(processor: NICProcessor) -> None:
    with pytest.raises(ValueError, match="give `images`, `text` or `text_target`"):
        processor()


def test_decoding_leaves_special_tokens_out(processor: NICProcessor) -> None:
    ids = [[1, *processor.tokenizer("a dog runs").input_ids, 0, 0]]
    assert processor.post_process_image_text_to_text(ids) == ["a dog runs"]
    assert processor.post_process_image_text_to_text(ids, skip_special_tokens=False)[0].startswith("<bos> a dog")


SETTINGS = {
    "image_processor_type": "MobileNetV2ImageProcessor",
    "do_center_crop": True,
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
}


def test_squeezing_gives_up_the_aspect_ratio_and_loses_no_edge(tmp_path: Path) -> None:
    photo = Image.new("RGB", (90, 30))
    photo.paste("white", (0, 0, 10, 30))  # something at the edge, which a centre crop loses
    cropping = build_image_processor(SETTINGS)
    whole = squeeze_to(build_image_processor(SETTINGS), 64)
    assert not cropping(photo, return_tensors="pt").pixel_values.gt(0).any()
    pixels = whole(photo, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.gt(0).float().mean() == pytest.approx(10 / 90, abs=0.03)
    assert squeeze_to(build_image_processor(SETTINGS), 32, 48)(photo, return_tensors="pt").pixel_values.shape[2:] == (
        32,
        48,
    )

    NICProcessor(whole, tiny_processor().tokenizer).save_pretrained(tmp_path)
    loaded = NICProcessor.from_pretrained(tmp_path)
    assert torch.equal(loaded(images=photo, return_tensors="pt").pixel_values, pixels)


def test_the_image_processor_is_always_the_one_that_computes_with_pillow(tmp_path: Path) -> None:
    for name in ("MobileNetV2ImageProcessor", "MobileNetV2ImageProcessorFast", "MobileNetV2FeatureExtractor"):
        built = build_image_processor({**SETTINGS, "image_processor_type": name})
        assert type(built).__name__ in ("MobileNetV2ImageProcessorPil", "MobileNetV2ImageProcessor")
        assert "torchvision" not in sys.modules[type(built).__module__].__dict__
        assert "tvF" not in sys.modules[type(built).__module__].__dict__
    tiny_processor().save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded.image_processor) is type(tiny_processor().image_processor)


def test_an_unknown_image_processor_is_named() -> None:
    with pytest.raises(ValueError, match="has no image processor 'NoSuchImageProcessor'"):
        build_image_processor({"image_processor_type": "NoSuchImageProcessor"})


def test_the_processor_of_the_real_mobilenet_v2(test_data: Path) -> None:
    image_processor = load_image_processor(test_data / "backbones" / "mobilenet-v2")
    photo = Image.open(test_data / "seed-examples" / "dog.png").convert("RGB")
    found = image_processor(photo, return_tensors="pt").pixel_values
    assert found.shape == (1, 3, 224, 224)
    # 256 x 256 photos: no resize, and the middle 224 of 256 pixels.
    middle = np.asarray(photo)[16:-16, 16:-16] / 255
    expected = (middle - image_processor.image_mean) / image_processor.image_std
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)

    smaller = load_image_processor(test_data / "backbones" / "mobilenet-v2", do_center_crop=False)
    assert smaller(photo, return_tensors="pt").pixel_values.shape == (1, 3, 256, 256)


def test_the_native_pipeline_needs_no_prompt(processor: NICProcessor) -> None:
    """`pipeline("image-text-to-text")` gives an empty text where the user gave none."""
    inputs = processor(images=tiny_photos(2), text=["", ""], return_tensors="pt")
    model: NICForConditionalGeneration = tiny_model()
    assert torch.equal(model.generate(**inputs), model.generate(pixel_values=inputs.pixel_values))

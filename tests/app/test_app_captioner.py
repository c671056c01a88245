"""Captions, probabilities and weights of the app, against the model's own and against arithmetic."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_photos, tiny_processor
from transformers import CLIPImageProcessor

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.app import AppCaptioner
from nic_hf.app.scored_captions import as_grid


def test_captions_are_those_of_the_pipeline(captioner: AppCaptioner, checkpoint: Path, photos: list[Path]) -> None:
    model = NICForConditionalGeneration.from_pretrained(checkpoint)
    pipeline = ImageToTextPipeline(model=model, processor=NICProcessor.from_pretrained(checkpoint))
    settings = {"num_beams": 4, "num_return_sequences": 4}
    for photo in photos:
        expected = [each["generated_text"] for each in pipeline(str(photo), generate_kwargs=settings)]
        assert [caption.text for caption in captioner.describe(photo, 4, num_beams=4)] == expected


def test_probabilities_and_weights_are_the_models_own(checkpoint: Path, photos: list[Path]) -> None:
    model = NICForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = NICProcessor.from_pretrained(checkpoint)
    for caption in AppCaptioner(model, processor, device="cpu").describe(photos[0], 3, num_beams=3):
        labels = processor.tokenizer(caption.text, return_tensors="pt").input_ids
        labels = labels if caption.ended else labels[:, :-1]
        pixels = processor(images=photos[0], return_tensors="pt").pixel_values
        with torch.no_grad():
            out = model(pixel_values=pixels, labels=labels, output_attentions=True)
        # The loss is the mean of -log p over words and end, equation 10.
        assert math.log(caption.probability) == pytest.approx(-out.loss.item() * labels.shape[1], rel=1e-4)
        assert caption.probability_a_word == pytest.approx(math.exp(-out.loss.item()), rel=1e-4)
        chances = out.logits.softmax(-1)[0].gather(-1, labels[0].unsqueeze(-1)).squeeze(-1).tolist()
        assert [word.probability for word in caption.words] == pytest.approx(chances[: len(caption.words)], rel=1e-4)
        for word, weights in zip(caption.words, out.cross_attentions[0][0], strict=False):
            assert word.attention.shape == (4, 4)
            np.testing.assert_allclose(word.attention.ravel(), weights.numpy(), rtol=1e-3, atol=1e-6)
    assert " ".join(word.text for word in caption.words) == caption.text


def test_answers_of_many_visitors_at_once_are_not_mixed_up(captioner: AppCaptioner, photos: list[Path]) -> None:
    alone = [captioner.describe(photo, 2, num_beams=3) for photo in photos]
    assert len({captions[0].text for captions in alone}) > 2
    order = [number % len(photos) for number in range(36)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda number: captioner.describe(photos[number], 2, num_beams=3), order))
    for number, captions in zip(order, found, strict=True):
        assert [each.text for each in captions] == [each.text for each in alone[number]]
        assert captions[0].probability == pytest.approx(alone[number][0].probability, rel=1e-5)


def test_samples_differ_and_are_ranked(captioner: AppCaptioner, photos: list[Path]) -> None:
    drawn = captioner.describe(photos[0], 8, temperature=1.5, seed=1)
    texts = [each.text for each in drawn]
    assert len(set(texts)) == len(texts) > 2
    assert [each.probability for each in drawn] == sorted((each.probability for each in drawn), reverse=True)
    assert [each.text for each in captioner.describe(photos[0], 8, temperature=1.5, seed=1)] == texts
    assert len(captioner.describe(photos[0], 8, temperature=1e-4, seed=1)) == 1, "hardly anything but the likeliest"


def test_a_captioner_without_attention_has_no_weights(photos: list[Path]) -> None:
    caption = AppCaptioner(tiny_model(), tiny_processor(), device="cpu").describe(photos[0])[0]
    assert caption.words and all(word.attention is None for word in caption.words)
    assert "attention" not in str(caption.to_json())


def test_photos_that_cannot_be_read_are_refused_by_name(captioner: AppCaptioner, tmp_path: Path) -> None:
    page = tmp_path / "page.jpg"
    page.write_text("<html>")
    cut = tmp_path / "cut.jpg"
    tiny_photos(1, size=(300, 300))[0].save(cut)
    cut.write_bytes(cut.read_bytes()[:1500])
    for file in (page, cut, tmp_path / "deleted.jpg"):
        with pytest.raises(OSError, match=file.name) as error:
            captioner.describe(file)
        assert str(tmp_path) not in str(error.value), "visitors need not know where files lie"
    large = tmp_path / "large.png"
    Image.new("1", (10_000, 6_000)).save(large)
    with pytest.raises(OSError, match=r"large\.png: .* 10000 x 6000 pixels; 50 million at most"):
        captioner.describe(large)


def test_what_is_seen_of_a_photo_is_what_the_processor_leaves(captioner: AppCaptioner) -> None:
    photo = Image.new("RGB", (300, 100), "red")
    photo.paste("blue", (0, 0, 100, 100))
    assert captioner.seen(photo, 60).size == (60, 20), "squeezed whole: the photo as it is"
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    cropping = NICProcessor(CLIPImageProcessor(**settings), tiny_processor().tokenizer)
    seen = AppCaptioner(tiny_model(), cropping, device="cpu").seen(photo, 60)
    assert seen.size == (32, 32)
    colours = np.asarray(seen, dtype=int)[:, 2:].reshape(-1, 3)
    assert np.abs(colours - (255, 0, 0)).max() <= 3, (
        "the middle third, without the blue one on the left, which bleeds into a column"
    )


@pytest.mark.parametrize(("number", "shape", "grid"), [(49, (224, 224), (7, 7)), (12, (96, 128), (3, 4))])
def test_regions_are_laid_out_as_the_photo_is(number: int, shape: tuple[int, int], grid: tuple[int, int]) -> None:
    found = as_grid(np.arange(number), shape)
    assert found.shape == grid
    assert found.ravel().tolist() == list(range(number)), "row by row"

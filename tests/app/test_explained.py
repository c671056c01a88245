"""What the app says of captions: probabilities and attention are those of the model."""

import math
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_photos, tiny_processor

from nic_hf import NICForConditionalGeneration
from nic_hf.app.explained import CaptionExplainer, heat_map
from nic_hf.app.markup import captions_html, percent


@pytest.fixture(scope="module")
def model() -> NICForConditionalGeneration:
    return tiny_model()


@pytest.fixture(scope="module")
def explainer(model: NICForConditionalGeneration) -> CaptionExplainer:
    return CaptionExplainer(model, tiny_processor())


def test_the_captions_are_those_of_beam_search(
    model: NICForConditionalGeneration, explainer: CaptionExplainer
) -> None:
    processor = tiny_processor()
    for photo in tiny_photos(4):
        found = explainer.explain(photo, num_captions=3, num_beams=4)
        ids = model.generate(**processor(images=photo, return_tensors="pt"), num_beams=4, num_return_sequences=3)
        expected = set(processor.tokenizer.batch_decode(ids, skip_special_tokens=True))
        assert {caption.text for caption in found} == expected
        probabilities = [caption.probability for caption in found]
        assert probabilities == sorted(probabilities, reverse=True)


def test_probabilities_are_those_of_the_loss(model: NICForConditionalGeneration, explainer: CaptionExplainer) -> None:
    processor = tiny_processor()
    (photo,) = tiny_photos(1)
    for caption in explainer.explain(photo, num_captions=4, num_beams=4):
        labels = processor.tokenizer(caption.text, return_tensors="pt").input_ids
        assert processor.tokenizer.unk_token_id not in labels
        with torch.no_grad():
            output = model(**processor(images=photo, return_tensors="pt"), labels=labels)
        nats = labels.shape[1] * float(output.loss)
        assert caption.probability == pytest.approx(math.exp(-nats), rel=1e-3)
        each = output.logits[0].softmax(dim=-1).gather(1, labels[0][:, None])[:, 0]
        assert [word.probability for word in caption.words] == pytest.approx(each[:-1].tolist(), rel=1e-3)
        assert " ".join(word.text for word in caption.words) == caption.text


def test_words_are_shown_where_the_model_looked() -> None:
    explainer = CaptionExplainer(tiny_model(attention="soft"), tiny_processor())
    (photo,) = tiny_photos(1)
    best = explainer.explain(photo, num_captions=1, num_beams=2)[0]
    assert best.words
    grids = [word.attention for word in best.words]
    assert all(grid is not None and grid.ndim == 2 and grid.sum() == pytest.approx(1, abs=1e-5) for grid in grids)


def test_a_heat_map_is_bright_where_the_model_looked() -> None:
    photo = Image.new("RGB", (80, 60), (200, 200, 200))
    weights = np.zeros((4, 4))
    weights[0, 3] = 1.0
    drawn = np.asarray(heat_map(photo, weights, width=160).convert("L"), float)
    assert drawn.shape == (120, 160)
    assert drawn[:20, 140:].mean() > 2 * drawn[60:, :80].mean()


def test_drawn_captions_differ(explainer: CaptionExplainer) -> None:
    (photo,) = tiny_photos(1)
    found = explainer.explain(photo, num_captions=8, temperature=1.5)
    texts = [caption.text for caption in found]
    assert len(texts) == len(set(texts)) > 3


def test_threads_do_not_mix_photos_up(explainer: CaptionExplainer) -> None:
    photos = tiny_photos(8, seed=3)
    expected = [explainer.explain(photo, 2, 2) for photo in photos]
    found: dict[int, list] = {}

    def caption(place: int) -> None:
        found[place] = [explainer.explain(photos[place], 2, 2) for _ in range(5)]

    threads = [threading.Thread(target=caption, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, own in found.items():
        assert all([c.text for c in captions] == [c.text for c in expected[place]] for captions in own)


def test_captions_are_not_taken_for_markup(explainer: CaptionExplainer) -> None:
    import dataclasses

    (photo,) = tiny_photos(1)
    caption = explainer.explain(photo, 1, 1)[0]
    words = [dataclasses.replace(word, text="<img src=x onerror=alert(1)>") for word in caption.words]
    page = captions_html([dataclasses.replace(caption, text="<script>alert(1)</script>", words=words)])
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page and "&lt;img" in page


def test_probabilities_for_people() -> None:
    assert [percent(value) for value in (1.0, 0.5, 0.0312, 2e-6)] == ["100 %", "50 %", "3.1 %", "0.0002 %"]

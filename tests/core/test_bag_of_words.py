"""The loss of telling a caption's words from the photo alone."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_labels, tiny_model, tiny_pixels
from torch.nn import functional as F

from nic_hf import NICConfig, NICForConditionalGeneration

LABELS = tiny_labels([3, 5])
INPUTS = {"pixel_values": tiny_pixels(2), "labels": LABELS}


def plain_cost(model: NICForConditionalGeneration, labels: torch.Tensor, captions_a_photo: int = 1) -> torch.Tensor:
    """Word by word and caption by caption."""
    assert model.bag_of_words is not None
    with torch.no_grad():
        images = model.image_projection(model.get_image_features(INPUTS["pixel_values"]))
        cost = torch.tensor(0.0)
        for number, caption in enumerate(labels.tolist()):
            said = {word for word in caption if word not in (-100, model.config.eos_token_id)}
            if not said:
                continue
            logits = model.bag_of_words(images[number // captions_a_photo].clamp_min(0))
            for word, logit in enumerate(logits):
                cost -= F.logsigmoid(logit if word in said else -logit)
    return cost


@pytest.mark.parametrize("attention", [None, "soft"])
def test_the_loss_is_that_of_the_captions_and_of_their_words(attention: str | None) -> None:
    model = tiny_model(bag_of_words_loss=0.7, attention=attention)
    if attention is None:
        expected = model(**INPUTS).loss + 0.7 * plain_cost(model, LABELS) / (LABELS != -100).sum()
        torch.testing.assert_close(model.train()(**INPUTS).loss, expected)
    else:
        assert model.train()(**INPUTS).loss > model.eval()(**INPUTS).loss


def test_several_captions_of_a_photo_and_rows_of_padding() -> None:
    model = tiny_model(bag_of_words_loss=1.0)
    labels = torch.stack([tiny_labels([3, 5]), tiny_labels([4, 5], seed=1)])
    labels[1, 1] = -100
    inputs = {"pixel_values": INPUTS["pixel_values"], "labels": labels}
    words = (labels != -100).sum()
    expected = model(**inputs).loss + plain_cost(model, labels.flatten(0, 1), captions_a_photo=2) / words
    torch.testing.assert_close(model.train()(**inputs).loss, expected)
    accumulated = model(**inputs, num_items_in_batch=2 * words).loss
    torch.testing.assert_close(accumulated, expected / 2)


def test_the_photo_gets_its_gradient() -> None:
    model = tiny_model(bag_of_words_loss=1.0).train()
    model(**INPUTS).loss.backward()
    assert model.bag_of_words is not None
    with_it = model.image_projection.linear.weight.grad.clone()
    assert model.bag_of_words.weight.grad.abs().sum() > 0
    without = tiny_model(bag_of_words_loss=0.0).train()
    without(**INPUTS).loss.backward()
    assert without.bag_of_words is None
    assert not F.cosine_similarity(with_it.flatten(), without.image_projection.linear.weight.grad.flatten(), 0) > 0.999


def test_it_is_saved_and_loaded_and_changes_no_caption(tmp_path: Path) -> None:
    model = tiny_model(bag_of_words_loss=1.0)
    model.save_pretrained(tmp_path)
    loaded = NICForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.bag_of_words.weight, model.bag_of_words.weight)
    plain = NICForConditionalGeneration(tiny_config()).eval()
    plain.load_state_dict({n: w for n, w in model.state_dict().items() if not n.startswith("bag_of_words")})
    words = [each.generate(pixel_values=INPUTS["pixel_values"], num_beams=2) for each in (model, plain)]
    assert torch.equal(*words)


def test_it_starts_from_words_that_are_rare() -> None:
    model = NICForConditionalGeneration(tiny_config(bag_of_words_loss=1.0))
    assert torch.equal(model.bag_of_words.bias, torch.full((27,), -6.0))


@pytest.mark.parametrize("weight", [-1, float("inf"), "1", True])
def test_a_weight_that_is_none_is_refused(weight: object) -> None:
    with pytest.raises(ValueError, match="bag_of_words_loss"):
        NICConfig(bag_of_words_loss=weight)

"""torch.compile gives the same numbers and the same captions."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from tiny import tiny_features, tiny_labels, tiny_model, tiny_pixels


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def test_a_compiled_forward_gives_the_same_loss_and_scores() -> None:
    model, labels = tiny_model(num_hidden_layers=2), tiny_labels([3, 5, 4, 6])
    for inputs in ({"encoder_outputs": tiny_features()}, {"pixel_values": tiny_pixels()}):
        expected = model(**inputs, labels=labels)
        # Traced and split as for machine code, which takes long to make; the decoding step below goes all the way.
        found = torch.compile(model, backend="aot_eager")(**inputs, labels=labels)
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "cl")), reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_decoding_step_gives_the_same_captions() -> None:
    pixel_values = tiny_pixels()
    expected = tiny_model().generate(pixel_values=pixel_values, num_beams=3)
    model = tiny_model()
    model.forward = torch.compile(model.forward, dynamic=True)
    assert torch.equal(model.generate(pixel_values=pixel_values, num_beams=3), expected)


def test_the_decoding_step_is_compiled_once_and_not_once_a_word() -> None:
    """A step must not depend on how many words came before it."""
    compiled = torch._dynamo.testing.CompileCounter()
    model = tiny_model()
    model.forward = torch.compile(model.forward, backend=compiled, dynamic=True)
    model.generate(pixel_values=tiny_pixels(), num_beams=1, min_new_tokens=3, max_new_tokens=3)
    after_three_words = compiled.frame_count
    model.generate(pixel_values=tiny_pixels(), num_beams=1, min_new_tokens=15, max_new_tokens=15)
    assert 0 < compiled.frame_count <= after_three_words + 1

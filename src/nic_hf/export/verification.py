"""Whether an exported captioner computes what the PyTorch model does."""

from typing import Any

import numpy as np
import torch

from ..modeling_nic import NICForConditionalGeneration
from .agreement import next_word_logits, trial_photos
from .onnx_captioner import NICOnnxCaptioner
from .preprocessing import PhotoPreprocessor

TOLERANCE = 1e-4


def check_pixels(image_processor: Any) -> tuple[int, int, int]:
    """Check that photos can be prepared without Transformers, to the same pixels; give their shape.

    Raises:
        ValueError: where the image processor does something that [`PhotoPreprocessor`] does not, or photos come out
            in different sizes.
    """
    photos = trial_photos()
    pixels = PhotoPreprocessor(image_processor.to_dict())(photos)
    for photo, ours in zip(photos, pixels, strict=True):
        expected = np.asarray(image_processor(photo, return_tensors="np")["pixel_values"][0], dtype=np.float32)
        if ours.shape != expected.shape or not np.array_equal(ours, expected):
            difference = (
                f"{np.abs(ours - expected).max():.2g}" if ours.shape == expected.shape else f"{expected.shape}"
            )
            raise ValueError(
                f"the ONNX captioner cannot prepare photos as {type(image_processor).__name__} does: a photo of "
                f"{photo.width} x {photo.height} comes out otherwise ({difference})"
            )
    return pixels.shape[1:]


@torch.no_grad()
def check_against_pytorch(captioner: NICOnnxCaptioner, model: NICForConditionalGeneration) -> None:
    """Compare features, and logits of random captions word by word, for several batch sizes.

    Raises:
        ValueError: where one differs by more than 1e-4 (of the largest, where that is above 1).
    """
    pixels = captioner.preprocess(trial_photos())
    random = np.random.default_rng(0)
    for num_photos, each in ((1, 1), (3, 1), (len(pixels), 3)):
        features = model.get_image_features(torch.from_numpy(pixels[:num_photos]))
        _compare("image features", captioner.get_image_features(pixels[:num_photos]), features)
        words = random.integers(0, model.config.vocab_size, (num_photos, each, 6))
        words[:, :, 0] = model.config.bos_token_id
        repeated = features if model.config.attention is not None else features.repeat_interleave(each, dim=0)
        prefixes = torch.from_numpy(words).flatten(0, 1)
        expected = model(
            encoder_outputs=repeated, decoder_input_ids=prefixes, use_cache=False, return_dict=True
        ).logits
        _compare(
            "logits", next_word_logits(captioner, features.numpy(), words), expected.unflatten(0, words.shape[:2])
        )


def check_words(captioner: NICOnnxCaptioner, tokenizer: Any) -> None:
    """Compare the text of all words.

    Raises:
        ValueError: where the tokenizer does something that `tokenizer.json` does not say.
    """
    ids = np.arange(captioner.config["vocab_size"]).reshape(-1, 1)
    ids = np.concatenate([ids, np.roll(ids, 1, axis=0)], axis=1)
    expected = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for pair, text, wanted in zip(ids.tolist(), captioner.decode(ids), expected, strict=True):
        if text != wanted:
            raise ValueError(
                f"the tokenizer's words come out otherwise without Transformers: {pair} {text!r} {wanted!r}"
            )


def _compare(what: str, found: np.ndarray, expected: torch.Tensor) -> None:
    wanted = expected.numpy()
    if found.shape != wanted.shape:
        raise ValueError(f"{what} of the ONNX captioner have the shape {found.shape}, those of PyTorch {wanted.shape}")
    difference = np.abs(found - wanted).max()
    if not difference <= TOLERANCE * max(1.0, np.abs(wanted).max()):  # also where it is no number
        raise ValueError(
            f"{what} of the ONNX captioner differ from PyTorch's by {difference:.2g}, more than {TOLERANCE}"
        )

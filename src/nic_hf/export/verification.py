"""Verify exported captioners: float32 graphs against PyTorch, 8-bit graphs against float32 ones."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..model.captioner import NICForConditionalGeneration
from .onnx_captioner import NICOnnxCaptioner
from .preprocessing import PhotoPreprocessor

TOLERANCE = 1e-4
LEAST_AGREEMENT = 0.5
_SIZES = ((500, 375), (333, 500), (97, 61), (224, 224), (30, 41), (640, 213))


def trial_photos() -> list[Image.Image]:
    """Photos of coarse random colours in wide, tall and small sizes; always the same."""
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size in _SIZES
    ]


def next_word_logits(captioner: NICOnnxCaptioner, features: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Logits after each of `words` (shape `(num_photos, num_captions, length)`), with one more dimension."""
    reader = captioner.reader(features)
    reader.spread(words.shape[1])
    return np.stack([reader.read(words[:, :, position]) for position in range(words.shape[2])], axis=2)


def check_pixels(image_processor: Any) -> tuple[int, int, int]:
    """Check that photos can be preprocessed without Transformers, to the same pixels, and return their shape.

    Raises:
        ValueError: if the image processor does something that [`PhotoPreprocessor`] does not support, or its outputs
            have different sizes.
    """
    photos = trial_photos()
    pixels = PhotoPreprocessor(image_processor.to_dict())(photos)
    for photo, ours in zip(photos, pixels, strict=True):
        expected = np.asarray(image_processor(photo, return_tensors="np")["pixel_values"][0], dtype=np.float32)
        if not np.array_equal(ours, expected):
            same_shape = ours.shape == expected.shape
            difference = f"{np.abs(ours - expected).max():.2g}" if same_shape else f"{expected.shape}"
            raise ValueError(
                f"the ONNX captioner cannot preprocess photos like {type(image_processor).__name__}: a photo of "
                f"{photo.width} x {photo.height} comes out different ({difference})"
            )
    return pixels.shape[1:]


@torch.no_grad()
def check_against_pytorch(captioner: NICOnnxCaptioner, model: NICForConditionalGeneration) -> None:
    """Compare features, and logits of random captions, for several batch sizes.

    Raises:
        ValueError: if a value differs by more than 1e-4 (relative to the largest value, if that is above 1).
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
        outputs = model(encoder_outputs=repeated, decoder_input_ids=prefixes, use_cache=False, return_dict=True)
        found = next_word_logits(captioner, features.numpy(), words)
        _compare("logits", found, outputs.logits.unflatten(0, words.shape[:2]))


def check_words(captioner: NICOnnxCaptioner, tokenizer: Any) -> None:
    """Compare the decoded text of all words.

    Raises:
        ValueError: if `tokenizer.json` alone decodes differently from the tokenizer.
    """
    ids = np.arange(captioner.config["vocab_size"]).reshape(-1, 1)
    ids = np.concatenate([ids, np.roll(ids, 1, axis=0)], axis=1)
    expected = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for pair, text, wanted in zip(ids.tolist(), captioner.decode(ids), expected, strict=True):
        if text != wanted:
            raise ValueError(f"without Transformers, the tokenizer decodes {pair} to {text!r} instead of {wanted!r}")


def word_agreement(captioner: NICOnnxCaptioner, rounded: NICOnnxCaptioner, photos: list[Image.Image]) -> float:
    """Share of words after which 8-bit and float32 graphs have the same most likely next word.

    Raises:
        ValueError: if it is less than half, or a logit is NaN or Inf.
    """
    same, total = 0, 0
    for start in range(0, len(photos), 32):
        pixels = captioner.preprocess(photos[start : start + 32])
        features = captioner.get_image_features(pixels)
        words = captioner.generate(encoder_outputs=features, num_beams=1, num_return_sequences=1, do_sample=False)
        words = words[:, None, :-1]
        expected = next_word_logits(captioner, features, words)
        found = next_word_logits(rounded, rounded.get_image_features(pixels), words)
        if not np.isfinite(found).all():
            raise ValueError("the 8-bit captioner's logits contain NaN or Inf")
        is_word = words != captioner.config["pad_token_id"]
        same += int(((expected.argmax(axis=-1) == found.argmax(axis=-1)) & is_word).sum())
        total += int(is_word.sum())
    agreement = same / total
    if agreement < LEAST_AGREEMENT:
        raise ValueError(
            f"8 bits are too few for this captioner: its next word differs in {1 - agreement:.0%} of the cases. Use "
            "float32, or other calibration photos"
        )
    return agreement


def _compare(what: str, found: np.ndarray, expected: torch.Tensor) -> None:
    wanted = expected.numpy()
    if found.shape != wanted.shape:
        raise ValueError(f"{what} of the ONNX captioner have the shape {found.shape}, those of PyTorch {wanted.shape}")
    difference = np.abs(found - wanted).max()
    if not difference <= TOLERANCE * max(1.0, np.abs(wanted).max()):  # also false for NaN
        raise ValueError(
            f"{what} of the ONNX captioner differ from PyTorch's by {difference:.2g}, more than {TOLERANCE}"
        )

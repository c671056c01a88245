"""How far two captioners agree, word by word."""

import numpy as np
from PIL import Image

from .onnx_captioner import NICOnnxCaptioner

LEAST_AGREEMENT = 0.5
_SIZES = ((500, 375), (333, 500), (97, 61), (224, 224), (30, 41), (640, 213))


def trial_photos() -> list[Image.Image]:
    """Photos of coarse random colours, wide, tall and small ones; the same each time."""
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size in _SIZES
    ]


def next_word_logits(captioner: NICOnnxCaptioner, features: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Logits after each of `words`, of shape `(num_photos, num_captions, length)`: one dimension more."""
    reader = captioner.reader(features)
    reader.spread(words.shape[1])
    return np.stack([reader.read(words[:, :, position]) for position in range(words.shape[2])], axis=2)


def word_agreement(captioner: NICOnnxCaptioner, rounded: NICOnnxCaptioner, photos: list[Image.Image]) -> float:
    """Share of words after which 8-bit graphs find the same next word likeliest as float32 ones.

    Raises:
        ValueError: where that is less than half, or a logit is no number.
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
            raise ValueError("the 8-bit captioner gives logits that are no numbers")
        is_word = words != captioner.config["pad_token_id"]
        same += int(((expected.argmax(axis=-1) == found.argmax(axis=-1)) & is_word).sum())
        total += int(is_word.sum())
    agreement = same / total
    if agreement < LEAST_AGREEMENT:
        raise ValueError(
            f"8 bits are too few for this captioner: it chooses another next word in {1 - agreement:.0%} of places. "
            "Use float32, or other calibration photos"
        )
    return agreement

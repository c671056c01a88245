"""Small models, processors and photos that tests share: built in milliseconds, and the same each time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast, ResNetConfig, ResNetModel

from nic_hf import NICConfig, NICForConditionalGeneration, NICProcessor
from nic_hf.model.processor import build_image_processor
from nic_hf.tokenization import train_tokenizer

IMAGE_SIZE = 32
CAPTIONS = [
    "a black dog runs through the snow",
    "two children play on a sunny beach",
    "a man rides his red bicycle",
    "the woman in a blue coat smiles",
]
TOKENIZER_SIZE = 27


def tiny_config(**changes: Any) -> NICConfig:
    """A captioner of some thousand weights; its backbone has BatchNorm and a pooler."""
    backbone = ResNetConfig(embedding_size=6, hidden_sizes=[6, 10], depths=[1, 1], layer_type="basic")
    settings = {
        "backbone_config": backbone,
        "vocab_size": TOKENIZER_SIZE,
        "embedding_size": 7,
        "hidden_size": 9,
        "dropout": 0.0,
        # Far from the default, so that different photos get different captions without training.
        "initializer_range": 1.5,
    }
    return NICConfig(**{**settings, **changes})


def tiny_model(seed: int = 49, **changes: Any) -> NICForConditionalGeneration:
    """A captioner with random weights, and random buffers too, so that losing them shows; in eval mode.

    The captions of the default seed end, and at different lengths.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NICForConditionalGeneration(tiny_config(**changes)).eval()
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5) if name.endswith(("var", "std")) else buffer.normal_(std=0.1)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 27 words."""
    tokenizer = train_tokenizer(CAPTIONS, min_frequency=1)
    assert len(tokenizer) == TOKENIZER_SIZE
    return tokenizer


def tiny_processor() -> NICProcessor:
    """A processor for photos of 32 x 32 pixels."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    return NICProcessor(build_image_processor(settings), tiny_tokenizer())


def tiny_pixels(batch_size: int = 4, seed: int = 0, size: int = IMAGE_SIZE) -> torch.Tensor:
    """Random `pixel_values` of shape `(batch_size, 3, size, size)`, each image of its own contrast."""
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.linspace(0.3, 3.0, batch_size).view(-1, 1, 1, 1)
    return torch.randn(batch_size, 3, size, size, generator=generator) * contrast


def tiny_features(batch_size: int = 4, seed: int = 0, size: int = 10) -> torch.Tensor:
    """Random image features of shape `(batch_size, size)`, as a cache holds them."""
    return torch.randn(batch_size, size, generator=torch.Generator().manual_seed(seed)) * 2


def tiny_labels(lengths: list[int], vocab_size: int = TOKENIZER_SIZE, seed: int = 0) -> torch.Tensor:
    """Random captions of these lengths, `<eos>` included, padded by -100 on the right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((len(lengths), max(lengths)), -100)
    for row, length in enumerate(lengths):
        labels[row, : length - 1] = torch.randint(4, vocab_size, (length - 1,), generator=generator)
        labels[row, length - 1] = 2
    return labels


def tiny_photos(number: int = 3, seed: int = 0, size: tuple[int, int] = (48, 40)) -> list[Image.Image]:
    """Photos of coarse random colours."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (number, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR) for pixels in coarse]


def save_tiny_photos(folder: Path, number: int = 6) -> list[Path]:
    """Files of photos whose captions differ."""
    paths = [folder / f"photo {place}.png" for place in range(number)]
    for path, photo in zip(paths, tiny_photos(number), strict=True):
        photo.save(path)
    return paths


def save_tiny_checkpoint(folder: Path, **changes: Any) -> NICForConditionalGeneration:
    """Save model and processor, as a finished training run does; returns the model."""
    model = tiny_model(**changes)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return model


def save_tiny_data(folder: Path) -> None:
    """Eight captioned photos, in `pets`, and a tiny backbone, in `backbone`."""
    for split in ("train", "validation"):
        (folder / "pets" / split).mkdir(parents=True)
        lines = ["file_name,caption"]
        for number, photo in enumerate(tiny_photos(4, seed=len(split))):
            photo.save(folder / "pets" / split / f"{number}.png")
            lines.append(f"{number}.png,{CAPTIONS[number]}")
        (folder / "pets" / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    config = ResNetConfig(embedding_size=6, hidden_sizes=[6, 10], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder / "backbone")
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size}
    (folder / "backbone" / "preprocessor_config.json").write_text(json.dumps(processor))

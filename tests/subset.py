"""A few photos of Flickr8k as a Flickr8k folder of their own, and the fast real backbone for them."""

import csv
import shutil
from pathlib import Path

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.model.processor import load_image_processor
from nic_hf.tokenization import train_tokenizer

SPLIT_LISTS = {"train": "trainImages", "dev": "devImages", "test": "testImages"}


def real_backbone(test_data: Path) -> Path:
    """MobileNetV1 0.25 at 128 px, trained on ImageNet: half a million weights."""
    return test_data / "backbones" / "mobilenet-v1-0.25-128"


def make_subset(flickr8k: Path, folder: Path, **photos: int) -> Path:
    """Write the first photos of each split, such as `train=24, dev=5`, with their captions."""
    (folder / "Images").mkdir(parents=True)
    chosen: set[str] = set()
    for split, number in photos.items():
        name = f"Flickr_8k.{SPLIT_LISTS[split]}.txt"
        names = (flickr8k / name).read_text("utf-8").split()[:number]
        (folder / name).write_text("\n".join(names), "utf-8")
        for photo in names:
            shutil.copyfile(flickr8k / "Images" / photo, folder / "Images" / photo)
        chosen |= set(names)
    with (flickr8k / "captions.txt").open(encoding="utf-8", newline="") as file:
        rows = [row for number, row in enumerate(csv.reader(file)) if number == 0 or row[0] in chosen]
    with (folder / "captions.txt").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def real_captioner(test_data: Path, captions: list[str], **config: object) -> tuple:
    """An untrained captioner around the real backbone, and its processor."""
    tokenizer = train_tokenizer(captions, min_frequency=1)
    processor = NICProcessor(load_image_processor(real_backbone(test_data)), tokenizer)
    model = NICForConditionalGeneration.from_backbone_pretrained(
        real_backbone(test_data), tokenizer=tokenizer, **config
    )
    return model.eval(), processor

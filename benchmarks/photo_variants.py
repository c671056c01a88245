"""What it costs a captioner that photos are not as those that it learned from.

    python benchmarks/photo_variants.py --data path/to/flickr8k --split dev --output variants.json

Each photo is captioned as it is, and changed: of another shape (stretched, as a squeezed photo that is not square was
before; padded with bars; its middle alone), larger, smaller, compressed more, lying on its side with an EXIF
orientation, in grey, darker. Prints the scores of each and the difference in CIDEr-D, in percent; the last column is
the difference if colours are left out of captions and references.
"""

import argparse
import io
import re
from collections.abc import Callable
from pathlib import Path

import torch
from machine import save
from PIL import Image, ImageEnhance, ImageOps

from nic_hf import NICForConditionalGeneration, NICProcessor, load_captions
from nic_hf.captioners import captioner_path
from nic_hf.evaluation.scores import score_captions


def stored(image: Image.Image, quality: int = 95, exif: Image.Exif | None = None) -> Image.Image:
    """The photo after it was stored as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **({"exif": exif} if exif else {}))
    return Image.open(file)


def sideways(image: Image.Image) -> Image.Image:
    """The photo as a camera that was held upright stores it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


def padded(image: Image.Image, shape: tuple[int, int], colour: str) -> Image.Image:
    """The photo with bars that give it the shape `(width, height)`."""
    return ImageOps.pad(image, shape, color=colour)


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "4 : 3 (stretched to 400 x 300)": lambda image: image.resize((400, 300), Image.Resampling.BICUBIC),
    "3 : 4 (stretched to 300 x 400)": lambda image: image.resize((300, 400), Image.Resampling.BICUBIC),
    "16 : 9 (stretched to 640 x 360)": lambda image: image.resize((640, 360), Image.Resampling.BICUBIC),
    "4 : 3 with black bars": lambda image: padded(image, (299, 224), "black"),
    "4 : 3 with white bars": lambda image: padded(image, (299, 224), "white"),
    "9 : 16 with black bars": lambda image: padded(image, (224, 398), "black"),
    "the middle 80 % of width and height": lambda image: ImageOps.crop(image, image.width // 10),
    "four times as large": lambda image: image.resize((896, 896), Image.Resampling.BICUBIC),
    "half as large": lambda image: image.resize((112, 112), Image.Resampling.BICUBIC),
    "JPEG quality 30": lambda image: stored(image, 30),
    "rotated by EXIF": sideways,
    "grey": lambda image: image.convert("L"),
    "half as bright": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
}


COLOURS = re.compile(
    r"\b(black|white|gr[ae]y|red|blue|green|yellow|orange|brown|pink|purple|tan|blond|blonde|golden|colou?red|dark|bright)\b",
    re.IGNORECASE,
)


def without_colours(caption: str) -> str:
    """A caption without the names of colours."""
    return COLOURS.sub("", caption)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captioner", nargs="?", help="a captioner; by default the one that comes with nic_hf")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--max_photos", type=int)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    name = captioner_path(args.captioner)
    processor = NICProcessor.from_pretrained(name)
    model = NICForConditionalGeneration.from_pretrained(name).optimize_for_inference()
    photos = load_captions(args.data, args.split)
    photos = photos.select(range(min(args.max_photos or len(photos), len(photos))))
    references = dict(zip(photos["image_id"], photos["captions"], strict=True))
    colourless_references = {name: [*map(without_colours, own)] for name, own in references.items()}
    found: dict[str, dict[str, float]] = {}
    for variant, change in VARIANTS.items():
        captions: dict[str, str] = {}
        for batch in photos.iter(args.batch_size):
            images = [change(image.convert("RGB")) for image in batch["image"]]
            with torch.inference_mode():
                ids = model.generate(**processor(images=images, return_tensors="pt"))
            texts = processor.batch_decode(ids, skip_special_tokens=True)
            captions.update(zip(batch["image_id"], texts, strict=True))
        scores = score_captions(captions, references, ["bleu", "cider"])
        found[variant] = {key: round(100 * scores[key], 1) for key in ("bleu_1", "bleu_4", "cider")}
        colourless = {name: without_colours(caption) for name, caption in captions.items()}
        scores = score_captions(colourless, colourless_references, ["cider"])
        found[variant]["cider_without_colours"] = round(100 * scores["cider"], 1)
        row, whole = found[variant], found["as it is"]
        costs = [row[name] - whole[name] for name in ("cider", "cider_without_colours")]
        print(
            f"| {variant} | {row['bleu_4']:.1f} | {row['cider']:.1f} | {costs[0]:+.1f} | {costs[1]:+.1f} |", flush=True
        )
    save(args.output, captioner=str(args.captioner or "flickr8k"), split=args.split, variants=found)


if __name__ == "__main__":
    main()

"""Caption a split with a trained checkpoint, to choose beam size and length penalty on the dev split.

    python benchmarks/caption_split.py runs/flickr8k --data path/to/flickr8k --split dev --num_beams 3 \
        --length_penalty 0.7 --output dev.json
"""

import argparse
import json
import time
from pathlib import Path

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import PhotoDataset, cache_features, load_captions
from nic_hf.dataset_captions import generate_captions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--num_beams", type=int, default=3)
    parser.add_argument("--length_penalty", type=float, default=1.0)
    parser.add_argument("--cache_dir", default=None)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    model = NICForConditionalGeneration.from_pretrained(args.checkpoint)
    model.set_backbone_frozen(True)  # as features need it, also where it was trained
    processor = NICProcessor.from_pretrained(args.checkpoint)
    photos = load_captions(args.data, args.split)
    photos = PhotoDataset(photos, processor, cache_features(model, processor, photos, args.cache_dir))
    start = time.perf_counter()
    captions = generate_captions(
        model, photos, batch_size=128, num_beams=args.num_beams, length_penalty=args.length_penalty
    )
    seconds = time.perf_counter() - start
    args.output.write_text(json.dumps(captions, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"{len(captions)} captions in {seconds:.1f} s from cached features: {args.output}")


if __name__ == "__main__":
    main()

"""Rank photos and captions by log p(caption | photo) over the marginal, for one captioner or the sum of several.

    python benchmarks/ranking.py runs/flickr8k --data path/to/flickr8k --split dev --photos 500 --captions 1

Prints recall and median rank in both directions. Fewer photos are easier to rank; the paper ranks 1,000 photos and
all their captions (`--photos 1000 --captions 5`).
"""

import argparse
import json
from typing import Any

import torch

from nic_hf import NICForConditionalGeneration, NICProcessor, load_captions
from nic_hf.captioners import captioner_path
from nic_hf.data import cache_features
from nic_hf.evaluation.paper.ranking import (
    annotation_ranking,
    caption_log_likelihoods,
    normalise_by_marginal,
    search_ranking,
)


def main() -> None:
    """Print the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captioners", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--cache_dir")
    args = parser.parse_args()
    photos = load_captions(args.data, args.split)
    photos = photos.select(range(min(args.photos, len(photos))))
    owners = [row for row, own in enumerate(photos["captions"]) for _ in own[: args.captions]]
    total: Any = 0.0
    for name in args.captioners:
        folder = captioner_path(name)
        model = NICForConditionalGeneration.from_pretrained(folder).eval()
        processor = NICProcessor.from_pretrained(folder)
        model.set_backbone_frozen(True)
        features = cache_features(model, processor, photos, cache_dir=args.cache_dir)
        texts = [text for own in photos["captions"] for text in own[: args.captions]]
        captions = processor.tokenizer(texts).input_ids
        encoded = torch.stack([features[row] for row in range(len(photos))])
        total = total + normalise_by_marginal(caption_log_likelihoods(model, encoded, captions, progress=True))
    for direction, rank in (("photo to captions", annotation_ranking), ("caption to photos", search_ranking)):
        print(json.dumps({"direction": direction, **vars(rank(total, owners))}))


if __name__ == "__main__":
    main()

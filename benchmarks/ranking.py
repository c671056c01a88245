"""Rank photos and captions by log p(caption | photo), and by it over the marginal.

    python benchmarks/ranking.py runs/flickr8k --data path/to/flickr8k --split dev --photos 500 --captions 1

Prints recall and median rank in both directions. Fewer photos are easier to rank; the paper ranks 1,000 photos and
all their captions, as `nic evaluate --suite show-and-tell` does.
"""

import argparse
import json

from nic_hf import NICForConditionalGeneration, NICProcessor, load_captions
from nic_hf.captioners import captioner_path
from nic_hf.evaluation.suite.tables import Subject, photos_with_features, ranking


def main() -> None:
    """Print the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captioner", nargs="?", help="by default the one that comes with the package")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--photos", type=int, default=500, help="number of photos")
    parser.add_argument("--captions", type=int, default=1, help="captions of each photo")
    parser.add_argument("--bfloat16", action="store_true", help="score in bfloat16, for CPUs with instructions for it")
    parser.add_argument("--cache_dir")
    args = parser.parse_args()
    table = load_captions(args.data, args.split)
    table = table.select(range(min(args.photos, len(table))))
    table = table.map(lambda row: {"captions": row["captions"][: args.captions]}, load_from_cache_file=False)
    folder = captioner_path(args.captioner)
    model, processor = NICForConditionalGeneration.from_pretrained(folder).eval(), NICProcessor.from_pretrained(folder)
    photos = photos_with_features(model, processor, table, cache_dir=args.cache_dir)
    if args.bfloat16:
        for part in (model.image_projection, model.decoder, model.lm_head):
            part.bfloat16()
    for row in ranking(Subject(model, processor, photos, None, ()))["directions"]:
        print(json.dumps(row))


if __name__ == "__main__":
    main()

"""Start-up time with a full feature cache.

    python benchmarks/feature_cache_start.py path/to/flickr8k path/to/mobilenet-v2 --photos 2000 --views 4

Fills a cache, then opens it as a training run does, in turn: with the index of photos; without it, so that each photo
is read and hashed once; and without index and checksums, so that each photo is read and hashed for each view, and each
chunk is verified as a whole. Prints photos per second for a start with all views, and writes JSON.
"""

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import machine
from transformers.utils import logging

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import FeatureTable, cache_features, default_views, load_captions, photo_digests
from nic_hf.data.photo_digests import INDEX
from nic_hf.malloc_settings import keep_freed_memory
from nic_hf.model.processor import load_image_processor
from nic_hf.tokenization import train_tokenizer


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="captioned photos")
    parser.add_argument("backbone")
    parser.add_argument("--photos", type=int, default=2000, help="photos are repeated if there are fewer")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--attention", action="store_true", help="cache the features of all regions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    keep_freed_memory()  # as the commands do

    photos = load_captions(args.data, "train")
    photos = photos.select(list(itertools.islice(itertools.cycle(range(len(photos))), args.photos)))
    tokenizer = train_tokenizer(caption for captions in photos["captions"] for caption in captions)
    processor = NICProcessor(load_image_processor(args.backbone), tokenizer)
    model = NICForConditionalGeneration.from_backbone_pretrained(
        args.backbone, tokenizer=tokenizer, attention="soft" if args.attention else None
    ).eval()
    folder = Path(tempfile.mkdtemp(prefix="nic_cache_"))

    def start(after_a_view: Callable[[FeatureTable], object]) -> float:
        begun = time.perf_counter()
        for view in default_views(args.views):
            table = cache_features(model, processor, photos, folder, view=view)
            after_a_view(table)
            table.unreadable_rows()
        return time.perf_counter() - begun

    def without_index() -> float:
        (folder / INDEX).unlink(missing_ok=True)
        return start(lambda table: None)

    def all_read_for_each_view() -> float:
        (folder / INDEX).unlink(missing_ok=True)
        settled, photo_digests._SETTLED_NS = photo_digests._SETTLED_NS, 2**62  # nothing gets into the index
        try:
            return start(lambda table: [None for _ in table.chunks()])
        finally:
            photo_digests._SETTLED_NS = settled

    try:
        seconds: dict[str, list[float]] = {"filling": [start(lambda table: None)]}
        gigabytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e9
        start(lambda table: None)  # reads photos that changed just before the cache was filled
        ways = {
            "all read for each view": all_read_for_each_view,
            "photos read once": without_index,
            "with the index": lambda: start(lambda table: None),
        }
        for _, (name, way) in itertools.product(range(args.rounds), ways.items()):
            seconds.setdefault(name, []).append(way())
    finally:
        shutil.rmtree(folder)
    about = machine.about()
    print(
        f"{about['processor']}, {about['cores']} cores; {args.photos:,} photos, {args.views} views, {gigabytes:.2f} GB"
    )
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"{name:38} {middle:8.3f} s {args.photos / middle:10,.0f} photos/s")
    machine.save(args.output, seconds=seconds, photos=args.photos, views=args.views, gigabytes=gigabytes)


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main()

"""Where the time of a training step goes, and what bfloat16 and a compiled loss change.

    python benchmarks/training_profile.py --data path/to/flickr8k --backbone path/to/efficientnet-lite0

Steps of the recipes `frozen` (cached features, 24 photos with 120 captions) and `finetune` (48 photos with 240
captions, through the backbone) in `CaptioningTrainer`: in float32, in bfloat16, and in bfloat16 with the loss compiled
by `torch.compile`. All take turns in one process. Prints milliseconds per step (median of the rounds), and the share
of each kind of operator (torch.profiler).
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from machine import save
from torch.profiler import ProfilerActivity, profile
from training_step import only_training
from transformers import TrainerCallback
from where_time_goes import kind_of

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import CaptionDataset, PhotoDataset, cache_features, load_captions
from nic_hf.malloc_settings import keep_freed_memory
from nic_hf.model.processor import load_image_processor, squeeze_to
from nic_hf.tokenization import train_tokenizer

WARM_UP = 3  # steps before the clock starts


class Clock(TrainerCallback):
    """Times the steps after the first few, or profiles them."""

    def __init__(self, profiler: profile | None) -> None:
        self.profiler, self.seconds = profiler, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start after the first steps."""
        if state.global_step == WARM_UP:
            self.start = time.perf_counter()
            if self.profiler is not None:
                self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop after the last step."""
        if state.global_step == state.max_steps:
            self.seconds = time.perf_counter() - self.start
            if self.profiler is not None:
                self.profiler.stop()


def run(
    model: NICForConditionalGeneration, data: CaptionDataset, photos: int, steps: int, way: str, profiler: Any = None
) -> float:
    """Seconds per step."""
    model = copy.deepcopy(model)  # Accelerate prepares a model once, for the number format of that time
    if way.endswith("compiled loss"):
        model.score = torch.compile(model.score)  # type: ignore[method-assign]
    settings = {"per_device_train_batch_size": photos, "bf16": way.startswith("bfloat16"), "ema_decay": 0.998}
    clock = Clock(profiler)
    with tempfile.TemporaryDirectory() as folder:
        only_training(model, data, folder, [clock], max_steps=WARM_UP + steps, **settings).train()
    return clock.seconds / steps


def main() -> None:
    """Measure, and print a table for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="captioned photos with a train split")
    parser.add_argument("--backbone", required=True, help="pretrained vision model")
    parser.add_argument("--max-photos", type=int, default=480)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=["float32", "bfloat16", "bfloat16, compiled loss"])
    parser.add_argument("--recipes", nargs="+", default=["frozen", "finetune"])
    parser.add_argument("--cache-dir")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()  # as the commands do
    table = load_captions(args.data, "train")
    tokenizer = train_tokenizer(caption for captions in table["captions"] for caption in captions)
    table = table.select(range(args.max_photos))  # the vocabulary is that of all
    processor = NICProcessor(squeeze_to(load_image_processor(args.backbone), 224), tokenizer)
    model = NICForConditionalGeneration.from_backbone_pretrained(
        args.backbone,
        tokenizer=tokenizer,
        hidden_size=args.hidden_size,
        feature_layers="all",
        label_smoothing=0.1,
        dropout=0.5,
        bag_of_words_loss=1.0,
    )
    features = cache_features(model, processor, table, args.cache_dir)
    model.set_feature_statistics(*features.statistics())
    found = {}
    for recipe in args.recipes:
        is_frozen = recipe == "frozen"
        photos, steps = (24, 16) if is_frozen else (48, 3)
        model.set_backbone_frozen(is_frozen)
        data = CaptionDataset(
            PhotoDataset(table, processor, features if is_frozen else None), tokenizer, captions_per_sample=5
        )
        seconds: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for way in args.ways:
                seconds.setdefault(way, []).append(run(model, data, photos, steps, way))
        for way in args.ways:
            profiler = profile(activities=[ProfilerActivity.CPU])
            profiled = run(model, data, photos, steps, way, profiler)
            times: Counter[str] = Counter()
            for event in profiler.key_averages():
                times[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / steps
            shares = {kind: time / profiled for kind, time in times.most_common()}
            found[recipe, way] = {"ms": 1e3 * statistics.median(seconds[way]), "shares": shares}
            print(f"{recipe}, {way}: {found[recipe, way]['ms']:.0f} ms per step", flush=True)
            print("   " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share > 0.01))
            print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))
    rows = [{"recipe": recipe, "way": way, **row} for (recipe, way), row in found.items()]
    save(args.output, rows=rows, settings=vars(args), threads=torch.get_num_threads())


if __name__ == "__main__":
    main()

"""A process that captions hard photos in every way there is, and says what became of each and what memory it took.

Run as `python captioning_child.py FOLDER CHECKPOINT REPORT`; the folder holds the photos.
"""

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from datasets import Dataset
from transformers.utils import logging

from nic_hf import ImageToTextPipeline, NICForConditionalGeneration, NICProcessor
from nic_hf.captioning import CaptionRun, PhotoSources, load_captioner
from nic_hf.data.feature_cache import cache_features
from nic_hf.data.torch_datasets import CaptionCollator, CaptionDataset, PhotoDataset

HEADROOM = 3 * 2**30  # where the kernel refuses memory, so that a fault here cannot take the machine with it


class Kept:
    """Takes captions; a sink of a run."""

    def __init__(self) -> None:
        self.captions: dict[str, str] = {}

    def is_done(self, item: object) -> bool:
        return False

    def add(self, item, captions: list[str]) -> None:
        self.captions[item.image_id] = captions[0]

    def flush(self) -> None:
        pass

    def find(self, image_ids: list[str]) -> dict[str, list[str]]:
        return {}


def peak() -> int:
    """The most memory so far, in bytes. Not `ru_maxrss`, which begins with that of the process this one came from."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    """All ways, one after the other."""
    folder, checkpoint, report = map(Path, sys.argv[1:])
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    paths = sorted(path for path in folder.iterdir() if path.name != "plain.png")
    model = NICForConditionalGeneration.from_pretrained(checkpoint)
    processor = NICProcessor.from_pretrained(checkpoint)
    pipeline = ImageToTextPipeline(model=model, processor=processor)
    pipeline(str(folder / "plain.png"), max_new_tokens=8)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, used + HEADROOM))
    before = peak()
    found: dict[str, dict] = {
        "pipeline": {},
        "captioning": {},
        "cache": {},
        "training": {},
        "seconds": {},
        "memory": {},
    }

    def measured(name: str, way: Callable[[], dict]) -> None:
        found[name] = way()
        found["memory"][name] = peak() - before

    def by_pipeline() -> dict:
        results = {}
        for path in paths:
            start = time.process_time()
            try:
                results[path.name] = {"caption": pipeline(str(path), max_new_tokens=8)[0]["generated_text"]}
            except OSError as error:
                results[path.name] = {"error": str(error)}
            found["seconds"][path.name] = time.process_time() - start
        return results

    def by_captioning() -> dict:
        sink = Kept()
        sources = PhotoSources([str(path) for path in paths])
        run = CaptionRun(
            load_captioner(str(checkpoint), "cpu"), sources, sink, batch_size=4, workers=1, max_new_tokens=8
        )
        summary = run.run()
        results = {Path(name).name: {"caption": caption} for name, caption in sink.captions.items()}
        return results | {Path(photo.image_id).name: {"error": photo.error} for photo in summary.broken}

    table = Dataset.from_dict(
        {
            "image": [str(path) for path in paths],
            "image_id": [path.name for path in paths],
            "captions": [["a dog"]] * len(paths),
        }
    ).cast_column("image", datasets.Image(decode=False))

    def by_cache() -> dict:
        features = cache_features(
            model, processor, table, cache_dir=report.parent / "features", on_error="skip", batch_size=4
        )
        lost = set(features.unreadable_rows())
        assert all(torch.isfinite(features[row]).all() for row in range(len(paths)) if row not in lost)
        return {path.name: {"error": path.name} if row in lost else {"caption": ""} for row, path in enumerate(paths)}

    def by_training() -> dict:
        photos = PhotoDataset(table, processor, on_error="skip")
        samples = CaptionDataset(photos, processor.tokenizer)
        model.train()
        for start in range(0, len(samples), 8):
            batch = CaptionCollator()(samples.__getitems__(range(start, min(start + 8, len(samples)))))
            loss = model(**batch).loss
            loss.backward()
            assert loss.isfinite(), photos.image_ids()[start : start + 8]
        kept = set(photos.image_ids())
        return {path.name: {"caption": ""} if path.name in kept else {"error": path.name} for path in paths}

    for name, way in (
        ("pipeline", by_pipeline),
        ("captioning", by_captioning),
        ("cache", by_cache),
        ("training", by_training),
    ):
        measured(name, way)
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""Caption photos on a cluster with Ray Data: actors caption, the driver writes one file in order.

    pip install "nic_hf[ray]"
    python examples/caption_ray.py /shared/photos --model runs/flickr8k --output captions.jsonl --actors 2

On a cluster, submit it with `ray job submit`, or give --address. Photos have to be on a shared disk or at URLs. An
actor or node that dies is replaced and its unfinished photos are captioned again; each caption is written once. If the
driver dies, the same command continues with what was written.
"""

import argparse
import json
import logging
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray

from nic_hf.captioning import CaptionFile, PhotoItem, PhotoSources, load_captioner
from nic_hf.captioning.captioners import caption_batch
from nic_hf.images import load_photo

BATCHES_A_BLOCK = 4  # repeated if an actor dies


class CaptioningActor:
    """Captions batches of photos."""

    def __init__(self, model: str, threads: int, generation: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(threads)
        self.captioner = load_captioner(model)
        self.generation = generation
        self.threads = ThreadPoolExecutor(threads + 1)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return captions of photos, or errors, with their place in the list."""
        read = list(self.threads.map(self._read, batch["source"].tolist()))
        good = [place for place, (pixels, _) in enumerate(read) if pixels is not None]
        captions = [""] * len(read)
        if good:
            found = caption_batch(self.captioner, [read[place][0] for place in good], 1, **self.generation)
            for place, (caption,) in zip(good, found, strict=True):
                captions[place] = caption
        return {
            "place": batch["place"],
            "caption": np.array(captions, dtype=object),
            "error": np.array([error for _, error in read], dtype=object),
            "worker": np.full(len(read), os.getpid()),
        }

    def _read(self, source: Any) -> tuple[np.ndarray | None, str]:
        try:
            return self.captioner.prepare(load_photo(source, at_least=self.captioner.photo_size)), ""
        except (OSError, ValueError) as error:
            return None, str(error)


def new_items(sources: PhotoSources, file: CaptionFile) -> list[PhotoItem]:
    """Return photos without captions, each once."""
    items = {item.image_id: item for item in sources.items() if not file.is_done(item)}
    return list(items.values())


def main() -> int:
    """Caption, write and report; return 1 if photos could not be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="photos, folders, patterns, URLs")
    parser.add_argument("--list", action="append", default=[], help="text file of paths and URLs")
    parser.add_argument("--model", required=True, help="captioner: a folder on a shared disk, or a Hub id")
    parser.add_argument("--output", required=True, help=".jsonl, .csv, .parquet or .json")
    parser.add_argument("--overwrite", action="store_true", help="replace existing captions")
    parser.add_argument("--actors", type=int, default=2, help="number of captioners")
    parser.add_argument("--cpus", type=int, default=1, help="cores per captioner")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per captioner, such as 0.25")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-beams", type=int)
    parser.add_argument("--address", help="address of a cluster; if not given, Ray starts on this machine")
    arguments = parser.parse_args()

    start = time.perf_counter()
    generation = {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}
    sources = PhotoSources(arguments.paths, lists=arguments.list)
    made_by = {"captioner": load_captioner(arguments.model, "cpu").digest(), "num_captions": 1, **generation}
    file = CaptionFile(
        arguments.output,
        made_by,
        about={"model": arguments.model},
        overwrite=arguments.overwrite,
        in_order=False,
    )
    file.clear()
    file.open()
    items = new_items(sources, file)
    file.begin()

    broken = [{"image_id": item.image_id, "error": item.problem} for item in items if item.problem is not None]
    waiting = {place: item for place, item in enumerate(items) if item.problem is None}
    workers: dict[int, int] = {}
    if waiting:
        local = (
            {} if arguments.address else {"num_cpus": arguments.actors * arguments.cpus, "include_dashboard": False}
        )
        ray.init(address=arguments.address, logging_level=logging.ERROR, **local)
        ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
        blocks = math.ceil(len(waiting) / (BATCHES_A_BLOCK * arguments.batch_size))
        rows = [{"place": place, "source": item.source} for place, item in waiting.items()]
        captioned = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            CaptioningActor,
            fn_constructor_args=(arguments.model, arguments.cpus, generation),
            batch_size=arguments.batch_size,
            num_cpus=arguments.cpus,
            num_gpus=arguments.gpus,
            compute=ray.data.ActorPoolStrategy(size=arguments.actors),
            max_restarts=-1,  # replace actors that die,
            max_task_retries=-1,  # and repeat their unfinished tasks
        )
        for batch in captioned.iter_batches(batch_size=None):
            for place, caption, error, worker in zip(*(batch[name] for name in batch), strict=True):
                item = waiting.pop(int(place), None)
                if item is None:
                    continue  # already written: a block may come twice if a node was lost
                if int(worker) not in workers:
                    print(f"worker {worker} captions", file=sys.stderr, flush=True)
                workers[int(worker)] = workers.get(int(worker), 0) + 1
                if error:
                    broken.append({"image_id": item.image_id, "error": error})
                else:
                    file.add(item, [caption])
            file.flush()
        ray.shutdown()
    file.close()
    file.finish(not waiting, broken=broken)
    summary = {
        "captioned": len(items) - len(waiting) - len(broken),
        "already": file.resumed,
        "broken": broken,
        "workers": workers,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(summary))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

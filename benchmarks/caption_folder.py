"""Photos per second from JPEG files to captions: sequentially, with threads that read ahead, and with processes.

    python benchmarks/caption_folder.py --model captioner-int8 --photos path/to/flickr8k/Images --size 500 375

With --size the photos are first saved as JPEGs of that size, outside the measurement. Rounds alternate, so that other
load affects all of them. Start-up is excluded. Prints one line per method and writes JSON.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import save
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from nic_hf.captioning import CaptionRun, PhotoSources, load_captioner
from nic_hf.captioning.captioners import caption_batch
from nic_hf.captioning.photo_sources import PhotoItem
from nic_hf.images import load_photo


class Sources(PhotoSources):
    """Return the first photos of a folder."""

    def __init__(self, folder: str, number: int) -> None:
        super().__init__([folder])
        self.number = number

    def items(self, process: int = 0, processes: int = 1) -> Iterator[PhotoItem]:
        """Number of photos."""
        return itertools.islice(super().items(process, processes), self.number)


class Forgetful:
    """A sink that drops captions."""

    def is_done(self, item: PhotoItem) -> bool:
        """Never."""
        return False

    def add(self, item: PhotoItem, captions: list[str]) -> None:
        """Take them."""

    def flush(self) -> None:
        """Do nothing."""

    def find(self, image_ids: Any) -> dict[str, list[str]]:
        """Find nothing."""
        return {}


class Prepared(Dataset):
    """Data set of pixels, for processes."""

    def __init__(self, captioner: Any, items: list[PhotoItem]) -> None:
        self.prepare, self.size, self.items = captioner.prepare, captioner.photo_size, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.prepare(load_photo(self.items[index].source, at_least=self.size)))


class Preparing:
    """The preprocessing of a captioner, without its model."""

    def __init__(self, captioner: Any) -> None:
        self.processor, self.photo_size = captioner.processor, captioner.photo_size

    def prepare(self, photo: Any) -> Any:
        """Convert a photo to pixels."""
        return self.processor(images=photo, return_tensors="np")["pixel_values"][0]


def resized(photos: list[PhotoItem], size: tuple[int, int], folder: Path) -> None:
    """Save photos as JPEGs of `size` with quality 90, as cameras and web sites do."""
    for item in photos:
        photo = load_photo(item.source).resize(size, Image.Resampling.BICUBIC)
        photo.save(folder / f"{Path(item.source).stem}.jpg", quality=90)


def main() -> None:
    """Measure, and print a line of JSON per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--number", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-beams", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="default: unchanged")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.size:
            photos = list(Sources(arguments.photos, arguments.number).items())
            resized(photos, tuple(arguments.size), Path(temporary))
            arguments.photos = temporary
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Run all methods in turn."""
    captioner: Any = load_captioner(arguments.model)
    sources = Sources(arguments.photos, arguments.number)
    items = list(sources.items())
    photo_bytes = statistics.mean(Path(item.source).stat().st_size for item in items)

    def one_by_one() -> float:
        start = time.perf_counter()
        for first in range(0, len(items), arguments.batch_size):
            batch = items[first : first + arguments.batch_size]
            pixels = [captioner.prepare(load_photo(item.source, at_least=captioner.photo_size)) for item in batch]
            caption_batch(captioner, pixels, 1, num_beams=arguments.num_beams)
        return time.perf_counter() - start

    def threads(number: int) -> float:
        run = CaptionRun(
            captioner,
            sources,
            Forgetful(),
            batch_size=arguments.batch_size,
            workers=number,
            num_beams=arguments.num_beams,
        )
        return run.run().seconds

    def processes(number: int) -> float:
        loader = DataLoader(
            Prepared(Preparing(captioner), items),
            arguments.batch_size,
            num_workers=number,
            multiprocessing_context="spawn",
            persistent_workers=True,
        )
        for _ in loader:
            pass
        start = time.perf_counter()
        for pixels in loader:
            caption_batch(captioner, list(pixels.numpy()), 1, num_beams=arguments.num_beams)
        return time.perf_counter() - start

    ways: dict[str, Callable[[], float]] = {
        "sequentially": one_by_one,
        "1 thread": lambda: threads(1),
        "2 threads": lambda: threads(2),
        "4 threads": lambda: threads(4),
    }
    if hasattr(captioner, "processor"):
        ways |= {"1 process": lambda: processes(1), "2 processes": lambda: processes(2)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    threads(2)
    for _ in range(arguments.rounds):
        for way, caption in ways.items():
            seconds[way].append(caption())
    rows = []
    for way, each in seconds.items():
        rates = sorted(arguments.number / second for second in each)
        found = {"way": way, "photos_a_second": round(statistics.median(rates), 1), "least": round(rates[0], 1)}
        rows.append({**found, "most": round(rates[-1], 1)})
        print(json.dumps(rows[-1]))
    save(arguments.output, settings=vars(arguments), bytes_a_photo=photo_bytes, rows=rows)


if __name__ == "__main__":
    main()

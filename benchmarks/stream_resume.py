"""Cost and exactness of resuming a stream: from its position, by skipping batches, and by Datasets' own state.

python benchmarks/stream_resume.py --data path/to/flickr8k --photos 2000 --samples 4000
"""

import argparse
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path

import datasets
import torch

from nic_hf import NICProcessor
from nic_hf.data import CaptionCollator, StreamingCaptionDataset, StreamLoader, load_captions, stream_captions
from nic_hf.model.processor import build_image_processor
from nic_hf.tokenization import train_tokenizer

PHOTOS_A_SHARD = 250
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="captioned photos, as load_captions takes them")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=4000, help="samples before the interruption")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = load_captions(arguments.data, "train")
    rows = rows.select(range(arguments.photos))
    paths = [row["image"]["path"] for row in rows.cast_column("image", type(rows.features["image"])(decode=False))]
    captions = rows["captions"][:]
    tokenizer = train_tokenizer((caption for own in captions for caption in own), min_frequency=5)
    size = {"height": 224, "width": 224}
    processor = NICProcessor(
        build_image_processor({"image_processor_type": "ViTImageProcessor", "size": size}), tokenizer
    )
    with tempfile.TemporaryDirectory() as folder:
        for number, start in enumerate(range(0, len(paths), PHOTOS_A_SHARD)):
            text = Path(folder, "captions.txt")
            with tarfile.open(Path(folder, f"train-{number:03d}.tar"), "w") as tar:
                for path, own in zip(paths[start:][:PHOTOS_A_SHARD], captions[start:][:PHOTOS_A_SHARD], strict=True):
                    text.write_text("\n".join(own), encoding="utf-8")
                    tar.add(path, f"{Path(path).stem}.jpg")
                    tar.add(text, f"{Path(path).stem}.txt")
        stream = stream_captions(Path(folder, "*.tar"))

        def loader(state: dict | None = None) -> StreamLoader:
            return StreamLoader(StreamingCaptionDataset(stream, processor, tokenizer), BATCH, CaptionCollator(), state)

        first_differing, seconds = resume_datasets(folder, arguments.samples // 5)
        batches = arguments.samples // BATCH
        first = loader()
        start_time = time.perf_counter()
        for _ in islice(first, batches):
            pass
        reading = time.perf_counter() - start_time
        state = first.state_dict()
        start_time = time.perf_counter()
        resumed = iter(loader(state))
        next_batch = next(resumed)
        resuming = time.perf_counter() - start_time
        expected = islice(first, 8)
        same = all(
            torch.equal(one[name], other[name])
            for one, other in zip(expected, [next_batch, *islice(resumed, 7)], strict=True)
            for name in one
        )
    print(f"{batches * BATCH} samples read: {reading:.2f} s, {batches * BATCH / reading:.0f} samples/s")
    print(f"next batch, read from the beginning: {reading * (batches + 1) / batches:.2f} s")
    print(f"next batch, from the position: {resuming:.2f} s; the next 8 batches are equal: {same}")
    print(f"Datasets' shuffle and state_dict: {seconds:.2f} s; {first_differing}")


def resume_datasets(folder: str, photos: int) -> tuple[str, float]:
    """Resume `IterableDataset.shuffle` of Datasets' webdataset reader after so many photos."""
    data = datasets.load_dataset("webdataset", data_files=f"{folder}/*.tar", split="train", streaming=True)
    data = data.cast_column("jpg", datasets.Image(decode=False)).shuffle(seed=0, buffer_size=512)
    rows = iter(data)
    for _ in islice(rows, photos):
        pass
    state = data.state_dict()
    expected = [row["__key__"] for row in islice(rows, 512)]
    data.load_state_dict(state)
    start = time.perf_counter()
    rows = iter(data)
    found = [next(rows)["__key__"]]
    seconds = time.perf_counter() - start
    found += [row["__key__"] for row in islice(rows, 511)]
    missing = len(set(expected) - set(found))
    same = sum(one == other for one, other in zip(expected, found, strict=False))
    return f"of the next {len(expected)} photos {same} are equal, {missing} do not come", seconds


if __name__ == "__main__":
    main()

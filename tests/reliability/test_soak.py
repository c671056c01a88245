"""Endurance: one process captions many photos, and takes no more memory, files or threads than at its start."""

import gc
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from subset import real_captioner
from tiny import CAPTIONS, tiny_model, tiny_photos, tiny_processor

import nic_hf
from nic_hf.captioning import TorchCaptioner
from nic_hf.captioning.captioners import caption_batch
from nic_hf.malloc_settings import keep_freed_memory


def check_flat(captioner: TorchCaptioner, captions: int, batch_size: int, size: tuple[int, int]) -> None:
    """Memory within 2 % after a tenth of the captions, files and threads the same."""
    keep_freed_memory()
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    process, seen = psutil.Process(), []
    steps, photos = max(20, captions // batch_size), tiny_photos(batch_size, size=size)
    for step in range(steps):
        found = caption_batch(captioner, [captioner.prepare(photo) for photo in photos], 1)
        assert len(found) == batch_size
        if (step >= steps // 10 and step % max(1, steps // 20) == 0) or step == steps - 1:
            gc.collect()
            seen.append((process.memory_info().rss, len(process.open_files()), process.num_threads()))
    torch.set_num_threads(torch_threads)
    growth = max(rss for rss, *_ in seen) / seen[0][0] - 1
    mib = seen[0][0] / 2**20
    print(f"{steps * batch_size:,} captions: RSS {100 * growth:+.2f} % of {mib:.0f} MiB, files, threads {seen[0][1:]}")
    assert growth < 0.02
    files, threads = [one[1] for one in seen], {one[2] for one in seen}
    # The thread that gives memory back reads a file of /proc for an instant, once a second.
    assert min(files[len(files) // 2 :]) <= files[0] and max(files) <= files[0] + 1 and len(threads) == 1


def tiny_captioner() -> TorchCaptioner:
    return TorchCaptioner(tiny_model(), tiny_processor(), device="cpu")


def test_memory_is_flat() -> None:
    check_flat(tiny_captioner(), 2_000, 50, (40, 40))


@pytest.mark.soak
def test_memory_is_flat_over_100_000_captions(soak_scale: float) -> None:
    check_flat(tiny_captioner(), round(100_000 * soak_scale), 50, (40, 40))


@pytest.mark.soak
def test_memory_is_flat_with_the_real_backbone(test_data: Path, soak_scale: float) -> None:
    model, processor = real_captioner(test_data, CAPTIONS, hidden_size=64, embedding_size=64)
    check_flat(TorchCaptioner(model, processor, device="cpu"), round(5_000 * soak_scale), 16, (300, 200))


GROWING = """
import sys, time
import torch
from nic_hf import malloc_settings
malloc_settings._SECONDS = 0.1  # ten looks are then a second
limit = 256 << 20
assert malloc_settings.keep_freed_memory(limit)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
kept, base, peak = [], resident(), 0
for step in range(60):  # 20 MB each: 1.2 GB if none is found again
    tensor = torch.ones(5_000_000)
    kept += [torch.ones(3000), bytearray(200)]
    del tensor
    time.sleep(0.1)
    peak = max(peak, resident() - base)
print(peak)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_freed_memory_that_is_kept_has_a_limit() -> None:
    environment = {"PYTHONPATH": str(Path(nic_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", GROWING], env=environment, check=True, capture_output=True, text=True)
    # The limit, what a second or two add before it has lain idle for ten looks, and what lives.
    assert int(done.stdout) < (256 + 400) << 20

"""Keep freed memory in the process, on Linux with glibc.

glibc returns a large block to the system as soon as it is freed, so a convolutional backbone gets new pages for each
activation, and the kernel zeroes them. A batch of 32 photos in MobileNetV2 takes 3.4 s of processor time and 461,000
page faults that way, and 1.9 s without page faults if freed memory is kept; the peak grows from 903 to 982 MiB
(`benchmarks/freed_memory.py`).

All threads share one arena. Others consist of heaps of 64 MiB, so larger tensors would get new pages each time: `nic
app`, whose threads take turns to run the model, answers 64 clients 1.25 times as fast that way.

Settings of malloc alone do not limit what is kept: its threshold only counts memory at the end of the heap, and before
version 2.38 glibc does not reuse freed blocks for the aligned memory of tensors if small blocks lie in between. Some
programs would then grow by a tensor per step. That is why a thread measures once per second how much is kept. Trimming
after each batch instead would return what the next batch needs: fine-tuning MobileNetV2 took a third longer.
"""

import ctypes
import os
import platform
import threading
import time
from collections import deque
from pathlib import Path

# Constants of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_TENSOR = 1 << 30
_KEPT = 2 << 30
_SECONDS, _LOOKS = 1.0, 10

_watched = False


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def keep_freed_memory(limit: int = _KEPT) -> bool:
    """Let the C library keep up to 2 GiB of freed memory for further tensors of this process.

    A thread returns freed memory to the system if more than `limit` was kept for ten seconds, or more than the limit
    and a quarter of the machine's memory at any time. A training step may therefore free and reuse gigabytes.

    Args:
        limit: bytes to keep.

    Returns:
        Whether this is supported: on Linux with glibc 2.33 or later.
    """
    global _watched
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return False
    if not (
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_TENSOR)
        and library.mallopt(_TRIM_THRESHOLD, -1)  # never; left to the thread
        and library.mallopt(_ARENA_MAX, 1)
    ):
        return False
    if not _watched:
        _watched = True
        threading.Thread(target=_watch, args=(library, limit), name="nic_hf.malloc_settings", daemon=True).start()
    return True


def _watch(library: ctypes.CDLL, limit: int) -> None:
    """Return memory beyond the limit to the system, as long as the process lives."""
    library.mallinfo2.restype = _Mallinfo2
    allowed, at_once = limit, max(limit, _total_memory() // 4)
    looks: deque[int] = deque(maxlen=_LOOKS)
    while True:
        time.sleep(_SECONDS)
        looks.append(_kept(library))
        lain = min(looks) if len(looks) == _LOOKS else 0
        if lain > allowed or looks[-1] > max(allowed, at_once):
            library.malloc_trim(0)
            looks.clear()
            # The rest does not belong to the C library; trimming again would be in vain.
            allowed = limit + max(0, _kept(library))


def _total_memory() -> int:
    """Return the memory of the machine, or of its container, in bytes."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    except (OSError, ValueError):  # missing, or "max"
        return total


def _kept(library: ctypes.CDLL) -> int:
    """Return the bytes of anonymous memory that the C library holds and has not handed out."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("RssAnon:"):
            found = library.mallinfo2()
            return int(line.split()[1]) * 1024 - found.uordblks - found.hblkhd
    return 0

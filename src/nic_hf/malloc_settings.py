"""How a process gives memory back to the system."""

import ctypes
import os
import platform
import threading
import time
from collections import deque
from pathlib import Path

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
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
    """Let the C library keep up to 2 GiB of freed memory for the next tensors, for the whole process.

    glibc asks the system for each large block anew and gives it back at once. A convolutional backbone frees and
    takes hundreds of megabytes a batch, and zeroing their pages over and over took half of its time on the two cores
    where it was measured (`benchmarks/freed_memory.py`).

    Freed memory lies between blocks in use too, where glibc's own limit does not count it, and glibc before 2.38 does
    not find it again for the aligned blocks of tensors: without more, some programs grow by a tensor a step. A thread
    therefore looks once a second how much is kept, and gives back all of it where more than `limit` has lain there for
    ten seconds, or more than that and a quarter of the machine's memory for a moment. A step of training may take and
    free gigabytes: what its next step takes again is left alone.

    Args:
        limit: bytes to keep for good.

    Returns:
        Whether that was done; only Linux with glibc, 2.33 or later, knows how.
    """
    global _watched
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return False
    if not (
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_TENSOR)
        and library.mallopt(_TRIM_THRESHOLD, -1)  # never; the thread does it
    ):
        return False
    if not _watched:
        _watched = True
        threading.Thread(target=_watch, args=(library, limit), name="nic_hf.malloc_settings", daemon=True).start()
    return True


def _watch(library: ctypes.CDLL, limit: int) -> None:
    """Give back what is kept beyond the limit, for as long as the process lives."""
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
            # What stays is not the C library's, and would be trimmed for in vain each time.
            allowed = limit + max(0, _kept(library))


def _total_memory() -> int:
    """Bytes that the machine has, or that a container may use of them."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    except (OSError, ValueError):  # there is none, or it is "max"
        return total


def _kept(library: ctypes.CDLL) -> int:
    """Bytes of memory, files left out, that the process holds and the C library has not handed out."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("RssAnon:"):
            found = library.mallinfo2()
            return int(line.split()[1]) * 1024 - found.uordblks - found.hblkhd
    return 0

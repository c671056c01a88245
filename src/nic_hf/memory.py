"""How a process gives memory back to the system."""

import ctypes
import platform

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_TENSOR = 1 << 30
_KEPT = 2 << 30


def keep_freed_memory() -> bool:
    """Let the C library keep up to 2 GiB of freed memory for the next tensors, for the whole process.

    glibc asks the system for each large block anew and gives it back at once. A convolutional backbone frees and
    takes hundreds of megabytes a batch, and zeroing their pages over and over took half of its time on the two cores
    where it was measured (`benchmarks/freed_memory.py`).

    Returns:
        Whether that was done; only Linux with glibc knows how.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_TENSOR) and mallopt(_TRIM_THRESHOLD, _KEPT - 1))

"""Training on a CPU keeps the memory that it has freed."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Keep glibc from giving large freed blocks back to the system, without a CUDA device.

    A training step frees and takes the same gigabytes again and again, and each time the system has to map and clear
    them anew (docs/performance.md has the figure). The process stays as large as it once was. Whoever sets
    `MALLOC_MMAP_MAX_` in the environment decides it instead.

    Returns:
        Whether it was done: not with a CUDA device, and not with another C library.
    """
    import torch

    if torch.cuda.is_available() or "MALLOC_MMAP_MAX_" in os.environ:
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(set_option(name, value) for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)))

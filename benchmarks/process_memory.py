"""Memory of a benchmark's own process: kept for the next step, given back, looked up."""

import ctypes
import gc
import sys
from pathlib import Path


def keep_freed_memory() -> None:
    """Keep glibc from giving large freed blocks back to the system."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, -1), (-8, 1)):  # no mmap, no trimming, one arena
            libc.mallopt(option, value)


def give_freed_memory_back() -> None:
    """Before other processes need it."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

"""What writers see of a full disk, without one: no file grows beyond so many bytes."""

import resource
from contextlib import contextmanager


@contextmanager
def files_up_to(size: int):
    """Inside, every write beyond `size` bytes of a file fails, whoever makes it (Python, torch, Rust)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

"""Names of problem sets: local, generated or on the Hub; and when two problem texts are the same problem."""

import hashlib
import re
import unicodedata
from pathlib import Path

from gsr_rl.data.hub_sets import HUB_SETS

LOCAL_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
LONGEST_FIELD = 2**31 - 1  # of a .csv file; the csv module's own limit is shorter than some solutions
GENERATED = ("tiny/", "reasoning_gym/")


def from_hub(name: str) -> bool:
    """Whether problems of this name are asked of the Hub: no local file, and not generated."""
    local = Path(name).suffix in LOCAL_SUFFIXES or name.startswith((".", "/", "~"))
    return not local and not name.startswith(GENERATED)


def as_list(value: str | list | None) -> list:
    """A key that may be left out, or name one without brackets."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def source_of(name: str) -> tuple[str, str]:
    """Source and split of `NAME` or `NAME@SPLIT`; the split of a local file is empty."""
    source, _, split = name.partition("@")
    if Path(source).suffix in LOCAL_SUFFIXES:
        return str(Path(source).resolve()), ""
    known = HUB_SETS.get(source)
    return source, split or (known.splits[-1] if known else "test")


def normalise_text(text: str) -> str:
    """`text` with Unicode forms, letter case and white space made equal: the sense in which two problems are one."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def problem_id(text: str) -> str:
    """A stable id: the hash of the normalised text."""
    return hashlib.blake2b(normalise_text(text).encode(), digest_size=8).hexdigest()

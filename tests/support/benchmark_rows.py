"""Real benchmark rows for tests: in the folder that GSR_TEST_DATA names, or in ../shared/data; else skipped."""

import json
import os
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FOLDER = Path(os.environ.get("GSR_TEST_DATA", ROOT.parent / "shared" / "data"))


def path_of(name: str) -> Path:
    """The file of a benchmark's rows (`gsm8k_train`, `math500`, ...)."""
    path = FOLDER / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


def rows_of(name: str) -> list[dict]:
    """The rows, `{"id", "problem", "answer", ...}`."""
    with open(path_of(name), encoding="utf-8") as file:
        return [json.loads(line) for line in file]

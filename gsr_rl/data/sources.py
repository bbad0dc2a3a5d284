"""Problem sets by name: local files, generated sets and those of the Hugging Face Hub; when two texts are the same.

A set of the Hub whose layout stands in `HUB_SETS` needs its name only; the columns are those that the sets' cards
document. Others may need `problem_column` and `answer_column`.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LOCAL_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
GENERATED = ("tiny/", "reasoning_gym/")
PROBLEM_COLUMNS = ("problem", "question")
ANSWER_COLUMNS = ("answer", "solution")


@dataclass(frozen=True)
class HubSet:
    """The layout of one set.

    Attributes:
        splits: The splits that hold problems with answers.
        problem, answer: Columns.
        configs: Configurations that make up the set, if it has several and none is named.
        row_filters: As `ProblemConfig.row_filters`, used where that is not set.
        columns: Columns to read, and the rows one after the other without a whole download: for sets whose solutions
            are most of their size.
    """

    splits: tuple[str, ...]
    problem: str = "problem"
    answer: str = "answer"
    configs: tuple[str, ...] = ()
    row_filters: dict = field(default_factory=dict)
    columns: tuple[str, ...] = ()


_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
             "precalculus")  # fmt: skip
_OPEN_MATH = ("problem", "expected_answer", "problem_type", "problem_source", "pass_rate_72b_tir")

HUB_SETS = {
    # One row per solution, so problems repeat; pass_rate_72b_tir is text, "n/a" for most of the other problem types.
    "nvidia/OpenMathReasoning": HubSet(
        ("cot", "tir"),
        answer="expected_answer",
        columns=_OPEN_MATH,
        row_filters={"problem_type": "has_answer_extracted", "pass_rate_72b_tir": {"min": 0.25, "max": 0.90}},
    ),
    "openai/gsm8k": HubSet(("train", "test"), problem="question", configs=("main",)),
    "EleutherAI/hendrycks_math": HubSet(("train", "test"), answer="solution", configs=_SUBJECTS),
    "DigitalLearningGmbH/MATH-lighteval": HubSet(("train", "test"), answer="solution"),
    "HuggingFaceH4/MATH-500": HubSet(("test",)),
    "agentica-org/DeepScaleR-Preview-Dataset": HubSet(("train",)),
    "HuggingFaceH4/aime_2024": HubSet(("train",)),
    "math-ai/aime24": HubSet(("test",), answer="solution"),
    "math-ai/aime25": HubSet(("test",)),
    "math-ai/amc23": HubSet(("test",), problem="question"),
    "Hothan/OlympiadBench": HubSet(
        ("train",), problem="question", answer="final_answer", configs=("OE_TO_maths_en_COMP",)
    ),
}


def file_kind(name: str | Path) -> str:
    """Which of `LOCAL_SUFFIXES` a file's name ends in, also in capitals and before .gz; "" for another."""
    path = Path(str(name).lower())
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in LOCAL_SUFFIXES else ""


def from_hub(name: str) -> bool:
    """Whether problems of this name are asked of the Hub: no local file, and not generated."""
    local = file_kind(name) or name.startswith((".", "/", "~"))
    return not local and not name.startswith(GENERATED)


def is_still_to_come(name: str | None) -> bool:
    """Whether a path is one that an earlier program leaves in runs/, and is not there: a dry run goes on without."""
    return Path(str(name)).parts[:1] == ("runs",) and not Path(str(name)).exists()


def as_list(value: str | list | None) -> list:
    """A key that may be left out, or be one value without brackets."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def source_of(name: str) -> tuple[str, str]:
    """Source and split of `NAME` or `NAME@SPLIT`; the split of a local file is empty."""
    source, _, split = name.partition("@")
    if file_kind(source):
        return str(Path(source).resolve()), ""
    known = HUB_SETS.get(source)
    return source, split or (known.splits[-1] if known else "test")


def normalise_text(text: str) -> str:
    """`text` with Unicode forms, letter case and white space made equal: two problems are the same if theirs is."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def problem_id(text: str) -> str:
    """A stable id: the hash of the normalised text."""
    return hashlib.blake2b(normalise_text(text).encode(), digest_size=8).hexdigest()


def check_split(name: str, split: str) -> list[str]:
    """A message if a known set has no such split."""
    known = HUB_SETS.get(name)
    if known and split not in known.splits:
        return [f"dataset_split={split}: {name} has its problems in {' and '.join(known.splits)}, set it to that"]
    return []


def read_hub(config, options: dict) -> Iterator[dict]:
    """The rows of a Hub set as they are, read as far as they are asked for."""
    import datasets

    known = HUB_SETS.get(config.dataset_name)
    names = [config.dataset_config] if config.dataset_config or not known else known.configs or [None]
    if known and known.columns:
        options = {"streaming": True, "columns": list(known.columns)} | options
    for name in names:
        yield from datasets.load_dataset(config.dataset_name, name, split=config.dataset_split, **options)


def columns_of(config) -> tuple[list[str], list[str]]:
    """The columns to look for the problem and for the answer in: the config's, the known set's, or else the usual."""
    known = HUB_SETS.get(str(config.dataset_name))
    problem = config.problem_column or (known.problem if known else list(PROBLEM_COLUMNS))
    answer = config.answer_column or (known.answer if known else list(ANSWER_COLUMNS))
    return as_list(problem), as_list(answer)


def filters_of(config) -> dict:
    """The row filters: the config's, an empty mapping included, or the known set's."""
    known = HUB_SETS.get(str(config.dataset_name))
    return config.row_filters if config.row_filters is not None else (known.row_filters if known else {})


def failed_filter(row: dict, filters: dict) -> str | None:
    """The first column whose filter a row does not pass, or None.

    A filter is a value; a list of values; or `{min, max}`, one or both, for a number. A text may hold the number. A
    row without such a number does not pass.
    """
    for column, wanted in filters.items():
        value = row.get(column)
        if isinstance(wanted, dict):
            number = _number(value)
            passes = wanted.get("min", number) <= number <= wanted.get("max", number)
        else:
            accepted = wanted if isinstance(wanted, list) else [wanted]
            passes = value in accepted or (isinstance(value, str) and _number(value) in accepted)
        if not passes:
            return column
    return None


def _number(value) -> float:
    """The number in a value, or NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan

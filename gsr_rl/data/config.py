"""Checks of where problems come from and of how they are sampled: the keys of `ProblemConfig`, `EngineConfig` and
`DistillConfig`. See gsr_rl/training/checks.py."""

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gsr_rl.data.hub_sets import check_split
from gsr_rl.data.sources import GENERATED, LOCAL_SUFFIXES, LONGEST_FIELD, as_list, from_hub, source_of
from gsr_rl.keys import (
    mapping,
    one_of,
)


def check_problems(c) -> list[str]:
    """The keys of `ProblemConfig`; a local file is looked at, a Hub data set is not asked for."""
    name = c.dataset_name
    if not name:
        return ["dataset_name is not set: give a Hub data set, a local file, tiny/mix or reasoning_gym/TASK"]
    found = _check_filters(c) + _check_decontamination(c)
    if c.max_problems is not None and c.max_problems < 1:
        found.append(f"max_problems={c.max_problems}: at least 1 is needed, or leave it out")
    found += one_of(c, unusable_rows=("error", "drop"))
    if str(name).startswith("tiny/"):
        return found + _check_tiny(c)
    if str(name).startswith(GENERATED):
        return found
    if not from_hub(name):
        if not Path(name).is_file():
            return [f"dataset_name={name}: there is no such file, give an existing {', '.join(LOCAL_SUFFIXES)} file"]
        if Path(name).suffix in (".jsonl", ".csv"):
            return found + _check_rows(c)
        return found
    return found + check_split(name, c.dataset_split)


def _check_tiny(c) -> list[str]:
    """The tiny world's family and split."""
    from gsr_rl.data.tiny_world import FAMILIES, SPLITS

    family, found = c.dataset_name.removeprefix("tiny/"), []
    if family not in (*FAMILIES, "mix"):
        found.append(f"dataset_name={c.dataset_name}: use {', '.join(f'tiny/{one}' for one in FAMILIES)} or tiny/mix")
    if c.dataset_split not in SPLITS:
        found.append(f"dataset_split={c.dataset_split}: the tiny world has {', '.join(SPLITS)}")
    return found


def check_training_problems(c) -> list[str]:
    """The keys of `ProblemConfig` of a program whose problems are trained on: no evaluation set is among them."""
    own = source_of(f"{c.dataset_name}@{c.dataset_split}")
    return check_problems(c) + [
        f"decontaminate_against={name}: dataset_name={c.dataset_name} is this evaluation set, so no problem would be "
        "left: train on another set or split, or take the name out"
        for name in as_list(c.decontaminate_against)
        if source_of(str(name)) == own
    ]


def held_out_keys(problems, training) -> dict[str, object]:
    """The keys of `ProblemConfig` that are others for the held-out problems of a `GSRConfig`."""
    keys = {"dataset_name": training.eval_dataset_name, "dataset_split": training.eval_dataset_split}
    keys |= {"max_problems": training.max_eval_problems, "decontaminate_against": None}
    if training.eval_dataset_name != problems.dataset_name:  # what is said of one set does not hold for another
        of_one = ("dataset_config", "dataset_kwargs", "row_filters", "problem_column", "answer_column")
        keys |= dict.fromkeys(of_one)
    return keys


def check_problems_and_held_out(c) -> list[str]:
    """`check_training_problems`, and the same of the held-out problems, which are not those that are trained on."""
    found, name = check_training_problems(c), c.eval_dataset_name
    if not name or not c.dataset_name:
        return found
    if source_of(f"{name}@{c.eval_dataset_split}") == source_of(f"{c.dataset_name}@{c.dataset_split}"):
        is_file = Path(name).suffix in LOCAL_SUFFIXES
        where = "" if is_file else f", eval_dataset_split={c.eval_dataset_split}"
        mend = "another file" if is_file else "another split or set"
        found.append(f"eval_dataset_name={name}{where}: these problems are trained on, hold out {mend}")
    held_out = check_problems(SimpleNamespace(**vars(c) | held_out_keys(c, c)))
    called = {"dataset_name": "eval_dataset_name", "dataset_split": "eval_dataset_split"}
    called |= {"max_problems": "max_eval_problems"}
    return found + [
        re.sub(r"^(\w+)(?==)", lambda name: called.get(name[0], name[0]), message)
        for message in held_out
        if message not in found
    ]


def _check_filters(c) -> list[str]:
    """`row_filters` is a mapping of columns to a value, a list of values, or {min, max}."""
    filters = c.row_filters if c.row_filters is not None else {}
    if not isinstance(filters, dict):
        return [f"row_filters={filters!r}: a mapping of columns to values is expected, such as {{level: [4, 5]}}"]
    if filters and str(c.dataset_name).startswith(GENERATED):
        return [f"row_filters={filters!r}: generated problems are not filtered, make others by dataset_kwargs"]
    found = []
    for column, wanted in filters.items():
        if isinstance(wanted, dict) and (
            not wanted or set(wanted) - {"min", "max"} or not all(isinstance(v, int | float) for v in wanted.values())
        ):
            found.append(f"row_filters: {column}={wanted!r}: a range has the numbers min, max or both")
    return found


def _check_decontamination(c) -> list[str]:
    """The evaluation sets that are local files exist; n and threshold are in their ranges."""
    found = []
    for name in as_list(c.decontaminate_against):
        path = Path(str(name).partition("@")[0])
        if path.suffix in LOCAL_SUFFIXES and not path.is_file():
            found.append(f"decontaminate_against={name}: there is no such file, give an existing one or a Hub name")
    if c.decontamination_ngram < 1:
        found.append(f"decontamination_ngram={c.decontamination_ngram}: at least 1 is needed, 10 is usual")
    if not 0 < c.decontamination_threshold <= 1:
        found.append(f"decontamination_threshold={c.decontamination_threshold}: a share in (0, 1] is expected")
    return found


def _check_rows(c) -> list[str]:
    """Every row of a local .jsonl or .csv file, as far as it is used, has a problem and an answer."""
    name = c.dataset_name
    try:
        number = 0
        for number, (place, row) in enumerate(_rows(name), 1):
            if number > (c.max_problems or 1_000_000):
                break
            if wrong := row if isinstance(row, str) else _check_row(c, row):
                return [f"{name}, {place}: {wrong}"]
    except UnicodeDecodeError as error:
        return [f"dataset_name={name}: it is not UTF-8 text ({error.reason} at byte {error.start}), convert it"]
    return [] if number else [f"dataset_name={name}: it has no rows, give a file with problems"]


def _rows(name: str):
    """(place, row) of a local file; a row that cannot be read is what is wrong with it."""
    with open(name, encoding="utf-8-sig", newline="") as file:
        if Path(name).suffix == ".csv":
            csv.field_size_limit(LONGEST_FIELD)
            yield from ((f"row {number}", row) for number, row in enumerate(csv.DictReader(file), 1))
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = f"not JSON ({error.msg}), one object a line is expected"
            if not isinstance(row, dict | str):
                row = f"an object is expected, got {type(row).__name__}"
            yield f"line {number}", row


def _check_row(c, row: dict) -> str | None:
    """What is missing in a row, and the mend."""
    columns = {
        "problem": [c.problem_column] if c.problem_column else ["problem", "question", "quiz"],
        "answer": [c.answer_column] if c.answer_column else ["answer", "solution", "is_knight"],
    }
    for name, keys in columns.items():
        empty = not any(str(row.get(key) if row.get(key) is not None else "").strip() for key in keys)
        if empty and c.unusable_rows == "error":
            return (
                f"no {name} (looked for {' or '.join(keys)}, the row has {sorted(map(str, row))}): fill it in, name "
                f"another column with --{name}_column, or leave such rows out with --unusable_rows drop"
            )
    return None


@dataclass
class ProblemConfig:
    """Where problems come from."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A data set on the Hugging Face Hub, a local file (.jsonl, .json, .parquet, .csv), "
            "`tiny/chain`, `tiny/guess` or `tiny/mix` (the tiny world), or `reasoning_gym/TASK`."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to read: train, validation or test."})
    problem_column: str | None = field(
        default=None, metadata={"help": "Column with the problem text. Default: `problem`, else `question`."}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Column with the reference answer. Default: `answer`, else `solution`."}
    )
    max_problems: int | None = field(default=None, metadata={"help": "Use the first N problems only."})
    problem_seed: int = field(default=0, metadata={"help": "Seed of generated problems (tiny world, reasoning-gym)."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of the problem generator, such as its difficulty."}
    )
    row_filters: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Rows to use, by column: {level: [4, 5], pass_rate: {min: 0.25, max: 0.9}}. Default: none; for "
            "nvidia/OpenMathReasoning those of the GSR paper. {} switches them off."
        },
    )
    unusable_rows: str = field(
        default="error",
        metadata={
            "help": "A row of a local file without problem or usable answer ends the program (`error`), or is dropped "
            "and counted (`drop`), as rows of a Hub set always are."
        },
    )
    decontaminate_against: list[str] | None = field(
        default=None,
        metadata={
            "help": "Evaluation sets whose problems are removed: Hub names, local files or generated sets, as NAME or "
            "NAME@SPLIT."
        },
    )
    decontamination_ngram: int = field(
        default=10, metadata={"help": "Length of the n-grams, in words, numbers and signs, that texts may share."}
    )
    decontamination_threshold: float = field(
        default=0.5, metadata={"help": "Share of the shorter text's n-grams from which on a problem is removed."}
    )

    def __post_init__(self):
        for name in ("row_filters", "dataset_kwargs"):
            setattr(self, name, mapping(name, getattr(self, name)))


@dataclass
class DistillProblemConfig(ProblemConfig):
    """Where distillation's problems come from: a set of many thousand rows is not given up for one bad row."""

    unusable_rows: str = field(
        default="drop",
        metadata={
            "help": "A row without problem or usable answer ends the program (`error`), or is dropped and counted."
        },
    )


@dataclass
class EvalProblemConfig(ProblemConfig):
    """Where evaluation's problems come from: the test split, where nothing else is said."""

    dataset_split: str = field(default="test", metadata={"help": "Split to read: test, validation or train."})

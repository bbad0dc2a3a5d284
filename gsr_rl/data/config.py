"""Keys that say which problems a program reads, and their checks: `ProblemConfig`, and what programs change of it.

The checks look at no row: `problems.read_problems` does, before any model is loaded.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gsr_rl.data.sources import GENERATED, LOCAL_SUFFIXES, as_list, check_split, file_kind, from_hub, source_of
from gsr_rl.data.tiny_world import FAMILIES, SPLITS
from gsr_rl.keys import key, mapping, one_of


@dataclass
class ProblemConfig:
    """Where problems come from."""

    dataset_name: str | None = key(
        None,
        "A data set on the Hugging Face Hub, a local file (.jsonl, .json, .parquet, .csv, .tsv; also .gz), "
        "`tiny/chain`, `tiny/guess` or `tiny/mix` (the tiny world), or `reasoning_gym/TASK`.",
    )
    dataset_config: str | None = key(None, "Configuration name of a Hub data set.")
    dataset_split: str = key("train", "Split to read: train, validation or test.")
    problem_column: str | None = key(None, "Column with the problem text. Default: `problem`, else `question`.")
    answer_column: str | None = key(None, "Column with the reference answer. Default: `answer`, else `solution`.")
    max_problems: int | None = key(None, "Use the first N problems only.")
    problem_seed: int = key(0, "Seed of generated problems (tiny world, reasoning-gym).")
    dataset_kwargs: dict[str, Any] | str | None = key(None, "Arguments of the generator, such as its difficulty.")
    row_filters: dict[str, Any] | str | None = key(
        None,
        "Rows to use, by column: {level: [4, 5], pass_rate: {min: 0.25, max: 0.9}}. Default: none; for "
        "nvidia/OpenMathReasoning those of the GSR paper. {} switches them off.",
    )
    unusable_rows: str = key("error", "A local row without problem or usable answer: `error`, or `drop` (counted).")
    decontaminate_against: list[str] | None = key(None, "Evaluation sets, as NAME or NAME@SPLIT, to keep out.")
    decontamination_ngram: int = key(10, "Length of the n-grams, in words, numbers and signs, that texts may share.")
    decontamination_threshold: float = key(0.5, "Share of common n-grams from which on a problem is removed.")

    def __post_init__(self):
        for name in ("row_filters", "dataset_kwargs"):
            setattr(self, name, mapping(name, getattr(self, name)))


@dataclass
class DistillProblemConfig(ProblemConfig):
    """Where distillation's problems come from: one bad row of many thousand does not end the program."""

    unusable_rows: str = key("drop", "A row without problem or usable answer: `error`, or `drop` (counted).")


@dataclass
class EvalProblemConfig(ProblemConfig):
    """Where evaluation's problems come from: by default the test split."""

    dataset_split: str = key("test", "Split to read: test, validation or train.")


def check_problems(c) -> list[str]:
    """Messages about the keys of `ProblemConfig`. A local file has to exist; the Hub is not asked."""
    name = c.dataset_name
    if not name:
        return ["dataset_name is not set: give a Hub data set, a local file, tiny/mix or reasoning_gym/TASK"]
    messages = _check_filters(c) + _check_decontamination(c)
    if c.max_problems is not None and c.max_problems < 1:
        messages.append(f"max_problems={c.max_problems}: at least 1 is needed, or leave it out")
    messages += one_of(c, unusable_rows=("error", "drop"))
    if str(name).startswith("tiny/"):
        return messages + _check_tiny(c)
    if str(name).startswith(GENERATED):
        return messages
    if Path(name).is_file() and not file_kind(name):
        return [f"dataset_name={name}: such a file is not read, convert it to one of {', '.join(LOCAL_SUFFIXES)}"]
    if from_hub(name):
        return messages + check_split(name, c.dataset_split)
    if not Path(name).is_file():
        return [f"dataset_name={name}: there is no such file, give an existing {', '.join(LOCAL_SUFFIXES)} file"]
    return messages


def _check_tiny(c) -> list[str]:
    """The tiny world's family and split."""
    family, messages = c.dataset_name.removeprefix("tiny/"), []
    if family not in (*FAMILIES, "mix"):
        known = ", ".join(f"tiny/{name}" for name in FAMILIES)
        messages.append(f"dataset_name={c.dataset_name}: use {known} or tiny/mix")
    if c.dataset_split not in SPLITS:
        messages.append(f"dataset_split={c.dataset_split}: the tiny world has {', '.join(SPLITS)}")
    return messages


def check_training_problems(c) -> list[str]:
    """`check_problems` of a program that trains on them: the set is none of its `decontaminate_against`."""
    trained_on = source_of(f"{c.dataset_name}@{c.dataset_split}")
    return check_problems(c) + [
        f"decontaminate_against={name}: dataset_name={c.dataset_name} is this evaluation set, so no problem would be "
        "left: train on another set or split, or take the name out"
        for name in as_list(c.decontaminate_against)
        if source_of(str(name)) == trained_on
    ]


def held_out_keys(problems, training) -> dict[str, object]:
    """The keys of a `ProblemConfig` that have other values for the held-out problems of a `GSRConfig`."""
    keys = {"dataset_name": training.eval_dataset_name, "dataset_split": training.eval_dataset_split}
    keys |= {"max_problems": training.max_eval_problems, "decontaminate_against": None}
    if training.eval_dataset_name != problems.dataset_name:  # these describe one set and not another
        keys |= dict.fromkeys(("dataset_config", "dataset_kwargs", "row_filters", "problem_column", "answer_column"))
    return keys


def check_problems_and_held_out(c) -> list[str]:
    """`check_training_problems`, and the same of the held-out problems, which are not those that are trained on."""
    messages, name = check_training_problems(c), c.eval_dataset_name
    if not name or not c.dataset_name:
        return messages
    if source_of(f"{name}@{c.eval_dataset_split}") == source_of(f"{c.dataset_name}@{c.dataset_split}"):
        is_file = file_kind(name)
        where = "" if is_file else f", eval_dataset_split={c.eval_dataset_split}"
        other = "another file" if is_file else "another split or set"
        messages.append(f"eval_dataset_name={name}{where}: these problems are trained on, hold out {other}")
    of_held_out = check_problems(SimpleNamespace(**vars(c) | held_out_keys(c, c)))
    names = {"dataset_name": "eval_dataset_name", "dataset_split": "eval_dataset_split"}
    names |= {"max_problems": "max_eval_problems"}
    return messages + [
        re.sub(r"^(\w+)(?==)", lambda key: names.get(key[0], key[0]), message)
        for message in of_held_out
        if message not in messages
    ]


def _check_filters(c) -> list[str]:
    """`row_filters` is a mapping of columns to a value, a list of values, or {min, max}."""
    filters = c.row_filters if c.row_filters is not None else {}
    if not isinstance(filters, dict):
        return [f"row_filters={filters!r}: a mapping of columns to values is expected, such as {{level: [4, 5]}}"]
    if filters and str(c.dataset_name).startswith(GENERATED):
        return [f"row_filters={filters!r}: generated problems are not filtered, make others by dataset_kwargs"]
    messages = []
    for column, wanted in filters.items():
        if isinstance(wanted, dict) and (
            not wanted or set(wanted) - {"min", "max"} or not all(isinstance(v, int | float) for v in wanted.values())
        ):
            messages.append(f"row_filters: {column}={wanted!r}: a range has the numbers min, max or both")
    return messages


def _check_decontamination(c) -> list[str]:
    """The evaluation sets that are local files exist; n and threshold are in their ranges."""
    messages = []
    for name in as_list(c.decontaminate_against):
        path = Path(str(name).partition("@")[0])
        if file_kind(path) and not path.is_file():
            messages.append(f"decontaminate_against={name}: there is no such file, give an existing one or a Hub name")
    if c.decontamination_ngram < 1:
        messages.append(f"decontamination_ngram={c.decontamination_ngram}: at least 1 is needed, 10 is usual")
    if not 0 < c.decontamination_threshold <= 1:
        messages.append(f"decontamination_threshold={c.decontamination_threshold}: a share in (0, 1] is expected")
    return messages

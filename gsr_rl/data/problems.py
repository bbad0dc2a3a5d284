"""Where problems come from: local files, the Hugging Face Hub, reasoning-gym tasks and the tiny world.

Every row that comes out has `id`, `problem` and `answer` as non-empty strings; other keys are kept.
"""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from gsr_rl.data import gym_tasks, hub_sets
from gsr_rl.data.knights_knaves import with_answer
from gsr_rl.data.sources import LOCAL_SUFFIXES, LONGEST_FIELD, as_list, normalise_text, problem_id, source_of
from gsr_rl.refinement.prompts import get_template, solve_prompt

PROBLEM_COLUMNS = ("problem", "question")
ANSWER_COLUMNS = ("answer", "solution")
# What tables hold where there is no answer; "none" in small letters is one: there is no solution.
MISSING = {"nan", "NaN", "NAN", "None", "null", "NULL", "n/a", "N/A", "unknown", "Unknown"}

_SEVERAL = re.compile(r"[(\[]|\\\{|,\s|\b(or|and)\b")  # numbers between commas, not thousands
_HALF = re.compile("[\ud800-\udfff]")


@dataclass
class Problems:
    """Problem rows, how many became of what was read, what decontamination removed (its findings), and the columns."""

    rows: list[dict]
    counts: dict[str, int] = field(default_factory=dict)
    removed: list[dict] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)

    def removed_by_set(self) -> dict[str, dict[str, int]]:
        """How many rows decontamination removed, by evaluation set and reason (`exact`, `overlap`)."""
        found: dict[str, Counter] = {}
        for one in self.removed:
            found.setdefault(one["evaluation_set"], Counter())[one["reason"]] += 1
        return {name: dict(count) for name, count in found.items()}


def load_problems(config) -> list[dict]:
    """The rows that a `ProblemConfig` names: what `read_problems` gives, with a line on stderr for what was left out.

    Raises:
        ValueError: As `read_problems`.
    """
    problems = read_problems(config)
    for reason, count in problems.counts.items():
        if count and reason not in ("rows read", "problems"):
            print(f"{config.dataset_name}: left out {count} rows {reason}", file=sys.stderr)
    return problems.rows


def read_problems(config) -> Problems:
    """The rows that a `ProblemConfig` names, filtered, without duplicates, decontaminated, the first `max_problems`.

    Returns:
        Rows `{"id", "problem", "answer", ...}`, all three non-empty strings, ids unique.

    Raises:
        ValueError: A local row without problem or usable answer while `unusable_rows` is `error`, two rows with one
            id, no row at all, an unknown source, or an evaluation set that cannot be read.
    """
    own = source_of(f"{config.dataset_name}@{config.dataset_split}")
    against = [name for name in as_list(config.decontaminate_against) if source_of(name) != own]
    more = against and config.max_problems and not _generated(config)  # so that enough is left
    problems = _read(_with(config, max_problems=2 * config.max_problems + 100) if more else config)
    if against:
        from gsr_rl.data.decontamination import decontaminate

        evaluation = {name: evaluation_rows(name) for name in against}
        problems.rows, problems.removed = decontaminate(
            problems.rows, evaluation, config.decontamination_ngram, config.decontamination_threshold
        )
        problems.counts["that an evaluation set holds"] = len(problems.removed)
        problems.rows = problems.rows[: config.max_problems]
    if not problems.rows:
        raise ValueError(
            f"dataset_name={config.dataset_name}, dataset_split={config.dataset_split}: there are no usable problems "
            f"({', '.join(f'{count} {name}' for name, count in problems.counts.items() if count) or 'it is empty'})"
        )
    problems.counts["problems"] = len(problems.rows)
    return problems


def plain_config(name: str, **values) -> SimpleNamespace:
    """What `read_problems` needs to know of a set called `name`: `ProblemConfig`'s defaults and these values.

    The columns may be lists here: the first that a row has a usable value in.
    """
    defaults = {"dataset_split": "test", "dataset_config": None, "dataset_kwargs": None, "problem_column": None}
    defaults |= {"answer_column": None, "max_problems": None, "problem_seed": 0, "row_filters": None}
    defaults |= {"unusable_rows": "error", "decontaminate_against": None}
    return SimpleNamespace(dataset_name=name, **(defaults | values))


def _with(config, **values):
    """A copy of a configuration with other values."""
    return SimpleNamespace(**(vars(config) | values))


def _generated(config) -> bool:
    return str(config.dataset_name).startswith(("tiny/", "reasoning_gym/"))


def _read(config) -> Problems:
    name = str(config.dataset_name)
    options = _options(config)
    if name.startswith("tiny/"):
        rows = _from_tiny_world(config, name.removeprefix("tiny/"), options)
    elif name.startswith("reasoning_gym/"):
        rows = gym_tasks.generate(config, name.removeprefix("reasoning_gym/"), options)
    elif Path(name).suffix in LOCAL_SUFFIXES:
        return _standard_rows(config, read_local(Path(name)), strict=config.unusable_rows == "error")
    else:
        for message in hub_sets.check_split(name, config.dataset_split):
            raise ValueError(message)
        return _standard_rows(config, hub_sets.read_hub(config, options), strict=False)
    return Problems(rows, {"rows read": len(rows)})


def evaluation_rows(name: str) -> list[dict]:
    """The problems of an evaluation set: `NAME` or `NAME@SPLIT`, a local file, a Hub set or a generated one.

    Without a split it is `test`, or the only split of a known Hub set.

    Raises:
        ValueError: The set cannot be read, or holds no problem.
    """
    source, split = source_of(name)
    config = plain_config(source, dataset_split=split, row_filters={}, unusable_rows="drop", need_answer=False)
    try:
        problems = _read(config)
    except (OSError, ValueError) as error:
        raise ValueError(f"decontaminate_against={name}: it cannot be read: {error}") from None
    if not problems.rows:
        raise ValueError(
            f"decontaminate_against={name}: it has no problem to compare with, in {problems.counts['rows read']} rows "
            f"(columns: {', '.join(problems.columns) or 'none'}): call the column of the problems "
            f"{' or '.join(PROBLEM_COLUMNS)}, or leave the set out"
        )
    if without := problems.counts.get("without a problem"):
        print(f"decontaminate_against={name}: left out {without} rows without a problem", file=sys.stderr)
    return problems.rows


def training_rows(rows: list[dict], prompt_template: str) -> list[dict]:
    """Problem rows as `GSRTrainer` takes them: `prompt` (the solve chat), `problem`, `problem_id`, `answer`."""
    template = get_template(prompt_template)
    return [
        {
            "prompt": solve_prompt(row["problem"], template),
            "problem": row["problem"],
            "problem_id": row["id"],
            "answer": str(row["answer"]),
        }
        for row in rows
    ]


def without_held_out(rows: list[dict], held_out: list[dict]) -> list[dict]:
    """The rows whose text no held-out row has, with a line on stderr for what was left out.

    Raises:
        ValueError: None is left.
    """
    texts = {normalise_text(row["problem"]) for row in held_out}
    kept = [row for row in rows if normalise_text(row["problem"]) not in texts]
    if not kept:
        raise ValueError(
            "eval_dataset_name holds out every problem of dataset_name: give other problems to one of them"
        )
    if count := len(rows) - len(kept):
        print(f"left out {count} training problems that eval_dataset_name holds out", file=sys.stderr)
    return kept


def _options(config) -> dict:
    options = config.dataset_kwargs or {}
    if isinstance(options, str):
        options = json.loads(options)
    if not isinstance(options, dict):
        raise ValueError(f"dataset_kwargs={options!r}: a mapping is expected")
    return dict(options)


def _from_tiny_world(config, family: str, options: dict) -> list[dict]:
    from gsr_rl.data import tiny_world

    number = config.max_problems or gym_tasks.DEFAULT_PROBLEMS
    return tiny_world.generate(family, config.dataset_split, number, config.problem_seed, **options)


def _parsed(line: str, path: Path, number: int) -> dict:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {number} is no JSON object ({error.msg}): mend it or take it out") from None


def read_local(path: Path) -> list[dict]:
    """The rows of a .jsonl, .json (a list), .parquet or .csv file, as they are. A byte order mark is skipped.

    Raises:
        ValueError: It is no such file.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with open(path, encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as file:
            if path.suffix == ".jsonl":
                return [_parsed(line, path, number) for number, line in enumerate(file, 1) if line.strip()]
            if path.suffix == ".csv":
                csv.field_size_limit(LONGEST_FIELD)
                return list(csv.DictReader(file))
            rows = json.load(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: it is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from None
    except (json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: it is no {path.suffix[1:]} file ({error}): mend it or give another") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a JSON list of objects is expected, got {type(rows).__name__}")
    return rows


def _read_parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{path}: it is no parquet file ({why}): mend it or give another") from None


def final_answer(value: object) -> str:
    r"""The reference answer in a column's value, or "".

    Understands a plain answer, GSM8K's text with `#### 42`, and a solution that ends in `\boxed{...}`. A list of one
    answer is that answer.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, list | dict):
        return ""
    text = str(value).strip()
    if "\\boxed" in text:  # before ####, which is also a heading
        from rewards import extract_answer

        return extract_answer(text, require_box=True) or ""
    if "####" in text:
        answer = text.rsplit("####", 1)[1].strip()
        return answer if _SEVERAL.search(answer) else answer.replace(",", "")
    return text


def _standard_rows(config, rows: Iterable[dict], strict: bool) -> Problems:
    """Rows with our keys. A row without problem or usable answer is an error (`strict`), or dropped and counted."""
    problem_keys, answer_keys = hub_sets.columns_of(config)
    problem_keys, answer_keys = problem_keys or PROBLEM_COLUMNS, answer_keys or ANSWER_COLUMNS
    filters, need_answer = hub_sets.filters_of(config), getattr(config, "need_answer", True)
    found: dict[str, dict] = {}
    named = config.answer_column == "solution"
    texts: set[str] = set()
    columns: dict[str, None] = {}
    counts: Counter = Counter({"rows read": 0})
    for number, row in enumerate(rows, 1):
        if config.max_problems and len(found) >= config.max_problems:
            break
        counts["rows read"] += 1
        where = f"{config.dataset_name}, row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: an object is expected, got {type(row).__name__}")
        columns |= dict.fromkeys(map(str, row))
        row = with_answer(row)
        if column := hub_sets.passes(row, filters):
            counts[f"by the filter on {column}"] += 1
            continue
        if broken := next((k for k, v in row.items() if isinstance(v, str) and _HALF.search(v)), None):
            if strict:
                raise ValueError(
                    f"{where}: {broken} holds half a character (a lone surrogate): mend it, or leave such rows out "
                    "with --unusable_rows drop"
                )
            counts["with half a character"] += 1
            continue
        problem = next((row[k] for k in problem_keys if isinstance(row.get(k), str) and row[k].strip()), "")
        answer = next((text for k in answer_keys if (text := _answer_of(row, k, named))), "")
        if not problem or (need_answer and not answer):
            if strict:
                missing = "problem" if not problem else "answer"
                keys = problem_keys if not problem else answer_keys
                raise ValueError(
                    f"{where}: no usable {missing} (looked for {' or '.join(keys)}, the row has "
                    f"{sorted(map(str, row))}): fill it in, name another column with --{missing}_column, or leave "
                    "such rows out with --unusable_rows drop"
                )
            counts["without a problem" if not problem else "without a usable answer"] += 1
            continue
        text = problem_id(problem)
        identity = str(row["id"]) if row.get("id") not in (None, "") else text
        if text in texts:
            counts["with a text seen before"] += 1
            continue
        if identity in found:
            raise ValueError(f"{where}: the id {identity!r} is used twice, for different problems: ids must be unique")
        texts.add(text)
        found[identity] = {**row, "id": identity, "problem": problem, "answer": answer}
    return Problems(list(found.values()), dict(counts), columns=list(columns))


def _answer_of(row: dict, key: str, named: bool) -> str:
    """The answer in a column, or "" if the verifier could not read it.

    A `solution` without a marked final answer is prose, not an answer, unless the user `named` it as the answer.
    """
    from rewards.golds import read_gold

    value = row.get(key)
    if key == "solution" and not named and "\\boxed" not in str(value) and "####" not in str(value):
        return ""
    answer = final_answer(value)
    return answer if answer and answer not in MISSING and read_gold(answer) is not None else ""

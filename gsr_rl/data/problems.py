"""Read problems: from local files, the Hugging Face Hub, reasoning-gym tasks and the tiny world.

Every row that comes out has `id`, `problem` and `answer` as non-empty strings; other keys are kept. What a
configuration names is read here once, before any model is loaded, so this is also where bad files are refused.
"""

import csv
import gzip
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from gsr_rl.data import gym_tasks, sources, tiny_world
from gsr_rl.data.decontamination import decontaminate
from gsr_rl.data.sources import ANSWER_COLUMNS, GENERATED, PROBLEM_COLUMNS, file_kind, normalise_text, problem_id
from gsr_rl.keys import mapping, raise_if_any
from gsr_rl.refinement.prompts import get_template, solve_prompt
from rewards import extract_answer
from rewards.golds import read_gold

DEFAULT_PROBLEMS = 1000  # of a generated set where max_problems is not set
LONGEST_FIELD = 2**31 - 1  # of a .csv file; the csv module's own limit is shorter than some solutions
# What tables hold where there is no answer; "none" in small letters is one: there is no solution.
MISSING = {"nan", "NaN", "NAN", "None", "null", "NULL", "n/a", "N/A", "unknown", "Unknown"}

# Columns of a set that rewards cannot get by that name: the trainer or TRL passes its own.
PASSED_BY_TRAINER = {"prompt", "prompts", "completion", "completions", "completion_ids", "stage", "id", "problem_id"}
PASSED_BY_TRAINER |= {"problem", "answer", "trainer_state", "log_extra", "log_metric", "environments"}

_SEVERAL = re.compile(r"[(\[]|\\\{|,\s|\b(or|and)\b")  # numbers between commas, not thousands
_HALF = re.compile("[\ud800-\udfff]")


@dataclass
class Problems:
    """What was read.

    Attributes:
        rows: Problem rows.
        counts: `rows read`, the rows left out by reason, and `problems`, those that are left.
        removed: Of each row that decontamination removed a `Finding` as a mapping.
        columns: Of the rows read.
    """

    rows: list[dict]
    counts: dict[str, int] = field(default_factory=dict)
    removed: list[dict] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)

    def removed_by_set(self) -> dict[str, dict[str, int]]:
        """How many rows decontamination removed, by evaluation set and reason (`exact`, `overlap`)."""
        counts: dict[str, Counter] = {}
        for finding in self.removed:
            counts.setdefault(finding["evaluation_set"], Counter())[finding["reason"]] += 1
        return {name: dict(count) for name, count in counts.items()}


class _Unusable(ValueError):
    """A row without problem or usable answer: the reason as it is counted, and the message where it is an error."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def print_left_out(name: str, counts: dict[str, int]) -> None:
    """Lines on stderr: how many rows of a set were left out, by reason."""
    for reason, count in counts.items():
        if count and reason not in ("rows read", "problems"):
            print(f"{name}: left out {count} rows {reason}", file=sys.stderr)


def load_problems(config) -> list[dict]:
    """The rows of `read_problems`, with a line on stderr for what was left out."""
    problems = read_problems(config)
    print_left_out(config.dataset_name, problems.counts)
    return problems.rows


def read_problems(config) -> Problems:
    """The rows that a `ProblemConfig` names, filtered, without duplicates, decontaminated, the first `max_problems`.

    Returns:
        Rows `{"id", "problem", "answer", ...}`, all three non-empty strings, ids unique.

    Raises:
        ValueError: A local row without problem or usable answer while `unusable_rows` is `error`, two rows with one
            id, no row at all, an unknown source, or an evaluation set that cannot be read.
    """
    source = sources.source_of(f"{config.dataset_name}@{config.dataset_split}")
    against = [name for name in sources.as_list(config.decontaminate_against) if sources.source_of(name) != source]
    if against and config.max_problems and not str(config.dataset_name).startswith(GENERATED):
        more = {"max_problems": 2 * config.max_problems + 100}  # so that enough is left
        problems = _read(SimpleNamespace(**vars(config) | more))
    else:
        problems = _read(config)
    if against:
        evaluation = {name: evaluation_rows(name) for name in against}
        problems.rows, problems.removed = decontaminate(
            problems.rows, evaluation, config.decontamination_ngram, config.decontamination_threshold
        )
        problems.counts["that an evaluation set holds"] = len(problems.removed)
        problems.rows = problems.rows[: config.max_problems]
    if not problems.rows:
        raise ValueError(_no_problems(config, problems))
    problems.counts["problems"] = len(problems.rows)
    return problems


def _no_problems(config, problems: Problems) -> str:
    split = "" if file_kind(config.dataset_name) else f", dataset_split={config.dataset_split}"
    counts = ", ".join(f"{count} {name}" for name, count in problems.counts.items() if count) or "it is empty"
    unknown = [column for column in sources.filters_of(config) if problems.columns and column not in problems.columns]
    known = ", ".join(problems.columns)
    hint = f"; row_filters: no row has {', '.join(unknown)}, the columns are {known}" if unknown else ""
    return f"dataset_name={config.dataset_name}{split}: there are no usable problems ({counts}{hint})"


def check_file(config) -> None:
    """`read_problems` of a local file alone, without comparing it with evaluation sets, for a dry run."""
    if file_kind(config.dataset_name):
        read_problems(SimpleNamespace(**vars(config) | {"decontaminate_against": None}))


def plain_config(name: str, **values) -> SimpleNamespace:
    """What `read_problems` needs to know of a set called `name`: `ProblemConfig`'s defaults and these values.

    The columns may be lists here: the first that a row has a usable value in.
    """
    defaults = {"dataset_split": "test", "dataset_config": None, "dataset_kwargs": None, "problem_column": None}
    defaults |= {"answer_column": None, "max_problems": None, "problem_seed": 0, "row_filters": None}
    defaults |= {"unusable_rows": "error", "decontaminate_against": None}
    return SimpleNamespace(dataset_name=name, **(defaults | values))


def _read(config) -> Problems:
    """The rows of a set, local, generated or the Hub's, as far as they are usable."""
    name, options = str(config.dataset_name), dict(mapping("dataset_kwargs", config.dataset_kwargs) or {})
    if file_kind(name) and not name.startswith(GENERATED):
        return _standard_rows(config, read_local(Path(name)), strict=config.unusable_rows == "error")
    if not name.startswith(GENERATED):
        raise_if_any(sources.check_split(name, config.dataset_split))
        return _standard_rows(config, sources.read_hub(config, options), strict=False)
    number = config.max_problems or DEFAULT_PROBLEMS
    kind, _, task = name.partition("/")
    if kind == "tiny":
        rows = tiny_world.generate(task, config.dataset_split, number, config.problem_seed, **options)
    else:
        rows = gym_tasks.generate(task, config.dataset_split, number, config.problem_seed, options)
    return Problems(rows, {"rows read": len(rows)})


def evaluation_rows(name: str) -> list[dict]:
    """The problems of an evaluation set: `NAME` or `NAME@SPLIT`, a local file, a Hub set or a generated one.

    Without a split it is `test`, or the only split of a known Hub set.

    Raises:
        ValueError: The set cannot be read, or holds no problem.
    """
    source, split = sources.source_of(name)
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
    """Problem rows as `GSRTrainer` takes them: `prompt` (the solve chat), `problem`, `problem_id`, `answer`.

    The set's other columns come along for reward functions, None where a row lacks one.
    """
    template, columns = get_template(prompt_template), _reward_columns(rows)
    return [
        {column: row.get(column) for column in columns}
        | {"prompt": solve_prompt(row["problem"], template), "problem": row["problem"]}
        | {"problem_id": row["id"], "answer": str(row["answer"])}
        for row in rows
    ]


def _reward_columns(rows: list[dict]) -> list[str]:
    """The columns that reward functions get besides ours; a line on stderr for one whose values differ in type."""
    columns = []
    names = dict.fromkeys(name for row in rows for name in row if isinstance(name, str))
    for column in [name for name in names if name not in PASSED_BY_TRAINER]:
        values = [row.get(column) for row in rows]
        if all(value is None or isinstance(value, str) for value in values):
            columns.append(column)
            continue
        import pyarrow

        try:
            pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError) as error:
            why = str(error).splitlines()[0]
            print(f"column {column}: rewards do not get it, its values have no common type ({why})", file=sys.stderr)
        else:
            columns.append(column)
    return columns


def without_held_out(rows: list[dict], held_out: list[dict]) -> list[dict]:
    """The rows whose text no held-out row has, with a line on stderr for the others. `ValueError` if none is left."""
    texts = {normalise_text(row["problem"]) for row in held_out}
    left = [row for row in rows if normalise_text(row["problem"]) not in texts]
    if not left:
        raise ValueError(
            "eval_dataset_name holds out every problem of dataset_name: give other problems to one of them"
        )
    if count := len(rows) - len(left):
        print(f"left out {count} training problems that eval_dataset_name holds out", file=sys.stderr)
    return left


def _parsed(line: str, path: Path, number: int) -> dict:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {number} is no JSON object ({error.msg}): fix it or take it out") from None


def read_local(path: Path) -> list[dict]:
    """The rows of a file of `LOCAL_SUFFIXES`, as they are; compressed (.gz) or not. A byte order mark is skipped.

    JSON is a list, or an object a line, whichever of both the name says.

    Raises:
        ValueError: It is no such file.
    """
    kind, is_table = file_kind(path), file_kind(path) in (".csv", ".tsv")
    if kind == ".parquet":
        return _read_parquet(path)
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="" if is_table else None) as file:
            rows = _table(file.read(), kind) if is_table else _json(file.read(), path, kind)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: it is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from None
    except (json.JSONDecodeError, csv.Error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: it is no {kind[1:]} file ({error}): fix it or give another") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a JSON list of objects is expected, got {type(rows).__name__}")
    return rows


def _json(text: str, path: Path, kind: str):
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if text.lstrip().startswith("[") or (kind == ".json" and (len(lines) < 2 or lines[0][1].strip() == "{")):
        return json.loads(text)
    return [_parsed(line, path, number) for number, line in lines]


def _table(text: str, kind: str) -> list[dict]:
    """Rows of values between commas, or between semicolons or tabs where the first line has no comma."""
    csv.field_size_limit(LONGEST_FIELD)
    header = text.partition("\n")[0]
    marks = "\t" if kind == ".tsv" else [mark for mark in ",;\t" if mark in header] or ","
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=marks[0]))


def _read_parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{path}: it is no parquet file ({why}): fix it or give another") from None


def final_answer(value: object) -> str:
    r"""The reference answer in a column's value, or "".

    Understands a plain answer, GSM8K's text with `#### 42`, and a solution that ends in `\boxed{...}`. A list of one
    answer is that answer.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, list | dict | bytes | bytearray):
        return ""
    text = str(value).strip()
    if "\\boxed" in text:  # before ####, which is also a heading
        return extract_answer(text, require_box=True) or ""
    if "####" in text:
        answer = text.rsplit("####", 1)[1].strip()
        return answer if _SEVERAL.search(answer) else answer.replace(",", "")
    return text


def _standard_rows(config, rows: Iterable[dict], *, strict: bool) -> Problems:
    """Rows with our keys. A row without problem or usable answer is an error (`strict`), or dropped and counted."""
    filters = sources.filters_of(config)
    usable: dict[str, dict] = {}  # by id
    answers: dict[str, str] = {}  # by text
    columns: dict[str, None] = {}
    counts: Counter = Counter({"rows read": 0})
    for number, row in enumerate(rows, 1):
        if config.max_problems and len(usable) >= config.max_problems:
            break
        counts["rows read"] += 1
        where = f"{config.dataset_name}, row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: an object is expected, got {type(row).__name__}")
        columns |= dict.fromkeys(map(str, row))
        row = gym_tasks.with_answer(_in_small_letters(row))
        _refuse_bytes(row, config, where)
        if column := sources.failed_filter(row, filters):
            counts[f"by the filter on {column}"] += 1
            continue
        try:
            row = _standard_row(config, row)
        except _Unusable as unusable:
            if strict:
                raise ValueError(f"{where}: {unusable}, or leave such rows out with --unusable_rows drop") from None
            counts[unusable.reason] += 1
            continue
        text = problem_id(row["problem"])
        if text in answers:
            same = row["answer"] == answers[text]
            counts["with a text seen before" + ("" if same else " and another answer, the first is kept")] += 1
            continue
        if (key := row["id"]) in usable:
            raise ValueError(f"{where}: the id {key!r} is used twice, for different problems: ids must be unique")
        answers[text] = row["answer"]
        usable[row["id"]] = row
    return Problems(list(usable.values()), dict(counts), columns=list(columns))


def _refuse_bytes(row: dict, config, where: str) -> None:
    """Raises ValueError if a column that is looked in holds bytes: their text would be `b'5'`."""
    problem_columns, answer_columns = sources.columns_of(config)
    for column in (*problem_columns, *answer_columns):
        if isinstance(row.get(column), bytes | bytearray):
            raise ValueError(f"{where}: the column {column} holds bytes: decode it to text first")


def _in_small_letters(row: dict) -> dict:
    """The row with its usual columns by their usual names too, where they are in capitals."""
    usual = {str(key).strip().lower(): value for key, value in row.items()}
    return {name: usual[name] for name in ("id", *PROBLEM_COLUMNS, *ANSWER_COLUMNS) if name in usual} | row


def _standard_row(config, row: dict) -> dict:
    """The row with `id`, `problem` and `answer`, non-empty strings. Raises `_Unusable`."""
    if broken := next((key for key, value in row.items() if isinstance(value, str) and _HALF.search(value)), None):
        raise _Unusable("with half a character", f"{broken} holds half a character (a lone surrogate): fix it")
    problem_columns, answer_columns = sources.columns_of(config)
    problems = (row[key] for key in problem_columns if isinstance(row.get(key), str) and row[key].strip())
    if not (problem := next(problems, "")):
        raise _Unusable("without a problem", _missing("problem", problem_columns, row))
    prose = config.answer_column != "solution"  # a solution that the user has not named as the answer
    answers = (text for key in answer_columns if (text := _answer_of(row, key, prose=prose)))
    if not (answer := next(answers, "")) and getattr(config, "need_answer", True):
        raise _Unusable("without a usable answer", _missing("answer", answer_columns, row))
    identity = problem_id(problem) if row.get("id") in (None, "") else str(row["id"])
    return {**row, "id": identity, "problem": problem, "answer": answer}


def _missing(name: str, columns: list[str], row: dict) -> str:
    values = "".join(f", {column}={repr(row[column])[:60]}" for column in columns if column in row)
    several = name == "answer" and any(isinstance(row.get(key), list) and len(row[key]) > 1 for key in columns)
    fix = r"write several values as one text, such as \{2, -2\}" if several else "fill it in"
    return (
        f"no usable {name} (looked for {' or '.join(columns)}, the row has {sorted(map(str, row))}{values}): {fix}, "
        f"name another column with --{name}_column"
    )


def _answer_of(row: dict, key: str, *, prose: bool) -> str:
    """The answer in a column; "" where the verifier cannot read it, and for `prose` without a marked final answer."""
    value = row.get(key)
    if key == "solution" and prose and "\\boxed" not in str(value) and "####" not in str(value):
        return ""
    answer = final_answer(value)
    return answer if answer and answer not in MISSING and read_gold(answer) is not None else ""

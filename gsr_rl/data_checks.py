"""Checks of where problems come from and of how they are sampled: the keys of `ProblemConfig`, `EngineConfig` and
`DistillConfig`. See gsr_rl/checks.py."""

import csv
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

from gsr_rl.candidates import POLICIES
from gsr_rl.generation import KINDS as ENGINES
from gsr_rl.hub_sets import HUB_SETS, check_split
from gsr_rl.value_checks import (
    at_least,
    check_model,
    check_output,
    check_shares,
    check_window,
    finite,
    one_of,
    positive,
)

LOCAL_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
LONGEST_FIELD = 2**31 - 1  # of a .csv file; the csv module's own limit is shorter than some solutions
GENERATED = ("tiny/", "reasoning_gym/")
EXPECTED = ("problems", "fitting", "solve_prompt_tokens", "candidate_tokens", "refinement_prompt_tokens",
            "refinement_tokens", "refinement_rows")  # fmt: skip


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


def from_hub(name: str) -> bool:
    """Whether problems of this name are asked of the Hub: no local file, and not generated."""
    local = Path(name).suffix in LOCAL_SUFFIXES or name.startswith((".", "/", "~"))
    return not local and not name.startswith(GENERATED)


def _check_tiny(c) -> list[str]:
    """The tiny world's family and split."""
    from gsr_rl.tiny_world import FAMILIES, SPLITS

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
    for field, keys in columns.items():
        empty = not any(str(row.get(key) if row.get(key) is not None else "").strip() for key in keys)
        if empty and c.unusable_rows == "error":
            return (
                f"no {field} (looked for {' or '.join(keys)}, the row has {sorted(map(str, row))}): fill it in, name "
                f"another column with --{field}_column, or leave such rows out with --unusable_rows drop"
            )
    return None


def check_sampling(c) -> list[str]:
    """The keys of `EngineConfig`."""
    if wrong := finite(c):
        return wrong
    found = _check_engine(c)
    limits = ("max_completion_length", "max_refinement_length", "max_refinement_prompt_length")
    found += at_least(c, 1, "num_generations", "num_candidate_sets", *limits) + at_least(c, 0, "seed")
    for name in ("temperature", "refinement_temperature"):
        if getattr(c, name) < 0:
            found.append(f"{name}={getattr(c, name)} is negative: use 0 for greedy, or a positive value")
    found += check_shares(c, "top_p", "refinement_top_p", "gpu_memory_utilization")
    found += check_output(c)
    if not c.output_dir:
        found.append("output_dir is not set: give the folder that the results go to")
    if c.num_candidates > c.num_generations:
        found.append(
            f"num_candidates={c.num_candidates} is more than num_generations={c.num_generations}: a refinement can "
            f"only show candidates that were sampled, set num_generations to at least {c.num_candidates}"
        )
    if found:
        return found
    engines = {name: c.engine for name in ("model", "student_model", "teacher_model")}
    engines["teacher_model"] = getattr(c, "teacher_engine", None) or c.engine
    models = [getattr(c, name, None) for name, engine in engines.items() if engine != "endpoint"]
    for model in [model for model in models if model] or [None]:
        found += check_window(c, "max_model_length", model)
    return list(dict.fromkeys(found))


def _check_engine(c, role: str = "") -> list[str]:
    """The keys of the engine; `role` is a prefix of keys that the teacher has of its own."""
    found = []
    own = {name: getattr(c, role + name) for name in ("engine", "endpoints", "endpoint_api", "api_key_env")}
    engine, urls = own["engine"] or c.engine, own["endpoints"] or []
    urls = [urls] if isinstance(urls, str) else urls
    if own["engine"] and engine not in ENGINES:
        found.append(f"{role}engine={engine!r} is not known: use {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")
    if engine == "endpoint" and not (urls or c.endpoints):
        found.append(f"{role}endpoints is not set: engine=endpoint needs one, such as http://localhost:8000/v1")
    for url in urls:
        parts = urlsplit(str(url))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            found.append(f"{role}endpoints: {_shown(url)} is no address, http://HOST:PORT/v1 is expected")
        elif parts.username or parts.password or parts.query:
            found.append(f"{role}endpoints: {_shown(url)} holds a secret or a query: put the key into an environment "
                         f"variable and name that by {role}api_key_env")  # fmt: skip
    if own["endpoint_api"] not in (None, "chat", "completions"):
        found.append(f"{role}endpoint_api={own['endpoint_api']!r}: use chat or completions")
    variable = own["api_key_env"]
    if variable and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", str(variable)):
        found.append(f"{role}api_key_env must be the name of an environment variable, in capitals; the key itself is "
                     "not to be written there (value not shown)")  # fmt: skip
    elif variable and engine == "endpoint" and not os.environ.get(variable):
        found.append(f"{role}api_key_env={variable}: this environment variable is not set: export it, or leave the "
                     "key out for endpoints that need none")  # fmt: skip
    if role:
        return found
    found += at_least(c, 1, "max_requests_in_flight", "tensor_parallel_size") + at_least(c, 0, "request_retries")
    return found + positive(c, "request_timeout", "requests_per_minute", "data_parallel_size")


def _shown(url: object) -> str:
    """An address without what may be a secret."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.hostname}..." if parts.hostname else repr(str(url)[:20])


def check_distillation(c) -> list[str]:
    """The keys of `DistillConfig` that it does not share with others."""
    found = _check_engine(c, "teacher_")
    if c.engine != "endpoint":
        found += check_model(c, "student_model")
    elif not c.student_model:
        found.append("student_model is not set: give the name by which the endpoints know it")
    if c.teacher_model and (c.teacher_engine or c.engine) != "endpoint":
        found += check_model(c, "teacher_model")
    sources = ("student", "student_right", "teacher", "gold", "none")
    if c.direct_source not in sources:
        found.append(f"direct_source={c.direct_source!r}: use one of {', '.join(sources)}")
    if c.direct_ratio < 0:
        found.append(f"direct_ratio={c.direct_ratio} is negative: set it to 0 or direct_source to none")
    found += at_least(c, 1, "refinements_per_set", "max_if_all_right", "direct_generations", "problems_per_chunk")
    found += check_candidate_choice(c)
    if c.overlong_prompts not in ("cut", "drop"):
        found.append(f"overlong_prompts={c.overlong_prompts!r}: use cut or drop")
    found += _check_shares(c) + _check_shard(c)
    for name in ("student_price", "teacher_price"):
        price = getattr(c, name)
        if price is not None and (not isinstance(price, list | tuple) or len(price) != 2):
            found.append(f"{name}={price!r}: two numbers are expected, the price of a million prompt tokens and of a "
                         "million completion tokens")  # fmt: skip
    expected = c.expected or {}
    if not isinstance(expected, dict) or set(expected) - set(EXPECTED):
        found.append(f"expected={expected!r}: a mapping is expected, with keys of {', '.join(EXPECTED)}")
    else:
        found += [
            f"expected: {key}={value!r}: a number of at least 0 is expected"
            for key, value in expected.items()
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf")
        ]
    return found


def check_candidate_choice(c) -> list[str]:
    """Size and policy of the candidate sets, in distillation and in training."""
    found = check_random_number(c)
    if c.candidate_choice not in POLICIES:
        found.append(f"candidate_choice={c.candidate_choice!r} is not known: use one of {', '.join(POLICIES)}")
    if not 0 <= c.uniform_share <= 1:
        found.append(f"uniform_share={c.uniform_share}: a share from 0 to 1 is expected")
    return found


def check_random_number(c) -> list[str]:
    """The range that the number of candidates is drawn from."""
    if c.min_num_candidates is None or 1 <= c.min_num_candidates <= c.num_candidates:
        return []
    return [f"min_num_candidates={c.min_num_candidates}: from 1 to num_candidates={c.num_candidates} is expected"]


def _check_shares(c) -> list[str]:
    shares = c.num_correct_shares
    if shares is None:
        return []
    try:
        parts = {int(key): float(value) for key, value in shares.items()}
    except (AttributeError, TypeError, ValueError):
        return [f"num_correct_shares={shares!r}: a mapping is expected, such as {{0: 0.1, 1: 0.3, 2: 0.3, 3: 0.3}}"]
    if not all(0 <= key <= c.num_candidates for key in parts) or any(value < 0 for value in parts.values()):
        return [f"num_correct_shares={shares!r}: keys from 0 to num_candidates={c.num_candidates} and shares of at "
                "least 0 are expected"]  # fmt: skip
    if abs(sum(parts.values()) - 1) > 1e-6:
        return [f"num_correct_shares={shares!r} add up to {sum(parts.values()):g}: they must add up to 1"]
    return []


def _check_shard(c) -> list[str]:
    if c.shard is None:
        return []
    match = re.fullmatch(r"(\d+)/(\d+)", str(c.shard))
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        return [f"shard={c.shard!r}: i/n is expected, counted from 1: 1/4, 2/4, 3/4, 4/4 on four machines"]
    return []

"""Where problems come from: local files, the Hugging Face Hub, reasoning-gym tasks and the tiny world.

Every row that comes out has `id`, `problem` and `answer` as non-empty strings; other keys are kept.
"""

import csv
import hashlib
import json
import re
import sys
import unicodedata
from pathlib import Path

from gsr_rl.prompts import get_template, solve_prompt

PROBLEM_COLUMNS = ("problem", "question")
ANSWER_COLUMNS = ("answer", "solution")
DEFAULT_GENERATED = 1000  # problems of a generated set without max_problems

# Generated rows belong to the split of their text's hash, in shares of 100 buckets: no two splits share a text.
GYM_SPLITS = {"train": (0, 60), "validation": (60, 80), "test": (80, 100)}
_SEEDS_A_SPLIT = 1_000_000_000
_SEEDS_A_RUN = 1_000_000


def normalise_text(text: str) -> str:
    """`text` with Unicode forms, letter case and white space made equal: the sense in which two problems are one."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def problem_id(text: str) -> str:
    """A stable id: the hash of the normalised text."""
    return hashlib.blake2b(normalise_text(text).encode(), digest_size=8).hexdigest()


def load_problems(config) -> list[dict]:
    """The rows that a `ProblemConfig` names, without duplicates, the first `max_problems` of them.

    Returns:
        Rows `{"id", "problem", "answer", ...}`, all three non-empty strings, ids unique.

    Raises:
        ValueError: A local row without problem or answer, two rows with one id, no row at all, or an unknown source.
    """
    name = str(config.dataset_name)
    options = _options(config)
    if name.startswith("tiny/"):
        rows = _from_tiny_world(config, name.removeprefix("tiny/"), options)
    elif name.startswith("reasoning_gym/"):
        rows = _from_reasoning_gym(config, name.removeprefix("reasoning_gym/"), options)
    elif Path(name).suffix in (".jsonl", ".json", ".parquet", ".csv"):
        rows = _standard_rows(config, read_local(Path(name)), strict=True)
    else:
        rows = _standard_rows(config, _read_hub(config, options), strict=False)
    if not rows:
        raise ValueError(f"dataset_name={name}, dataset_split={config.dataset_split}: there are no usable problems")
    return rows


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


def _options(config) -> dict:
    options = config.dataset_kwargs or {}
    if isinstance(options, str):
        options = json.loads(options)
    if not isinstance(options, dict):
        raise ValueError(f"dataset_kwargs={options!r}: a mapping is expected")
    return dict(options)


def _from_tiny_world(config, family: str, options: dict) -> list[dict]:
    from gsr_rl import tiny_world

    number = config.max_problems or DEFAULT_GENERATED
    return tiny_world.generate(family, config.dataset_split, number, config.problem_seed, **options)


def _from_reasoning_gym(config, task: str, options: dict) -> list[dict]:
    """Rows of a reasoning-gym task.

    reasoning-gym seeds row i with seed + i, and small tasks repeat texts at any distance of seeds. So a split has its
    own far range of seeds, and keeps only the texts that its hash buckets hold.
    """
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError(
            f"dataset_name={config.dataset_name} needs reasoning-gym: pip install 'gsr-rl[demo]'"
        ) from None
    if config.dataset_split not in GYM_SPLITS:
        raise ValueError(f"dataset_split={config.dataset_split!r}: use one of {sorted(GYM_SPLITS)}")
    if not 0 <= config.problem_seed < _SEEDS_A_SPLIT // _SEEDS_A_RUN:
        raise ValueError(f"problem_seed={config.problem_seed}: 0 to {_SEEDS_A_SPLIT // _SEEDS_A_RUN - 1} is expected")
    wanted = config.max_problems or DEFAULT_GENERATED
    place = list(GYM_SPLITS).index(config.dataset_split)
    start = place * _SEEDS_A_SPLIT + config.problem_seed * _SEEDS_A_RUN
    low, high = GYM_SPLITS[config.dataset_split]
    size = min(_SEEDS_A_RUN, 20 * wanted * 100 // (high - low) + 1000)
    source = reasoning_gym.create_dataset(task, seed=start, size=size, **options)
    rows: dict[str, dict] = {}
    for entry in source:
        text = entry["question"]
        key = problem_id(text)
        if entry["answer"] is None or key in rows or not low <= int(key, 16) % 100 < high:
            continue
        rows[key] = {"id": f"{task}-{key}", "problem": text, "answer": str(entry["answer"]), "task": task}
        if len(rows) == wanted:
            return list(rows.values())
    raise ValueError(
        f"max_problems={wanted}: reasoning_gym/{task} has only {len(rows)} different problems in {size} rows of its "
        f"{config.dataset_split} split: lower max_problems or make the task harder by dataset_kwargs"
    )


def read_local(path: Path) -> list[dict]:
    """The rows of a .jsonl, .json (a list), .parquet or .csv file, as they are."""
    if path.suffix == ".jsonl":
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a JSON list of objects is expected, got {type(rows).__name__}")
    return rows


def _read_hub(config, options: dict) -> list[dict]:
    import datasets

    rows = datasets.load_dataset(config.dataset_name, config.dataset_config, split=config.dataset_split, **options)
    if config.max_problems:  # some may be dropped
        rows = rows.select(range(min(len(rows), 2 * config.max_problems + 100)))
    return list(rows)


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
    if "####" in text:
        return text.rsplit("####", 1)[1].strip().replace(",", "")
    if "\\boxed" in text:
        from rewards import extract_answer

        return extract_answer(text, require_box=True) or ""
    return text


def _standard_rows(config, rows: list[dict], strict: bool) -> list[dict]:
    """Rows with our keys. A row without problem or answer is an error (`strict`), or dropped and counted."""
    problem_keys = [config.problem_column] if config.problem_column else PROBLEM_COLUMNS
    answer_keys = [config.answer_column] if config.answer_column else ANSWER_COLUMNS
    found: dict[str, dict] = {}
    texts: set[str] = set()
    dropped = {"without problem or answer": 0, "with a text seen before": 0}
    for number, row in enumerate(rows, 1):
        if config.max_problems and len(found) >= config.max_problems:
            break
        where = f"{config.dataset_name}, row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: an object is expected, got {type(row).__name__}")
        problem = next((str(row[k]) for k in problem_keys if row.get(k) and str(row[k]).strip()), "")
        answer = next((text for k in answer_keys if (text := _answer_of(row, k))), "")
        if not problem or not answer:
            if strict:
                missing = "problem" if not problem else "answer"
                keys = problem_keys if not problem else answer_keys
                raise ValueError(
                    f"{where}: no usable {missing} (looked for {' or '.join(keys)}, the row has {sorted(row)}): fill "
                    f"it in, remove the row, or name another column with --{missing}_column"
                )
            dropped["without problem or answer"] += 1
            continue
        text = problem_id(problem)
        identity = str(row["id"]) if row.get("id") not in (None, "") else text
        if text in texts:
            dropped["with a text seen before"] += 1
            continue
        if identity in found:
            raise ValueError(f"{where}: the id {identity!r} is used twice, for different problems: ids must be unique")
        texts.add(text)
        found[identity] = {**row, "id": identity, "problem": problem, "answer": answer}
    for reason, count in dropped.items():
        if count:
            print(f"{config.dataset_name}: left out {count} rows {reason}", file=sys.stderr)
    return list(found.values())


def _answer_of(row: dict, key: str) -> str:
    """The answer in a column; a `solution` without a marked final answer is prose, not an answer."""
    value = row.get(key)
    if key == "solution" and "\\boxed" not in str(value) and "####" not in str(value):
        return ""
    return final_answer(value)

"""Evaluation: candidates, refinements over them, controls; every sample stored, every figure made from the store.

samples.parquet   one row a sample, with the run's settings in the file's metadata
eval.json         made from samples.parquet alone (gsr_rl/tables.py)
"""

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from gsr_rl.candidates import choice_seed, choose_candidate_sets

GRADINGS = ("lenient", "strict")


def load_benchmark(problem_config, config) -> list[dict]:
    """The problems, each with the name of its benchmark.

    Raises:
        ValueError: `split_by` is a key that a row lacks.
    """
    from gsr_rl.data_checks import LOCAL_SUFFIXES
    from gsr_rl.problems import load_problems

    source = Path(str(problem_config.dataset_name))
    is_file = source.suffix in LOCAL_SUFFIXES
    name = config.benchmark_name or (source.stem if is_file else str(problem_config.dataset_name))
    rows = [{"benchmark": name} | row for row in load_problems(problem_config)]
    for row in rows:
        if config.split_by and config.split_by not in row:
            raise ValueError(f"split_by={config.split_by}: problem {row['id']} has no such key, only {sorted(row)}")
    return rows


# Sampling ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One refinement to sample: of which problem, by which method, over which candidate set."""

    problem: int
    method: str  # selfref, selfref_none, selfref_foreign, selfref_frozen
    set_index: int
    candidates: list[int]  # indices into the candidates of problem `candidates_of`
    candidates_of: str | None  # problem id
    shown: list[str]


def sample_candidates(engine, rows: list[dict], config) -> list[list]:
    """`num_generations` completions of each problem's solve prompt."""
    from gsr_rl.generation import Sampling
    from gsr_rl.refining import solve_prompts

    sampling = Sampling(config.num_generations, config.temperature, config.top_p, config.max_completion_length)
    messages, token_ids = solve_prompts(engine.tokenizer, rows, config.prompt_template)
    return engine.generate(token_ids, sampling, messages)


def plan_refinements(rows: list[dict], candidates: list[list], config) -> list[Task]:
    """The candidate sets, uniformly chosen, and the refinements over them with their controls.

    A set is K of all candidates, as in use, where nobody knows which will finish; what is shown of it follows
    `unfinished_candidates`. A foreign problem is another one of the same `family`, if the rows have that key and
    there is one.
    """
    from gsr_rl.refining import shown_texts

    def shown(problem: int, chosen: list[int]) -> list[str]:
        group = candidates[problem]
        return shown_texts([c.text for c in group], [c.finished for c in group], chosen, config.unfinished_candidates)

    sets = [
        choose_candidate_sets(
            [True] * len(group),
            config.num_candidates,
            config.num_candidate_sets,
            choice_seed(config.seed, row["id"], "sets"),
        )
        for row, group in zip(rows, candidates, strict=True)
    ]
    others = foreign_problems([str(row.get("family", "")) for row in rows], config.seed)
    tasks = []
    for problem, row in enumerate(rows):
        for index, chosen in enumerate(sets[problem]):
            tasks.append(Task(problem, "selfref", index, chosen, row["id"], shown(problem, chosen)))
            if "none" in config.controls:
                tasks.append(Task(problem, "selfref_none", index, [], None, []))
            if "foreign" in config.controls and (other := others[problem]) is not None:
                far = sets[other][index]
                tasks.append(Task(problem, "selfref_foreign", index, far, rows[other]["id"], shown(other, far)))
    if config.candidates_from:
        tasks += _frozen_tasks(rows, config)
    return tasks


def foreign_problems(families: list[str], seed: int) -> list[int | None]:
    """For each problem another one, each used once: of the same family where the family has two; None if alone."""
    groups = defaultdict(list)
    for problem, family in enumerate(families):
        groups[family].append(problem)
    found: list[int | None] = [None] * len(families)
    for family, members in groups.items():
        pool = members if len(members) > 1 else [p for p in range(len(families)) if p != members[0]]
        order = random.Random(choice_seed(seed, family)).sample(pool, len(pool))
        if len(members) == 1:
            found[members[0]] = order[0] if order else None
            continue
        for place, problem in enumerate(order):
            found[problem] = order[place - 1]
    return found


def _frozen_tasks(rows: list[dict], config) -> list[Task]:
    """Refinements over the candidate sets that another run chose and refined."""
    from gsr_rl.refining import shown_texts

    columns = ["problem_id", "method", "index", "text", "finished", "candidates"]
    header, samples = read_samples(config.candidates_from, columns)
    if header["k"] != config.num_candidates:
        raise ValueError(
            f"candidates_from={config.candidates_from} has sets of {header['k']} candidates, num_candidates is "
            f"{config.num_candidates}: set it to {header['k']} or name another run"
        )
    direct, sets = defaultdict(dict), defaultdict(list)
    for sample in samples:
        if sample["method"] == "direct":
            direct[sample["problem_id"]][sample["index"]] = sample
        elif sample["method"] == "selfref":
            sets[sample["problem_id"]].append(sample)
    tasks = []
    for problem, row in enumerate(rows):
        if row["id"] not in sets:
            raise ValueError(
                f"candidates_from={config.candidates_from} has no problem {row['id']}: evaluate the same problems "
                "(dataset_name, dataset_split, problem_seed, max_problems, dataset_kwargs) as that run"
            )
        group = direct[row["id"]]
        texts, finished = ([group[i][key] for i in range(len(group))] for key in ("text", "finished"))
        for one in sets[row["id"]]:
            visible = shown_texts(texts, finished, one["candidates"], config.unfinished_candidates)
            tasks.append(Task(problem, "selfref_frozen", one["index"], one["candidates"], row["id"], visible))
    return tasks


def sample_refinements(engine, rows: list[dict], tasks: list[Task], config) -> list:
    """One completion a task, in one engine call; None where no prompt fits or no candidate can be shown."""
    from gsr_rl.generation import Sampling
    from gsr_rl.refining import fit_prompts

    items = [(rows[t.problem]["problem"] if t.shown or t.method == "selfref_none" else "", t.shown) for t in tasks]
    prompts = fit_prompts(config, engine, items)
    sampling = Sampling(1, config.refinement_temperature, config.refinement_top_p, config.max_refinement_length)
    sent = [prompt for prompt in prompts if prompt]
    token_ids, messages = [prompt.token_ids for prompt in sent], [prompt.messages for prompt in sent]
    sampled = iter(engine.generate(token_ids, sampling, messages))
    return [next(sampled)[0] if prompt else None for prompt in prompts]


# The store --------------------------------------------------------------------------------------------------


def graded_samples(rows, candidates, tasks, refinements, config) -> list[dict]:
    """One row a sample, strictly (boxed) and leniently graded; vote classes for candidates.

    A refinement that could not be sampled is wrong, with `skipped` set.
    """
    import rewards

    samples = []

    def add(problem: int, stage: str, method: str, index: int, completion, indices=None, candidates_of=None):
        row = rows[problem]
        samples.append(
            {
                "benchmark": row["benchmark"],
                "part": str(row[config.split_by]) if config.split_by else None,
                "problem_id": row["id"],
                "gold": row["answer"],
                "stage": stage,
                "method": method,
                "index": index,
                "candidates": indices,
                "candidates_of": candidates_of,
                "text": completion.text if completion else "",
                "tokens": len(completion.token_ids) if completion else 0,
                "finished": bool(completion and completion.finished),
                "skipped": completion is None,
            }
        )

    for problem, group in enumerate(candidates):
        for index, completion in enumerate(group):
            add(problem, "candidate", "direct", index, completion)
    for task, completion in zip(tasks, refinements, strict=True):
        add(task.problem, "refinement", task.method, task.set_index, completion, task.candidates, task.candidates_of)

    texts, golds = [s["text"] for s in samples], [s["gold"] for s in samples]
    for grading in GRADINGS:
        boxed = grading == "strict"
        graded = rewards.grade(texts, golds, require_box=boxed)
        for sample, correct in zip(samples, graded, strict=True):
            sample[f"answer_{grading}"] = rewards.extract_answer(sample["text"], require_box=boxed)
            sample[f"correct_{grading}"] = correct
            sample[f"class_{grading}"] = None
        start = 0
        for group in candidates:
            part = samples[start : start + len(group)]
            start += len(group)
            classes = rewards.vote([sample[f"answer_{grading}"] for sample in part])
            for sample, number in zip(part, classes, strict=True):
                sample[f"class_{grading}"] = number
    return samples


def write_samples(path: str | Path, samples: list[dict], header: dict) -> None:
    """Write samples and the run's settings to a parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gsr_rl.run_folder import atomic_path

    numbers = {f"correct_{g}": pa.float64() for g in GRADINGS} | {f"class_{g}": pa.int64() for g in GRADINGS}
    texts = dict.fromkeys(("benchmark", "part", "problem_id", "gold", "stage", "method", "candidates_of", "text"))
    kinds = {name: pa.string() for name in texts} | {f"answer_{g}": pa.string() for g in GRADINGS} | numbers
    kinds |= {"index": pa.int64(), "candidates": pa.list_(pa.int64()), "tokens": pa.int64()}
    kinds |= {"finished": pa.bool_(), "skipped": pa.bool_()}
    schema = pa.schema(list(kinds.items()), metadata={"gsr": json.dumps(header)})
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(samples, schema=schema), temporary)


def read_samples(path: str | Path, columns: list[str] | None = None) -> tuple[dict, list[dict]]:
    """The settings and the rows of a samples.parquet. Raises `ValueError` for another kind of file."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=columns)
    metadata = table.schema.metadata or {}
    if b"gsr" not in metadata:
        raise ValueError(f"{path}: not a samples.parquet of eval_gsr.py (it lacks the run's settings)")
    return json.loads(metadata[b"gsr"]), table.to_pylist()


def header_of(config, rows: list[dict]) -> dict:
    """The settings that belong to the figures: model, K, sampling of each stage, seed, versions, hardware."""
    from gsr_rl.run_folder import hardware, versions

    return {
        "model": config.model,
        "k": config.num_candidates,
        "num_problems": len(rows),
        "num_samples": config.num_generations,
        "num_candidate_sets": config.num_candidate_sets,
        "seed": config.seed,
        "sampling": {
            "candidate": {
                "temperature": config.temperature,
                "top_p": config.top_p,
                "max_tokens": config.max_completion_length,
            },
            "refinement": {
                "temperature": config.refinement_temperature,
                "top_p": config.refinement_top_p,
                "max_tokens": config.max_refinement_length,
            },
            "prompt_template": config.prompt_template,
            "max_refinement_prompt_length": config.max_refinement_prompt_length,
            "unfinished_candidates": config.unfinished_candidates,
        },
        "engine": config.engine,
        "candidates_from": config.candidates_from,
        "versions": versions(),
        "hardware": hardware(),
    }

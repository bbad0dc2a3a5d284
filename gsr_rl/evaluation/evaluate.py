"""Evaluation: candidates, what each method makes of them, controls; every sample stored, every figure from the store.

shards/KIND/      units of one problem, as they finish: a run that was killed goes on, a further method samples no
                  candidates again, and each kind refuses units that were made with other settings
samples.parquet   one row a sample, with the run's settings in the file's metadata (gsr_rl/report/samples.py)
eval.json         made from samples.parquet alone (gsr_rl/report/tables.py)
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gsr_rl.engines.base import EngineError, Request, Sampling, progress_bar
from gsr_rl.engines.jobs import SHARD_SECONDS, run_units
from gsr_rl.engines.open import open_configured
from gsr_rl.engines.reward_model import RewardModel, check_reward_model
from gsr_rl.evaluation.methods import Planner, Task, kinds_of, unit_id
from gsr_rl.evaluation.stores import candidates_of_file, frozen_sets, open_stores
from gsr_rl.refinement.candidates import choice_seed
from gsr_rl.refinement.prompts import (
    candidate_text,
    fit_prompts,
    get_template,
    refinement_budget,
    selected_candidate,
    selection_template,
    solve_prompts,
)
from gsr_rl.report.samples import (
    GRADINGS,
    check_same_problems,
    header_of,
    read_samples,
    samples_path,
    skipped_of,
)

SKIPPED = {"text": "", "tokens": 0, "finished": False, "skipped": True}
NAMES = {"selfref": "refinements", "select": "selections", "scores": "scores"}


def load_benchmark(problem_config, config) -> list[dict]:
    """The problems, each with the name of its benchmark.

    Raises:
        ValueError: A benchmark is not what its name says, or `check_loaded` refuses the problems.
    """
    from gsr_rl.data import benchmarks
    from gsr_rl.data.problems import load_problems
    from gsr_rl.data.sources import LOCAL_SUFFIXES

    if config.benchmarks:
        parts = [benchmarks.load(name, problem_config, config.benchmark_files) for name in config.benchmarks]
        rows = [row for part in parts for row in part]
    else:
        source = Path(str(problem_config.dataset_name))
        is_file = source.suffix in LOCAL_SUFFIXES
        name = config.benchmark_name or (source.stem if is_file else str(problem_config.dataset_name))
        rows = [row | {"benchmark": name} for row in load_problems(problem_config)]
    check_loaded(rows, config)
    return rows


def check_loaded(rows: list[dict], config) -> None:
    """Raises `ValueError` where `split_by` is a key that a row lacks, or `compare_with` is of other problems."""
    for row in rows:
        if config.split_by and config.split_by not in row:
            raise ValueError(f"split_by={config.split_by}: problem {row['id']} has no such key, only {sorted(row)}")
    if config.compare_with:
        _, samples = read_samples(samples_path(config.compare_with), ["benchmark", "problem_id", "problem", "gold"])
        theirs = {(one["benchmark"], one["problem_id"]): (one["problem"], one["gold"]) for one in samples}
        ours = {(row["benchmark"], row["id"]): (row["problem"], row["answer"]) for row in rows}
        where = f"compare_with={config.compare_with}"
        if not (both := [key for key in ours if key in theirs]):
            raise ValueError(f"{where} has none of these problems: evaluate the same ones with both models")
        check_same_problems(ours, theirs, both, f"{where}: ")


def requests_of(number: int | None, config, frozen: dict | None = None) -> dict[str, object]:
    """How much is sampled for so many problems (None: only the Hub knows how many): what a dry run shows.

    Args:
        frozen: The other run's sets, if they are refined over (`from_other_run`).
    """
    if number is None:
        return {"problems": "? (a dry run does not ask the Hub)"}
    sets, k = number * config.num_candidate_sets, config.num_candidates
    each = {"orders": 2 * config.order_repeats}
    found: dict[str, object] = {"problems": number, "candidates": 0, "candidate sets": sets}
    refinements = 0
    for kind in kinds_of(config):
        if kind == "candidates":
            found["candidates"] = number * config.num_generations if config.own_candidates else 0
        elif kind == "selfref_frozen" and frozen:
            refinements += sum(len(chosen) for _, chosen in frozen.values())
        elif kind == "scores":
            found["candidates scored by the reward model"] = number * config.num_generations
        else:
            refinements += sets * (k if kind.startswith("rounds") else each.get(kind, 1))
    found["refinements, controls included"] = refinements
    longest = found["candidates"] * config.max_completion_length + refinements * config.max_refinement_length
    return found | {"completion tokens at most": longest}


def from_other_run(rows: list[dict], config) -> tuple[dict | None, list[dict] | None, dict | None]:
    """What `candidates_from` gives to these problems; what it does not give is None.

    Returns:
        Its sets to refine over (`frozen_sets`); or, with `own_candidates: false`, its candidates as units and its
        settings (`candidates_of_file`).

    Raises:
        ValueError: `candidates_from` does not fit.
    """
    if not config.own_candidates:
        return None, *candidates_of_file(rows, config)
    return frozen_sets(rows, config) if config.candidates_from else None, None, None


def evaluate(rows: list[dict], problem_config, config) -> tuple[list[dict], dict]:
    """Sample what is missing, and give every sample.

    Args:
        rows: The problems (`load_benchmark`).
        problem_config, config: `ProblemConfig` and `EvalConfig`.

    Returns:
        The rows and the header of samples.parquet, graded strictly (boxed) and leniently. What could not be sampled,
        because no prompt fits or no candidate can be shown, is wrong, with `skipped` set, and a line on stderr says
        how much that is by method.

    Raises:
        ValueError: The folder holds the units of another configuration, another process works in it, or
            `candidates_from` does not fit.
        EngineError: An endpoint gave no answer for some problems. The others are stored.
    """
    frozen, taken, other = from_other_run(rows, config)
    seed = other["sets_seed"] if other else config.seed
    stores = open_stores(rows, problem_config, config)
    with contextlib.ExitStack() as locks:
        for store in stores.values():
            locks.enter_context(store.lock())
        if taken and not len(stores["candidates"].load("units")):
            stores["candidates"].append("units", taken)
        units = {kind: store.load("units") for kind, store in stores.items()}
        planner = Planner(rows, config, units, frozen, seed)
        _sample_missing(planner, stores)
    samples = list(_all_samples(planner))
    _warn_of_skipped(skipped_of(samples), config)
    return samples, header_of(config, rows, other) | {"sets_seed": seed}


def _warn_of_skipped(skipped: dict[str, dict[str, int]], config) -> None:
    """A line on stderr for each method with samples that count as wrong because the model was not asked for them."""
    for method, one in skipped.items():
        if method == "direct":
            why = f"the problem and max_completion_length={config.max_completion_length} are longer than the window"
            mend = "lower max_completion_length, or raise max_model_length"
        else:
            why = f"nothing fits max_refinement_prompt_length={config.max_refinement_prompt_length} and the window"
            why += f", or no candidate of the set can be shown (unfinished_candidates={config.unfinished_candidates})"
            mend = "raise max_refinement_prompt_length or max_model_length, or have more candidates finish"
        count = f"{one['skipped']} of {one['samples']} samples were not asked for and count as wrong"
        print(f"warning: {method}: {count}: {why}: {mend}", file=sys.stderr)


def _sample_missing(planner: Planner, stores: dict) -> None:
    """Every kind's missing units, in order; one engine for all that it samples, then the reward model."""
    config, rows, units = planner.config, planner.rows, planner.units
    unscored = [row for row in rows if unit_id(row) not in units["scores"]] if "scores" in stores else []
    if unscored:
        check_reward_model(config.reward_model)
    engine = None
    try:
        for kind, store in stores.items():
            left = [row for row in rows if unit_id(row) not in units[kind]]
            if not left or kind == "scores":
                continue
            if engine is None:
                made = sum(map(len, units.values()))  # not the samples of a run that was killed once more
                seed = choice_seed(config.seed, "engine", made) % 2**31 if made else config.seed
                engine = open_configured(config, config.model, seed)
                if set(stores) - {"candidates", "scores"}:
                    refinement_budget(config, engine)  # what no refinement would fit in is said before any candidate
            failed = _sample_kind(planner, kind, store, left, engine)
            units[kind] = store.load("units")
            if failed:
                raise EngineError(
                    f"{len(failed)} of {len(left)} problems got no answer, the first because of: "
                    f"{next(iter(failed.values()))}. The others are stored: the same command tries these again"
                )
    finally:
        if engine is not None:
            engine.close()
    if unscored:
        _score(planner, stores["scores"], unscored)
        units["scores"] = stores["scores"].load("units")


def _sample_kind(planner: Planner, kind: str, store, left: list[dict], engine) -> dict[str, str]:
    """The missing units of one kind. Returns the errors of an endpoint, by unit."""
    config = planner.config
    known = {unit_id(row): row for row in left}
    planned = _candidate_units if kind == "candidates" else _task_units

    def add(unit: dict, place: int, completion) -> None:
        before = sum(sample["task"] == place for sample in unit["samples"])
        sampled = {"text": completion.text, "tokens": len(completion.token_ids), "finished": completion.finished}
        unit["samples"].append(unit["tasks"][place] | sampled | {"skipped": False, "repeat": before})

    def finish(batch: list[dict]) -> None:
        for unit in batch:
            unit["samples"].sort(key=lambda sample: (sample["task"], sample["repeat"]))
            for place, sample in enumerate(unit["samples"]):
                del sample["task"]
                if kind == "candidates":
                    sample |= {"index": place, "repeat": 0}
                else:
                    _look_at(sample, sample.pop("shown"))
        graded = _grade_selections if kind == "select" else _grade
        graded(batch, known, planner)
        store.append("units", [{"unit": unit["unit"], "samples": unit["samples"]} for unit in batch])

    label = f"problems, {NAMES.get(kind, kind)}"
    done, total = len(planner.rows) - len(left), len(planner.rows)
    return run_units(
        engine, planned(planner, kind, left, engine), label, total, done, add, finish, config.problems_per_chunk
    )


def _candidate_units(planner: Planner, kind: str, rows: list[dict], engine) -> Iterator[tuple[dict, list[Request]]]:
    """A unit a problem with the request for its candidates; none if its prompt does not fit the engine's window."""
    c = planner.config
    sampling = Sampling(c.num_generations, c.temperature, c.top_p, c.max_completion_length)
    for row in rows:
        (messages,), (ids,) = solve_prompts(engine.tokenizer, [row], c.prompt_template)
        fields = {"task": 0, "stage": "candidate", "method": "direct", "prompt_tokens": len(ids)}
        unit = {"unit": unit_id(row), "samples": [], "tasks": [fields]}
        if len(ids) + sampling.max_tokens <= engine.max_model_length:
            yield unit, [Request((unit["unit"], 0), ids, sampling, messages)]
        else:
            unit["samples"] = [fields | SKIPPED | {"repeat": repeat} for repeat in range(sampling.n)]
            yield unit, []


def _task_units(planner: Planner, kind: str, rows: list[dict], engine) -> Iterator[tuple[dict, list[Request]]]:
    """A unit a problem with the requests of its tasks."""
    c = planner.config
    template = get_template(c.prompt_template)
    template = selection_template(template) if kind == "select" else template
    for row in rows:
        unit, requests = {"unit": unit_id(row), "samples": [], "tasks": []}, []
        for place, task in enumerate(planner.tasks(kind, row)):
            sampling = Sampling(task.n, c.refinement_temperature, c.refinement_top_p, c.max_refinement_length)
            asked = row["problem"] if task.shown or task.method == "selfref_none" else ""
            (prompt,) = fit_prompts(c, engine, [(asked, [text for _, text in task.shown])], template)
            fields = _fields(task, place) | {"prompt_tokens": len(prompt.token_ids) if prompt else 0}
            unit["tasks"].append(fields)
            if prompt is None:
                unit["samples"] += [fields | SKIPPED | {"repeat": repeat} for repeat in range(task.n)]
            else:
                requests.append(Request((unit["unit"], place), prompt.token_ids, sampling, prompt.messages))
        yield unit, requests


def _fields(task: Task, place: int) -> dict:
    """What is stored of a task with each of its samples."""
    stage = "selection" if task.method == "select" else "refinement"
    return {
        "task": place,
        "stage": stage,
        "method": task.method,
        "index": task.index,
        "round": task.round,
        "order": task.order,
        "candidates": task.candidates,
        "candidates_of": task.candidates_of,
        "shown": task.shown,
    }


def _look_at(sample: dict, shown: list[tuple[int, str]]) -> None:
    """Set which candidate a selection chose, and whether a refinement is a candidate word by word."""
    import rewards

    if sample["method"] == "select":
        place = selected_candidate(rewards.extract_answer(sample["text"], require_box=False), len(shown))
        sample["chosen"] = None if place is None else shown[place][0]
    elif shown:
        sample["copied"] = candidate_text(sample["text"]) in {text for _, text in shown}


def _grade(units: list[dict], rows: dict[str, dict], planner: Planner) -> None:
    """Grade samples, and group their answers: those of the problem's candidates come first, so their classes stay."""
    import rewards

    pairs = [(unit, sample) for unit in units for sample in unit["samples"]]
    golds = [rows[unit["unit"]]["answer"] for unit, _ in pairs]
    texts = [sample["text"] for _, sample in pairs]
    for grading in GRADINGS:
        boxed = grading == "strict"
        graded = rewards.grade(texts, golds, require_box=boxed)
        for (_, sample), correct in zip(pairs, graded, strict=True):
            sample[f"answer_{grading}"] = rewards.extract_answer(sample["text"], require_box=boxed)
            sample[f"correct_{grading}"] = correct
        for unit in units:
            direct = all(sample["method"] == "direct" for sample in unit["samples"])
            before = [] if direct else planner.candidates(rows[unit["unit"]])
            first = [one[f"answer_{grading}"] for one in before]
            classes = rewards.vote(first + [sample[f"answer_{grading}"] for sample in unit["samples"]])
            for sample, number in zip(unit["samples"], classes[len(first) :], strict=True):
                sample[f"class_{grading}"] = number


def _grade_selections(units: list[dict], rows: dict[str, dict], planner: Planner) -> None:
    """A selection has the answer of the candidate that it chose; one that names none is wrong."""
    for unit in units:
        candidates = planner.candidates(rows[unit["unit"]])
        for sample in unit["samples"]:
            chosen = None if sample.get("chosen") is None else candidates[sample["chosen"]]
            for grading in GRADINGS:
                for name in ("answer", "class", "correct"):
                    key = f"{name}_{grading}"
                    sample[key] = chosen[key] if chosen else 0.0 if name == "correct" else None


def _score(planner: Planner, store, rows: list[dict]) -> None:
    """The reward model's score of every candidate; a shard is written every minute."""
    config, total = planner.config, len(planner.rows)
    model = RewardModel(config.reward_model, config.reward_batch_size)
    units, last = [], time.monotonic()
    try:
        with progress_bar(total, "problems, scores", total - len(rows)) as bar:
            for row in rows:
                texts = [one["text"] for one in planner.candidates(row)]
                units.append({"unit": unit_id(row), "scores": model.scores(row["problem"], texts)})
                bar.update()
                if len(units) == config.problems_per_chunk or time.monotonic() - last > SHARD_SECONDS:
                    store.append("units", units)
                    units, last = [], time.monotonic()
    finally:
        if units:
            store.append("units", units)
        model.close()


def _all_samples(planner: Planner) -> Iterator[dict]:
    """Rows of samples.parquet, problem by problem."""
    config = planner.config
    for row in planner.rows:
        unit = unit_id(row)
        about = {"benchmark": row["benchmark"], "problem_id": row["id"], "problem": row["problem"]}
        about |= {"part": str(row[config.split_by]) if config.split_by else None, "gold": row["answer"]}
        scores = planner.units["scores"][unit]["scores"] if "scores" in planner.units else None
        for kind in kinds_of(config):
            if kind == "scores":
                continue
            for sample in planner.units[kind][unit]["samples"]:
                scored = {"score": scores[sample["index"]]} if scores and kind == "candidates" else {}
                yield about | sample | scored

"""Evaluation: candidates, what each method makes of them, controls; every sample stored, every figure from the store.

shards/KIND/      units of one problem, as they finish: a run that was killed goes on, a further method samples no
                  candidates again, and each kind refuses units that were made with other settings
samples.parquet   one row a sample, with the run's settings in the file's metadata (gsr_rl/report/samples.py)
eval.json         made from samples.parquet alone (gsr_rl/report/tables.py)
"""

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import rewards
from gsr_rl.data import benchmarks
from gsr_rl.data.problems import load_problems
from gsr_rl.data.sources import file_kind
from gsr_rl.engines.base import Completion, EngineError, Request, Sampling, progress_bar
from gsr_rl.engines.jobs import SHARD_SECONDS, Progress, run_units
from gsr_rl.engines.local import RewardModel, check_reward_model
from gsr_rl.engines.open import open_configured
from gsr_rl.evaluation.methods import Planner, StoredRun, Task, kinds_of, unit_id
from gsr_rl.evaluation.stores import candidates_of_file, frozen_sets, open_stores
from gsr_rl.refinement.candidates import choice_seed
from gsr_rl.refinement.prompts import Prompt, selected_candidate, selection_template
from gsr_rl.refinement.stages import Grade, Stages, grade
from gsr_rl.report.samples import GRADINGS, check_same_problems, header_of, read_samples, samples_path, skipped_of

NAMES = {"selfref": "refinements", "select": "selections", "scores": "scores"}


@dataclass
class Sample:
    """One completion of a task, or, with `skipped`, none because the model could not be asked.

    Attributes:
        repeat: Its number among the task's samples.
        copied: Whether a refinement is a candidate word by word.
        grades: By grading.
    """

    repeat: int
    text: str = ""
    tokens: int = 0
    finished: bool = False
    skipped: bool = False
    copied: bool = False
    grades: dict[str, Grade] = field(default_factory=dict)

    def chosen(self, task: Task) -> int | None:
        """The candidate that a selection names."""
        answer = rewards.extract_answer(self.text, require_box=False)
        place = selected_candidate(answer, len(task.shown))
        return None if place is None else task.shown[place][0]


@dataclass
class SampledTask:
    """A task, the length of its prompt in tokens (0 if none fits), and its samples."""

    task: Task
    prompt_tokens: int
    samples: list[Sample] = field(default_factory=list)

    def rows(self) -> Iterator[dict]:
        """What is stored: the columns of samples.parquet, but for the problem's. `index` numbers candidates."""
        task = self.task
        for sample in self.samples:
            row = {"stage": task.stage, "method": task.method}
            if task.stage != "candidate":
                row |= {"index": task.index, "round": task.round, "order": task.order, "pool": task.pool}
                row |= {"candidates": task.candidates, "candidates_of": task.candidates_of}
            row["prompt_tokens"] = self.prompt_tokens
            row |= {name: getattr(sample, name) for name in ("text", "tokens", "finished", "skipped", "repeat")}
            if task.stage == "candidate":
                row |= {"index": sample.repeat, "repeat": 0}
            elif task.stage == "selection":
                row["chosen"] = sample.chosen(task)
            elif task.shown:
                row["copied"] = sample.copied
            for grading, of_sample in sample.grades.items():
                row |= {f"answer_{grading}": of_sample.answer, f"correct_{grading}": of_sample.correct}
                row[f"class_{grading}"] = of_sample.vote_class
            yield row


@dataclass
class Unit:
    """What is sampled of one kind about one problem, and stored together."""

    row: dict
    tasks: list[SampledTask] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        return [sample for sampled in self.tasks for sample in sampled.samples]

    def add(self, number: int, completion: Completion) -> None:
        """Take a completion of the task with this number."""
        samples = self.tasks[number].samples
        tokens = len(completion.token_ids)
        samples.append(Sample(len(samples), completion.text, tokens, completion.finished))

    def stored(self) -> dict:
        """As it is written to a shard."""
        return {"unit": unit_id(self.row), "samples": [row for sampled in self.tasks for row in sampled.rows()]}


def load_benchmark(problem_config, config) -> list[dict]:
    """The problems, each with the name of its benchmark.

    Raises:
        ValueError: A benchmark is not what its name says, or `check_loaded` refuses the problems.
    """
    if config.benchmarks:
        files = config.benchmark_files
        rows = [row for name in config.benchmarks for row in benchmarks.load(name, problem_config, files)]
    else:
        source = Path(str(problem_config.dataset_name))
        is_file = file_kind(source)
        name = config.benchmark_name or (source.stem if is_file else str(problem_config.dataset_name))
        rows = [row | {"benchmark": name} for row in load_problems(problem_config)]
    check_loaded(rows, config)
    return rows


def check_loaded(rows: list[dict], config) -> None:
    """Raises `ValueError` where `split_by` is a key that a row lacks, or `compare_with` is of other problems."""
    for row in rows:
        if config.split_by and config.split_by not in row:
            raise ValueError(f"split_by={config.split_by}: problem {row['id']} has no such key, only {sorted(row)}")
    if config.compare_with and samples_path(config.compare_with).is_file():  # a dry run may come before the other run
        _, samples = read_samples(samples_path(config.compare_with), ["benchmark", "problem_id", "problem", "gold"])
        theirs = {(each["benchmark"], each["problem_id"]): (each["problem"], each["gold"]) for each in samples}
        ours = {(row["benchmark"], row["id"]): (row["problem"], row["answer"]) for row in rows}
        where = f"compare_with={config.compare_with}"
        if not (both := [key for key in ours if key in theirs]):
            raise ValueError(f"{where} has none of these problems: evaluate the same ones with both models")
        check_same_problems(ours, theirs, both, f"{where}: ")


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
        run = StoredRun(rows, config, units, frozen, seed)
        _sample_missing(run, stores)
    samples = list(_all_samples(run))
    _warn_of_skipped(skipped_of(samples), config)
    return samples, header_of(config, rows, other) | {"sets_seed": seed}


def _warn_of_skipped(skipped: dict[str, dict[str, int]], config) -> None:
    """A line on stderr for each method with samples that were never requested and so count as wrong."""
    for method, counts in skipped.items():
        if method == "direct":
            why = f"the problem and max_completion_length={config.max_completion_length} exceed the model's context"
            fix = "lower max_completion_length, or raise max_model_length"
        else:
            why = f"nothing fits max_refinement_prompt_length={config.max_refinement_prompt_length} and the model's "
            why += "context, or no candidate of the set can be shown "
            why += f"(unfinished_candidates={config.unfinished_candidates})"
            fix = "raise max_refinement_prompt_length or max_model_length, or have more candidates finish"
        count = f"{counts['skipped']} of {counts['samples']} samples were not requested and count as wrong"
        print(f"warning: {method}: {count}: {why}: {fix}", file=sys.stderr)


def _sample_missing(run: StoredRun, stores: dict) -> None:
    """Sample the missing units of every kind, in order, with one engine; then score with the reward model."""
    config = run.config
    unscored = run.missing("scores") if "scores" in stores else []
    if unscored:
        check_reward_model(config.reward_model)
    engine = None
    try:
        for kind, store in stores.items():
            left = run.missing(kind)
            if not left or kind == "scores":
                continue
            engine = engine or _open_engine(run, stores)
            failed = _sample_kind(run, kind, store, left, engine)
            run.units[kind] = store.load("units")
            if failed:
                raise EngineError(
                    f"{len(failed)} of {len(left)} problems got no answer, the first because of: "
                    f"{next(iter(failed.values()))}. The others are stored: the same command tries these again"
                )
    finally:
        if engine is not None:
            engine.close()
    if unscored:
        _score(run, stores["scores"], unscored)
        run.units["scores"] = stores["scores"].load("units")


def _open_engine(run: StoredRun, stores: dict):
    """The model's engine. Raises `ValueError` before any candidate is sampled if no refinement would fit."""
    config, made = run.config, sum(map(len, run.units.values()))
    seed = choice_seed(config.seed, "engine", made) % 2**31 if made else config.seed  # no killed run's samples again
    engine = open_configured(config, config.model, seed)
    if set(stores) - {"candidates", "scores"}:
        Stages.of(config, engine.tokenizer, engine.max_model_length).check_refinement_room()
    return engine


def _sample_kind(run: StoredRun, kind: str, store, left: list[dict], engine) -> dict[str, str]:
    """The missing units of one kind. Returns the errors of an endpoint, by unit."""
    stages = Stages.of(run.config, engine.tokenizer, engine.max_model_length)
    planner = Planner(run, stages)

    def finish(units: list[Unit]) -> list[float]:
        if kind == "select":
            _grade_selections(units, run)
        else:
            _grade(units, run, stages)
        store.append("units", [unit.stored() for unit in units])
        return [sample.grades[GRADINGS[0]].correct for unit in units for sample in unit.samples]

    progress = Progress(NAMES.get(kind, kind), len(run.rows), len(run.rows) - len(left))
    planned = (_unit(row, planner.tasks(kind, row), stages, run.config) for row in left)
    return run_units(engine, planned, progress, Unit.add, finish, run.config.problems_per_chunk)


def _unit(row: dict, tasks: list[Task], stages: Stages, config) -> tuple[Unit, list[Request]]:
    """A problem's unit with the requests of its tasks. A task whose prompt does not fit has skipped samples."""
    unit, requests = Unit(row), []
    for number, task in enumerate(tasks):
        sampling = _sampling(task, config)
        prompt = _prompt(row["problem"], task, stages)
        sampled = SampledTask(task, len(prompt.token_ids) if prompt else 0)
        if prompt is None or stages.room(prompt) < sampling.max_tokens:
            sampled.samples = [Sample(repeat, skipped=True) for repeat in range(task.n)]
        else:
            requests.append(Request((unit_id(row), number), prompt.token_ids, sampling, prompt.messages))
        unit.tasks.append(sampled)
    return unit, requests


def _sampling(task: Task, config) -> Sampling:
    if task.stage == "candidate":
        return Sampling(task.n, config.temperature, config.top_p, config.max_completion_length)
    return Sampling(task.n, config.refinement_temperature, config.refinement_top_p, config.max_refinement_length)


def _prompt(problem: str, task: Task, stages: Stages) -> Prompt | None:
    """The task's prompt; None if no candidate can be shown, or a refinement's fits no budget."""
    if task.stage == "candidate":
        return stages.solve(problem)
    if not task.shown and task.method != "selfref_none":
        return None
    wording = selection_template(stages.template) if task.stage == "selection" else None
    return stages.refine(problem, task.texts, template=wording)


def _grade(units: list[Unit], run: StoredRun, stages: Stages) -> None:
    """Grade samples and group their answers; classes of the problem's candidates keep their numbers."""
    texts = [[sample.text for sample in unit.samples] for unit in units]
    golds = [unit.row["answer"] for unit in units]
    candidates = []
    for unit in units:
        of_candidates = all(sampled.task.stage == "candidate" for sampled in unit.tasks)
        candidates.append([] if of_candidates else run.candidates(unit.row))
    for grading in GRADINGS:
        first = [[candidate[f"answer_{grading}"] for candidate in group] for group in candidates]
        graded = grade(texts, golds, require_box=grading == "strict", first_answers=first)
        for unit, grades in zip(units, graded, strict=True):
            for sample, of_sample in zip(unit.samples, grades, strict=True):
                sample.grades[grading] = of_sample
    for sampled in (sampled for unit in units for sampled in unit.tasks):
        for sample in sampled.samples:
            sample.copied = _is_copy(sample, sampled.task, stages)


def _is_copy(sample: Sample, task: Task, stages: Stages) -> bool:
    return stages.shown_text(sample.text) in task.texts


def _grade_selections(units: list[Unit], run: StoredRun) -> None:
    """A selection has the grade of the candidate that it chose; one that names none is wrong."""
    for unit in units:
        candidates = run.candidates(unit.row)
        for sampled in unit.tasks:
            for sample in sampled.samples:
                chosen = sample.chosen(sampled.task)
                for grading in GRADINGS:
                    names = (f"answer_{grading}", f"correct_{grading}", f"class_{grading}")
                    stored = (None, 0.0, None) if chosen is None else [candidates[chosen][name] for name in names]
                    sample.grades[grading] = Grade(*stored)


def _score(run: StoredRun, store, rows: list[dict]) -> None:
    """The reward model's score of every candidate; a shard is written every minute."""
    config, total = run.config, len(run.rows)
    model = RewardModel(config.reward_model, config.reward_batch_size)
    units, last = [], time.monotonic()
    try:
        with progress_bar(total, "scores", total - len(rows)) as bar:
            for row in rows:
                texts = [candidate["text"] for candidate in run.candidates(row)]
                units.append({"unit": unit_id(row), "scores": model.scores(row["problem"], texts)})
                bar.update()
                if len(units) == config.problems_per_chunk or time.monotonic() - last > SHARD_SECONDS:
                    store.append("units", units)
                    units, last = [], time.monotonic()
    finally:
        if units:
            store.append("units", units)
        model.close()


def _all_samples(run: StoredRun) -> Iterator[dict]:
    """Rows of samples.parquet, problem by problem."""
    config = run.config
    for row in run.rows:
        unit = unit_id(row)
        about = {"benchmark": row["benchmark"], "problem_id": row["id"], "problem": row["problem"]}
        about |= {"part": str(row[config.split_by]) if config.split_by else None, "gold": row["answer"]}
        scores = run.units["scores"][unit]["scores"] if "scores" in run.units else None
        for kind in kinds_of(config):
            if kind == "scores":
                continue
            for sample in run.units[kind][unit]["samples"]:
                scored = {"score": scores[sample["index"]]} if scores and kind == "candidates" else {}
                verdict = verdict_of(sample["text"], config.verdict_pattern) if kind == "candidates" else {}
                yield about | sample | scored | verdict


def verdict_of(text: str, pattern: str | None) -> dict[str, bool]:
    """The column `verdict` of a candidate: whether it says that its own check held."""
    return {"verdict": bool(re.search(pattern, text))} if pattern else {}


def regraded(samples: list[dict], verdict_pattern: str | None) -> tuple[list[dict], int]:
    """Grade stored texts again: the samples, and how many grades (per grading) changed between right and wrong.

    Answer classes of a problem are numbered anew, candidates first. A selection has the grade of its candidate.
    """
    problems: dict[tuple, list[dict]] = {}
    for sample in samples:
        problems.setdefault((sample["benchmark"], sample["problem_id"]), []).append(dict(sample))
    order = [sorted(rows, key=lambda row: row["stage"] != "candidate") for rows in problems.values()]
    texts = [
        [None if row["skipped"] or row["stage"] == "selection" else row["text"] for row in rows] for rows in order
    ]
    golds, changed = [rows[0]["gold"] for rows in order], 0
    for grading in GRADINGS:
        names = (f"answer_{grading}", f"correct_{grading}", f"class_{grading}")
        for rows, grades in zip(order, grade(texts, golds, require_box=grading == "strict"), strict=True):
            candidates = {row["index"]: row for row in rows if row["stage"] == "candidate"}
            for row, text_grade in zip(rows, grades, strict=True):
                before, fields = row[names[1]], (text_grade.answer, text_grade.correct, text_grade.vote_class)
                if row["stage"] == "selection":
                    chosen = candidates.get(row["chosen"])  # None if it names none
                    fields = [chosen[name] for name in names] if chosen else (None, 0.0, None)
                if not row["skipped"]:
                    row.update(zip(names, fields, strict=True))
                changed += before != row[names[1]]
                if row["stage"] == "candidate":
                    row.update(verdict_of(row["text"], verdict_pattern))
    return [row for rows in problems.values() for row in rows], changed

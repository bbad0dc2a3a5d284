"""Distillation: the student's candidates -> the teacher's refinements -> verified, balanced rows for SFT.

The work is units of one problem: `candidates` (by the student), then `refinements` (by the teacher, with its direct
solutions if wanted). The engine is kept full: units go in as there is room and are stored as they finish, in shards.
Rows are made from all units at the end, so a job that was killed and started again ends with the same units as one
that was not.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gsr_rl.distillation.rows import Rows, make_rows
from gsr_rl.engines.base import EngineError, Request, Sampling
from gsr_rl.engines.jobs import Progress, ShardStore, Units, run_units
from gsr_rl.engines.open import open_configured
from gsr_rl.refinement.candidates import SetChoice, choice_seed
from gsr_rl.refinement.stages import Candidate, SetToRefine, Stages, grade

# Keys that change how fast units are made, where they are, or what is made of them later, and not what is in them.
FREE_KEYS = {"output_dir", "dry_run", "problems_per_chunk", "max_num_seqs", "gpu_memory_utilization", "shard", "join"}
FREE_KEYS |= {"engine", "tensor_parallel_size", "data_parallel_size", "endpoints", "endpoint_api", "api_key_env"}
FREE_KEYS |= {f"teacher_{key}" for key in ("engine", "tensor_parallel_size", "endpoints", "endpoint_api")}
FREE_KEYS |= {"teacher_api_key_env", "max_requests_in_flight", "requests_per_minute", "request_timeout"}
FREE_KEYS |= {"request_retries", "max_if_all_right", "direct_ratio", "keep_thinking", "num_correct_shares", "expected"}
FREE_KEYS |= {f"{who}_{key}" for who in ("student", "teacher") for key in ("price", "tokens_per_second")}
FREE_KEYS |= {"push_to_hub", "hub_dataset_id", "hub_private_repo", "hub_revision", "allow_unfinished"}
FREE_KEYS |= {"keep_duplicate_solutions"}


class Unfinished(EngineError):
    """Some units could not be made. All others are stored; the same command tries these again."""


def unit_settings(rows: list[dict], problem_config, config) -> dict:
    """What the units depend on, the problems included. Balance and mixing are applied later, so they may change."""
    values = dataclasses.asdict(problem_config) | dataclasses.asdict(config)
    texts = "\x1f".join(f"{row['id']}\x1e{row['problem']}\x1e{row['answer']}" for row in rows)
    fingerprint = {"problems_hash": hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()}
    return {key: value for key, value in values.items() if key not in FREE_KEYS} | fingerprint


def open_store(rows: list[dict], problem_config, config) -> ShardStore:
    """The job's folder of units. Raises `ValueError` if it holds the units of another configuration."""
    settings = unit_settings(rows, problem_config, config)
    return ShardStore(Path(config.output_dir) / "shards", settings, config.shard)


def part_of(rows: list[dict], shard: str | None) -> list[dict]:
    """The problems of part `i/n`, i from 1: every n-th one."""
    if not shard:
        return rows
    number, of = map(int, shard.split("/"))
    return rows[number - 1 :: of]


def distill(rows: list[dict], problem_config, config, open_engine=None) -> tuple[Rows, dict] | None:
    """Run what is left of the job, or of its part, and make the rows.

    Args:
        rows: The problems, all of them.
        problem_config, config: `ProblemConfig` and `DistillConfig`.
        open_engine: Stands in for `generation.open_engine`.

    Returns:
        The SFT rows, shuffled by the seed, and the funnel's counts. None if a part is done and others are not.

    Raises:
        ValueError: The folder holds another configuration's units, or another process works in it.
        Unfinished: An endpoint gave no answer for some units.
    """
    store = open_store(rows, problem_config, config)
    part = part_of(rows, config.shard)
    with store.lock():
        for folder in config.join or []:
            store.take_over(Path(folder) / "shards")
        failed = _sample_all(part, store, config, open_engine)
    if failed and not config.allow_unfinished:
        raise Unfinished(
            f"{len(failed)} of {len(part)} problems got no answer, the first because of: {next(iter(failed.values()))}"
            ". The others are stored: the same command tries these again, and with --allow_unfinished true goes on "
            "without them"
        )
    candidates, refinements = store.load("candidates"), store.load("refinements")
    done = [row for row in rows if row["id"] in refinements]
    if len(done) < len(rows) and (config.shard or not config.allow_unfinished):
        return None
    return make_rows(done, candidates, refinements, config)


def _sample_all(rows: list[dict], store: ShardStore, config, open_engine) -> dict[str, str]:
    """Both stages, with one engine if the student is its own teacher. Returns what failed, by problem id."""
    engine, failed = None, {}

    def opened(model: str, teacher: bool):
        # Not the seed of a run that was killed: its samples would come again for other problems.
        made = len(store.load("candidates")) + len(store.load("refinements"))
        seed = choice_seed(config.seed, model, store.part, made) % 2**31
        print(f"{'teacher' if teacher else 'student'}: {model}", flush=True)  # that it loads may take minutes
        return open_configured(config, model, seed, teacher=teacher, opener=open_engine)

    try:
        done = store.load("candidates")
        if left := [row for row in rows if row["id"] not in done]:
            engine = opened(config.student_model, teacher=False)
            failed = _run(engine, left, len(rows), _candidate_units(engine, left, config), store, "candidates", config)
            if not one_engine(config):
                engine.close()
                engine = None
        done = failed.keys() | store.load("refinements").keys()
        if left := [row for row in rows if row["id"] not in done]:
            engine = engine or opened(config.teacher_model, teacher=True)
            units = _refinement_units(engine, left, store.load("candidates"), config)
            failed |= _run(engine, left, len(rows), units, store, "refinements", config)
    finally:
        if engine:
            engine.close()
    return failed


def one_engine(config) -> bool:
    """Whether the teacher is the student in the same engine."""
    keys = ("engine", "tensor_parallel_size", "endpoints", "endpoint_api", "endpoint_tokenizer", "endpoint_options")
    teachers = [getattr(config, f"teacher_{key}") for key in keys]
    teachers += [config.teacher_chat_template] * (config.teacher_chat_template != config.chat_template)
    return config.teacher_model == config.student_model and all(value is None for value in teachers)


def _run(engine, left, total: int, planned: Iterator[tuple[dict, list[Request]]], store, kind: str, config) -> dict:
    """The units of one stage (see `run_units`). Returns the errors of what an endpoint gave no answer for, by id."""
    golds = {row["id"]: row["answer"] for row in left}
    progress = Progress(kind, total, total - len(left))
    store_units = partial(_grade_and_store, golds=golds, store=store, kind=kind)
    return run_units(engine, planned, progress, _add, store_units, config.problems_per_chunk)


def _add(unit: dict, place, completion) -> None:
    """Add a completion to its unit; `place` is its set's number, `direct`, or None for a candidate."""
    sample = {"text": completion.text, "tokens": len(completion.token_ids), "finished": completion.finished}
    if place == "direct":
        sample["stage"] = "candidate"
    elif place is not None:
        sample |= {"stage": "refinement", "set": place}
    unit["samples"].append(sample)


def _grade_and_store(units: list[dict], golds: dict[str, str], store: ShardStore, kind: str) -> list:
    """Grade every sample (boxed answers only), group the candidates' answers for the vote, write the shard.

    Returns the grades, 1 if right.
    """
    voting = kind == "candidates"
    texts = [[sample["text"] for sample in unit["samples"]] for unit in units]
    graded = grade(texts, [golds[unit["unit"]] for unit in units], require_box=True, group_answers=voting)
    for unit, grades in zip(units, graded, strict=True):
        for sample, sample_grade in zip(unit["samples"], grades, strict=True):
            sample["correct"] = sample_grade.correct
            if voting:
                sample["class"] = sample_grade.vote_class
        if not voting:  # in the order of the sets, whichever finished first
            unit["samples"].sort(key=lambda sample: sample.get("set", len(unit["sets"])))
    store.append(kind, units)
    return [sample["correct"] for unit in units for sample in unit["samples"]]


def _solve_request(stages: Stages, row: dict, place, sampling: Sampling) -> list[Request]:
    """The request for direct solutions; none if the prompt and a completion do not fit the engine's context."""
    prompt = stages.solve(row["problem"])
    if stages.room(prompt) < sampling.max_tokens:
        return []
    return [Request((row["id"], place), prompt.token_ids, sampling, prompt.messages)]


def _unit(row: dict, requests: list[Request], **more) -> tuple[dict, list[Request]]:
    tokens = sum(len(request.token_ids) for request in requests)
    return {"unit": row["id"], "samples": [], "requests": len(requests), "prompt_tokens": tokens} | more, requests


def _candidate_units(engine, rows: list[dict], config) -> Iterator[tuple[dict, list[Request]]]:
    """A unit per problem with the request for its candidates."""
    stages = Stages.of(config, engine.tokenizer, engine.max_model_length)
    sampling = Sampling(config.num_generations, config.temperature, config.top_p, config.max_completion_length)
    for row in rows:
        yield _unit(row, _solve_request(stages, row, None, sampling))


def _refinement_units(engine, rows: list[dict], candidates: Units, config) -> Iterator[tuple[dict, list[Request]]]:
    """A unit per problem with its sets, the requests for their refinements and, if wanted, for direct solutions.

    A set for which there are too few usable candidates is left out; one over the budget is counted as dropped.
    """
    stages = Stages.of(config, engine.tokenizer, engine.max_model_length)
    stages.check_refinement_room()
    choice = SetChoice(
        num_candidates=config.num_candidates,
        min_num_candidates=config.min_num_candidates,
        num_sets=config.num_candidate_sets,
        policy=config.candidate_choice,
        uniform_share=config.uniform_share,
    )
    how = (config.refinement_temperature, config.refinement_top_p, config.max_refinement_length)
    refining, solving = Sampling(config.refinements_per_set, *how), Sampling(config.direct_generations, *how)
    for row in rows:
        seed = choice_seed(config.seed, row["id"], "sets")
        samples = candidates[row["id"]]["samples"]
        group = [Candidate(sample["text"], sample["finished"], sample["correct"]) for sample in samples]
        sets, dropped, requests = [], 0, []
        for chosen in stages.refine_sets(row["problem"], group, choice, seed):
            if not chosen.candidate_set.complete:
                continue
            prompt = chosen.prompt
            if prompt is None or (prompt.num_cut and config.overlong_prompts == "drop"):
                dropped += 1
                continue
            requests.append(Request((row["id"], len(sets)), prompt.token_ids, refining, prompt.messages))
            sets.append(_stored_set(chosen, group))
        if config.direct_source == "teacher":
            requests += _solve_request(stages, row, "direct", solving)
        yield _unit(row, requests, sets=sets, dropped=dropped, sets_seed=seed)


def _stored_set(chosen: SetToRefine, candidates: list[Candidate]) -> dict:
    """A candidate set as it is stored with its problem's refinements."""
    indices = chosen.candidate_set.indices
    return {
        "chosen": indices,
        "policy": chosen.candidate_set.policy,
        "candidates": chosen.texts,
        "prompt": chosen.prompt.messages,
        "num_correct": sum(candidates[index].correct == 1.0 for index in indices),
        "cut": chosen.prompt.num_cut,
        "prompt_tokens": len(chosen.prompt.token_ids),
    }

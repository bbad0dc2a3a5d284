"""Distillation: the student's candidates -> the teacher's refinements -> verified, balanced rows for SFT.

The work is units of one problem: `candidates` (by the student), then `refinements` (by the teacher, with its direct
solutions if wanted). Units are kept in shards; rows are made from all units at the end, so a job that was killed and
started again ends with the same units as one that was not.
"""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gsr_rl.candidates import choice_seed, choose_candidate_sets
from gsr_rl.generation import Sampling, open_engine
from gsr_rl.refining import fit_prompts, shown_texts, solve_prompt_ids
from gsr_rl.sft_rows import make_rows
from gsr_rl.shards import ShardStore

# Keys that change how fast units are made or where they are, and not what is in them.
FREE_KEYS = {"output_dir", "dry_run", "problems_per_chunk", "max_num_seqs", "gpu_memory_utilization"}
FREE_KEYS |= {"tensor_parallel_size", "engine", "max_if_all_right", "direct_ratio", "keep_thinking"}


def unit_settings(rows: list[dict], problem_config, config) -> dict:
    """What the units depend on, the problems included. Balance and mixing are applied later, so they may change."""
    values = dataclasses.asdict(problem_config) | dataclasses.asdict(config)
    texts = "\x1f".join(f"{row['id']}\x1e{row['problem']}\x1e{row['answer']}" for row in rows)
    fingerprint = {"problems_hash": hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()}
    return {key: value for key, value in values.items() if key not in FREE_KEYS} | fingerprint


def open_store(rows: list[dict], problem_config, config) -> ShardStore:
    """The job's folder of units. Raises `ValueError` if it holds the units of another configuration."""
    return ShardStore(Path(config.output_dir) / "shards", unit_settings(rows, problem_config, config))


def distill(rows: list[dict], problem_config, config, open_engine=open_engine) -> tuple[list[dict], dict]:
    """Run what is left of the job and make the rows.

    Args:
        rows: The problems.
        problem_config, config: `ProblemConfig` and `DistillConfig`.
        open_engine: Opens the student's and the teacher's engine; tests put a fixed one in its place.

    Returns:
        The SFT rows, shuffled by the seed, and the funnel's counts.
    """
    store = open_store(rows, problem_config, config)
    same = config.student_model == config.teacher_model
    engine = None

    def engine_of(model: str):
        return open_engine(
            config.engine,
            model,
            seed=choice_seed(config.seed, model, len(store.load("candidates"))) % 2**31,
            max_model_length=config.max_model_length,
            dtype=config.engine_dtype,
            gpu_memory_utilization=config.gpu_memory_utilization,
            tensor_parallel_size=config.tensor_parallel_size,
            max_num_seqs=config.max_num_seqs,
        )

    done = store.load("candidates")
    left = [row for row in rows if row["id"] not in done]
    if left:
        engine = engine_of(config.student_model)
        _work_off(left, config, store, "candidates", lambda chunk: _sample_candidates(engine, chunk, config))
        if not same:
            engine.close()
            engine = None
    candidates = store.load("candidates")
    done = store.load("refinements")
    left = [row for row in rows if row["id"] not in done]
    if left:
        engine = engine or engine_of(config.teacher_model)
        _work_off(left, config, store, "refinements", lambda chunk: _refine(engine, chunk, candidates, config))
    if engine:
        engine.close()
    return make_rows(rows, candidates, store.load("refinements"), config)


def _work_off(rows: list[dict], config, store: ShardStore, kind: str, sample) -> None:
    """Chunk by chunk: sample, then grade and store while the next chunk is sampled."""
    with ThreadPoolExecutor(1) as background:
        pending = None
        for start in range(0, len(rows), config.problems_per_chunk):
            chunk = rows[start : start + config.problems_per_chunk]
            units = sample(chunk)
            if pending:
                pending.result()
            pending = background.submit(_grade_and_store, chunk, units, store, kind)
        if pending:
            pending.result()


def _grade_and_store(rows: list[dict], units: list[dict], store: ShardStore, kind: str) -> None:
    """Grade every sample of a chunk in one call (boxed answers only) and write the shard."""
    import rewards

    golds = {row["id"]: row["answer"] for row in rows}
    samples = [(unit["unit"], sample) for unit in units for sample in unit["samples"]]
    graded = rewards.grade([s["text"] for _, s in samples], [golds[i] for i, _ in samples], require_box=True)
    for (_, sample), correct in zip(samples, graded, strict=True):
        sample["correct"] = correct
    store.append(kind, units)


def _sample(completion, **more) -> dict:
    return {"text": completion.text, "tokens": len(completion.token_ids), "finished": completion.finished} | more


def _sample_candidates(engine, rows: list[dict], config) -> list[dict]:
    """A unit a problem with its candidates; a problem whose prompt leaves no room has none."""
    sampling = Sampling(config.num_generations, config.temperature, config.top_p, config.max_completion_length)
    fitting = _fitting(engine, rows, sampling, config)
    sampled = dict(zip(fitting, engine.generate(list(fitting.values()), sampling), strict=True))
    return [{"unit": row["id"], "samples": [_sample(c) for c in sampled.get(row["id"], [])]} for row in rows]


def _fitting(engine, rows: list[dict], sampling: Sampling, config) -> dict[str, list[int]]:
    """Solve prompts by problem id, of the problems whose prompt and completion fit the engine's window."""
    prompts = solve_prompt_ids(engine.tokenizer, rows, config.prompt_template)
    room = engine.max_model_length - sampling.max_tokens
    return {row["id"]: ids for row, ids in zip(rows, prompts, strict=True) if len(ids) <= room}


def _refine(engine, rows: list[dict], candidates: dict[str, dict], config) -> list[dict]:
    """A unit a problem with its sets' refinements and, if wanted, the teacher's direct solutions."""
    plan, items = [], []
    for row in rows:
        group = candidates[row["id"]]["samples"]
        texts, finished = [s["text"] for s in group], [s["finished"] for s in group]
        usable = [s["correct"] is not None and bool(shown_texts(texts, finished, [i], config.unfinished_candidates))
                  for i, s in enumerate(group)]  # fmt: skip
        seed = choice_seed(config.seed, row["id"], "sets")
        for chosen in choose_candidate_sets(usable, config.num_candidates, config.num_candidate_sets, seed):
            if len(chosen) == config.num_candidates:
                plan.append((row["id"], chosen, shown_texts(texts, finished, chosen, config.unfinished_candidates)))
                items.append((row["problem"], plan[-1][2]))
    prompts = fit_prompts(config, engine, items)
    sampling = Sampling(
        config.refinements_per_set, config.refinement_temperature, config.refinement_top_p,
        config.max_refinement_length,
    )  # fmt: skip
    sampled = iter(engine.generate([prompt.token_ids for prompt in prompts if prompt], sampling))
    units = {row["id"]: {"unit": row["id"], "sets": [], "samples": []} for row in rows}
    for (identity, chosen, shown), prompt in zip(plan, prompts, strict=True):
        if prompt is None:
            continue
        unit, group = units[identity], candidates[identity]["samples"]
        place = len(unit["sets"])
        right = sum(group[i]["correct"] == 1.0 for i in chosen)
        unit["sets"].append(
            {"chosen": chosen, "candidates": shown, "num_correct": right, "cut": prompt.num_cut}
            | {"prompt": prompt.messages}
        )
        unit["samples"] += [_sample(c, stage="refinement", set=place) for c in next(sampled)]
    if config.direct_source == "teacher":
        direct = Sampling(
            config.direct_generations, config.refinement_temperature, config.refinement_top_p,
            config.max_refinement_length,
        )  # fmt: skip
        fitting = _fitting(engine, rows, direct, config)
        for identity, group in zip(fitting, engine.generate(list(fitting.values()), direct), strict=True):
            units[identity]["samples"] += [_sample(c, stage="candidate") for c in group]
    return list(units.values())

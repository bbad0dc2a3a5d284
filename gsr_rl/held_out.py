"""Evaluation while training: both stages on held-out problems through the run's own engine."""

import time

from gsr_rl.rollout import Plan
from gsr_rl.rollout_metrics import Sums, add_sums, candidates_label, rollout_sums

REPORTED = ("maj", "selfref", "pass")  # @K, of `gap/`


def metric_names(num_candidates: int) -> list[str]:
    """The accuracies and the gap that `evaluate_held_out` gives, without its prefix: a checkpoint is chosen by one."""
    return ["pass@1", *(f"{name}@{num_candidates}" for name in REPORTED), "refinement_gap"]


def evaluate_held_out(trainer, dataset, prefix: str = "eval") -> dict[str, float]:
    """Accuracies and the gap on held-out problems, one uniform candidate set each, sampled as in training.

    Every rank takes part; problems are dealt out over ranks, and the last ones are repeated where they do not divide
    evenly, without being counted twice.

    Args:
        trainer: A `GSRTrainer`, its model in evaluation mode.
        dataset: Rows with `problem`, `problem_id` and `answer`.
        prefix: Of the names of the metrics.

    Returns:
        `{"eval_pass@1", "eval_maj@K", "eval_selfref@K", "eval_pass@K", "eval_refinement_gap", "eval_problems",
        "eval_seconds"}`, accuracies as shares.
    """
    start, args = time.perf_counter(), trainer.args
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    generations = trainer.num_generations_eval
    plan = Plan(max(generations, args.num_candidates), args.num_candidates)
    share = -(-len(dataset) // world)  # problems a rank
    mine = range(rank * share, (rank + 1) * share)
    label = candidates_label(plan)
    sums: Sums = {}
    with trainer.engine_ready():
        for begin in range(0, share, args.eval_problems_per_call):
            indices = mine[begin : begin + args.eval_problems_per_call]
            rows = [dataset[min(index, len(dataset) - 1)] for index in indices]
            blocks = trainer.roll_out(rows, plan)
            counted = [block for block, index in zip(blocks, indices, strict=True) if index < len(dataset)]
            part = rollout_sums(counted, plan) | {"problems": [float(len(counted)), 0.0]}
            add_sums(sums, part)
    sums["problems"][1] = 1.0 / world  # a sum, not a mean
    means = trainer.log_of_rollouts.means(sums)
    found = {"pass@1": means.get("candidate/accuracy", float("nan"))}
    found |= {f"{name}@{label}": means.get(f"gap/{name}@{label}", float("nan")) for name in REPORTED}
    found["refinement_gap"] = means.get("gap/refinement_gap", float("nan"))
    found |= {"problems": means["problems"], "seconds": time.perf_counter() - start}
    return {f"{prefix}_{name}": value for name, value in found.items()}

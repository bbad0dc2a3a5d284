"""What a training step logs of its rollouts, and the rows of the rollout table.

Pure. Metrics are kept as (sum, count) pairs, so that adding the pairs of all ranks gives the global mean.
"""

from math import isnan

from gsr_rl.metrics import maj_correct, pass_at_k
from gsr_rl.rollout import Block, Rollout

Sums = dict[str, list[float]]  # name -> [sum, count]
STAGE_METRICS = ("accuracy", "reward", "completion_length", "unfinished", "unscored", "advantage_abs")


def rollout_sums(blocks: list[Block], num_candidates: int) -> Sums:
    """Sums and counts of every logged rollout metric. The same names for any blocks, so that ranks can add them up.

    Accuracies, rates and the gap are shares; lengths are tokens. Names with @K have `num_candidates` in them. The
    gap, fix and break rates are over the shown candidate sets with a scored refinement; a tied vote counts by its
    probability of being right.
    """
    k = num_candidates
    names = [
        *(f"{stage}/{name}" for stage in ("candidate", "refinement") for name in STAGE_METRICS),
        *("refinement/cut_prompts", "refinement/skipped_prompts", "candidate/skipped_prompts"),
        *(f"gap/{name}" for name in (f"pass@{k}", f"maj@{k}", f"selfref@{k}", "refinement_gap")),
        *("gap/fix_rate", "gap/break_rate"),
        *(f"refinement/accuracy_by_num_correct/{correct}" for correct in range(k + 1)),
    ]
    sums: Sums = {name: [0.0, 0.0] for name in names}

    def add(name: str, value: float, weight: float = 1.0) -> None:
        sums[name][0] += value * weight
        sums[name][1] += weight

    for block in blocks:
        _add_stage(add, "candidate", block.candidates)
        _add_stage(add, "refinement", block.refinements)
        add("candidate/skipped_prompts", float(not any(c.usable for c in block.candidates)))
        scored = [c for c in block.candidates if c.scored]
        if len(scored) >= k:
            add(f"gap/pass@{k}", pass_at_k(len(scored), int(sum(c.correct for c in scored)), k))
        for chosen in block.sets:
            add("refinement/skipped_prompts", float(not chosen.fits))
            add("refinement/cut_prompts", float(chosen.num_cut > 0))
            refinements = [r for r in chosen.refinements if r.scored]
            if not refinements:
                continue
            shown = [block.candidates[index] for index in chosen.shown]
            vote = maj_correct([c.vote_class for c in shown], [c.correct for c in shown])
            right = sum(r.correct for r in refinements) / len(refinements)
            add(f"gap/maj@{k}", vote)
            add(f"gap/selfref@{k}", right)
            add("gap/refinement_gap", right - vote)
            add("gap/fix_rate", right, 1 - vote)
            add("gap/break_rate", 1 - right, vote)
            add(f"refinement/accuracy_by_num_correct/{int(sum(c.correct for c in shown))}", right)
    return sums


def _add_stage(add, stage: str, rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        if rollout.usable:
            add(f"{stage}/unscored", float(not rollout.scored))
            add(f"{stage}/completion_length", len(rollout.completion_ids))
            add(f"{stage}/unfinished", float(not rollout.finished))
        if rollout.scored:
            add(f"{stage}/accuracy", rollout.correct)
            if not isnan(rollout.reward):
                add(f"{stage}/reward", rollout.reward)
            add(f"{stage}/advantage_abs", abs(rollout.advantage))


def rollout_rows(blocks: list[Block], step: int, tokenizer) -> list[dict]:
    """Rows of the rollout table: one a rollout, with its true prompt."""
    rows = []
    for block in blocks:
        common = {"step": step, "problem_id": block.problem_id, "answer": block.answer}
        prompts: dict[int, str] = {}
        groups = [(block.candidates, None)] + [(chosen.refinements, chosen) for chosen in block.sets]
        for group, chosen in groups:
            num_correct = None
            if chosen is not None:
                num_correct = int(sum(block.candidates[index].correct or 0 for index in chosen.shown))
            for rollout in group:
                key = id(rollout.prompt_ids)
                if key not in prompts:
                    prompts[key] = tokenizer.decode(rollout.prompt_ids)
                rows.append(
                    common
                    | {
                        "stage": "candidate" if chosen is None else "refinement",
                        "prompt": prompts[key],
                        "completion": rollout.text,
                        "usable": rollout.usable,
                        "finished": rollout.finished,
                        "correct": rollout.correct,
                        "reward": None if isnan(rollout.reward) else rollout.reward,
                        "advantage": rollout.advantage,
                        "num_correct": num_correct,
                        "shown": None if chosen is None else chosen.shown,
                    }
                )
    return rows

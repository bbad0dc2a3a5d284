"""What a training step logs of its rollouts, the warnings it gives, and the rows of the rollout table.

Pure. Metrics are kept as (sum, count) pairs, so that adding the pairs of all ranks gives the global mean.
"""

from collections import Counter
from math import isnan

from gsr_rl.refinement.metrics import maj_correct, pass_at_k
from gsr_rl.training.rollout import Block, CandidateSet, Plan, Rollout

Sums = dict[str, list[float]]  # name -> [sum, count]
STAGE_METRICS = ("accuracy", "reward", "completion_length", "unfinished", "unscored", "advantage_abs", "distinct")
SET_METRICS = ("refinement_gap", "fix_rate", "break_rate", "copy_rate", "new_answer_rate")
BY_NUM_CORRECT = {"gap": "refinement/accuracy_by_num_correct", "chosen": "chosen/accuracy_by_num_correct"}


def candidates_label(plan: Plan) -> str:
    """The K of metric names: `4`, or `2-6` where it is drawn between two bounds."""
    least, most = plan.min_num_candidates, plan.num_candidates
    return str(most) if least in (None, most) else f"{least}-{most}"


def rollout_sums(blocks: list[Block], plan: Plan) -> Sums:
    """Sums and counts of every logged rollout metric. The same names for any blocks, so that ranks can add them up.

    Accuracies, rates and the gap are shares; lengths are tokens. `candidate/` and `refinement/` are over all rows. The
    gap and the rates under `gap/`, and accuracies by number of right candidates, are over uniformly chosen candidate
    sets with a scored refinement; those of sets that another policy chose have the prefix `chosen/`. A tied vote
    counts by its probability of being right. `copy_rate` is the share of refinements that answer what most of their
    candidates answer, `new_answer_rate` of those whose answer none of them has, `distinct` the share of different
    answers among a group's.
    """
    label = candidates_label(plan)
    prefixes = ["gap"] + (["chosen"] if plan.policy != "uniform" else [])
    names = [
        *(f"{stage}/{name}" for stage in ("candidate", "refinement") for name in STAGE_METRICS),
        *("refinement/cut_prompts", "refinement/skipped_prompts", "candidate/skipped_prompts"),
        f"gap/pass@{plan.num_candidates}",
        *(f"{prefix}/{name}@{label}" for prefix in prefixes for name in ("maj", "selfref")),
        *(f"{prefix}/{name}" for prefix in prefixes for name in SET_METRICS),
        *(f"{BY_NUM_CORRECT[prefix]}/{right}" for prefix in prefixes for right in range(plan.num_candidates + 1)),
    ]
    sums: Sums = {name: [0.0, 0.0] for name in names}

    def add(name: str, value: float, weight: float = 1.0) -> None:
        sums[name][0] += value * weight
        sums[name][1] += weight

    for block in blocks:
        _add_stage(add, "candidate", block.candidates)
        add("candidate/skipped_prompts", float(not any(c.usable for c in block.candidates)))
        scored = [c for c in block.candidates if c.scored]
        if len(scored) >= plan.num_candidates:
            right = sum(c.correct > 0.5 for c in scored)
            add(f"gap/pass@{plan.num_candidates}", pass_at_k(len(scored), right, plan.num_candidates))
        for one in block.sets:
            _add_stage(add, "refinement", one.refinements)
            add("refinement/skipped_prompts", float(not one.fits))
            add("refinement/cut_prompts", float(one.num_cut > 0))
            _add_set(add, block, one, label)
    return sums


def add_sums(sums: Sums, part: Sums) -> None:
    """Add `part` to `sums`, name by name."""
    for name, (total, count) in part.items():
        known = sums.setdefault(name, [0.0, 0.0])
        known[0] += total
        known[1] += count


def _add_set(add, block: Block, one: CandidateSet, label: str) -> None:
    """One candidate set: refinement against the vote over the same candidates."""
    refinements = [r for r in one.refinements if r.scored]
    if not refinements:
        return
    prefix = "gap" if one.policy == "uniform" else "chosen"
    shown = [block.candidates[index] for index in one.shown]
    vote = maj_correct([c.vote_class for c in shown], [c.correct for c in shown])
    right = sum(r.correct for r in refinements) / len(refinements)
    add(f"{prefix}/maj@{label}", vote)
    add(f"{prefix}/selfref@{label}", right)
    add(f"{prefix}/refinement_gap", right - vote)
    add(f"{prefix}/fix_rate", right, 1 - vote)
    add(f"{prefix}/break_rate", 1 - right, vote)
    add(f"{BY_NUM_CORRECT[prefix]}/{sum((c.correct or 0) > 0.5 for c in shown)}", right)
    answers = Counter(c.vote_class for c in shown if c.vote_class is not None)
    if answers:
        majority = {answer for answer, count in answers.items() if count == max(answers.values())}
        for refinement in refinements:
            add(f"{prefix}/copy_rate", float(refinement.vote_class in majority))
            new = refinement.vote_class is not None and refinement.vote_class not in answers
            add(f"{prefix}/new_answer_rate", float(new))


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
    answered = [r.vote_class for r in rollouts if r.scored and r.vote_class is not None]
    if answered:
        add(f"{stage}/distinct", len(set(answered)) / len(answered))


def warnings_of(logs: dict[str, float], candidates: int) -> dict[str, str]:
    """What is likely to be going wrong in a run, from one step's logs: {kind: one sentence with figure and mend}."""
    found = {}

    def look(kind: str, name: str, bad, text: str) -> None:
        value = logs.get(name)
        if value is not None and bad(value):
            found[kind] = f"{name} is {value:.3g}: {text}"

    look("diversity", "candidate/distinct", lambda v: v * candidates < 1.5,
         "nearly all candidates of a problem give one answer, so there is little to refine and no signal; try "
         "candidate_objective pass@k, a lower learning rate or harder problems")  # fmt: skip
    look("copying", "gap/copy_rate" if "gap/copy_rate" in logs else "chosen/copy_rate", lambda v: v > 0.97,
         "refinements only repeat the candidates' majority; check the warm start, or show harder sets "
         "(candidate_choice hard)")  # fmt: skip
    look("solve prompts", "candidate/skipped_prompts", lambda v: v > 0.2,
         "many problems leave no room for a candidate in the model's window; lower max_completion_length or leave out "
         "long problems")  # fmt: skip
    for stage, limit in (("candidate", "max_completion_length"), ("refinement", "max_refinement_length")):
        look(f"{stage} length", f"{stage}/unfinished", lambda v: v > 0.3,
             f"completions run into their limit; raise {limit} or add the length reward")  # fmt: skip
        look(f"{stage} signal", f"{stage}/no_signal", lambda v: v > 0.9,
             "nearly all groups have equal rewards and teach nothing; use easier or harder problems, oversample, or "
             "curriculum")  # fmt: skip
        look(f"{stage} drift", f"{stage}/sampling_logp_difference/mean", lambda v: v > 0.1,
             "the engine's probabilities are far from the trainer's; compare their dtypes (vllm_dtype) and sampling "
             "settings")  # fmt: skip
    look("prompts", "refinement/skipped_prompts", lambda v: v > 0.2,
         "many refinement prompts are left out; raise max_refinement_prompt_length or max_completion_length, or set "
         "unfinished_candidates: cut")  # fmt: skip
    return found


def rollout_rows(blocks: list[Block], step: int, tokenizer) -> list[dict]:
    """Rows of the rollout table: one a rollout, with its true prompt."""
    rows = []
    for block in blocks:
        common = {"step": step, "problem_id": block.problem_id, "answer": block.answer}
        prompts: dict[int, str] = {}
        groups = [(block.candidates, None)] + [(one.refinements, one) for one in block.sets]
        for group, one in groups:
            num_correct = None
            if one is not None:
                num_correct = sum((block.candidates[index].correct or 0) > 0.5 for index in one.shown)
            for rollout in group:
                key = id(rollout.prompt_ids)
                if key not in prompts:
                    prompts[key] = tokenizer.decode(rollout.prompt_ids)
                rows.append(
                    common
                    | {
                        "stage": "candidate" if one is None else "refinement",
                        "prompt": prompts[key],
                        "completion": rollout.text,
                        "usable": rollout.usable,
                        "finished": rollout.finished,
                        "correct": rollout.correct,
                        "reward": None if isnan(rollout.reward) else rollout.reward,
                        "advantage": rollout.advantage,
                        "num_correct": num_correct,
                        "shown": None if one is None else one.shown,
                        "policy": None if one is None else one.policy,
                    }
                )
    return rows


REPORTED = ("maj", "selfref", "pass")  # @K, of `gap/`


def metric_names(num_candidates: int) -> list[str]:
    """The accuracies and the gap that `evaluate_held_out` gives, without its prefix: a checkpoint is chosen by one."""
    return ["pass@1", *(f"{name}@{num_candidates}" for name in REPORTED), "refinement_gap"]

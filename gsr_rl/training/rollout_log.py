"""What a run shows of its rollouts: metrics over all ranks, warnings, table, examples, held-out accuracies.

`RolloutLog` is what the trainer calls. The metrics themselves are pure: sums and counts of rolled-out blocks, so that
adding the pairs of all ranks gives the global mean.
"""

import logging
import os
import time
from collections import Counter
from math import isnan, nan
from typing import NamedTuple

import pandas as pd
import torch

from gsr_rl.refinement.candidates import range_text
from gsr_rl.refinement.metrics import maj_correct, pass_at_k
from gsr_rl.run_folder import atomic_path
from gsr_rl.training.checks import REPORTED
from gsr_rl.training.rollout import Block, CandidateSet, Plan, Rollout

logger = logging.getLogger(__name__)

Sums = dict[str, list[float]]  # name -> [sum, count]
STAGE_METRICS = ("accuracy", "reward", "completion_length", "unfinished", "unscored", "advantage_abs", "distinct")
SET_METRICS = ("refinement_gap", "fix_rate", "break_rate", "copy_rate", "new_answer_rate")
BY_NUM_CORRECT = {"gap": "refinement/accuracy_by_num_correct", "chosen": "chosen/accuracy_by_num_correct"}
WARN_AGAIN_AFTER = 20  # generations until a warning of one kind is given again
SHOWN_CHARACTERS = 700  # of the end of a completion, where its answer stands


class Symptom(NamedTuple):
    """A metric that says that something is going wrong where it is above a limit."""

    kind: str
    metrics: tuple[str, ...]  # the first that is logged counts
    limit: float
    advice: str


SYMPTOMS = [
    Symptom("copying", ("gap/copy_rate", "chosen/copy_rate"), 0.97,
            "refinements only repeat the candidates' majority; check the warm start, or show harder sets "
            "(candidate_choice hard)"),
    Symptom("solve prompts", ("candidate/skipped_prompts",), 0.2,
            "many problems leave no room for a candidate in the model's context; lower max_completion_length or leave "
            "out long problems"),
    *(
        symptom
        for stage, limit in (("candidate", "max_completion_length"), ("refinement", "max_refinement_length"))
        for symptom in (
            Symptom(f"{stage} length", (f"{stage}/unfinished",), 0.3,
                    f"completions run into their limit; raise {limit} or add the length reward"),
            Symptom(f"{stage} signal", (f"{stage}/no_signal",), 0.9,
                    "nearly all groups have equal rewards and teach nothing; use easier or harder problems, "
                    "oversample, or curriculum"),
            Symptom(f"{stage} drift", (f"{stage}/sampling_logp_difference/mean",), 0.1,
                    "the engine's probabilities are far from the trainer's; compare their dtypes (vllm_dtype) and "
                    "sampling settings"),
        )
    ),
    Symptom("prompts", ("refinement/skipped_prompts",), 0.2,
            "many refinement prompts are left out; raise max_refinement_prompt_length or max_completion_length, or "
            "set unfinished_candidates: cut"),
]  # fmt: skip
TOO_FEW_ANSWERS = (
    "nearly all candidates of a problem give one answer, so there is little to refine and no signal; try "
    "candidate_objective pass@k, a lower learning rate or harder problems"
)


class RolloutLog:
    """Logs of a `GSRTrainer`. Every rank makes the same calls, because figures are added up over ranks."""

    def __init__(self, trainer):
        self.trainer = trainer
        self._counts: Sums = {}
        self._generations = 0
        self._shown: int | None = None  # logging steps before the last examples
        self._warned: dict[str, int] = {}

    def count(self, blocks: list[Block], groups: Sums) -> None:
        """All sampled problems, also those that over-sampling passes over, and their groups without signal."""
        add_sums(self._counts, rollout_sums(blocks, self.trainer.args.plan) | groups)

    def count_problems(self, sampled: int, with_signal: int, wanted: int) -> None:
        """How many problems this rank sampled for the `wanted` ones of its batch, and how many have signal."""
        self._counts["oversample/sampled"] = [float(sampled), float(wanted)]
        self._counts["oversample/with_signal"] = [float(with_signal), float(wanted)]

    def count_ages(self, ages: list[int], dropped: int) -> None:
        """Of problems sampled ahead: optimizer steps since their weights, and how many were too old and dropped."""
        self._counts["rollout/staleness"] = [float(sum(ages)), float(len(ages))]
        self._counts["rollout/dropped"] = [float(dropped), float(len(ages))]

    def training(self, blocks: list[Block]) -> None:
        """Log a batch, trained on `blocks`: what was counted, slowest seconds of a rank, table, examples, warnings."""
        trainer, step = self.trainer, self.trainer.state.global_step
        self._generations += 1
        means, self._counts = self.means(self._counts), {}
        seconds = dict(trainer.driver.seconds)
        seconds["sync"] = 0.0
        if trainer.use_vllm:
            seconds["sync"], trainer.vllm_generation.sync_seconds = trainer.vllm_generation.sync_seconds, 0.0
        for name, value in (means | self.slowest(seconds)).items():
            trainer._metrics["train"][name].append(value)
        self._write_table(blocks, step)
        if trainer.accelerator.is_main_process:
            due = step // max(1, int(trainer.state.logging_steps))
            if trainer.args.num_examples and due != self._shown:
                print_examples(blocks, trainer.args.num_examples, step)
                self._shown = due
            self._warn(means)

    def means(self, sums: Sums) -> dict[str, float]:
        """Means over all ranks; a name that counts nothing is left out."""
        device = self.trainer.accelerator.device
        values = torch.tensor(list(sums.values()), device=device, dtype=torch.float32)
        pairs = self.trainer.accelerator.reduce(values, reduction="sum").tolist()
        return {name: total / count for name, (total, count) in zip(sums, pairs, strict=True) if count > 0}

    def slowest(self, seconds: dict[str, float]) -> dict[str, float]:
        """`time/` metrics: of the rank that took longest."""
        device = self.trainer.accelerator.device
        values = torch.tensor([list(seconds.values())], device=device, dtype=torch.float32)
        longest = self.trainer.accelerator.gather(values).max(dim=0).values.tolist()
        return {f"time/{name}": value for name, value in zip(seconds, longest, strict=True)}

    def _write_table(self, blocks: list[Block], step: int) -> None:
        """This rank's rollouts of a step as parquet, by atomic rename. A full disk does not end the run."""
        folder = os.path.join(self.trainer.args.output_dir, "rollouts")
        path = os.path.join(folder, f"step_{step:06d}_rank_{self.trainer.accelerator.process_index}.parquet")
        rows = pd.DataFrame(rollout_rows(blocks, step, self.trainer.processing_class))
        try:
            with atomic_path(path) as temporary:
                rows.to_parquet(temporary)
        except OSError as error:
            self._say("rollouts", f"rollouts are not written to {folder}: {error}; the run goes on without this table")

    def _warn(self, means: dict[str, float]) -> None:
        """Say what seems to be going wrong."""
        pending = {name: values[-1] for name, values in self.trainer._metrics["train"].items() if values}
        for kind, text in warnings_of(self.trainer.drift | pending | means, self.trainer.args.num_generations).items():
            self._say(kind, text)

    def _say(self, kind: str, text: str) -> None:
        """A warning, each kind at most every `WARN_AGAIN_AFTER` generations."""
        if self._generations - self._warned.get(kind, -WARN_AGAIN_AFTER) >= WARN_AGAIN_AFTER:
            self._warned[kind] = self._generations
            logger.warning("step %d: %s", self.trainer.state.global_step, text)


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
    plan = Plan(generations=max(generations, args.num_candidates), num_candidates=args.num_candidates)
    share = -(-len(dataset) // world)  # problems per rank, rounded up
    mine = range(rank * share, (rank + 1) * share)
    label = candidates_label(plan)
    sums: Sums = {}
    with trainer.engine_ready():
        for begin in range(0, share, args.eval_problems_per_call):
            indices = mine[begin : begin + args.eval_problems_per_call]
            rows = [dataset[min(index, len(dataset) - 1)] for index in indices]
            blocks = trainer.roll_out(rows, plan)
            counted = [block for block, index in zip(blocks, indices, strict=True) if index < len(dataset)]
            add_sums(sums, rollout_sums(counted, plan) | {"problems": [float(len(counted)), 0.0]})
    sums["problems"][1] = 1.0 / world  # a sum, not a mean
    means = trainer.rollout_log.means(sums)
    metrics = {"pass@1": means.get("candidate/accuracy", nan)}
    metrics |= {f"{name}@{label}": means.get(f"gap/{name}@{label}", nan) for name in REPORTED}
    metrics["refinement_gap"] = means.get("gap/refinement_gap", nan)
    metrics |= {"problems": means["problems"], "seconds": time.perf_counter() - start}
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


def candidates_label(plan: Plan) -> str:
    """The K of metric names: `4`, or `2-6` where it is drawn between two bounds."""
    return range_text(plan.min_num_candidates, plan.num_candidates).replace(" to ", "-")


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
        for candidate_set in block.sets:
            _add_stage(add, "refinement", candidate_set.refinements)
            add("refinement/skipped_prompts", float(not candidate_set.fits))
            add("refinement/cut_prompts", float(candidate_set.num_cut > 0))
            _add_set(add, block, candidate_set, label)
    return sums


def add_sums(sums: Sums, part: Sums) -> None:
    """Add `part` to `sums`, name by name."""
    for name, (total, count) in part.items():
        known = sums.setdefault(name, [0.0, 0.0])
        known[0] += total
        known[1] += count


def _add_set(add, block: Block, candidate_set: CandidateSet, label: str) -> None:
    """One candidate set: refinement against the vote over the same candidates."""
    refinements = [r for r in candidate_set.refinements if r.scored]
    if not refinements:
        return
    prefix = "gap" if candidate_set.policy == "uniform" else "chosen"
    shown = [block.candidates[index] for index in candidate_set.shown]
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
    """What may be going wrong in a run of G `candidates`, by a step's metrics: {kind: a sentence, figure and fix}."""
    warnings = {}
    distinct = logs.get("candidate/distinct")
    if distinct is not None and distinct * candidates < 1.5:
        warnings["diversity"] = f"candidate/distinct is {distinct:.3g}: {TOO_FEW_ANSWERS}"
    for symptom in SYMPTOMS:
        metric = next((name for name in symptom.metrics if name in logs), None)
        if metric is not None and logs[metric] > symptom.limit:
            warnings[symptom.kind] = f"{metric} is {logs[metric]:.3g}: {symptom.advice}"
    return warnings


def rollout_rows(blocks: list[Block], step: int, tokenizer) -> list[dict]:
    """Rows of the rollout table: one per rollout, with its true prompt."""
    rows = []
    for block in blocks:
        prompts: dict[int, str] = {}  # decoded once for all that share it
        groups = [(None, block.candidates), *((shown, shown.refinements) for shown in block.sets)]
        for candidate_set, rollouts in groups:
            for rollout in rollouts:
                key = id(rollout.prompt_ids)
                if key not in prompts:
                    prompts[key] = tokenizer.decode(rollout.prompt_ids)
                rows.append(
                    {"step": step, "problem_id": block.problem_id, "answer": block.answer, "prompt": prompts[key]}
                    | _rollout_columns(rollout)
                    | _set_columns(block, candidate_set)
                )
    return rows


def _rollout_columns(rollout: Rollout) -> dict:
    return {
        "completion": rollout.text,
        "weights_step": rollout.weights_step,
        "usable": rollout.usable,
        "finished": rollout.finished,
        "correct": rollout.correct,
        "reward": None if isnan(rollout.reward) else rollout.reward,
        "advantage": rollout.advantage,
    }


def _set_columns(block: Block, candidate_set: CandidateSet | None) -> dict:
    """The stage of a rollout, and of a refinement which candidates it was shown."""
    if candidate_set is None:
        return {"stage": "candidate", "num_correct": None, "shown": None, "policy": None}
    num_correct = sum((block.candidates[index].correct or 0) > 0.5 for index in candidate_set.shown)
    columns = {"stage": "refinement", "num_correct": num_correct}
    return columns | {"shown": candidate_set.shown, "policy": candidate_set.policy}


def print_examples(blocks: list[Block], number: int, step: int, file=None) -> None:
    """Print up to `number` of a step's problems, first those that a refinement fixed or broke.

    To standard output or `file`; colours only on a terminal.
    """
    from rich.columns import Columns
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.text import Text

    console = Console(file=file, width=None if file is None else 120)

    def panel(title: str, rollout) -> Panel:
        colour = {1.0: "green", 0.0: "red"}.get(rollout.correct, "yellow")
        verdict = {1.0: "right", 0.0: "wrong"}.get(rollout.correct, "not graded")
        cut = "" if rollout.finished else ", cut off"
        text = rollout.text if len(rollout.text) <= SHOWN_CHARACTERS else "... " + rollout.text[-SHOWN_CHARACTERS:]
        return Panel(Text(text), title=f"{title}: {verdict}{cut}", border_style=colour)

    for block in sorted(blocks, key=_interest, reverse=True)[:number]:
        candidate_set = block.sets[0] if block.sets and block.sets[0].shown else None
        shown = candidate_set.shown if candidate_set else range(min(4, len(block.candidates)))
        parts = [Text(f"problem {block.problem_id}: {block.row['problem'][:SHOWN_CHARACTERS]}")]
        parts.append(Text(f"answer: {block.answer}"))
        candidates = [panel(f"candidate {place}", block.candidates[i]) for place, i in enumerate(shown, 1)]
        parts.append(Columns(candidates, equal=True, expand=True))
        if candidate_set and candidate_set.refinements:
            parts.append(panel("refinement", candidate_set.refinements[0]))
        console.print(Panel(Group(*parts), title=f"step {step}"))


def _interest(block: Block) -> float:
    """How much a refinement differs from its candidates: fixed, broken, or neither."""
    if not block.sets or not block.sets[0].shown or not block.sets[0].refinements:
        return 0.0
    shown = [block.candidates[i].correct or 0.0 for i in block.sets[0].shown]
    return abs((block.sets[0].refinements[0].correct or 0.0) - sum(shown) / len(shown))

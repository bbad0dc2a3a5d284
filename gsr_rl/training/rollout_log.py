"""What a run shows of its rollouts: metrics over all ranks, the rollout table, examples to read, and warnings."""

import logging
import os
import time

import pandas as pd
import torch

from gsr_rl.run_folder import atomic_path
from gsr_rl.training.rollout import Block, Plan
from gsr_rl.training.rollout_metrics import (
    REPORTED,
    Sums,
    add_sums,
    candidates_label,
    rollout_rows,
    rollout_sums,
    warnings_of,
)

logger = logging.getLogger(__name__)

WARN_AGAIN_AFTER = 20  # generations until a warning of one kind is given again


class TrainingLog:
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

    def training(self, blocks: list[Block]) -> None:
        """Log a generation batch: metrics of what was counted, seconds of the slowest rank, table, examples, warnings.

        Args:
            blocks: The problems that are trained on.
        """
        trainer, step = self.trainer, self.trainer.state.global_step
        self._generations += 1
        means, self._counts = self.means(self._counts), {}
        seconds = dict(trainer.rollout.seconds)
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

    def means(self, sums: dict[str, list[float]]) -> dict[str, float]:
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


SHOWN_CHARACTERS = 700  # of the end of a completion, where its answer stands


def print_examples(blocks: list[Block], number: int, step: int, file=None) -> None:
    """Print up to `number` problems, first those that a refinement fixed or broke.

    Args:
        blocks: The step's problems.
        file: Where to; standard output by default. Colours only on a terminal.
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
        one = block.sets[0] if block.sets and block.sets[0].shown else None
        shown = one.shown if one else range(min(4, len(block.candidates)))
        parts = [Text(f"problem {block.problem_id}: {block.row['problem'][:SHOWN_CHARACTERS]}")]
        parts.append(Text(f"answer: {block.answer}"))
        candidates = [panel(f"candidate {place}", block.candidates[i]) for place, i in enumerate(shown, 1)]
        parts.append(Columns(candidates, equal=True, expand=True))
        if one and one.refinements:
            parts.append(panel("refinement", one.refinements[0]))
        console.print(Panel(Group(*parts), title=f"step {step}"))


def _interest(block: Block) -> float:
    """How much a refinement differs from its candidates: fixed, broken, or neither."""
    if not block.sets or not block.sets[0].shown or not block.sets[0].refinements:
        return 0.0
    shown = [block.candidates[i].correct or 0.0 for i in block.sets[0].shown]
    return abs((block.sets[0].refinements[0].correct or 0.0) - sum(shown) / len(shown))


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

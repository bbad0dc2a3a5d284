"""What a run shows of its rollouts: metrics over all ranks, the rollout table, examples to read, and warnings."""

import logging
import os

import pandas as pd
import torch

from gsr_rl.examples import print_examples
from gsr_rl.rollout import Block
from gsr_rl.rollout_metrics import Sums, add_sums, rollout_rows, rollout_sums, warnings_of
from gsr_rl.run_folder import atomic_path

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

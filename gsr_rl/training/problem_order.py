"""In which order training takes its problems, and how those that come next are sampled while an update runs.

The order is a shuffle per epoch, or a curriculum by running pass rate.

TRL fixes the order in its sampler, which cannot draw further problems within a step, lags a batch behind, and starts
every resumed run with the first epoch's order. Here the order is a small state of the trainer, the same on all ranks,
saved with each checkpoint. What was sampled ahead is not saved, but which problems it was for is: they come first.
"""

import copy
import json
import math
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from gsr_rl.refinement.candidates import choice_seed
from gsr_rl.run_folder import atomic_write
from gsr_rl.training.rollout import Block, TwoStageRollout

MEMORY = 0.5  # weight of a problem's newest pass rate in its running one
FLOOR = 0.05  # weight of a problem that is always or never solved, where one solved half the time has 1


def sampling_limit(wanted: int, oversample: float) -> int:
    """Problems a rank samples at most for the `wanted` ones of its batch: `oversample` times as many, rounded up."""
    return math.ceil(round(wanted * oversample, 6))


class ProblemStream:
    """Deals out indices of a data set.

    Args:
        size: Problems in the data set, at least 1.
        seed: The run's seed.
        shuffle: Another random order in each epoch; otherwise the data set's own order, again and again.
        curriculum: Draw by running pass rate instead: a problem's chance grows with p (1 - p), as that is where a
            group of rollouts has signal. Problems not yet seen count as p = 0.5. A draw has no doubles; there are
            no epochs.
    """

    def __init__(self, size: int, seed: int, shuffle: bool = True, curriculum: bool = False):
        if size < 1:
            raise ValueError("there are no problems to train on: the data set is empty")
        self.size, self.seed, self.shuffle, self.curriculum = size, seed, shuffle, curriculum
        self.taken = 0  # problems dealt out since the start of the run
        self.draws = 0
        self.pass_rate = np.full(size, 0.5)
        self.pending: deque[list[int]] = deque()  # reserved batches
        self.returned: list[int] = []  # of reserved batches that were not trained on; the next to be dealt out

    def take(self, number: int) -> list[int]:
        """The next `number` indices. An epoch's are all different; a batch may reach into the next epoch."""
        again, self.returned = self.returned[:number], self.returned[number:]
        number -= len(again)
        if not number:
            return again
        self.draws += 1
        start, self.taken = self.taken, self.taken + number
        if self.curriculum:
            return again + self._draw(number)
        return again + [self._order(place // self.size)[place % self.size] for place in range(start, self.taken)]

    def reserve(self, number: int) -> list[int]:
        """The next `number` indices, of a batch that a saved state deals out again until it is `settle`d."""
        self.pending.append(self.take(number))
        return self.pending[-1]

    def settle(self) -> list[int]:
        """The oldest reserved batch goes into training now. Returns its indices."""
        return self.pending.popleft()

    def give_back(self) -> None:
        """Deal out anew what is reserved."""
        self.returned = [index for batch in self.pending for index in batch] + self.returned
        self.pending.clear()

    def _order(self, epoch: int) -> np.ndarray | range:
        if not self.shuffle:
            return range(self.size)
        if getattr(self, "_cached", (None,))[0] != epoch:
            rng = np.random.default_rng(choice_seed(self.seed, "epoch", epoch))
            self._cached = epoch, rng.permutation(self.size).tolist()
        return self._cached[1]

    def _draw(self, number: int) -> list[int]:
        rng = np.random.default_rng(choice_seed(self.seed, "draw", self.draws))
        weight = np.maximum(4 * self.pass_rate * (1 - self.pass_rate), FLOOR)
        indices: list[int] = []
        while len(indices) < number:  # more than once only where the data set is smaller than the batch
            size = min(number - len(indices), self.size)
            indices += rng.choice(self.size, size=size, replace=False, p=weight / weight.sum()).tolist()
        return indices

    def report(self, indices: list[int], pass_rates: list[float]) -> None:
        """Take note of the candidates' accuracy on problems, of all ranks alike; NaN where none was scored."""
        for index, rate in zip(indices, pass_rates, strict=True):
            if not math.isnan(rate):
                self.pass_rate[index] += MEMORY * (rate - self.pass_rate[index])

    def save(self, path: str | Path) -> None:
        """Write the state to a JSON file."""
        state = {"size": self.size, "seed": self.seed, "taken": self.taken, "draws": self.draws}
        state["pass_rate"] = self.pass_rate.tolist() if self.curriculum else None
        state["returned"] = [index for batch in self.pending for index in batch] + self.returned
        atomic_write(path, json.dumps(state))

    def load(self, path: str | Path) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: The state is of another data set or seed.
        """
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        for name in ("size", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{path} was saved with {name}={state[name]} of the problems, the run has {getattr(self, name)}: "
                    "resume with the same problems and seed, or start in a new output_dir"
                )
        self.taken, self.draws = state["taken"], state["draws"]
        self.pending.clear()
        self.returned = state.get("returned", [])
        if self.curriculum and state["pass_rate"] is not None:
            self.pass_rate = np.array(state["pass_rate"])


class RolloutsAhead:
    """Samples the next generation batches in threads of their own, while the trainer updates (`rollout_ahead`).

    The trainer calls `order` when an optimizer step begins, and `take` when it needs a batch. All ranks order the same
    at the same time, so the threads hold no collective: they only ask the servers, and grade. A batch is sampled as
    soon as it is ordered: while the last completions of the one before are awaited, it keeps the servers busy.

    Args:
        trainer: A `GSRTrainer` with `vllm_mode: server`.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._ordered: deque[Future] = deque()  # of batches that were not taken yet: (blocks, seconds)
        self._next_step: int | None = None  # optimizer step that first uses the next batch to be ordered
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(trainer.args.rollout_ahead + 1):  # batches that may be in flight
            driver = TwoStageRollout(trainer, copy.deepcopy(trainer.processing_class))
            threading.Thread(target=self._work, args=(driver,), daemon=True, name="rollout-ahead").start()

    def start_anew(self) -> None:
        """A training begins: what an earlier one has ordered is dealt out again."""
        while self._ordered:
            self._ordered.popleft().cancel()
        self.trainer.problem_stream.give_back()
        self._next_step = None

    def order(self) -> None:
        """Push the newest weights and order what may be sampled from them: the batches of the next steps.

        A batch is used from its first step on for `used_for` of them; its weights are at most `rollout_ahead` steps
        older than that first one.
        """
        trainer, args = self.trainer, self.trainer.args
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        with trainer.engine_ready():
            step = trainer.state.global_step
        self._next_step = step if self._next_step is None else self._next_step
        used_for = args.num_windows * args.num_iterations
        number = args.per_device_train_batch_size * args.steps_per_generation // args.block_size
        last = min(step + args.rollout_ahead, trainer.state.max_steps - 1)
        while self._next_step <= max(step, last):  # transformers makes a step even where a run is at its end
            indices = trainer.problem_stream.reserve(number * world)[rank * number : (rank + 1) * number]
            rows = [trainer.train_dataset[index] for index in indices]
            self._ordered.append(Future())
            self._jobs.put((self._ordered[-1], rows, indices, self._next_step))
            self._next_step += used_for

    def take(self) -> list[Block]:
        """The batch that was ordered for this step. What has become too old is dropped, and sampled now instead.

        Raises:
            RuntimeError: On all ranks, if sampling has failed on any.
        """
        trainer, limit, start = self.trainer, self.trainer.args.rollout_ahead, time.perf_counter()
        blocks, seconds = trainer.vllm_generation.on_all_ranks("sampling", self._ordered.popleft().result)
        seconds["waiting"] = time.perf_counter() - start
        trainer.problem_stream.settle()
        step = trainer.state.global_step
        ages = [0 if block.weights_step is None else step - block.weights_step for block in blocks]
        old = [place for place, age in enumerate(ages) if age > limit]
        if trainer._largest_over_ranks([len(old)])[0]:
            rows, indices = [blocks[place].row for place in old], [blocks[place].index for place in old]
            for place, block in zip(old, trainer.roll_out(rows, trainer.args.plan, indices), strict=True):
                blocks[place], ages[place] = block, 0
        trainer.rollout_log.count_ages(ages, len(old))
        trainer.driver.seconds = seconds
        return blocks

    def _work(self, driver: TwoStageRollout) -> None:
        while True:
            future, rows, indices, step = self._jobs.get()
            if future.set_running_or_notify_cancel():
                try:
                    blocks = driver.run(rows, self.trainer.args.plan, indices, step)
                    future.set_result((blocks, dict(driver.seconds)))
                except BaseException as error:
                    future.set_exception(error)

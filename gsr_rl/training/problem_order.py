"""In which order training takes its problems: a shuffle per epoch, or a curriculum by running pass rate.

TRL fixes the order in its sampler, which cannot draw further problems within a step, lags a batch behind, and starts
every resumed run with the first epoch's order. Here the order is a small state of the trainer, the same on all ranks,
saved with each checkpoint.
"""

import json
import math
from pathlib import Path

import numpy as np

from gsr_rl.refinement.candidates import choice_seed
from gsr_rl.run_folder import atomic_write

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

    def take(self, number: int) -> list[int]:
        """The next `number` indices. An epoch's are all different; a batch may reach into the next epoch."""
        self.draws += 1
        start, self.taken = self.taken, self.taken + number
        if self.curriculum:
            return self._draw(number)
        return [self._order(place // self.size)[place % self.size] for place in range(start, self.taken)]

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
        if self.curriculum and state["pass_rate"] is not None:
            self.pass_rate = np.array(state["pass_rate"])

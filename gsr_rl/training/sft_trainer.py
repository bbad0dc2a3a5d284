"""The warm start: its rows, and batches of about one length, short and long ones in every optimizer step.

transformers' own grouping by length feeds long batches first and short ones after, again and again. Here that would be
steps of refinements alone and then steps of direct solutions alone.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import datasets
from trl import SFTTrainer

from gsr_rl.data.problems import read_local
from gsr_rl.data.sources import file_kind
from gsr_rl.refinement.candidates import choice_seed, range_text
from gsr_rl.training.checkpoints import PushesToHub, WholeCheckpoints
from gsr_rl.training.launch import warn_of_lost_updates

JITTER = 0.1  # lengths are multiplied by 1 +- this, so that batches differ between epochs


def length_grouped_order(lengths: list[int], batch_size: int, batches_a_step: int, seed: int) -> list[int]:
    """A permutation of row indices whose consecutive batches hold rows of about one length.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch.
        batches_a_step: Batches of one optimizer step, over all processes and accumulation. Each step takes one batch
            of each of that many strata of length, the short ones first: processes that take neighbouring batches wait
            little for each other.

    Returns:
        Indices; an incomplete batch, if there is one, comes last.
    """
    rng = random.Random(seed)
    keys = [length * (1 + JITTER * (2 * rng.random() - 1)) for length in lengths]
    order = sorted(range(len(lengths)), key=keys.__getitem__)
    spare = set(rng.sample(order, len(order) % batch_size))
    order = [index for index in order if index not in spare]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    steps = max(1, len(batches) // batches_a_step)
    strata = [batches[place * steps : (place + 1) * steps] for place in range(batches_a_step)]
    rest = batches[batches_a_step * steps :]
    for stratum in strata:
        rng.shuffle(stratum)
    windows = [[stratum[i] for stratum in strata if i < len(stratum)] for i in range(steps)]  # of an optimizer step
    return [index for window in [*windows, rest] for batch in window for index in batch] + sorted(spare)


class LengthGroupedSampler:
    """Yields `length_grouped_order`, another one each epoch, the same one after a resume."""

    def __init__(self, lengths: list[int], batch_size: int, batches_a_step: int, seed: int):
        self.lengths, self.batch_size, self.batches_a_step, self.seed = lengths, batch_size, batches_a_step, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        seed = self.seed * 1_000_003 + self.epoch
        return iter(length_grouped_order(self.lengths, self.batch_size, self.batches_a_step, seed))


class GSRSFTTrainer(PushesToHub, WholeCheckpoints, SFTTrainer):
    """TRL's SFTTrainer, with our order where `train_sampling_strategy: group_by_length` asks for one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        warn_of_lost_updates(self)

    def _get_train_sampler(self, train_dataset=None):
        """transformers sorts long batches before short ones; ours mixes them in every optimizer step."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = [len(ids) for ids in dataset["input_ids"]]
        batches_a_step = self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, batches_a_step, seed)


def load_sft_rows(config) -> list[dict]:
    """The rows that a `GSRSFTConfig` names: of its stages, `max_rows` of them chosen by its seed.

    Returns:
        Rows with at least `prompt`, `completion` (lists of messages) and `stage`.

    Raises:
        ValueError: A row that lacks one of the three, an unknown stage, more candidates than the configuration
            states, or no row left.
    """
    name = str(config.dataset_name)
    if file_kind(name):
        rows = read_local(Path(name))
    else:
        rows = datasets.load_dataset(name, config.dataset_config, split=config.dataset_split).to_list()
    for number, row in enumerate(rows, 1):
        _check_row(row, f"{name}, row {number}")
    chosen = [row for row in rows if row["stage"] in config.stages]
    if not chosen:
        raise ValueError(f"{name}: no row of stages={config.stages}, {len(rows)} rows in all: change stages")
    _check_numbers_shown(chosen, config)
    if config.max_rows and config.max_rows < len(chosen):
        chosen = random.Random(choice_seed(config.seed, "max_rows")).sample(chosen, config.max_rows)
    return chosen


def _check_row(row: dict, name: str) -> None:
    for key in ("prompt", "completion"):
        messages = row.get(key) if isinstance(row, dict) else None
        if not isinstance(messages, list) or not all(isinstance(m, dict) and m.get("content") for m in messages):
            raise ValueError(
                f"{name}: `{key}` must be a list of messages with role and content, as distill_gsr.py writes it"
            )
    if row.get("stage") not in ("candidate", "refinement"):
        raise ValueError(f"{name}: stage={row.get('stage')!r}, use candidate or refinement")


def _check_numbers_shown(rows: list[dict], config) -> None:
    """No row shows more candidates than gsr_config.json will say; fewer are shown where some were unfinished."""
    numbers = {len(row["candidates"]) for row in rows if row["stage"] == "refinement" and row.get("candidates")}
    if numbers and max(numbers) > config.num_candidates:
        raise ValueError(
            f"{config.dataset_name}: its refinement rows show K = {range_text(min(numbers), max(numbers))}, but "
            f"num_candidates={config.num_candidates}: set num_candidates to {max(numbers)}, and min_num_candidates to "
            "the fewest if their number was drawn"
        )

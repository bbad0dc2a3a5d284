"""Rows of a batch as one packed sequence: each prompt once, its completions after all prompts, no padding.

Where rows share a prompt, each of its completions starts again at the position behind it. What attends to what is kept
as `Group`s and `Bucket`s, which `gsr_rl.training.packing.shared_prefix` computes attention from. The prompts stand
together, and so do their completions in the same order, so that a kernel for sequences of varying lengths takes both
as they stand, without a copy of keys or values (`VarlenRuns`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

LENGTH_SLACK = 16  # tokens by which, or a fourth by which, completions that are attended together may differ in length


class Padding(NamedTuple):
    """How completions of one bucket become a batch of its longest one's length, and back."""

    index: torch.Tensor  # (rows, length) positions from the bucket's start, a row's last one repeated in its padding
    valid: torch.Tensor  # (rows, length) bool, False on padding
    places: torch.Tensor  # (stop - start,) of the tokens among all rows * length


@dataclass(frozen=True)
class Bucket:
    """Completions of about one length, one behind the other in the packed sequence, attended as one batch."""

    start: int
    lengths: tuple[int, ...]  # tokens of each, falling
    device: torch.device

    @property
    def stop(self) -> int:
        return self.start + sum(self.lengths)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def length(self) -> int:
        return self.lengths[0]

    @cached_property
    def padding(self) -> Padding | None:
        """None where all completions have the same length. Made on the host: no device is waited for."""
        if self.lengths[-1] == self.length:
            return None
        sizes, within = torch.tensor(self.lengths)[:, None], torch.arange(self.length)
        valid = within < sizes
        index = sizes.cumsum(0) - sizes + torch.minimum(within, sizes - 1)
        return Padding(*(x.to(self.device) for x in (index, valid, valid.flatten().nonzero()[:, 0])))


@dataclass(frozen=True)
class Group:
    """A prompt at [start, stop) of the packed sequence and the buckets of its completions, one behind the other.

    Without a prompt (start == stop) its buckets hold rows that stand alone, each its prompt and its completion.
    """

    start: int
    stop: int
    buckets: tuple[Bucket, ...]

    @property
    def prompt(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def completions(self) -> slice:
        """All of them in the packed sequence; the group has some."""
        return slice(self.buckets[0].start, self.buckets[-1].stop)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        return [length for bucket in self.buckets for length in bucket.lengths]


class Runs(NamedTuple):
    """Sequences one behind the other, as `torch.nn.attention.varlen.varlen_attn` takes them."""

    at: slice  # where they stand in the packed sequence
    bounds: torch.Tensor  # (sequences + 1,) int32: where each begins, counted from `at.start`, and where the last ends
    longest: int  # tokens of the longest, or more


class VarlenRuns(NamedTuple):
    """What attends to what: every sequence to itself, and the completions of each shared prompt to that prompt."""

    alone: Runs  # prompts, completions and rows that share nothing: all of the packed sequence
    prompts: Runs | None  # the shared ones that completions with tokens of their own have; None without any
    completions: Runs | None  # a sequence is all completions of a prompt


@dataclass(frozen=True)
class PackedRows:
    """Rows of a batch as one packed sequence of N tokens, S of whose hidden states predict a completion's token.

    A completion's last token predicts nothing and is left out. `rows` and `columns` (S,) say which token of the
    batch's completions, (B, T), each prediction is for.
    """

    input_ids: torch.Tensor  # (1, N)
    position_ids: torch.Tensor  # (1, N)
    scored: torch.Tensor  # (S,) positions in the packed sequence; a prompt's last one comes once for each completion
    labels: torch.Tensor  # (1, S) the tokens predicted there
    rows: torch.Tensor
    columns: torch.Tensor
    shape: tuple[int, int]  # (B, T)
    groups: tuple[Group, ...]

    @cached_property
    def varlen(self) -> VarlenRuns:
        """Computed once for all layers, from the host's numbers alone."""
        shared = [group for group in self.groups if group.stop > group.start]
        attended = [group for group in shared if group.buckets]  # they stand before those without
        prompts = [group.stop - group.start for group in shared]
        alone = self._runs(0, prompts + [length for group in self.groups for length in group.lengths])
        if not attended:
            return VarlenRuns(alone, None, None)
        completions = [sum(group.lengths) for group in attended]
        return VarlenRuns(
            alone, self._runs(0, prompts[: len(attended)]), self._runs(attended[0].completions.start, completions)
        )

    def _runs(self, start: int, sizes: list[int]) -> Runs:
        """Sequences of these sizes, the first of which begins at `start` of the packed sequence.

        The longest counts as at least 2: where no sequence has more than one query, the kernel reorders them, and the
        log-sum-exp it returns is then in another order.
        """
        bounds = [0, *accumulate(sizes)]
        tensor = torch.tensor(bounds, dtype=torch.int32, device=self.input_ids.device)
        return Runs(slice(start, start + bounds[-1]), tensor, max(2, *sizes))

    @cached_property
    def block_mask(self) -> BlockMask:
        """Flex attention's mask, (N, N) in blocks: a prompt is causal, a completion sees its prompt and itself."""
        prompts, rows = [], []  # runs of tokens: (group, completion or -1 for the prompt, tokens)
        for number, group in enumerate(self.groups):
            prompts.append((number, -1, group.stop - group.start))
            rows += [(number, row, length) for row, length in enumerate(group.lengths)]
        runs = torch.tensor(prompts + rows).T
        device = self.input_ids.device
        owner = runs[:2].repeat_interleave(runs[2], dim=1).to(device)

        def sees(batch, head, query, key):
            group, row = owner[0, query] == owner[0, key], owner[1, key]
            return group & ((row < 0) | (row == owner[1, query])) & (key <= query)

        length = self.input_ids.shape[1]
        return create_block_mask(sees, None, None, length, length, device=device, _compile=True)


def prompt_groups(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> list[list[int]]:
    """Rows with equal prompts, (B, P) padded on either side, in order of first appearance."""
    ids, mask = prompt_ids.cpu().numpy(), prompt_mask.cpu().numpy().astype(bool)
    groups: dict[bytes, list[int]] = {}
    for row in range(len(ids)):
        groups.setdefault(ids[row][mask[row]].tobytes(), []).append(row)
    return list(groups.values())


def pack_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, num_completion_tokens: int, least_saving: int = 0
) -> PackedRows:
    """Pack a padded batch: each distinct prompt once, then the completions of each, the longest first.

    Rows whose completion is masked out cost nothing. Rows with a prompt of their own stand at the end. A batch without
    any token to predict keeps one position with the label -100, so that a pass over it is a differentiable zero.

    Args:
        input_ids: (B, P + T), prompts and completions, padded on either side of each.
        attention_mask: (B, P + T), 0 on padding. Every row has a token in its prompt.
        num_completion_tokens: T.
        least_saving: Tokens that sharing a prompt must save; otherwise its rows stand alone (`least_saving`).

    Raises:
        ValueError: A row without a prompt.
    """
    split = input_ids.shape[1] - num_completion_tokens
    ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy().astype(bool)
    if not mask[:, :split].any(axis=1).all():
        raise ValueError("a row of the batch has no prompt token, so its first token has nothing to be predicted from")
    prompts = [row[row_mask] for row, row_mask in zip(ids[:, :split], mask[:, :split], strict=True)]
    completions = [row[row_mask] for row, row_mask in zip(ids[:, split:], mask[:, split:], strict=True)]
    lengths = [len(completion) for completion in completions]
    shared, alone = [], []
    for group in prompt_groups(input_ids[:, :split], attention_mask[:, :split]):
        rows = sorted((row for row in group if lengths[row]), key=lambda row: -lengths[row])
        if len(rows) < 2 or (len(rows) - 1) * len(prompts[group[0]]) < least_saving:
            alone += rows
        else:
            shared.append(rows)
    sequence = _Sequence(prompts, completions, input_ids.device)
    sequence.add_shared(sorted(shared, key=lambda rows: lengths[rows[0]] == 1))
    if alone:
        sequence.add_alone(sorted(alone, key=lambda row: -len(prompts[row]) - lengths[row]))
    return sequence.finished(input_ids, attention_mask, num_completion_tokens)


class _Sequence:
    """A packed sequence while it is being made of a batch's prompts and completions, token ids without padding."""

    def __init__(self, prompts: list[np.ndarray], completions: list[np.ndarray], device: torch.device):
        self.prompts, self.completions, self.device = prompts, completions, device
        self.length = 0  # N so far
        self.tokens: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.scored: list[np.ndarray] = []  # where the tokens of a row's completion are predicted, row by row
        self.rows: list[int] = []  # the batch's rows in this order
        self.groups: list[Group] = []

    def add_shared(self, groups: list[list[int]]) -> None:
        """The prompts of these groups of rows, then their completions, which have falling lengths of at least 1.

        Groups whose completions are all of one token, which is not computed, come last.
        """
        starts = [self._append(self.prompts[rows[0]], 0) for rows in groups]
        for start, rows in zip(starts, groups, strict=True):
            size, first = len(self.prompts[rows[0]]), self.length
            for row in rows:
                place = self._append(self.completions[row][:-1], size)
                self.scored += [np.array([start + size - 1]), np.arange(place, self.length)]
            lengths = [len(self.completions[row]) - 1 for row in rows if len(self.completions[row]) > 1]
            self.groups.append(Group(start, start + size, _buckets(lengths, first, self.device)))
            self.rows += rows

    def add_alone(self, rows: list[int]) -> None:
        """Rows of falling lengths, each its prompt and its completion."""
        start = self.length
        for row in rows:
            prompt, completion = self.prompts[row], self.completions[row]
            self._append(np.concatenate([prompt, completion[:-1]]), 0)
            self.scored.append(np.arange(self.length - len(completion), self.length))
        lengths = [len(self.prompts[row]) + len(self.completions[row]) - 1 for row in rows]
        self.groups.append(Group(start, start, _buckets(lengths, start, self.device)))
        self.rows += rows

    def _append(self, tokens: np.ndarray, position: int) -> int:
        """Tokens at these positions and on; returns their place in the sequence."""
        place, self.length = self.length, self.length + len(tokens)
        self.tokens.append(tokens)
        self.positions.append(np.arange(position, position + len(tokens)))
        return place

    def finished(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int) -> PackedRows:
        """The sequence of this batch, (B, P + width)."""
        split = input_ids.shape[1] - width
        if self.rows:
            counts = [len(self.completions[row]) for row in self.rows]
            mask = attention_mask[:, split:].cpu().numpy().astype(bool)
            rows, columns = np.repeat(self.rows, counts), np.concatenate([mask[row].nonzero()[0] for row in self.rows])
        else:  # nothing to predict: the first prompt's first token stands for it, with the label -100
            self._append(self.prompts[0][:1], 0)
            self.scored, self.groups = [np.zeros(1, dtype=np.int64)], [Group(0, 1, ())]
            rows = columns = np.zeros(1, dtype=np.int64)
        rows, columns = (torch.from_numpy(x).to(self.device) for x in (rows, columns))
        labels = input_ids[rows, split + columns].masked_fill(attention_mask[rows, split + columns] == 0, -100)
        return PackedRows(
            input_ids=torch.from_numpy(np.concatenate(self.tokens)).to(self.device)[None],
            position_ids=torch.from_numpy(np.concatenate(self.positions)).to(self.device)[None],
            scored=torch.from_numpy(np.concatenate(self.scored)).to(self.device),
            labels=labels[None],
            rows=rows,
            columns=columns,
            shape=(len(input_ids), width),
            groups=tuple(self.groups),
        )


def _buckets(lengths: Sequence[int], start: int, device: torch.device) -> tuple[Bucket, ...]:
    """Completions of falling lengths, the first at `start`, cut where padding to the longest would cost too much."""
    buckets, first = [], 0
    while first < len(lengths):
        longest, last = lengths[first], first + 1
        while last < len(lengths) and lengths[last] >= min(longest - LENGTH_SLACK, longest * 3 // 4):
            last += 1
        buckets.append(Bucket(start, tuple(lengths[first:last]), device))
        start, first = buckets[-1].stop, last
    return tuple(buckets)

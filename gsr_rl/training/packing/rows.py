"""Rows of a batch as one packed sequence: each prompt once, its completions behind it, no padding.

Where rows share a prompt, each of its completions follows it at restarted positions. What attends to what is kept as
`Group`s and `Bucket`s, which `gsr_rl.training.packing.shared_prefix` computes attention from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

LENGTH_SLACK = 16  # tokens by which, or a fourth by which, completions that are attended together may differ in length


@dataclass(frozen=True)
class Bucket:
    """Completions of about one length, one behind the other in the packed sequence, attended as one batch.

    `index` is None where all have `length` tokens; otherwise (rows, length) positions counted from `start`, a row's
    last one repeated in its padding, and `valid` says which are no padding.
    """

    start: int
    stop: int
    rows: int
    length: int
    index: torch.Tensor | None
    valid: torch.Tensor | None

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each completion, (rows,)."""
        return torch.full((self.rows,), self.length) if self.valid is None else self.valid.sum(dim=1).cpu()


@dataclass(frozen=True)
class Group:
    """A prompt at [start, stop) of the packed sequence and the buckets of its completions right behind it.

    Without a prompt (start == stop) its buckets hold rows that stand alone, each its prompt and its completion.
    """

    start: int
    stop: int
    buckets: tuple[Bucket, ...]


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
    def block_mask(self) -> BlockMask:
        """Flex attention's mask, (N, N) in blocks: a prompt is causal, a completion sees its prompt and itself."""
        sizes, owners = [], []  # of the runs of tokens: their length, and (group, completion, or -1 of the prompt)
        for number, group in enumerate(self.groups):
            lengths = torch.cat([torch.tensor([group.stop - group.start]), *(one.lengths for one in group.buckets)])
            sizes.append(lengths)
            owners.append(torch.stack([torch.full_like(lengths, number), torch.arange(len(lengths)) - 1]))
        device = self.input_ids.device
        owner = torch.cat(owners, dim=1).repeat_interleave(torch.cat(sizes), dim=1).to(device)

        def sees(batch, head, query, key):
            group, row = owner[0, query] == owner[0, key], owner[1, key]
            return group & ((row < 0) | (row == owner[1, query])) & (key <= query)

        length = self.input_ids.shape[1]
        return create_block_mask(sees, None, None, length, length, device=device, _compile=True)


def prompt_groups(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> list[list[int]]:
    """Rows with equal prompts, in order of first appearance.

    Args:
        prompt_ids: (B, P), padded on either side.
        prompt_mask: (B, P).
    """
    ids, mask = prompt_ids.cpu().numpy(), prompt_mask.cpu().numpy().astype(bool)
    groups: dict[bytes, list[int]] = {}
    for row in range(len(ids)):
        groups.setdefault(ids[row][mask[row]].tobytes(), []).append(row)
    return list(groups.values())


def pack_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, num_completion_tokens: int, least_saving: int = 0
) -> PackedRows:
    """Pack a padded batch: each distinct prompt once, its completions behind it, the longest first.

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
    device, split = input_ids.device, input_ids.shape[1] - num_completion_tokens
    ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy().astype(bool)
    if not mask[:, :split].any(axis=1).all():
        raise ValueError("a row of the batch has no prompt token, so its first token has nothing to be predicted from")
    places = [np.flatnonzero(one) for one in mask[:, split:]]
    tokens, positions, scored, rows, groups, start = [], [], [], [], [], 0
    alone: list[tuple[int, np.ndarray]] = []
    for group in prompt_groups(input_ids[:, :split], attention_mask[:, :split]):
        kept = sorted((row for row in group if len(places[row])), key=lambda row: -len(places[row]))
        prompt = ids[group[0], :split][mask[group[0], :split]]
        if len(kept) < 2 or (len(kept) - 1) * len(prompt) < least_saving:
            alone += [(row, prompt) for row in kept]
            continue
        stop = place = start + len(prompt)
        tokens.append(prompt)
        positions.append(np.arange(len(prompt)))
        for row in kept:
            own = len(places[row]) - 1
            tokens.append(ids[row, split + places[row][:-1]])
            positions.append(np.arange(len(prompt), len(prompt) + own))
            scored += [[stop - 1], np.arange(place, place + own)]
            place += own
        rows += kept
        lengths = [len(places[row]) - 1 for row in kept if len(places[row]) > 1]
        groups.append(Group(start, stop, _buckets(lengths, stop, device)))
        start = place
    if alone:
        alone.sort(key=lambda item: -len(item[1]) - len(places[item[0]]))
        lengths = [len(prompt) + len(places[row]) - 1 for row, prompt in alone]
        groups.append(Group(start, start, _buckets(lengths, start, device)))
        for (row, prompt), length in zip(alone, lengths, strict=True):
            tokens += [prompt, ids[row, split + places[row][:-1]]]
            positions.append(np.arange(length))
            start += length
            scored.append(np.arange(start - len(places[row]), start))
        rows += [row for row, _ in alone]
    columns = np.concatenate([places[row] for row in rows]) if rows else np.zeros(1, dtype=np.int64)
    rows = np.repeat(rows, [len(places[row]) for row in rows]) if rows else np.zeros(1, dtype=np.int64)
    if not groups:
        tokens, positions = [ids[0, :split][mask[0, :split]][:1]], [np.arange(1)]
        scored, groups = [[0]], [Group(0, 1, ())]
    rows, columns = torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
    labels = input_ids[rows, split + columns].masked_fill(attention_mask[rows, split + columns] == 0, -100)
    return PackedRows(
        input_ids=torch.from_numpy(np.concatenate(tokens)).to(device)[None],
        position_ids=torch.from_numpy(np.concatenate(positions)).to(device)[None],
        scored=torch.from_numpy(np.concatenate(scored)).to(device),
        labels=labels[None],
        rows=rows,
        columns=columns,
        shape=(len(ids), num_completion_tokens),
        groups=tuple(groups),
    )


def _buckets(lengths: Sequence[int], start: int, device: torch.device) -> tuple[Bucket, ...]:
    """Completions of falling lengths, the first at `start`, cut where padding to the longest would cost too much."""
    buckets, first = [], 0
    while first < len(lengths):
        longest, last = lengths[first], first + 1
        while last < len(lengths) and lengths[last] >= min(longest - LENGTH_SLACK, longest * 3 // 4):
            last += 1
        own = np.array(lengths[first:last])
        stop, index, valid = start + int(own.sum()), None, None
        if own.min() < longest:
            within = np.arange(longest)
            begin = np.cumsum(own) - own
            index = torch.from_numpy(begin[:, None] + np.minimum(within, own[:, None] - 1)).to(device)
            valid = torch.from_numpy(within < own[:, None]).to(device)
        buckets.append(Bucket(start, stop, last - first, longest, index, valid))
        start, first = stop, last
    return tuple(buckets)

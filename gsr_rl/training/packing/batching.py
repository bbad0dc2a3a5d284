"""From a generation batch to passes: whole blocks in every optimizer window, a stage's rows together.

An optimizer window is what one optimizer step learns from: `gradient_accumulation_steps` training steps, each of one
`MicroBatch`, which is computed in one or more passes. TRL instead shuffles all rows and slices them, so that with
several windows per generation one optimizer step can be all candidates and the next all refinements, and every row is
padded to the longest prompt and completion of the batch.

Pure: dictionaries of tensors in, dictionaries of tensors out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gsr_rl.training.packing.rows import prompt_groups

Batch = dict[str, torch.Tensor]  # TRL's columns, one entry per row in each
STAGES = ("candidate", "refinement")  # rows carry the index of their stage
PROMPT_COLUMNS = {"prompt_ids", "prompt_mask"}  # (rows, prompt length), padded on the left
COMPLETION_COLUMNS = {  # (rows, completion length), padded on the right
    "completion_ids",
    "completion_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
}


@dataclass
class MicroBatch:
    """What one training step computes."""

    passes: list[Batch]  # forwards and backwards, each of rows of one stage
    window_counts: torch.Tensor  # (2 stages, 2) trained rows and tokens of the whole window, over all processes


@dataclass
class Bundle:
    """Rows that are computed in one pass, and how many tokens are computed for them."""

    tokens: int
    rows: list[int]


def window_order(rows: int, block_size: int, num_stages: int, num_windows: int) -> torch.Tensor:
    """The order of rows in which each window holds whole blocks, first one stage's rows, then the other's.

    Args:
        rows: Rows of this rank's generation batch: problem after problem, in each the stages one after the other.
        block_size: Rows of a problem.
        num_stages: Stages inside a block.
        num_windows: Optimizer windows that the batch is used for; rows must divide into windows of whole blocks.

    Returns:
        (rows,) indices; window w is the w-th of `num_windows` equal parts.
    """
    if rows % (block_size * num_windows):
        raise ValueError(f"{rows} rows do not hold {num_windows} windows of whole blocks of {block_size} rows")
    index = torch.arange(rows).view(num_windows, -1, num_stages, block_size // num_stages)
    return index.transpose(1, 2).reshape(-1)


def stage_counts(stage: torch.Tensor, completion_mask: torch.Tensor, num_windows: int) -> torch.Tensor:
    """Trained rows and tokens of each stage in each window, on this rank.

    Args:
        stage: (rows,) index into `STAGES`.
        completion_mask: (rows, length), 0 on padding and on every token of a row that is left out.
        num_windows: Equal parts that the rows divide into.

    Returns:
        (num_windows, 2 stages, 2) float: number of rows with at least one trained token, number of trained tokens.
    """
    tokens = completion_mask.sum(dim=1).float()
    counts = torch.stack([(tokens > 0).float(), tokens], dim=1)  # (rows, 2): 1 if trained, tokens
    member = torch.nn.functional.one_hot(stage, len(STAGES)).float()  # (rows, stages)
    member, counts = (x.view(num_windows, -1, x.shape[1]) for x in (member, counts))
    return torch.einsum("wrs,wrc->wsc", member, counts)  # w: window, r: row in it, s: stage, c: rows or tokens


def take_rows(batch: Batch, rows: torch.Tensor) -> Batch:
    """The same entries for some rows only; entries without a row dimension stay."""
    return {
        key: value[rows] if isinstance(value, torch.Tensor) and value.ndim > 0 else value
        for key, value in batch.items()
    }


def stage_parts(batch: Batch) -> list[Batch]:
    """The rows of each stage that has some in a micro-batch, without the columns that are padding in all of them.

    Prompts are padded on the left and completions on the right (as TRL does); at least one column of each stays.
    """
    parts = []
    for stage in batch["stage"].unique():
        part = take_rows(batch, batch["stage"] == stage)
        # Rows that are left out have an all-zero mask but still a completion of one token.
        prompt, completion = (int(part[f"{name}_mask"].sum(1).max().clamp(min=1)) for name in ("prompt", "completion"))
        width = part["completion_mask"].shape[1]
        for key in PROMPT_COLUMNS:
            part[key] = part[key][:, -prompt:]
        for key in COMPLETION_COLUMNS & part.keys():
            if part[key].shape[1] == width:  # a sequence-level ratio has one column
                part[key] = part[key][:, :completion]
        parts.append(part)
    return parts


def without_tokens(batch: Batch) -> Batch:
    """A pass of one row whose completion is masked out: its loss is a differentiable zero."""
    row = take_rows(batch, torch.zeros(1, dtype=torch.long))
    row["completion_mask"] = torch.zeros_like(row["completion_mask"])
    return row


def loss_scale(
    loss_type: str, mask: torch.Tensor, stage_rows_tokens: torch.Tensor, accumulation_steps: int, num_processes: int
) -> torch.Tensor:
    """What TRL's loss on one micro-batch is multiplied by, so that the losses of a window add up to the stage's loss.

    TRL: sum / local / accumulation, mean over processes; wanted: sum / total. `local` is the micro-batch's number of
    rows (`grpo`, `dr_grpo`, `sapo`, `luspo`) or tokens (`bnpo`), `total` the stage's over the whole window and all
    processes (docs/training.md, "A step"), so the factor is local * accumulation * processes / total. The losses by
    token (`dapo`, `cispo`, `vespo`) are told the total itself and need no scale.

    Args:
        mask: (rows, length) of this micro-batch's stage.
        stage_rows_tokens: (2,) rows and tokens of the stage in the window, over all processes.
        accumulation_steps: Micro-batches in the window.

    Returns:
        Scalar tensor; 0 if the stage has no row in the window.
    """
    rows, tokens = stage_rows_tokens
    if loss_type in ("dapo", "cispo", "vespo"):
        return torch.ones_like(rows)
    local, total = (mask.sum().clamp(min=1), tokens) if loss_type == "bnpo" else (mask.shape[0], rows)
    return local * accumulation_steps * num_processes / total.clamp(min=1)


def packed_tokens(prompt: int, completions: Sequence[int], least_saving: int = 0) -> int:
    """Tokens that the shared-prefix forward computes for one prompt and completions of these lengths (0: left out)."""
    lengths = [length for length in completions if length]
    if not lengths:
        return 0
    copies = 1 if (len(lengths) - 1) * prompt >= least_saving else len(lengths)
    return copies * prompt + sum(lengths) - len(lengths)


def token_passes(
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_mask: torch.Tensor,
    stage: torch.Tensor,
    budget: int,
    least_saving: int = 0,
) -> list[list[int]]:
    """Rows in passes of at most `budget` computed tokens, by first fit of falling size.

    A prompt's completions stay together. Where they exceed the budget alone, they are cut into as many passes as they
    need, and the prompt is computed in each; a single row over the budget is a pass of its own.

    Args:
        prompt_ids, prompt_mask: (B, P).
        completion_mask: (B, T), 0 on padding and in rows that are left out.
        stage: (B,); a pass holds rows of one stage.
        budget: Tokens, at least 1.
        least_saving: As `pack_rows` is told.

    Returns:
        Row indices of each pass, rising, every row in one pass; the passes of the first stage come first.
    """
    prompts, lengths, stages = (x.tolist() for x in (prompt_mask.sum(1), completion_mask.sum(1), stage))
    passes: list[list[int]] = []
    for index in dict.fromkeys(stages):
        rows = [row for row, row_stage in enumerate(stages) if row_stage == index]
        bundles: list[Bundle] = []
        for group in prompt_groups(prompt_ids[rows], prompt_mask[rows]):
            group = [rows[i] for i in group]
            bundles += _cut(group, prompts[group[0]], lengths, budget, least_saving)
        passes += [sorted(bundle.rows) for bundle in _first_fit(bundles, budget)]
    return passes


def _cut(group: list[int], prompt: int, lengths: list[int], budget: int, least_saving: int) -> list[Bundle]:
    """The group's rows, of one `prompt` of so many tokens, cut where the budget is exceeded."""
    bundles: list[Bundle] = []
    for row in group:
        if bundles:
            rows = [*bundles[-1].rows, row]
            tokens = packed_tokens(prompt, [lengths[i] for i in rows], least_saving)
            if tokens <= budget:
                bundles[-1] = Bundle(tokens, rows)
                continue
        bundles.append(Bundle(packed_tokens(prompt, [lengths[row]]), [row]))
    return bundles


def _first_fit(bundles: list[Bundle], budget: int) -> list[Bundle]:
    """The largest first, each into the first pass that has room for it."""
    passes: list[Bundle] = []
    for bundle in sorted(bundles, key=lambda bundle: -bundle.tokens):
        place = next((i for i, filled in enumerate(passes) if filled.tokens + bundle.tokens <= budget), None)
        if place is None:
            passes.append(bundle)
        else:
            passes[place] = Bundle(passes[place].tokens + bundle.tokens, passes[place].rows + bundle.rows)
    return passes


def share_out(passes: list, steps: int) -> list[list]:
    """One or more passes over a window's steps, in order and as evenly as may be; early ones may be empty."""
    n = len(passes)
    return [passes[step * n // steps : (step + 1) * n // steps] for step in range(steps)]

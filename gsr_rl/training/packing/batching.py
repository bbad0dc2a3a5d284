"""From a generation batch to micro-batches: whole blocks in every optimizer window, a stage's rows together.

Pure: dictionaries of tensors in, dictionaries of tensors out. TRL instead shuffles all rows and slices them, so that
with several windows a generation one optimizer step can be all candidates and the next all refinements, and every
row is padded to the longest prompt and completion of the batch.
"""

from collections.abc import Sequence

import torch

from gsr_rl.training.packing.rows import prompt_groups

Batch = dict[str, torch.Tensor]
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
    both = torch.stack([(tokens > 0).float(), tokens], dim=1)  # (rows, 2)
    member = torch.nn.functional.one_hot(stage, len(STAGES)).float()  # (rows, stages)
    return torch.einsum("wrs,wrc->wsc", member.view(num_windows, -1, 2), both.view(num_windows, -1, 2))


def take_rows(batch: Batch, rows: torch.Tensor) -> Batch:
    """The same entries for some rows only; entries without a row dimension stay."""
    return {
        key: value[rows] if isinstance(value, torch.Tensor) and value.ndim > 0 and key != "window_counts" else value
        for key, value in batch.items()
    }


def stage_rows(batch: Batch, stage: str) -> Batch | None:
    """One stage's rows of a micro-batch without the columns that are padding in all of them, or None if it has none.

    Prompts are padded on the left and completions on the right (as TRL does); at least one column of each stays.
    """
    rows = (batch["stage"] == STAGES.index(stage)).nonzero(as_tuple=True)[0]
    if len(rows) == 0:
        return None
    part = take_rows(batch, rows)
    prompt = int(part["prompt_mask"].sum(dim=1).max().clamp(min=1))
    # Rows that are left out have an all-zero mask but still a completion of one token.
    completion = int(part["completion_mask"].sum(dim=1).max().clamp(min=1))
    width = part["completion_mask"].shape[1]
    for key in PROMPT_COLUMNS:
        part[key] = part[key][:, -prompt:]
    for key in COMPLETION_COLUMNS & part.keys():
        if part[key].shape[1] == width:  # a sequence-level ratio has one column
            part[key] = part[key][:, :completion]
    return part


def stage_parts(batch: Batch) -> list[Batch]:
    """`stage_rows` of each stage that has rows."""
    return [part for part in (stage_rows(batch, stage) for stage in STAGES) if part is not None]


def without_tokens(batch: Batch) -> Batch:
    """A pass of one row whose completion is masked out: its loss is a differentiable zero."""
    row = take_rows(batch, torch.zeros(1, dtype=torch.long))
    row["completion_mask"] = torch.zeros_like(row["completion_mask"])
    return row


def loss_scale(
    loss_type: str,
    mask: torch.Tensor,
    stage_rows_tokens: torch.Tensor,
    accumulation_steps: int,
    num_processes: int,
) -> torch.Tensor:
    """What TRL's loss on one micro-batch is multiplied by, so that the losses of a window add up to the stage's loss.

    TRL divides a micro-batch's sum by its own number of rows (`grpo`, `dr_grpo`, `sapo`, `luspo`) or tokens (`bnpo`)
    and by the accumulation steps, and gradients are averaged over processes. Here the divisor is the stage's count
    over the whole window and all processes (docs/training.md, "A step"). The losses by token (`dapo`, `cispo`,
    `vespo`) are told the count itself and need no scale.

    Args:
        loss_type: TRL's.
        mask: (rows, length) of this micro-batch's stage.
        stage_rows_tokens: (2,) rows and tokens of the stage in the window, over all processes.
        accumulation_steps: Micro-batches in the window.
        num_processes: Ranks.

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
    kept = [length for length in completions if length]
    copies = 1 if (len(kept) - 1) * prompt >= least_saving else len(kept)
    return copies * prompt + sum(kept) - len(kept) if kept else 0


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
    for name in dict.fromkeys(stages):
        rows = [row for row, own in enumerate(stages) if own == name]
        groups = [[rows[i] for i in group] for group in prompt_groups(prompt_ids[rows], prompt_mask[rows])]
        parts = [part for group in groups for part in _cut(group, prompts[group[0]], lengths, budget, least_saving)]
        parts.sort(key=lambda part: -part[0])
        bins: list[tuple[int, list[int]]] = []
        for cost, part in parts:
            place = next((i for i, (used, _) in enumerate(bins) if used + cost <= budget), None)
            if place is None:
                bins.append((cost, part))
            else:
                bins[place] = (bins[place][0] + cost, bins[place][1] + part)
        passes += [sorted(part) for _, part in bins]
    return passes


def _cut(
    group: list[int], prompt: int, lengths: list[int], budget: int, least_saving: int
) -> list[tuple[int, list[int]]]:
    """One prompt's rows as (computed tokens, rows), cut where the budget is exceeded."""
    parts: list[tuple[int, list[int]]] = []
    for row in group:
        if parts:
            cost = packed_tokens(prompt, [lengths[i] for i in [*parts[-1][1], row]], least_saving)
            if cost <= budget:
                parts[-1] = (cost, [*parts[-1][1], row])
                continue
        parts.append((packed_tokens(prompt, [lengths[row]]), [row]))
    return parts


def share_out(passes: list, steps: int) -> list[list]:
    """Passes over the steps of a window, in order and as evenly as may be; the last step always has one.

    Args:
        passes: At least one.
        steps: Gradient accumulation steps; with more steps than passes the early ones are empty.
    """
    n = len(passes)
    return [passes[step * n // steps : (step + 1) * n // steps] for step in range(steps)]

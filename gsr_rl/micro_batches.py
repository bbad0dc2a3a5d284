"""Micro-batches by token count: a window's rows in passes of whole prompt groups, one stage each.

Pure: a plan is lists of row indices. What a pass costs is what the shared-prefix forward computes: each prompt once
and each completion without its last token.
"""

from collections.abc import Sequence

import torch

from gsr_rl.packed_rows import prompt_groups


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

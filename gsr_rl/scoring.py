"""Rewards of rolled-out problems to advantages, and which of their groups teach nothing."""

import torch

from gsr_rl.advantages import candidate_advantages, candidate_credit, refinement_advantages, without_signal
from gsr_rl.rollout import Block


def set_advantages(blocks: list[Block], args) -> dict[str, list[float]]:
    """Set every rollout's advantage (rules: docs/training.md), and `dropped` on groups without signal if wanted.

    Blocks are whole on a rank, so no other rank is asked.

    Args:
        blocks: Rolled-out problems with rewards, all of the same numbers of rollouts and sets.
        args: A `GSRConfig`.

    Returns:
        `{"candidate/no_signal": [groups without signal, groups], "refinement/no_signal": ...}`, counting groups with
        a scored rollout: one without (its prompt did not fit, say) is in no denominator.
    """
    counts = {"candidate/no_signal": [0.0, 0.0], "refinement/no_signal": [0.0, 0.0]}
    for stage in args.stages:
        groups = [block.candidates if stage == "candidate" else block.refinements for block in blocks]
        rewards = torch.tensor([[rollout.reward for rollout in group] for group in groups])
        scale = (getattr(args, f"{stage}_scale_rewards") or args.scale_rewards) == "group"
        if stage == "candidate":
            num_groups = 1
            k = args.objective_k or args.num_candidates
            values = candidate_advantages(rewards, args.candidate_objective, k, scale)
            if args.candidate_credit:
                values = values + args.candidate_credit * _credit(blocks, rewards)
        else:
            num_groups = len(blocks[0].sets)
            values = refinement_advantages(rewards, num_groups, scale)
        silent = without_signal(values, num_groups)
        size = rewards.shape[1] // num_groups
        scored = (~rewards.isnan()).reshape(-1, size).any(dim=1)
        counts[f"{stage}/no_signal"] = [float((silent & scored).sum()), float(scored.sum())]
        left_out = silent.repeat_interleave(size).view(values.shape) & args.drop_from_denominator
        for group, row, drop in zip(groups, values.tolist(), left_out.tolist(), strict=True):
            for rollout, advantage, dropped in zip(group, row, drop, strict=True):
                rollout.advantage, rollout.dropped = advantage, dropped
    return counts


def _credit(blocks: list[Block], candidate_rewards: torch.Tensor) -> torch.Tensor:
    """Credit of every candidate, (N, G); 0 where it is unscored, and exactly 0 if all refinements have one reward."""
    credits = []
    for block in blocks:
        top = max((r.reward for r in block.refinements if r.reward == r.reward), default=0.0)
        means = [_mean([r.reward - top for r in one.refinements]) for one in block.sets]
        credits.append(candidate_credit([one.shown for one in block.sets], means, len(block.candidates)))
    return torch.tensor(credits).masked_fill(candidate_rewards.isnan(), 0.0)


def _mean(values: list[float]) -> float:
    scored = [value for value in values if value == value]
    return sum(scored) / len(scored) if scored else float("nan")


def has_signal(block: Block, stages: list[str]) -> bool:
    """Whether any of the problem's trained rollouts has an advantage."""
    return any(rollout.advantage != 0.0 for rollout, _ in block.rows(stages))

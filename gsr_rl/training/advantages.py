"""Rewards to advantages, for each problem, stage and candidate set apart. Pure functions on tensors.

A reward of NaN marks an unscored rollout: it takes no part in any mean or count, and its advantage is 0.
"""

from math import comb

import torch

from gsr_rl.training.rollout import Block

EPSILON = 1e-4  # added to the standard deviation, as in TRL


def group_advantages(rewards: torch.Tensor, scale: bool) -> torch.Tensor:
    """Reward minus the mean of its group, divided by the group's standard deviation + 1e-4 if `scale`.

    Args:
        rewards: (N, G) float, one group a row, NaN where unscored.
        scale: Divide by the standard deviation (with Bessel's correction, as TRL does). A group with fewer than two
            scored rollouts has none and gets advantage 0.

    Returns:
        (N, G), 0 where unscored, and exactly 0 in a group whose scored rewards are all equal.
    """
    # From the largest on: the mean of equal rewards is rounded, that of zeros is not.
    below = rewards - rewards.masked_fill(rewards.isnan(), -torch.inf).amax(dim=1, keepdim=True)
    centred = below - below.nanmean(dim=1, keepdim=True)
    if scale:
        count = (~rewards.isnan()).sum(dim=1, keepdim=True)
        variance = centred.square().nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + EPSILON)
    return centred.nan_to_num(nan=0.0)


def pass_at_k_advantages(rewards: torch.Tensor, k: int) -> torch.Tensor:
    """A candidate's part in the expected best of k (`candidate_objective: pass@k`).

    The mean, over k-subsets of a problem's n scored candidates that hold i, of the best reward, minus that mean over
    k-subsets that do not hold i. With rewards 0 and 1 and c right ones this is C(n-c, k) / C(n-1, k) for a right
    candidate and C(n-1-c, k) / C(n-1, k) - C(n-1-c, k-1) / C(n-1, k-1) for a wrong one; with k = 1 it is the reward
    minus the mean of the others. Not divided by a deviation.

    Args:
        rewards: (N, G) float, one problem a row, NaN where unscored.
        k: Size of the subsets, at least 1.

    Returns:
        (N, G). A problem with fewer than k + 1 scored candidates gets 0, and one whose scored rewards are all equal
        exactly 0.
    """
    advantages = torch.zeros_like(rewards)
    for row, group in enumerate(rewards.tolist()):
        scored = [i for i, reward in enumerate(group) if reward == reward]
        if len(scored) < k + 1:
            continue
        top = max(group[i] for i in scored)
        group = [reward - top for reward in group]  # from the largest on, as in `group_advantages`
        for i in scored:
            others = sorted(group[j] for j in scored if j != i)
            without = _expected_best(others, k)
            if k == 1:
                best = group[i]
            else:
                best = _expected_best([max(group[i], other) for other in others], k - 1)
            advantages[row, i] = best - without
    return advantages


def _expected_best(values: list[float], k: int) -> float:
    """Mean of the maximum over all k-subsets of `values`, which are sorted in ascending order."""
    n = len(values)
    return sum(value * comb(j, k - 1) for j, value in enumerate(values)) / comb(n, k)


def candidate_advantages(rewards: torch.Tensor, objective: str, k: int, scale: bool) -> torch.Tensor:
    """Advantages of the candidates.

    Args:
        rewards: (N, G), one problem a row.
        objective: `pass@1` or `pass@k`.
        k: The k of `pass@k`.
        scale: Divide by the group's standard deviation (`pass@1` only).
    """
    if objective == "pass@k":
        return pass_at_k_advantages(rewards, k)
    return group_advantages(rewards, scale)


def candidate_credit(sets: list[list[int]], set_rewards: list[float], num_candidates: int) -> list[float]:
    """A candidate's credit for refinements: their mean reward over sets that hold it, minus over those that do not.

    Needs sets that were chosen uniformly. Candidates of one set share it, and with few sets it is noisy.

    Args:
        sets: The M candidate sets of a problem, as indices.
        set_rewards: Mean reward of the refinements over each set; NaN where none is scored.
        num_candidates: G, the problem's candidates.

    Returns:
        G values; 0 for a candidate that is in all of the scored sets or in none.
    """
    credits = []
    for index in range(num_candidates):
        inside = [reward for one, reward in zip(sets, set_rewards, strict=True) if index in one and reward == reward]
        outside = [r for one, r in zip(sets, set_rewards, strict=True) if index not in one and r == r]
        both = inside and outside
        credits.append(sum(inside) / len(inside) - sum(outside) / len(outside) if both else 0.0)
    return credits


def refinement_advantages(rewards: torch.Tensor, num_sets: int, scale: bool) -> torch.Tensor:
    """Advantages of the refinements, each compared with the others over the same candidate set only.

    Args:
        rewards: (N, G), one problem a row, its candidate sets one after the other with G / num_sets refinements each.
        num_sets: M.
        scale: Divide by the standard deviation of the set's refinements.
    """
    problems, generations = rewards.shape
    by_set = rewards.reshape(problems * num_sets, generations // num_sets)
    return group_advantages(by_set, scale).reshape(problems, generations)


def without_signal(advantages: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Which groups teach nothing, because all their advantages are 0.

    Args:
        advantages: (N, G).
        num_groups: Groups inside a row: 1 for candidates, M for refinements.

    Returns:
        (N * num_groups,) bool.
    """
    return (advantages.reshape(-1, advantages.shape[1] // num_groups) == 0).all(dim=1)


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

"""From rewards to advantages, each problem, stage and candidate set on its own.

`set_advantages` is what the trainer calls with rolled-out blocks; the functions below it are pure, on tensors of one
group per row. A reward of NaN marks an unscored rollout: it is in no mean or count, and its advantage is 0.
"""

from math import comb, isnan, nan

import torch

from gsr_rl.training.rollout import Block

EPSILON = 1e-4  # added to the standard deviation, as in TRL


def set_advantages(blocks: list[Block], args) -> dict[str, list[float]]:
    """Set every rollout's advantage (rules: docs/training.md), and `dropped` on groups without signal if wanted.

    A rank holds whole blocks, so nothing is exchanged between ranks.

    Args:
        blocks: Rolled-out problems with rewards, all of the same numbers of rollouts and sets.
        args: A `GSRConfig`.

    Returns:
        `{"candidate/no_signal": [groups without signal, groups], "refinement/no_signal": ...}`, counting groups with
        a scored rollout: one without (its prompt did not fit, say) is in no denominator.
    """
    counts = {"candidate/no_signal": [0.0, 0.0], "refinement/no_signal": [0.0, 0.0]}
    for stage in args.stages:
        rollouts = [block.candidates if stage == "candidate" else block.refinements for block in blocks]
        rewards = torch.tensor([[rollout.reward for rollout in row] for row in rollouts])  # (N, G)
        groups = 1 if stage == "candidate" else len(blocks[0].sets)  # per row
        advantages = _stage_advantages(blocks, rewards, stage, args)
        silent = without_signal(advantages, groups)  # (N * groups,)
        size = rewards.shape[1] // groups
        scored = (~rewards.isnan()).reshape(-1, size).any(dim=1)
        counts[f"{stage}/no_signal"] = [float((silent & scored).sum()), float(scored.sum())]
        dropped = silent.repeat_interleave(size).view(rewards.shape) & args.drop_from_denominator
        for row, *values in zip(rollouts, advantages.tolist(), dropped.tolist(), strict=True):
            for rollout, advantage, is_dropped in zip(row, *values, strict=True):
                rollout.advantage, rollout.dropped = advantage, is_dropped
    return counts


def has_signal(block: Block, stages: list[str]) -> bool:
    """Whether any of the problem's trained rollouts has an advantage."""
    return any(rollout.advantage != 0.0 for rollout, _ in block.rows(stages))


def _stage_advantages(blocks: list[Block], rewards: torch.Tensor, stage: str, args) -> torch.Tensor:
    """Advantages of one stage's rollouts, (N, G), by the configuration's objective."""
    scale = (getattr(args, f"{stage}_scale_rewards") or args.scale_rewards) == "group"
    if stage == "refinement":
        return refinement_advantages(rewards, len(blocks[0].sets), scale)
    if args.candidate_objective == "pass@k":
        advantages = pass_at_k_advantages(rewards, args.objective_k or args.num_candidates)
    else:
        advantages = group_advantages(rewards, scale)
    if args.candidate_credit:
        advantages = advantages + args.candidate_credit * _credit(blocks, rewards)
    return advantages


def _credit(blocks: list[Block], candidate_rewards: torch.Tensor) -> torch.Tensor:
    """Credit of every candidate, (N, G); 0 where it is unscored, and exactly 0 if all refinements have one reward."""
    credits = []
    for block in blocks:
        # Subtract the problem's maximum first, so that equal rewards give exactly 0.
        highest = max((r.reward for r in block.refinements if not isnan(r.reward)), default=0.0)
        set_rewards = [_mean([r.reward - highest for r in shown.refinements]) for shown in block.sets]
        credits.append(candidate_credit([s.shown for s in block.sets], set_rewards, len(block.candidates)))
    return torch.tensor(credits).masked_fill(candidate_rewards.isnan(), 0.0)


def group_advantages(rewards: torch.Tensor, scale: bool) -> torch.Tensor:
    """GRPO's advantage: the reward minus its group's mean, divided by the standard deviation + 1e-4 if `scale`.

    Args:
        rewards: (N, G) float, one group per row, NaN where unscored.
        scale: Divide by the standard deviation (with Bessel's correction, as TRL does). A group with fewer than two
            scored rollouts has none and gets advantage 0.

    Returns:
        (N, G), 0 where unscored, and exactly 0 in a group whose scored rewards are all equal.
    """
    # Subtract the group's maximum first, so that equal rewards give exactly 0: their mean may be rounded.
    below = rewards - rewards.masked_fill(rewards.isnan(), -torch.inf).amax(dim=1, keepdim=True)
    centred = below - below.nanmean(dim=1, keepdim=True)
    if scale:
        count = (~rewards.isnan()).sum(dim=1, keepdim=True)
        variance = centred.square().nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + EPSILON)
    return centred.nan_to_num(nan=0.0)


def pass_at_k_advantages(rewards: torch.Tensor, k: int) -> torch.Tensor:
    """A candidate's part in the expected best of k (`candidate_objective: pass@k`), not divided by a deviation.

    For candidate i of n scored ones: the mean of max(rewards) over the k-subsets that hold i, minus that mean over the
    k-subsets that do not. The first is n/k times the reward s_i of Pass@K Policy Optimization (Walder and Karkhanis,
    arXiv 2505.15201), the second a leave-one-out baseline: the other candidates' own estimate of the best of k.

    - k = 1: RLOO, the reward minus the mean of the others.
    - Rewards 0 and 1, c right ones: C(n-c, k) / C(n-1, k) for a right candidate, and
      C(n-1-c, k) / C(n-1, k) - C(n-1-c, k-1) / C(n-1, k-1) for a wrong one.

    Args:
        rewards: (N, G) float, one problem per row, NaN where unscored.
        k: Size of the subsets, at least 1.

    Returns:
        (N, G). A problem with fewer than k + 1 scored candidates gets 0, and one whose scored rewards are all equal
        exactly 0.
    """
    advantages = torch.zeros_like(rewards)
    for row, group in enumerate(rewards.tolist()):
        scored = [i for i, reward in enumerate(group) if not isnan(reward)]
        if len(scored) < k + 1:
            continue
        highest = max(group[i] for i in scored)
        group = [reward - highest for reward in group]  # first, so that equal rewards give exactly 0
        for i in scored:
            others = sorted(group[j] for j in scored if j != i)
            best_with = group[i] if k == 1 else _expected_best([max(group[i], other) for other in others], k - 1)
            advantages[row, i] = best_with - _expected_best(others, k)
    return advantages


def _expected_best(values: list[float], k: int) -> float:
    """Mean of the maximum over all k-subsets of `values`, which are sorted in ascending order."""
    n = len(values)
    return sum(value * comb(j, k - 1) for j, value in enumerate(values)) / comb(n, k)


def refinement_advantages(rewards: torch.Tensor, num_sets: int, scale: bool) -> torch.Tensor:
    """`group_advantages` of refinements, (N, G), each compared with the others over the same candidate set only.

    A problem's `num_sets` sets stand in its row one after the other, G / num_sets refinements each.
    """
    by_set = rewards.reshape(-1, rewards.shape[1] // num_sets)
    return group_advantages(by_set, scale).reshape(rewards.shape)


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
    scored = [(shown, reward) for shown, reward in zip(sets, set_rewards, strict=True) if not isnan(reward)]
    credits = []
    for index in range(num_candidates):
        inside = [reward for shown, reward in scored if index in shown]
        outside = [reward for shown, reward in scored if index not in shown]
        credits.append(_mean(inside) - _mean(outside) if inside and outside else 0.0)
    return credits


def without_signal(advantages: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Which of the `num_groups` groups in each row of (N, G) advantages have only 0: (N * num_groups,) bool."""
    return (advantages.reshape(-1, advantages.shape[1] // num_groups) == 0).all(dim=1)


def _mean(values: list[float]) -> float:
    """Of the scored ones; NaN where there is none."""
    scored = [value for value in values if not isnan(value)]
    return sum(scored) / len(scored) if scored else nan

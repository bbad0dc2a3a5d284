import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsr_rl.training.advantages import (
    group_advantages,
    pass_at_k_advantages,
    refinement_advantages,
    without_signal,
)

nan = math.nan


def test_group_advantages_worked_by_hand():
    # mean 0.25, Bessel-corrected deviation 0.5
    values = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale=True)
    assert values.tolist() == [pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3], rel=1e-6)]
    plain = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale=False)
    assert plain.tolist() == [[0.75, -0.25, -0.25, -0.25]]


def test_unscored_rollouts_take_no_part_in_the_mean():
    values = group_advantages(torch.tensor([[1.0, nan, 0.0, nan]]), scale=False)
    assert values.tolist() == [[0.5, 0.0, -0.5, 0.0]]
    assert group_advantages(torch.full((1, 4), nan), scale=True).tolist() == [[0.0] * 4]


def test_refinements_are_compared_only_within_their_candidate_set():
    # Two sets of two: the first all right, the second half right. Pooled, the first set would look good.
    values = refinement_advantages(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), num_sets=2, scale=False)
    assert values.tolist() == [[0.0, 0.0, 0.5, -0.5]]


def test_candidates_of_one_problem_are_not_compared_with_another_problems():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert group_advantages(rewards, scale=False).tolist() == [[0.0, 0.0], [-0.5, 0.5]]


def brute_force(rewards: list[float], k: int) -> list[float]:
    """Expected best of k-subsets that hold i, minus that of those that do not, over all subsets."""
    n = len(rewards)
    found = []
    for i in range(n):
        sides = ([], [])
        for subset in itertools.combinations(range(n), k):
            sides[i in subset].append(max(rewards[j] for j in subset))
        found.append(sum(sides[1]) / len(sides[1]) - sum(sides[0]) / len(sides[0]))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 0.25, -0.5]), min_size=2, max_size=8), st.integers(1, 7))
def test_pass_at_k_equals_brute_force_over_all_subsets(rewards, k):
    k = min(k, len(rewards) - 1)
    values = pass_at_k_advantages(torch.tensor([rewards], dtype=torch.float64), k)
    assert values[0].tolist() == pytest.approx(brute_force(rewards, k), abs=1e-12)


@pytest.mark.parametrize("right", range(9))
def test_pass_at_k_equals_the_closed_form_for_right_and_wrong(right):
    n, k, comb = 8, 4, math.comb
    rewards = [1.0] * right + [0.0] * (n - right)
    values = pass_at_k_advantages(torch.tensor([rewards]), k)[0].tolist()
    for value, reward in zip(values, rewards, strict=True):
        if reward:
            expected = comb(n - right, k) / comb(n - 1, k)
        else:
            expected = comb(n - 1 - right, k) / comb(n - 1, k) - comb(n - 1 - right, k - 1) / comb(n - 1, k - 1)
        assert value == pytest.approx(expected, abs=1e-6)


def test_pass_at_1_objective_is_the_reward_minus_the_mean_of_the_others():
    assert pass_at_k_advantages(torch.tensor([[1.0, 0.0, 0.0]]), 1).tolist() == [[1.0, -0.5, -0.5]]


def test_pass_at_k_needs_k_plus_one_scored_candidates():
    assert pass_at_k_advantages(torch.tensor([[1.0, 0.0, nan, nan]]), 2).tolist() == [[0.0] * 4]
    assert pass_at_k_advantages(torch.tensor([[1.0, 0.0, 0.0, nan]]), 2)[0, 3] == 0


@given(
    st.floats(-1e6, 1e6, width=32),
    st.integers(2, 16),
    st.integers(0, 2),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_a_group_of_equal_rewards_has_exactly_no_advantage(reward, scored, unscored, dtype):
    rewards = torch.tensor([[reward] * scored + [nan] * unscored], dtype=dtype)
    for objective, k, scale in (("pass@1", 1, True), ("pass@1", 1, False), *(("pass@k", k, False) for k in (1, 2, 4))):
        values = pass_at_k_advantages(rewards, k) if objective == "pass@k" else group_advantages(rewards, scale)
        assert without_signal(values, 1).tolist() == [True], (objective, k, scale)


def test_a_best_of_k_that_is_the_same_without_any_candidate_is_exactly_no_advantage():
    assert pass_at_k_advantages(torch.tensor([[0.1, 1.1, 1.1, 1.1, 1.1, 1.1]]), 3).tolist() == [[0.0] * 6]


def test_groups_whose_rewards_are_all_equal_are_without_signal():
    values = refinement_advantages(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), num_sets=2, scale=True)
    assert without_signal(values, 2).tolist() == [True, False]

from collections import Counter
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsr_rl.refinement.candidates import (
    POLICIES,
    SetChoice,
    choice_seed,
    choose_candidate_sets,
    pool_sets,
    set_policies,
    set_sizes,
    tree_sets,
)


def choose(usable, k, m, seed, correct=None, **choice) -> list[list[int]]:
    """The indices of m sets of k candidates."""
    how = SetChoice(num_candidates=k, num_sets=m, **choice)
    return [candidate_set.indices for candidate_set in choose_candidate_sets(usable, how, seed, correct)]


@given(st.lists(st.booleans(), min_size=1, max_size=16), st.integers(1, 8), st.integers(1, 4), st.integers(0, 99))
def test_sets_hold_only_usable_candidates_and_none_twice(usable, k, m, seed):
    sets = choose(usable, k, m, seed)
    assert len(sets) == m
    for chosen in sets:
        assert len(chosen) == len(set(chosen)) == min(k, sum(usable))
        assert all(usable[index] for index in chosen)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_sets_share_no_candidate_while_enough_are_left(k, m, seed):
    sets = choose([True] * (k * m), k, m, seed)
    assert sorted(index for chosen in sets for index in chosen) == list(range(k * m))


def test_a_drawn_number_of_candidates_is_every_one_of_its_range_equally_often():
    assert set_sizes(4, 3, None, 0) == [4, 4, 4]
    assert set_sizes(8, 5, 1, 7) == set_sizes(8, 5, 1, 7)
    sizes = Counter(size for seed in range(1000) for size in set_sizes(5, 4, 2, seed))
    assert set(sizes) == {2, 3, 4, 5} and all(abs(count - 1000) < 140 for count in sizes.values())
    pairs = Counter(tuple(set_sizes(3, 2, 2, seed)) for seed in range(1000))
    assert len(pairs) == 4 and min(pairs.values()) > 180, "the sets of a problem are drawn apart"


@given(st.lists(st.booleans(), min_size=1, max_size=16), st.integers(1, 8), st.integers(1, 5), st.integers(0, 99))
def test_each_set_may_have_a_size_of_its_own_or_all_of_a_problem_one(usable, k, m, seed):
    sizes = set_sizes(k, m, 1, seed)
    sets = choose(usable, k, m, seed, min_num_candidates=1)
    assert [len(set(chosen)) for chosen in sets] == [min(size, sum(usable)) for size in sizes]
    if sum(sizes) <= sum(usable):
        assert len({index for chosen in sets for index in chosen}) == sum(sizes)
    sets = choose(usable, k, m, seed, min_num_candidates=1, same_size=True)
    assert [len(chosen) for chosen in sets] == [min(sizes[0], sum(usable))] * m


def test_a_set_says_its_policy_and_whether_it_has_as_many_as_wanted():
    how = SetChoice(num_candidates=2, num_sets=2, policy="paper", uniform_share=0.5)
    sets = choose_candidate_sets([True, True, True, False], how, 0, [1.0, 0.0, 0.0, 1.0])
    assert [chosen.policy for chosen in sets] == set_policies("paper", 2, 0.5, 0)
    assert all(chosen.complete and chosen.size == 2 for chosen in sets)
    (few,) = choose_candidate_sets([True, False], SetChoice(num_candidates=2), 0)
    assert few.indices == [0] and not few.complete


def test_every_candidate_is_chosen_equally_often_at_every_place():
    places = Counter()
    for seed in range(4000):
        (chosen,) = choose([True] * 8, 4, 1, seed)
        places.update(enumerate(chosen))
    assert len(places) == 32
    assert all(abs(count - 500) < 110 for count in places.values())  # five standard deviations


def test_the_seed_depends_on_run_step_and_problem_and_on_nothing_else():
    assert choice_seed(1, "set", 3, "a") == choice_seed(1, "set", 3, "a")
    assert len({choice_seed(run, "set", step, name) for run in (1, 2) for step in (3, 4) for name in "ab"}) == 8


@given(
    st.lists(st.booleans(), min_size=1, max_size=16),
    st.integers(1, 8),
    st.integers(1, 4),
    st.sampled_from(POLICIES),
    st.integers(0, 99),
)
def test_every_policy_fills_its_sets_with_different_usable_candidates(right, k, m, policy, seed):
    correct = [float(is_right) for is_right in right]
    sets = choose([True] * len(right), k, m, seed, correct=correct, policy=policy)
    assert [len(set(chosen)) for chosen in sets] == [min(k, len(right))] * m
    assert sets == choose([True] * len(right), k, m, seed, correct=correct, policy=policy)


@pytest.mark.parametrize(
    ("policy", "num_right", "right_shown"),
    [
        ("paper", 3, {3}),
        ("paper", 6, {4}),
        ("balanced", 3, {2}),
        ("balanced", 1, {1}),
        ("balanced", 7, {3}),  # one wrong candidate of eight: the right ones fill the set
        ("hard", 4, {0, 1}),
        ("hard", 5, {1}),  # three wrong ones: one right one must fill the set
        ("hard", 7, {3}),
    ],
)
def test_a_policy_shows_its_number_of_right_candidates(policy, num_right, right_shown):
    correct = [1.0] * num_right + [0.0] * (8 - num_right)
    shown = set()
    for seed in range(50):
        (chosen,) = choose([True] * 8, 4, 1, seed, correct=correct, policy=policy)
        shown.add(int(sum(correct[index] for index in chosen)))
    assert shown == right_shown


def test_a_balanced_set_of_odd_size_has_one_more_of_either_kind():
    correct = [1.0] * 4 + [0.0] * 4
    shown = Counter()
    for seed in range(200):
        (chosen,) = choose([True] * 8, 5, 1, seed, correct=correct, policy="balanced")
        shown[int(sum(correct[index] for index in chosen))] += 1
    assert set(shown) == {2, 3}
    assert min(shown.values()) > 60


def test_a_share_of_the_sets_is_uniform_whatever_the_policy():
    assert Counter(set_policies("hard", 4, 0.5, 0)) == {"hard": 2, "uniform": 2}
    kinds = Counter(set_policies("paper", 1, 0.5, seed)[0] for seed in range(1000))
    assert abs(kinds["uniform"] - 500) < 80
    assert set_policies("uniform", 3, 0.0, 1) == ["uniform"] * 3


def test_uniform_sets_among_others_do_not_look_at_correctness():
    right = [1.0] * 4 + [0.0] * 4
    for seed in range(50):
        kinds = set_policies("paper", 2, 0.5, seed)
        first, second = (
            choose([True] * 8, 4, 2, seed, correct=c, policy="paper", uniform_share=0.5) for c in (right, right[::-1])
        )
        if kinds[0] == "uniform":
            assert first[0] == second[0]


@pytest.mark.parametrize(
    ("policy", "total", "right", "m"), [("hard", 8, 4, 2), ("paper", 8, 4, 2), ("balanced", 8, 2, 4)]
)
def test_uniform_sets_beside_others_hold_as_many_right_ones_as_chance_gives(policy, total, right, m):
    """Their number of right candidates is hypergeometric, which gap and rates over them rest on."""
    counts, number = Counter(), 0
    correct = [1.0] * right + [0.0] * (total - right)
    for seed in range(3000):
        keys = {"correct": correct, "policy": policy, "uniform_share": 0.5}
        for kind, chosen in zip(
            set_policies(policy, m, 0.5, seed), choose([True] * total, 4, m, seed, **keys), strict=True
        ):
            if kind == "uniform":
                counts[sum(correct[index] > 0.5 for index in chosen)] += 1
                number += 1
    for shown in range(right + 1):
        chance = comb(right, shown) * comb(total - right, 4 - shown) / comb(total, 4)
        assert abs(counts[shown] / number - chance) < 5 * (chance * (1 - chance) / number) ** 0.5 + 1e-9


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="candidate_choice='best'"):
        choose([True], 1, 1, 0, policy="best")


@given(st.lists(st.booleans(), max_size=16), st.integers(1, 8), st.integers(0, 6), st.integers(0, 99))
def test_sets_of_a_pool_hold_different_usable_candidates_and_fewer_sets_are_the_first_of_more(usable, k, r, seed):
    sets = pool_sets(usable, k, 6, seed)
    for chosen in sets:
        assert len(chosen) == len(set(chosen)) == min(k, sum(usable))
        assert all(usable[index] for index in chosen)
    assert pool_sets(usable, k, r, seed) == sets[:r]


def test_every_candidate_of_a_pool_is_shown_equally_often_at_every_place():
    places = Counter()
    for seed in range(1500):
        for chosen in pool_sets([True] * 6, 3, 2, seed):
            places.update(enumerate(chosen))
    assert len(places) == 18
    assert all(400 < count < 600 for count in places.values())  # of 3000 sets, one in six


def test_a_tree_takes_its_texts_in_order_and_ends_with_what_is_left():
    assert tree_sets(8, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert tree_sets(2, 4) == [[0, 1]]
    assert tree_sets(9, 4)[2] == [8]
    assert tree_sets(64, 4)[:4] == tree_sets(16, 4)

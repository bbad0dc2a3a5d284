from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gsr_rl.candidates import choice_seed, choose_candidate_sets


@given(st.lists(st.booleans(), min_size=1, max_size=16), st.integers(1, 8), st.integers(1, 4), st.integers(0, 99))
def test_sets_hold_only_usable_candidates_and_none_twice(usable, k, m, seed):
    sets = choose_candidate_sets(usable, k, m, seed)
    assert len(sets) == m
    for chosen in sets:
        assert len(chosen) == len(set(chosen)) == min(k, sum(usable))
        assert all(usable[index] for index in chosen)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_sets_share_no_candidate_while_enough_are_left(k, m, seed):
    sets = choose_candidate_sets([True] * (k * m), k, m, seed)
    assert sorted(index for chosen in sets for index in chosen) == list(range(k * m))


def test_every_candidate_is_chosen_equally_often_at_every_place():
    places = Counter()
    for seed in range(4000):
        (chosen,) = choose_candidate_sets([True] * 8, 4, 1, seed)
        places.update(enumerate(chosen))
    assert len(places) == 32
    assert all(abs(count - 500) < 110 for count in places.values())  # five standard deviations


def test_the_seed_depends_on_run_step_and_problem_and_on_nothing_else():
    assert choice_seed(1, "set", 3, "a") == choice_seed(1, "set", 3, "a")
    assert len({choice_seed(run, "set", step, name) for run in (1, 2) for step in (3, 4) for name in "ab"}) == 8

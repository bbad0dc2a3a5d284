"""Metrics against examples worked by hand and against brute force."""

import math
import random
from itertools import combinations

import pytest

from gsr_rl.refinement import metrics
from gsr_rl.refinement.metrics import share

NAN = math.nan


@pytest.mark.parametrize(("n", "c", "k", "value"), [(4, 2, 1, 0.5), (4, 2, 2, 5 / 6), (4, 2, 3, 1.0), (5, 0, 4, 0.0)])
def test_pass_at_k_by_hand(n, c, k, value):
    assert metrics.pass_at_k(n, c, k) == pytest.approx(value)


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_one():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([1] * c + [0] * (n - c), k))
                assert metrics.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0), (3, -1, 1)])
def test_pass_at_k_refuses_what_it_cannot_mean(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        metrics.pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("classes", "correct", "value"),
    [
        ([0, 0, 1, 2], [1, 1, 0, 0], 1.0),
        ([0, 0, 1, 2], [0, 0, 1, 0], 0.0),
        ([0, 0, 1, 1], [1, 1, 0, 0], 0.5),
        ([0, 1, 2, 3], [1, 0, 0, 0], 0.25),
        ([None, None, 0, None], [0, 0, 1, 0], 1.0),
        ([None] * 4, [0] * 4, 0.0),
        ([0, 0, 1], [1, 0, 0], 0.5),  # one class, graded unevenly: the share of its members
        ([0, 0, 1], [None, None, 1], 1.0),
        ([0, 1], [NAN, 0], 0.0),
    ],
)
def test_ties_count_by_their_expected_correctness(classes, correct, value):
    assert metrics.maj_correct(classes, correct) == pytest.approx(value)


def test_a_vote_without_scored_candidates_is_unscored():
    assert math.isnan(metrics.maj_correct([0, 1], [None, None]))
    assert math.isnan(metrics.maj_correct([], []))


def test_a_vote_is_the_mean_of_a_random_choice_among_the_largest_classes():
    rng = random.Random(0)
    for _ in range(50):
        classes = [rng.choice([None, 0, 1, 2]) for _ in range(5)]
        truth = {group: float(group == 0) for group in (0, 1, 2)}
        correct = [truth.get(group, 0.0) for group in classes]
        counts = {group: classes.count(group) for group in set(classes) - {None}}
        winners = [group for group, count in counts.items() if count == max(counts.values())]
        expected = sum(truth[group] for group in winners) / len(winners) if winners else 0.0
        assert metrics.maj_correct(classes, correct) == pytest.approx(expected)


@pytest.mark.parametrize(("number", "k"), [(12, 5), (10, 9), (9, 4), (32, 2)])
def test_maj_at_k_is_the_mean_over_all_groups(number, k):
    """With unscored samples, some without an answer, and a class whose members are not all right."""
    rng = random.Random(number)
    classes = [rng.choice([None, 0, 0, 1, 2, 3]) for _ in range(number)]
    correct = [None if rng.random() < 0.1 else float(group == 0 or rng.random() < 0.3) for group in classes]
    scored = [place for place, value in enumerate(correct) if value is not None]
    groups = list(combinations(scored, k))
    votes = [metrics.maj_correct([classes[i] for i in g], [correct[i] for i in g]) for g in groups]
    assert len(groups) > 8 and metrics.maj_at_k(classes, correct, k) == pytest.approx(sum(votes) / len(votes))


def test_maj_at_k_of_many_samples_is_what_random_groups_tend_to():
    rng = random.Random(1)
    classes = [rng.choice([None, 0, 0, 0, 1, 1, 2, 3, *range(4, 20)]) for _ in range(64)]
    correct = [float(group == 0) for group in classes]
    groups = [rng.sample(range(64), 33) for _ in range(4000)]
    votes = [metrics.maj_correct([classes[i] for i in g], [correct[i] for i in g]) for g in groups]
    assert metrics.maj_at_k(classes, correct, 33) == pytest.approx(sum(votes) / 4000, abs=0.03)
    assert math.isnan(metrics.maj_at_k([0, 0, 1], [1, None, 0], 3))


def test_a_vote_of_nobody_is_none():
    with pytest.raises(ValueError, match="maj@k needs k >= 1, got 0"):
        metrics.maj_at_k([0, 1], [1.0, 0.0], 0)


def test_weighted_votes_by_hand():
    classes, correct = [0, 0, 1, None], [1.0, 1.0, 0.0, 0.0]
    assert metrics.maj_correct(classes, correct, [0.2, 0.2, 0.5, 0.9]) == 0.0
    assert metrics.maj_correct(classes, correct, [0.3, 0.3, 0.5, 0.9]) == 1.0
    assert metrics.maj_correct(classes, correct, [0.25, 0.25, 0.5, 0.9]) == 0.5, "a tie"
    assert metrics.maj_correct(classes, correct, [0.1, 0.3, None, 0.9]) == 1.0, "None counts nothing"
    assert metrics.maj_correct(classes, correct, [None] * 4) == 0.0


def test_equal_weights_are_a_plain_vote():
    rng = random.Random(5)
    for _ in range(100):
        classes = [rng.choice([None, 0, 1, 2]) for _ in range(6)]
        correct = [rng.choice([0.0, 1.0, None]) for _ in range(6)]
        plain, weighted = (metrics.maj_correct(classes, correct, w) for w in (None, [0.1] * 6))
        assert plain == weighted or (math.isnan(plain) and math.isnan(weighted))


@pytest.mark.parametrize(
    ("scores", "correct", "value"),
    [
        ([1.0, 3.0, 2.0], [0, 1, 0], 1.0),
        ([3.0, 3.0, 2.0], [0, 1, 1], 0.5),
        ([None, 0.1], [1, 0], 0.0),
        ([None, None], [1, 1], 0.0),
        ([9.0, 0.1], [None, 1], 1.0),
    ],
)
def test_best_of_takes_the_highest_score_and_shares_ties(scores, correct, value):
    assert metrics.best_of(scores, correct) == value


def test_every_estimator_is_the_mean_over_all_subsets():
    rng = random.Random(7)
    for _ in range(40):
        n = rng.randint(2, 6)
        classes = [rng.choice([None, 0, 1, 2]) for _ in range(n)]
        correct = [float(group == 0) for group in classes]
        for k in range(1, n + 1):
            groups = list(combinations(range(n), k))
            anyone = sum(max(correct[i] for i in group) for group in groups) / len(groups)
            votes = [metrics.maj_correct([classes[i] for i in g], [correct[i] for i in g]) for g in groups]
            assert metrics.pass_at_k(n, int(sum(correct)), k) == pytest.approx(anyone)
            assert metrics.maj_at_k(classes, correct, k) == pytest.approx(sum(votes) / len(votes))
            assert metrics.maj_at_count(classes, correct, k) == metrics.maj_at_k(classes, correct, k)


def test_a_vote_at_a_broken_number_lies_between_its_neighbours():
    classes, correct = [0, 0, 1, 0, 2], [1.0, 1.0, 0.0, 1.0, 0.0]
    two, three = (metrics.maj_at_k(classes, correct, k) for k in (2, 3))
    assert metrics.maj_at_count(classes, correct, 2.25) == pytest.approx(0.75 * two + 0.25 * three)
    assert metrics.maj_at_count(classes, correct, 99.0) == metrics.maj_at_k(classes, correct, 5)
    assert metrics.maj_at_count(classes, correct, 0.1) == metrics.maj_at_k(classes, correct, 1)
    assert math.isnan(metrics.maj_at_count([0], [None], 2.0))


def test_disagreement_by_hand():
    assert metrics.disagreement([1.0, 0.0, 1.0]) == pytest.approx(2 / 3)
    assert metrics.disagreement([1.0, 0.0], [1.0, 1.0]) == 0.5
    assert metrics.disagreement([1.0, None], [0.0]) == 1.0
    assert math.isnan(metrics.disagreement([1.0])) and math.isnan(metrics.disagreement([1.0], [None]))


def test_fix_and_break_rates_weigh_ties_by_probability():
    maj, selfref = [0.0, 1.0, 0.5, 0.25, None], [1.0, 0.0, 1.0, 0.0, 1.0]
    fixed, broken = metrics.fix_rate(maj, selfref), metrics.break_rate(maj, selfref)
    assert fixed.count == pytest.approx(1 + 0.5 + 0.75) and fixed.value == pytest.approx((1 + 0.5) / 2.25)
    assert broken.count == pytest.approx(1 + 0.5 + 0.25) and broken.value == pytest.approx((1 + 0.25) / 1.75)
    gap = metrics.difference(share(selfref[:4]), share(maj[:4]))
    assert gap.value == pytest.approx((fixed.numerator - broken.numerator).sum() / 4), (
        "the gap is what is fixed less what is broken"
    )


def test_unscored_problems_are_in_no_mean_and_no_count():
    ratio = share([1.0, None, NAN, 0.0])
    assert (ratio.value, ratio.count) == (0.5, 2)
    assert metrics.difference(share([1.0, None, 0.0]), share([None, 1.0, 1.0])).count == 1
    assert math.isnan(share([None]).value)


def test_by_num_correct_counts_sets_and_skips_unscored_ones():
    table = metrics.by_num_correct([0, 1, 1, 2, 2], [1, 0, 1, None, 1], [0, 0.5, 0.25, 1, 1], 2)
    assert table == {
        "0": {"n": 1, "selfref": 1.0, "maj": 0.0},
        "1": {"n": 2, "selfref": 0.5, "maj": 0.375},
        "2": {"n": 1, "selfref": 1.0, "maj": 1.0},
    }
    assert metrics.by_num_correct([], [], [], 1)["0"] == {"n": 0, "selfref": None, "maj": None}


def test_a_difference_by_problem_leaves_out_what_one_side_lacks():
    one = metrics.difference(share([1, 0, None, 1]), share([0, 0.5, 1, None]))
    assert (one.numerator.tolist(), one.denominator.tolist(), one.value) == ([1, -0.5, 0, 0], [1, 1, 0, 0], 0.25)


def test_a_score_that_is_no_number_is_no_score():
    for scores in ([NAN, 1.0], [1.0, NAN]):
        correct = [1.0 if score == 1.0 else 0.0 for score in scores]
        assert metrics.best_of(scores, correct) == metrics.maj_correct([0, 1], correct, scores) == 1.0
    assert metrics.best_of([NAN], [1.0]) == 0.0

"""The power note: variance parts are found again, and the numbers that it names do see the difference."""

import numpy as np
import pytest

from gsr_rl.report import intervals as power
from gsr_rl.report.intervals import Variance


def groups(rng, problems, runs, mean, between, within):
    centres = mean + np.sqrt(between) * rng.standard_normal(problems)
    return centres[:, None] + np.sqrt(within) * rng.standard_normal((problems, runs))


def test_variance_by_hand():
    parts = power.variance([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert parts.within == pytest.approx(0.5 / 3)  # (0.5 + 0 + 0) / 3
    assert parts.between == pytest.approx(0.25 - 0.5 / 3 / 2)  # variance of 0.5, 1, 0, less its part of sampling
    assert (parts.problems, parts.runs) == (3, 2)


def test_variance_parts_are_found_again():
    rng = np.random.default_rng(0)
    parts = power.variance(groups(rng, 4000, 4, 0.1, 0.04, 0.2).tolist())
    assert parts.between == pytest.approx(0.04, abs=0.008) and parts.within == pytest.approx(0.2, abs=0.01)


def test_one_run_does_not_tell_the_parts_apart():
    parts = power.variance([[0.0], [1.0], [1.0]])
    assert parts.within is None and parts.between == pytest.approx(1 / 3)
    assert power.runs_needed(parts, 0.05) is None and power.problems_needed(parts, 0.05) > 3


def test_runs_that_share_candidates_do_not_tell_the_parts_apart():
    parts = power.variance([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], independent=False)
    assert (parts.within, parts.between, parts.runs) == (None, pytest.approx(0.25), 2)


def test_there_is_no_note_where_nothing_differs():
    assert power.power_note(power.variance([[0.0, 0.0]] * 20)) is None
    assert power.power_note(power.of_two_models(power.variance([[1.0, 1.0]] * 20))) is None


def test_unscored_values_are_left_out():
    assert power.variance([[0.0, 1.0, None], [float("nan")], [1.0, 1.0]]) == power.variance([[0.0, 1.0], [1.0, 1.0]])
    assert power.variance([[1.0, 0.0]]) is None and power.power_note(power.variance([])) is None


def test_no_number_of_runs_makes_up_for_too_few_problems():
    parts = Variance(between=0.04, within=0.2, problems=30, runs=4)
    assert power.runs_needed(parts, 0.05) is None
    assert power.runs_needed(parts, 0.05, problems=1000) == 1
    assert power.runs_needed(parts, 0.2) == 2


@pytest.mark.parametrize("way", ["problems", "runs"])
def test_what_the_note_names_sees_the_difference_in_80_of_100_cases(way):
    rng = np.random.default_rng(1)
    parts, difference = Variance(between=0.01, within=0.2, problems=100, runs=4), 0.06
    problems = power.problems_needed(parts, difference) if way == "problems" else 100
    runs = power.runs_needed(parts, difference) if way == "runs" else 4
    seen = 0
    for _ in range(1000):
        means = groups(rng, problems, runs, difference, parts.between, parts.within).mean(axis=1)
        seen += abs(means.mean()) / (means.std(ddof=1) / np.sqrt(problems)) > power.Z95
    assert 0.75 < seen / 1000 < 0.86


@pytest.mark.parametrize("runs", [2, 5])
def test_two_equal_models_differ_by_what_the_note_says(runs):
    rng = np.random.default_rng(3)
    skill = rng.random(300)
    accuracies = (rng.random((2000, 2, 300, runs)) < skill[:, None]).mean(axis=(2, 3))
    spread = (accuracies[:, 0] - accuracies[:, 1]).std()
    samples = (rng.random((300, runs)) < skill[:, None]).astype(float).tolist()
    note = power.power_note(power.of_two_models(power.variance(samples)))
    assert note["runs"] == runs and note["between"] == 0.0
    assert note["detectable"] == pytest.approx((power.Z95 + power.Z80) * spread, rel=0.12)


def test_the_note_agrees_with_itself():
    rng = np.random.default_rng(2)
    note = power.power_note(power.variance(groups(rng, 200, 4, 0.0, 0.02, 0.1).tolist()))
    parts = Variance(note["between"], note["within"], 200, 4)
    assert note["detectable"] == pytest.approx(power.detectable(parts), rel=1e-4)
    assert power.problems_needed(parts, note["detectable"]) == pytest.approx(200, abs=1)
    assert set(note["needed"]) == {"0.01", "0.02", "0.05"}

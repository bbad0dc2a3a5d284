"""The order of problems: whole epochs, another one each time, the same after a resume."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsr_rl.training.problem_order import ProblemStream


@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=10), st.integers(0, 9))
def test_every_epoch_takes_each_problem_once_whatever_the_batches(size, batches, seed):
    stream = ProblemStream(size, seed)
    taken = [index for number in batches for index in stream.take(number)]
    for start in range(0, len(taken) - size + 1, size):
        assert sorted(taken[start : start + size]) == list(range(size))
    assert taken == ProblemStream(size, seed).take(sum(batches))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(ProblemStream(50, seed).take(150)[50 * e : 50 * e + 50]) for seed in (0, 1) for e in range(3)}
    assert len(orders) == 6
    assert ProblemStream(3, 0, shuffle=False).take(7) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("curriculum", [False, True])
def test_a_saved_stream_goes_on_where_it_was(tmp_path, curriculum):
    def step(stream):
        indices = stream.take(7)
        stream.report(indices, [index % 3 / 2 for index in indices])
        return indices

    whole = ProblemStream(20, 4, curriculum=curriculum)
    expected = [step(whole) for _ in range(9)]
    first = ProblemStream(20, 4, curriculum=curriculum)
    found = [step(first) for _ in range(4)]
    first.save(tmp_path / "stream.json")
    second = ProblemStream(20, 4, curriculum=curriculum)
    second.load(tmp_path / "stream.json")
    assert found + [step(second) for _ in range(5)] == expected


def test_a_curriculum_prefers_problems_that_are_solved_half_the_time():
    stream = ProblemStream(30, 0, curriculum=True)
    stream.report(list(range(20)), [1.0] * 10 + [0.0] * 10)
    for _ in range(6):  # the running rate forgets its start
        stream.report(list(range(30)), [1.0] * 10 + [0.0] * 10 + [0.5] * 10)
    drawn = Counter(index for _ in range(500) for index in stream.take(5))
    assert all(len(set(ProblemStream(30, s, curriculum=True).take(10))) == 10 for s in range(5))
    easy, hard, half = (sum(drawn[i] for i in range(start, start + 10)) for start in (0, 10, 20))
    assert half > 5 * max(easy, hard)
    assert min(easy, hard) > 0


def test_unscored_problems_keep_their_pass_rate():
    stream = ProblemStream(2, 0, curriculum=True)
    stream.report([0, 1], [float("nan"), 1.0])
    assert stream.pass_rate.tolist() == [0.5, 0.75]


def test_the_state_of_another_data_set_is_refused(tmp_path):
    ProblemStream(3, 0).save(tmp_path / "stream.json")
    with pytest.raises(ValueError, match="size=3"):
        ProblemStream(4, 0).load(tmp_path / "stream.json")


@pytest.mark.parametrize("curriculum", [False, True])
def test_what_is_reserved_comes_first_after_a_resume_in_its_order(tmp_path, curriculum):
    stream = ProblemStream(30, 4, curriculum=curriculum)
    first, second = stream.reserve(4), stream.reserve(4)
    assert stream.settle() == first
    third = stream.reserve(4)
    further = stream.take(3)  # by over-sampling, trained on with `first`
    stream.save(tmp_path / "stream.json")
    resumed = ProblemStream(30, 4, curriculum=curriculum)
    resumed.load(tmp_path / "stream.json")
    again = resumed.take(3)  # another number of ranks takes other batches
    resumed.save(tmp_path / "stream.json")  # in the middle of what comes again
    resumed.load(tmp_path / "stream.json")
    assert again + resumed.take(7) == second + third + stream.take(2)
    if not curriculum:
        assert len({*first, *second, *third, *further}) == 15


@given(st.integers(4, 12), st.lists(st.sampled_from(["train", "save", "kill"]), max_size=40), st.integers(0, 2))
def test_a_run_that_is_killed_anywhere_trains_on_every_problem_of_an_epoch_once(tmp_path_factory, size, events, ahead):
    path = tmp_path_factory.mktemp("stream") / "state.json"
    stream, trained = ProblemStream(size, 1), []
    stream.save(path)
    saved: list[int] = []
    for event in [*events, "train"]:
        if event == "kill":
            stream = ProblemStream(size, 1)
            stream.load(path)
            trained = list(saved)
        elif event == "save":
            stream.save(path)
            saved = list(trained)
        else:
            while len(stream.pending) <= ahead:
                stream.reserve(3)
            trained += stream.settle()
    assert trained == ProblemStream(size, 1).take(len(trained))

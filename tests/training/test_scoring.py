"""From rewards to advantages on blocks: credit, normalisation a stage, groups without signal, over-sampling."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsr_rl.training.advantages import candidate_credit, has_signal, set_advantages
from gsr_rl.training.problem_order import sampling_limit
from gsr_rl.training.rollout import Block, CandidateSet, Rollout
from gsr_rl.training.trainer import GSRTrainer

nan = float("nan")


def rollout(reward):
    return Rollout([1], [2], None, "", True, correct=None if reward != reward else reward, reward=reward)


def block(candidates, *sets, index=0):
    made = Block({"problem_id": "p", "answer": "1"}, index, [rollout(reward) for reward in candidates])
    made.sets = [CandidateSet(shown, refinements=[rollout(r) for r in rewards]) for shown, rewards in sets]
    return made


def args(**values):
    defaults = dict(stages=["candidate", "refinement"], scale_rewards="none", candidate_scale_rewards=None,
                    refinement_scale_rewards=None, candidate_objective="pass@1", num_candidates=2, objective_k=None,
                    candidate_credit=0.0, drop_from_denominator=False)  # fmt: skip
    return SimpleNamespace(**(defaults | values))


def advantages(rollouts):
    return [one.advantage for one in rollouts]


def test_credit_worked_by_hand():
    # Sets {0,1}: 1.0, {1,2}: 0.5, {0,2}: 0.0. Candidate 1 is in sets of mean 0.75, and outside one of 0.0.
    assert candidate_credit([[0, 1], [1, 2], [0, 2]], [1.0, 0.5, 0.0], 4) == [0.0, 0.75, -0.75, 0.0]
    assert candidate_credit([[0, 1], [0, 1]], [1.0, 0.0], 2) == [0.0, 0.0]  # in all sets: nothing to compare with
    assert candidate_credit([[0], [1], [0]], [1.0, 0.0, nan], 2) == [1.0, -1.0]  # an unscored set is left out


def test_credit_is_added_times_its_coefficient_and_not_to_unscored_candidates():
    made = block([1.0, 0.0, nan, 0.0], ([0, 1], [1.0, 1.0]), ([2, 3], [0.0, 0.0]))
    set_advantages([made], args(candidate_credit=0.5))
    plain = [2 / 3, -1 / 3, 0.0, -1 / 3]
    assert advantages(made.candidates) == pytest.approx([plain[0] + 0.5, plain[1] + 0.5, 0.0, plain[3] - 0.5])


def test_each_stage_has_its_own_normalisation():
    made = block([1.0, 0.0], ([0, 1], [1.0, 0.0]))
    set_advantages([made], args(candidate_scale_rewards="group"))
    deviation = torch.tensor([1.0, 0.0]).std().item() + 1e-4
    assert advantages(made.candidates) == pytest.approx([0.5 / deviation, -0.5 / deviation])
    assert advantages(made.refinements) == [0.5, -0.5]


def test_the_k_of_the_objective_can_differ_from_the_number_shown():
    made = block([1.0, 0.0, 0.0, 0.0], ([0, 1], [1.0, 1.0]))
    set_advantages([made], args(candidate_objective="pass@k", objective_k=3))
    assert advantages(made.candidates) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])


def test_only_groups_without_signal_are_dropped_and_all_are_counted():
    made = block([1.0, 0.0, 1.0, 1.0], ([0, 1], [1.0, 1.0]), ([2, 3], [1.0, 0.0]))
    counts = set_advantages([made], args(drop_from_denominator=True))
    assert counts == {"candidate/no_signal": [0.0, 1.0], "refinement/no_signal": [1.0, 2.0]}
    assert [one.dropped for one in made.refinements] == [True, True, False, False]
    assert not any(one.dropped for one in made.candidates)
    set_advantages([made], args())
    assert not any(one.dropped for one in made.refinements)


def test_groups_without_a_scored_rollout_are_in_neither_number_of_the_share_without_signal():
    # Refinements: one problem of two sets, (skipped), (1, 0); another of two, (1, 1), (one unscored, 1): 2 of 3.
    made = [
        block([1.0, 0.0, nan, 0.0], ([0, 1], [nan, nan]), ([2, 3], [1.0, 0.0])),
        block([nan, nan, nan, nan], ([0, 1], [1.0, 1.0]), ([2, 3], [nan, 1.0])),
    ]
    counts = set_advantages(made, args(drop_from_denominator=True))
    assert counts == {"candidate/no_signal": [0.0, 1.0], "refinement/no_signal": [2.0, 3.0]}
    skipped = block([1.0, 0.0], ([0, 1], [nan, nan]))
    assert set_advantages([skipped], args())["refinement/no_signal"] == [0.0, 0.0]
    assert has_signal(skipped, ["candidate", "refinement"]) and not has_signal(skipped, ["refinement"])


@given(st.floats(-1e6, 1e6, width=32), st.integers(0, 3), st.sampled_from(["pass@1", "pass@k"]))
def test_a_problem_whose_rewards_are_all_equal_has_no_signal_whatever_the_objective(reward, unscored, objective):
    sets = [([0, 1], [reward] * 3), ([2, 3], [reward] * (3 - unscored) + [nan] * unscored), ([4, 5], [reward] * 3)]
    made = block([reward] * 8, *sets)
    for scale in ("group", "none"):
        given_args = args(candidate_credit=0.5, candidate_objective=objective, scale_rewards=scale)
        counts = set_advantages([made], given_args)
        scored_sets = 3.0 if unscored < 3 else 2.0
        assert counts == {"candidate/no_signal": [1.0, 1.0], "refinement/no_signal": [scored_sets, scored_sets]}
        assert not has_signal(made, ["candidate", "refinement"])


def test_a_block_has_signal_if_any_trained_group_has():
    silent = block([1.0, 1.0], ([0, 1], [0.0, 0.0]))
    candidates_only = block([1.0, 0.0], ([0, 1], [0.0, 0.0]))
    set_advantages([silent, candidates_only], args())
    assert not has_signal(silent, ["candidate", "refinement"])
    assert has_signal(candidates_only, ["candidate", "refinement"])
    assert not has_signal(candidates_only, ["refinement"])


class Stand:
    """What `GSRTrainer._collect` needs: rank `rank` of two, whose problems have signal where their index says so."""

    def __init__(self, signal, oversample, rank=0, others_missing=0):
        self.args = SimpleNamespace(oversample=oversample, curriculum=False, plan=None, stages=["candidate"])
        self.signal, self.drawn, self.others_missing, self.ahead = signal, [], others_missing, None
        self.accelerator = SimpleNamespace(
            num_processes=2, process_index=rank, device="cpu", gather=lambda x: torch.cat([x, self.others(x)])
        )
        self.problem_stream = SimpleNamespace(take=self.take)
        self.train_dataset = [{"problem_id": str(i), "answer": "1"} for i in range(100)]
        self.driver = SimpleNamespace(seconds={})
        self.rollout_log = SimpleNamespace(count=lambda blocks, groups: None, count_problems=self.count)

    def others(self, missing):
        self.others_missing -= 1
        return torch.tensor([max(0, self.others_missing + 1)])

    def take(self, number):
        start = len(self.drawn)
        self.drawn += range(start, start + number)
        return self.drawn[start:]

    def roll_out(self, rows, plan, indices):
        return [block([1.0, float(not self.signal[index])], index=index) for index in indices]

    def _reward(self, blocks):
        pass

    def _report_pass_rates(self, blocks):
        pass

    def count(self, *numbers):
        self.counted = numbers

    def collect(self, wanted, monkeypatch):
        monkeypatch.setattr(
            "gsr_rl.training.trainer.set_advantages",
            lambda blocks, a: set_advantages(blocks, args(stages=["candidate"])),
        )
        return [made.index for made in GSRTrainer._collect(self, wanted)]


def test_oversampling_fills_the_batch_with_signal_and_stops(monkeypatch):
    signal = [i not in (0, 1, 5) for i in range(100)]  # the first rank has problems 0, 1, 2 and then 6
    stand = Stand(signal, oversample=4)
    assert stand.collect(3, monkeypatch) == [2, 6, 7]
    assert stand.drawn == list(range(10))  # three a rank, then two a rank
    assert stand.counted == (5, 3, 3)


def test_oversampling_ends_at_its_limit_and_fills_up_with_what_there_is(monkeypatch):
    stand = Stand([False] * 100, oversample=2)
    assert len(stand.collect(3, monkeypatch)) == 3
    assert len(stand.drawn) == 12 and stand.counted == (6, 0, 3)


def test_the_limit_of_oversampling_is_rounded_up(monkeypatch):
    stand = Stand([False, False, True, True], oversample=1.5)
    assert stand.collect(1, monkeypatch) == [2]
    assert sampling_limit(10, 1.1) == 11 and sampling_limit(3, 1.0) == 3


def test_a_rank_that_has_enough_goes_on_with_one_that_has_not(monkeypatch):
    stand = Stand([True] * 100, oversample=3, others_missing=1)
    assert stand.collect(2, monkeypatch) == [0, 1]
    assert len(stand.drawn) == 6  # a second round of one problem a rank, for the other's sake


def test_without_oversampling_every_problem_is_kept_in_order(monkeypatch):
    stand = Stand([False, True, False, True], oversample=1, rank=1)
    assert stand.collect(2, monkeypatch) == [2, 3]

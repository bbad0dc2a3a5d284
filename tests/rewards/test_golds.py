"""Which gold answers are none."""

import pytest

import rewards
from rewards.accuracy import AccuracyReward
from rewards.golds import read_gold

MISSING = ["proof", "Proof omitted.", "TBD", "See the solution", "notfound", "not found", "N/A", "[null]", "Q.E.D."]


@pytest.mark.parametrize("gold", MISSING)
def test_a_text_in_place_of_a_missing_answer_is_no_gold(gold):
    assert read_gold(gold) is None
    assert rewards.grade([f"\\boxed{{{gold}}}"], [gold]) == [None]


@pytest.mark.parametrize("gold", ["none", "unknown", "no solution", "invalid", "proofs", "12 not found", "A"])
def test_words_that_may_be_an_answer_are_kept(gold):
    assert read_gold(gold) == gold


def test_a_list_behind_hashes_stays_a_list_and_a_number_a_number():
    answers = [r"\boxed{9, 4, 6}", r"\boxed{469}", r"\boxed{5678}", r"\boxed{5; 678}"]
    assert rewards.grade(answers, ["#### 4,6,9", "#### 4,6,9", "#### 5,678", "#### 5,678"]) == [1.0, 0.0, 1.0, 0.0]


def test_a_column_of_bytes_is_refused_by_name():
    with pytest.raises(ValueError, match=r"column `answer` holds bytes \(row 1\)"):
        AccuracyReward()(completions=[r"\boxed{5}"] * 2, answer=["5", b"5"])

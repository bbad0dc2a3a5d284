"""Words after a number that change its value."""

import pytest

import rewards
from rewards.magnitudes import SCALES, changes, worked_out


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7 dozen eggs", "84 eggs"),
        ("2.5 thousand", "2500"),
        ("1,5 Millionen", "1500000"),
        ("1 1/2 dozen", "18"),
        ("1/3 dozen", "4"),
        ("6万", "60000"),
        ("2万5千人", "25000人"),
        ("3亿2千万", "320000000"),
        ("9千米", "9千米"),  # kilometres
        ("4 thirds", "4/3"),
        ("4 quarters", "4 quarters"),  # coins too
        ("5 and a third", "5 1/3"),
        ("3 out of 8", "3/8"),
        ("3 in every 8", "3/8"),
        ("7 squared", "7^2"),
        ("7 squared units", "7 squared units"),
        ("7 times y", "7 \\cdot y"),
        ("7 times as many", "7 times as many"),
        ("7 apples", "7 apples"),
    ],
)
def test_such_words_are_worked_out(text, value):
    assert worked_out(text) == value


@pytest.mark.parametrize("words", ["more than x", "times the radius", "squared units", "million", "以上"])
def test_words_that_cannot_be_worked_out_are_no_unit(words):
    assert changes(words)


@pytest.mark.parametrize("words", ["more apples", "times a week", "miles", "人"])
def test_other_words_are(words):
    assert not changes(words)


def test_no_scale_word_of_any_language_is_dropped():
    answers = [f"\\boxed{{7 \\text{{ {word}}}}}" for word in SCALES]
    assert rewards.grade(answers, ["7"] * len(answers)) == [0.0] * len(answers)
    assert rewards.grade(answers, [str(7 * value) for value in SCALES.values()]) == [1.0] * len(answers)

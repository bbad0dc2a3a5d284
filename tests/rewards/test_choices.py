"""The letter that a text settles on."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rewards
from rewards.choices import chosen_letter

SETTLES = [
    "{}", "({})", "{}.", "**{}**", "({}) 17", "{}, since the rest fail", "The answer is {}.", "Option {} is right.",
    "I would go with {} here", "It cannot be J. So it must be {}.", "Therefore {}", "{} because it is largest",
]  # fmt: skip
SETTLES_NOT = [
    "{}.K.L. is a knave", "Either {} or J", "{}, maybe J", "First J, then {}", "Both {} and J", "one of {}, J",
    "{}) red\nJ) blue", "Not {}", "Options {} and J", "{}/J", "the answer is {} or J",
]  # fmt: skip


@pytest.mark.parametrize("letter", "BCD")
def test_a_text_that_settles_on_a_letter_chooses_it(letter):
    assert [chosen_letter(text.format(letter)) for text in SETTLES] == [letter] * len(SETTLES)


@pytest.mark.parametrize("letter", "BCD")
def test_a_text_that_names_another_letter_beside_it_or_none_chooses_none(letter):
    assert [chosen_letter(text.format(letter)) for text in SETTLES_NOT] == [None] * len(SETTLES_NOT)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SETTLES + SETTLES_NOT), st.sampled_from("BCD")), max_size=8))
def test_the_class_of_a_vote_agrees_with_the_grade_of_every_row(rows):
    texts = [template.format(letter) for template, letter in rows]
    classes = rewards.vote(texts)
    for gold in "BCD":
        scores = rewards.grade([f"\\boxed{{\\text{{{text}}}}}" for text in texts], [gold] * len(texts))
        right = {place for place, score in zip(classes, scores, strict=True) if score == 1.0}
        wrong = {place for place, score in zip(classes, scores, strict=True) if score != 1.0}
        assert len(right) <= 1 and not right & wrong


ANSWERS = [
    "(2,450)", "2450", "2,450", "x=2, y=450", r"\{2,450\}", "2 450", "24 50", r"24 \quad 50", "24, 50", "7 km", "2",
    "7000 m", "7 miles", "7", r"\$7", "7 euros", "700 cents", "7 dozen", "84", "3x=6", "x=2",
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(ANSWERS), max_size=8))
@example([r"\{2,450\}", "2,450", "2450"])
def test_members_of_a_class_are_graded_as_its_first(answers):
    first: dict = {}
    for place, answer in zip(rewards.vote(answers), answers, strict=True):
        leader = first.setdefault(place, answer)
        boxed = [f"\\boxed{{{answer}}}", f"\\boxed{{{leader}}}"]
        assert 1.0 in rewards.grade(boxed, [leader, answer], require_box=True)

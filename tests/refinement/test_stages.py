"""The steps of one problem that training, distillation, evaluation and solving share."""

from dataclasses import replace

import pytest

from gsr_rl.refinement.candidates import SetChoice
from gsr_rl.refinement.prompts import get_template
from gsr_rl.refinement.stages import Candidate, Stages, grade
from tests.support.letters import LetterTokenizer

STAGES = Stages(
    LetterTokenizer(),
    get_template("tiny"),
    context_length=100,
    max_completion_length=20,
    max_refinement_length=40,
    max_refinement_prompt_length=80,
    unfinished_candidates="drop",
)
RIGHT, WRONG = Candidate("1+1=2", True, 1.0), Candidate("1+1=3", True, 0.0)
ENDLESS, THINKING = Candidate("1+1=1+1", False, 0.0), Candidate("<think>1+1", True, 0.0)
UNGRADED = Candidate("1+1=4", True, None)


def test_a_solve_prompt_says_how_much_room_it_leaves():
    prompt = STAGES.solve("1+1", history=[{"role": "user", "content": "hi"}])
    assert [turn["content"] for turn in prompt.messages] == ["hi", "1+1"]
    assert STAGES.room(prompt) == 100 - len(prompt.token_ids)


def test_a_refinement_prompt_has_what_the_limit_and_the_context_leave():
    assert STAGES.refinement_budget == 60
    assert replace(STAGES, max_refinement_prompt_length=50).refinement_budget == 50
    with pytest.raises(ValueError, match=r"max_refinement_length=100 leaves no room .* set it to less than 100"):
        replace(STAGES, max_refinement_length=100).check_refinement_room()


def test_unfinished_candidates_and_those_without_a_text_are_not_shown():
    group = [RIGHT, ENDLESS, THINKING, WRONG]
    assert STAGES.shown(group, [3, 2, 1, 0]) == [(3, "1+1=3"), (0, "1+1=2")]
    cut = replace(STAGES, unfinished_candidates="cut")
    assert cut.shown(group, [1, 2]) == [(1, "1+1=1+1")]
    assert STAGES.shown_text("<think>no</think> yes ") == "yes"


def test_sets_are_chosen_among_graded_candidates_that_can_be_shown():
    group = [RIGHT, ENDLESS, THINKING, UNGRADED, WRONG]
    sets = STAGES.refine_sets("1+1", group, SetChoice(num_candidates=2, num_sets=2), 0)
    for chosen in sets:
        assert sorted(chosen.candidate_set.indices) == [0, 4]
        assert chosen.texts == [group[index].text for index in chosen.candidate_set.indices]
        assert chosen.prompt.messages[0]["content"] == f"refine 1+1\n#{chosen.texts[0]}\n#{chosen.texts[1]}\n>"
    (empty,) = STAGES.refine_sets("1+1", [ENDLESS], SetChoice(num_candidates=2), 0)
    assert empty.texts == [] and empty.prompt is None and not empty.candidate_set.complete


def test_a_prompt_that_cannot_fit_is_none_and_one_that_is_cut_says_so():
    (too_long,) = STAGES.refine_sets("1" * 60, [RIGHT], SetChoice(num_candidates=1), 0)
    assert too_long.texts == ["1+1=2"] and too_long.prompt is None
    (cut,) = STAGES.refine_sets("1+1", [replace(RIGHT, text="9" * 80)], SetChoice(num_candidates=1), 0)
    assert cut.prompt.num_cut == 1 and len(cut.prompt.token_ids) <= 60


def test_grades_of_several_problems_with_their_own_votes():
    groups = [[r"\boxed{2}", r"\boxed{3}", None, "no box", r"\boxed{2.0}"], [r"\boxed{2}"]]
    first, second = grade(groups, ["2", "3"], require_box=True)
    assert [of.correct for of in first] == [1.0, 0.0, None, 0.0, 1.0] and second[0].correct == 0.0
    assert [of.vote_class for of in first] == [0, 1, None, None, 0]
    assert first[1].answer == "3" and first[3].answer is None


def test_a_class_keeps_the_number_that_candidates_gave_it():
    (refinements,) = grade([[r"\boxed{5}", r"\boxed{3}"]], ["3"], require_box=True, first_answers=[["2", "3"]])
    assert [of.vote_class for of in refinements] == [2, 1]
    (plain,) = grade([[r"\boxed{3}"]], ["3"], require_box=True, group_answers=False)
    assert (plain[0].correct, plain[0].answer, plain[0].vote_class) == (1.0, None, None)

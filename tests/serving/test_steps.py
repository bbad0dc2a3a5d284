"""How a problem is solved, step by step: what is asked for, what is answered when something is missing or fails."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards
from gsr_rl.engines.base import Completion
from gsr_rl.serving.config import SolveSettings
from gsr_rl.serving.steps import Ask, PromptTooLong, SamplingFailed, Solution, Told, Vote, solving
from tests.support.letters import LetterTokenizer

WINDOW = 400
SETTINGS = SolveSettings(
    num_candidates=3, prompt_template="tiny", max_completion_length=20, max_refinement_prompt_length=300
)
PROBLEM = [{"role": "user", "content": "1+1"}]


def said(text: str, finished: bool = True) -> Completion:
    return Completion(text, [ord(letter) for letter in text], finished)


def run(replies: list, settings: SolveSettings = SETTINGS, chat=PROBLEM) -> tuple[Solution, list[Ask], list[Told]]:
    """Solve with these replies to the asks in turn; an exception is thrown in."""
    steps = solving(chat, LetterTokenizer(), settings.resolved(WINDOW), WINDOW)
    asks, told, reply, replies = [], [], None, list(replies)
    try:
        while True:
            step = steps.throw(reply) if isinstance(reply, Exception) else steps.send(reply)
            reply = None
            if isinstance(step, Ask):
                asks.append(step)
                reply = replies.pop(0)
            elif isinstance(step, Vote):
                reply = rewards.vote(step.answers)
            else:
                told.append(step)
    except StopIteration as stop:
        return stop.value, asks, told


TWO, THREE = said(r"\boxed{2}"), said(r"\boxed{3}")


def test_candidates_then_one_refinement_that_reads_them():
    solution, asks, told = run([[TWO, THREE, TWO], [said(r"so \boxed{2}")]])
    assert [(ask.stage, ask.number, ask.sampling.n, ask.last) for ask in asks] == [
        ("candidate", 0, 3, False),
        ("refinement", 1, 1, True),
    ]
    assert asks[0].prompts[0].messages == PROBLEM
    shown = "\n#\\boxed{2}\n#\\boxed{3}\n#\\boxed{2}\n>"
    assert asks[1].prompts[0].messages == [{"role": "user", "content": "refine 1+1" + shown}]
    assert (solution.text, solution.answer, solution.degraded) == (r"so \boxed{2}", "2", None)
    assert [one.votes for one in solution.candidates] == [2, 1, 2] and solution.majority_answer == "2"
    assert [one.group for one in solution.candidates] == [0, 1, 0]
    assert [(one.stage, len(one.attempts)) for one in told] == [("candidate", 3), ("refinement", 1)]


def test_usage_counts_each_prompt_once_and_every_completion():
    solution, asks, _ = run([[TWO, THREE, TWO], [said("abc")]])
    assert solution.usage.prompt_tokens == sum(len(ask.prompts[0].token_ids) for ask in asks)
    assert solution.usage.candidate_tokens == 3 * len(r"\boxed{2}")
    assert solution.usage.refinement_tokens == 3
    assert solution.usage.completion_tokens == 3 * len(r"\boxed{2}") + 3


def test_a_further_round_refines_over_k_refinements():
    middle = [said("a 2"), said("b 2"), said("c 3")]
    solution, asks, _ = run([[TWO] * 3, middle, [said("done 2")]], replace(SETTINGS, rounds=2))
    assert [(ask.number, ask.sampling.n, ask.last) for ask in asks] == [(0, 3, False), (1, 3, False), (2, 1, True)]
    assert "\n#a 2\n#b 2\n#c 3\n>" in asks[2].prompts[0].messages[0]["content"]
    assert solution.text == "done 2" and [len(one) for one in solution.rounds] == [3, 3, 1]


def test_earlier_turns_stand_before_both_prompts_and_the_last_user_turn_is_the_problem():
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}, *PROBLEM]
    _, asks, _ = run([[TWO] * 3, [TWO]], chat=chat)
    for ask in asks:
        assert ask.prompts[0].messages[:2] == chat[:2]
        text = LetterTokenizer().decode(ask.prompts[0].token_ids)
        assert text.startswith("system:be brief|user:hi|user:") and text.endswith("|assistant:")
    assert asks[1].prompts[0].messages[2]["content"].startswith("refine 1+1\n#")


def test_fewer_candidates_are_refined_over_and_it_is_said():
    solution, asks, _ = run([[TWO, said("thinking on", finished=False)], [TWO]])
    assert asks[1].prompts[0].messages[0]["content"] == "refine 1+1\n#\\boxed{2}\n>"
    assert solution.degraded == "fewer_candidates"
    assert [one.shown for one in solution.candidates] == [True, False]


def test_unfinished_candidates_are_shown_where_the_model_was_trained_so():
    cut = replace(SETTINGS, unfinished_candidates="cut")
    solution, asks, _ = run([[TWO, said("more", finished=False), TWO], [TWO]], cut)
    assert "\n#more\n#" in asks[1].prompts[0].messages[0]["content"] and solution.degraded is None


def test_if_no_candidate_ended_the_unfinished_ones_are_shown():
    solution, asks, _ = run([[said("x", finished=False)] * 3, [TWO]])
    assert asks[1].prompts[0].messages[0]["content"] == "refine 1+1\n#x\n#x\n#x\n>"
    assert solution.degraded == "unfinished_candidates" and solution.text == TWO.text


def test_without_anything_to_show_the_majority_answers():
    thinking = [said("<think> 3", finished=False), said("<think> 2", finished=False)]
    solution, asks, _ = run([thinking])
    assert len(asks) == 1 and solution.degraded == "no_usable_candidate"
    assert solution.text == "<think> 3", "no answer at all: the first"


def test_a_refinement_that_fails_leaves_the_first_candidate_of_the_majority():
    first, second = said(r"one \boxed{2}"), said(r"two \boxed{2}")
    settings = replace(SETTINGS, count_votes=False)
    solution, _, _ = run([[THREE, first, second], SamplingFailed("server gone")], settings)
    assert solution.text == first.text and solution.answer == "2"
    assert (solution.degraded, solution.reason) == ("refinement_failed", "server gone")


def test_a_later_round_that_fails_leaves_the_majority_of_the_round_before():
    middle = [said(r"\boxed{5}"), said(r"\boxed{6}"), said(r"again \boxed{6}")]
    solution, _, _ = run([[TWO] * 3, middle, SamplingFailed("slow", 504)], replace(SETTINGS, rounds=2))
    assert solution.text == r"\boxed{6}" and solution.degraded == "refinement_failed"


def test_a_prompt_that_cannot_fit_is_answered_by_the_majority():
    long = "1+1" * 40
    settings = replace(SETTINGS, max_refinement_prompt_length=len(long) + 40)
    solution, asks, _ = run([[TWO] * 3], settings, [{"role": "user", "content": long}])
    assert len(asks) == 1 and solution.degraded == "prompt_too_long" and solution.text == TWO.text


def test_no_candidate_at_all_is_an_error():
    with pytest.raises(SamplingFailed, match="nothing there"):
        run([SamplingFailed("nothing there")])


def test_a_problem_that_fills_the_window_is_refused_before_anything_is_asked_for():
    with pytest.raises(PromptTooLong, match="fill the model's window of 400"):
        run([], chat=[{"role": "user", "content": "x" * 400}])


def test_a_long_problem_leaves_candidates_the_room_there_is():
    _, asks, _ = run([[TWO] * 3], replace(SETTINGS, mode="vote"), [{"role": "user", "content": "x" * 370}])
    assert asks[0].sampling.max_tokens == WINDOW - len(asks[0].prompts[0].token_ids) == 14


def test_vote_answers_with_the_majority_and_samples_no_refinement():
    solution, asks, _ = run([[THREE, TWO, TWO]], replace(SETTINGS, mode="vote", count_votes=False))
    assert len(asks) == 1 and solution.text == TWO.text and solution.degraded is None
    assert solution.usage.refinement_tokens == 0


def test_a_vote_of_fewer_candidates_says_so():
    solution, _, _ = run([[TWO, THREE]], replace(SETTINGS, mode="vote"))
    assert solution.text == TWO.text and solution.degraded == "fewer_candidates"


def test_a_vote_of_candidates_that_were_all_cut_off_says_so():
    cut = [said(r"\boxed{2}", finished=False)] * 3
    solution, _, _ = run([cut], replace(SETTINGS, mode="vote"))
    assert (solution.answer, solution.degraded) == ("2", "unfinished_candidates")
    solution, _, _ = run([[*cut[:2], TWO]], replace(SETTINGS, mode="vote"))
    assert solution.degraded is None


def test_direct_is_one_plain_sample():
    solution, asks, _ = run([[said("hello"), said("again")]], replace(SETTINGS, mode="direct", num_answers=2))
    assert [(ask.sampling.n, ask.last) for ask in asks] == [(2, True)]
    assert [one.text for one in solution.answers] == ["hello", "again"]


def test_several_answers_refine_the_same_candidates():
    solution, asks, _ = run([[TWO] * 3, [said("a"), said("b")]], replace(SETTINGS, num_answers=2))
    assert asks[1].sampling.n == 2 and [one.text for one in solution.answers] == ["a", "b"]
    best, _, _ = run([[THREE, TWO, TWO], SamplingFailed("x")], replace(SETTINGS, num_answers=4))
    assert [one.answer for one in best.answers] == ["2", "2", "3", "2"], "by votes, and over again"


def test_defaults_come_from_the_window():
    resolved = SolveSettings().resolved(2048)
    assert (resolved.max_completion_length, resolved.max_refinement_length) == (512, 512)
    assert resolved.max_refinement_prompt_length == 2048 - 512
    assert (resolved.refinement_temperature, resolved.refinement_top_p) == (0.6, 0.95)
    assert SolveSettings().resolved(131072).max_completion_length == 4096
    assert SolveSettings(temperature=1.0, refinement_temperature=0.0).resolved(512).refinement_temperature == 0.0
    with pytest.raises(ValueError, match=r"max_refinement_length=512 leaves no room .* set it to less than 512"):
        SolveSettings(max_refinement_length=512).resolved(512)


@pytest.mark.parametrize(
    ("keys", "window", "lengths"),
    [
        ({}, 8192, (3000, 4000)),
        ({"max_completion_length": 100}, 8192, (100, 100)),
        ({"max_refinement_length": 100}, 8192, (3000, 100)),
        ({}, 4096, (3000, 2096)),  # the refinement's prompt keeps its budget
        ({}, 2048, (2048, 512)),  # a candidate has what its prompt leaves, a refinement at least a quarter
        ({"trained_refinement_length": None}, 8192, (3000, 3000)),
    ],
)
def test_lengths_of_training_are_defaults_within_the_window(keys, window, lengths):
    trained = {"trained_completion_length": 3000, "trained_refinement_length": 4000}
    found = SolveSettings(**({"max_refinement_prompt_length": 2000} | trained | keys)).resolved(window)
    assert (found.max_completion_length, found.max_refinement_length) == lengths
    assert found.max_refinement_prompt_length + found.max_refinement_length <= window


@given(
    st.lists(st.tuples(st.sampled_from(["2", "3", ""]), st.booleans()), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from(["refine", "vote"]),
    st.integers(1, 3),
)
def test_whatever_comes_there_is_an_answer_and_usage_adds_up(drawn, fails, mode, rounds):
    candidates = [said(f"\\boxed{{{answer}}}" if answer else "hm", finished) for answer, finished in drawn]
    settings = replace(SETTINGS, num_candidates=6, mode=mode, rounds=rounds)
    refinements = [[said("2")] * 6] * (rounds - 1) + [SamplingFailed("x") if fails else [said("2")]]
    solution, asks, _ = run([candidates, *refinements], settings)
    assert solution.answers and solution.text
    tokens = sum(one.num_tokens for attempts in solution.rounds for one in attempts)
    assert solution.usage.completion_tokens == tokens
    ends = [end for _, end in drawn]
    whole = len(drawn) == 6 and (any(ends) if mode == "vote" else not fails and all(ends))
    assert (solution.degraded is None) == whole or rounds > 1
    assert len(asks) == (1 if mode == "vote" else 1 + rounds)


# More candidates than a refinement reads ---------------------------------------------------------------------------

SETS = replace(SETTINGS, num_candidates=8, candidates_per_set=2)  # R is 8
LETTERS = [said(letter) for letter in "abcdefgh"]


def shown(prompt) -> list[str]:
    """The candidates that a prompt of the wording `tiny` shows."""
    return prompt.messages[-1]["content"].removesuffix("\n>").split("\n#")[1:]


def test_more_candidates_than_the_model_was_trained_on_are_refined_in_sets_whose_refinements_vote():
    refined = [THREE, TWO, said("-"), TWO, THREE, TWO, TWO, TWO]
    solution, asks, told = run([LETTERS, refined], SETS)
    assert [(ask.stage, ask.number, ask.count, ask.sampling.n) for ask in asks] == [
        ("candidate", 0, 8, 8),
        ("refinement", 1, 8, 1),
    ]
    sets = [shown(prompt) for prompt in asks[1].prompts]
    assert all(len(set(one)) == 2 for one in sets)
    assert sorted("".join(map("".join, sets[:4]))) == sorted("".join(map("".join, sets[4:]))) == list("abcdefgh")
    assert (solution.text, solution.answer, solution.degraded) == (TWO.text, "2", None)
    assert [one.votes for one in solution.rounds[1]] == [2, 5, 1, 5, 2, 5, 5, 5]
    assert solution.usage.refinement_tokens == sum(len(one.token_ids) for one in refined)
    assert solution.usage.prompt_tokens == sum(len(prompt.token_ids) for ask in asks for prompt in ask.prompts)
    assert [(one.stage, len(one.attempts)) for one in told] == [("candidate", 8), ("refinement", 8)]
    again, other = run([LETTERS, refined], SETS)[1], run([LETTERS, refined], replace(SETS, seed=1))[1]
    assert [shown(prompt) for prompt in again[1].prompts] == sets != [shown(prompt) for prompt in other[1].prompts]


@pytest.mark.parametrize(
    ("keys", "sets"),
    [
        ({"candidates_per_set": None}, [8]),  # one long prompt
        ({"candidates_per_set": 99}, [8]),
        ({"num_refinements": 1}, [8]),
        ({"num_refinements": 3}, [2, 2, 2]),
        ({"num_candidates": 2}, [2]),
        ({"num_candidates": 2, "num_refinements": 3}, [2, 2, 2]),  # the same two, three times
    ],
)
def test_what_a_refinement_reads_and_how_many_there_are(keys, sets):
    settings = replace(SETS, **keys)
    _, asks, _ = run([LETTERS[: settings.num_candidates], [TWO] * len(sets)], settings)
    assert [len(shown(prompt)) for prompt in asks[1].prompts] == sets


def test_sets_are_full_as_long_as_enough_candidates_can_be_shown():
    cut = [said("x", finished=False)] * 5
    solution, asks, _ = run([LETTERS[:3] + cut, [TWO] * 8], SETS)
    sets = [shown(prompt) for prompt in asks[1].prompts]
    assert all(len(one) == 2 and set(one) < set("abc") for one in sets)
    assert solution.degraded == "fewer_candidates"


def test_a_further_round_refines_sets_of_refinements():
    middle = [said(letter) for letter in "ijklmnop"]
    solution, asks, _ = run([LETTERS, middle, [TWO] * 8], replace(SETS, rounds=2))
    assert [(ask.number, ask.count, ask.until) for ask in asks] == [(0, 8, 1 / 3), (1, 8, 2 / 3), (2, 8, 1.0)]
    assert all(set(shown(prompt)) < set("ijklmnop") for prompt in asks[2].prompts)
    assert solution.rounds[2][0].votes == 8


def test_several_answers_of_a_vote_are_those_with_most_votes():
    solution, _, _ = run([LETTERS, [THREE, TWO, TWO] + [said("")] * 5], replace(SETS, num_answers=3))
    assert [one.answer for one in solution.answers] == ["2", "2", "3"]


@pytest.mark.parametrize(
    ("stop", "asked", "groups", "more"),
    [
        (None, 0, [], 9),
        (None, 9, [0] * 9, 0),
        (1, 0, [], 5),  # five of nine decide
        (1, 5, [0] * 5, 0),
        (1, 5, [0, 0, 0, 0, 1], 1),  # 4 to 1, four are left: with the next one 5 to 1 and three left
        (1, 5, [0, 0, 0, 1, 1], 2),  # 3 to 2, four left: two more make it 5 to 2
        (1, 5, [None] * 5, 3),
        (1, 7, [0, 0, 0, 0, 1, 1, 1], 1),
        (1, 8, [0, 0, 0, 0, 1, 1, 1, 1], 1),
        (1, 9, [0, 0, 0, 0, 1, 1, 1, 1, None], 0),
        (0.6, 0, [], 2),
        (0.6, 2, [0, 1], 2),
        (0.6, 2, [0, 0], 0),
        (0.6, 4, [0, 0, 1, 0], 0),
        (0.8, 4, [0, 0, 1, 0], 4),
        (0.8, 8, [0, 0, 1, 0, 0, 1, 0, 1], 0),  # 5 to 3, one left: decided
        (0.8, 8, [0, 0, 1, 0, 1, 1, 0, 1], 1),
        (0.8, 4, [None] * 4, 4),
        (0.8, 4, [], 4),  # none came
    ],
)
def test_a_vote_of_nine_goes_on_until_it_is_decided(stop, asked, groups, more):
    assert SolveSettings(stop_when_agreed=stop).wave(9, asked, groups) == more


def run_in_waves(candidates: list, refinements: list, settings: SolveSettings) -> tuple[Solution, list[Ask]]:
    """Solve with these candidates and refinements, in turn, as many as each ask wants."""
    steps, reply, asks = solving(PROBLEM, LetterTokenizer(), settings.resolved(WINDOW), WINDOW), None, []
    left = {"candidate": list(candidates), "refinement": list(refinements)}
    try:
        while True:
            step = steps.send(reply)
            reply = rewards.vote(step.answers) if isinstance(step, Vote) else None
            if isinstance(step, Ask):
                asks.append(step)
                reply, left[step.stage] = left[step.stage][: step.count], left[step.stage][step.count :]
    except StopIteration as stop:
        return stop.value, asks


@given(st.lists(st.sampled_from("234-"), min_size=2, max_size=12), st.sampled_from(["refine", "vote"]))
def test_stopping_once_the_vote_cannot_change_changes_no_answer_and_samples_none_too_many(answers, mode):
    texts = [said("-" if one == "-" else f"\\boxed{{{one}}}") for one in answers]
    settings = replace(SETS, num_candidates=len(answers), candidates_per_set=1, mode=mode)
    candidates = texts if mode == "vote" else [said("x")] * len(answers)
    all_of_them, asks = run_in_waves(candidates, texts, settings)
    early, waves = run_in_waves(candidates, texts, replace(settings, stop_when_agreed=1.0))
    assert early.answer == all_of_them.answer and early.degraded is None
    sets, first = ([shown(one) for ask in run if ask.number for one in ask.prompts] for run in (asks, waves))
    assert first == sets[: len(first)]
    voters = early.rounds[-1]
    groups = rewards.vote(answers)[: len(voters) - 1]
    sizes = sorted(map(groups.count, set(groups)))
    assert ([0, 0, *sizes][-1] - [0, 0, *sizes][-2]) <= len(answers) - len(groups), "the last one was needed"


def test_with_a_share_candidates_come_as_they_are_read_and_sampling_ends_when_so_many_agree():
    settings = replace(SETS, stop_when_agreed=0.7)
    solution, asks = run_in_waves(LETTERS, [TWO, THREE, TWO, TWO], settings)
    assert [(ask.stage, ask.count, ask.first) for ask in asks] == [
        ("candidate", 4, 0), ("refinement", 2, 0), ("candidate", 4, 4), ("refinement", 2, 2)
    ]  # fmt: skip
    read = [shown(prompt) for ask in asks for prompt in ask.prompts if ask.stage == "refinement"]
    assert sorted("".join(map("".join, read[:2]))) == list("abcd")
    assert sorted("".join(map("".join, read[2:]))) == list("efgh"), "each reads what no other has read"
    assert (solution.answer, solution.degraded, len(solution.candidates)) == ("2", None, 8)
    assert solution.usage.candidate_tokens == 8 and solution.rounds[1][0].votes == 3
    solution, asks = run_in_waves(LETTERS, [TWO, TWO], settings)
    assert len(solution.candidates) == 4 and len(asks) == 2


def test_refinements_that_do_not_come_leave_the_vote_to_the_others():
    for replies, degraded in (
        ([LETTERS, [TWO, THREE, TWO]], "fewer_refinements"),
        ([LETTERS, SamplingFailed("slow", 504)], "refinement_failed"),
    ):
        solution, _, _ = run(replies, SETS)
        assert solution.degraded == degraded and solution.text == (TWO.text if len(solution.rounds) == 2 else "a")
    stop = replace(SETS, stop_when_agreed=0.9)
    waves = [LETTERS[:4], [TWO, THREE], LETTERS[4:], SamplingFailed("gone")]
    solution, _, _ = run(waves, stop)
    assert (solution.degraded, solution.reason, solution.answer) == ("fewer_refinements", "gone", "2")
    waves[2:] = [SamplingFailed("busy"), [THREE, THREE], [TWO] * 4]
    solution, asks, _ = run(waves, stop)
    assert (solution.degraded, solution.reason, solution.answer) == ("fewer_candidates", "busy", "2")
    assert [ask.count for ask in asks] == [4, 2, 4, 2, 4]


def test_sets_of_candidates_that_do_not_fit_leave_the_majority():
    long = "1+1" * 40
    settings = replace(SETS, max_refinement_prompt_length=len(long) + 30)
    solution, asks, _ = run([[TWO] * 8], settings, [{"role": "user", "content": long}])
    assert len(asks) == 1 and solution.degraded == "prompt_too_long" and solution.text == TWO.text


def test_nothing_to_show_at_first_is_made_up_for_by_later_candidates():
    silent = [said("<think>", finished=False)] * 4
    solution, asks = run_in_waves([*silent, *LETTERS[:4]], [TWO] * 6, replace(SETS, stop_when_agreed=0.9))
    assert solution.answer == "2" and [ask.stage for ask in asks] == ["candidate", "candidate", "refinement"]

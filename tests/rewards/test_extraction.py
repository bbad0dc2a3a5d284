"""Which answer of a completion is graded."""

import time

import pytest

from rewards import extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{3} ... no, \boxed{4}", "4"),
        (r"\boxed{3} and \boxed{4}", "3, 4"),
        (r"$x=\boxed{3}$ or $x = \boxed{-3}$.", "3, -3"),
        (r"\boxed{4} and \boxed{4}", "4"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\fbox{4}", "4"),
        (r"\boxed 4.", "4"),
        (r"\boxed{4", None),
        (r"\boxed{3} then \boxed{4", None),
        (r"<think>\boxed{3}", None),
        (r"<think>\boxed{3}</think>", None),
        (r"\boxed{3}</think>\boxed{4}", "4"),
        (r"[THINK]\boxed{3}[/THINK]\boxed{4}", "4"),
        ("<|begin_of_box|>4<|end_of_box|>", "4"),
        ("", None),
    ],
)
def test_the_last_box_of_the_final_part_counts(text, answer):
    assert extract_answer(text, require_box=True) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is $x = 4$.", "x = 4"),
        ("Final answer: 4", "4"),
        ("#### 1,234", "1,234"),
        ("<answer> 4 </answer>", "4"),
        ("We get 3 first.\nThen, adding 1, we arrive at 4 apples in all.", "4"),
        ("I do not know\nwhat to say.", None),
        (r"\boxed{4", None),
    ],
)
def test_without_a_box_the_final_answer_counts(text, answer):
    assert extract_answer(text) == answer
    assert extract_answer(text, require_box=True) is None


def test_quoted_candidates_are_not_the_answer():
    quoted = "<candidate_1>\n\\boxed{7}\n</candidate_1>\n> and again \\boxed{7}\n"
    assert extract_answer(quoted + r"My answer is \boxed{8}.") == "8"
    assert extract_answer(r"My answer is \boxed{8}." + "\n" + quoted) == "8"
    assert extract_answer(r"My answer is \boxed{8}. Candidate 2 got \boxed{7}.") == "8"
    assert extract_answer(quoted, require_box=True) is None
    assert extract_answer(r"Candidate 2 is correct and its answer is \boxed{7}.") == "7"


@pytest.mark.parametrize(
    "text",
    [
        "My answer: \\boxed{8}.\n\nFor reference:\nCandidate 1: \\boxed{7}\n**Candidate 2:** $\\boxed{9}$",
        r"Candidates 1 and 2 say \boxed{9}. But it is \boxed{8}.",
        r"It is \boxed{8}. Candidates 1 and 2 say \boxed{9}.",
        r"The answer is \boxed{8}. Most candidates answered \boxed{9}, which is wrong.",
        r"The answer is \boxed{8}. The first candidate's \boxed{9} is wrong.",
        r"Candidate 2 got 3.5 + 5.5 = \boxed{9}, but I get \boxed{8}.",
        r"It is \boxed{8}, not \boxed{9}.",
        r"One solution was \boxed{3}; the sum of all solutions was found to be \boxed{8}.",
        r"All candidates agree on \boxed{8}.",
    ],
)
def test_a_box_that_is_ascribed_to_others_gives_way(text):
    assert extract_answer(text, require_box=True) == "8"


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 50000,
        "$" * 400000,
        "<solution>" * 50000 + "</x>",
        "the answer is " * 50000,
        "{" * 500000,
        "<think>" * 100000,
        "\\boxed{1} " * 50000,
        "1" * 2000000,
        "\\[" * 200000,
        "is " * 200000,
        "> " * 300000,
        "a, b and " * 50000,
        "ﷺ" * 200000,
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.clock
@pytest.mark.parametrize("require_box", [True, False])
def test_extraction_never_takes_long(text, require_box):
    began = time.monotonic()
    extract_answer(text, require_box=require_box)
    assert time.monotonic() - began < 5

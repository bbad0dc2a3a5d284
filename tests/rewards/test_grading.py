"""Whether answers are graded as a mathematician would."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
from rewards.normalisation import clean
from rewards.numeric import read_number
from tests.rewards.graded_pairs import GRADED


@pytest.mark.parametrize("kind", GRADED)
def test_graded_pairs_agree(kind):
    golds, completions, expected = zip(*GRADED[kind], strict=True)
    verdicts = rewards.grade(list(completions), list(golds))
    wrong = [
        (gold, completion, verdict)
        for gold, completion, verdict, right in zip(golds, completions, verdicts, expected, strict=True)
        if verdict != (None if right is None else float(right))
    ]
    assert not wrong


def test_order_is_kept_and_equal_rows_are_verified_once():
    before = rewards.stats()
    answers = [f"\\boxed{{{n}+z}}" for n in (1, 2, 1, 3, 1, 2)]
    assert rewards.grade(answers, ["z+1"] * 6) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    first = rewards.stats()
    assert first["verified"] - before["verified"] <= 3
    rewards.grade(answers, ["z+1"] * 6)
    assert rewards.stats()["verified"] == first["verified"]
    assert rewards.stats()["cache_hits"] > first["cache_hits"]


@pytest.mark.parametrize("gold", ["", "   ", r"\boxed{}", r"\frac{1}{", r"2^{", "$$", None])
def test_an_unreadable_gold_is_never_a_reward(gold):
    for completion in (str(gold), r"\boxed{5}", f"\\boxed{{{gold}}}", ""):
        assert rewards.grade([completion], [gold]) == [None]


@pytest.mark.parametrize(
    "gold",
    ["0", "no", r"\emptyset", "A", "x", "Marta", "f(x)", r"\infty", "12:30", ">", r"M=\frac{9}{32} \sqrt{2}", 5, 0.5],
)
def test_a_gold_that_a_mathematician_can_read_is_graded(gold):
    assert rewards.grade([r"\boxed{77.125}", f"\\boxed{{{gold}}}"], [gold, gold]) == [0.0, 1.0]


def test_only_a_box_counts_where_one_is_required():
    assert rewards.grade(["The answer is 5.", r"\boxed{5}", "<answer>5</answer>"], ["5"] * 3, require_box=True) == [
        0.0,
        1.0,
        0.0,
    ]


def test_listing_guesses_never_helps():
    listings = [
        r"\boxed{3} or \boxed{4}",
        r"\boxed{3, 4}",
        r"\boxed{3 \text{ or } 4}",
        "The answer is 3 or 4",
        "It is either 3 or 4.",
        r"\boxed{\pm 4}",
    ]
    assert rewards.grade(listings, ["4"] * len(listings)) == [0.0] * len(listings)
    letters = [
        r"\boxed{A or B}",
        r"\boxed{A, B}",
        "(A) (B) (C)",
        "A/B",
        "The answer is A or B",
        r"\boxed{\text{A and B}}",
    ]
    for gold in "AB":
        assert rewards.grade(letters, [gold] * len(letters)) == [0.0] * len(letters)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 completions but 1 answers"):
        rewards.grade(["1", "2"], ["1"])
    assert rewards.grade([], []) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_equal_when_they_are(one, other):
    assert rewards.grade([f"\\boxed{{{one:,}}}"], [str(other)]) == [float(one == other)]


@pytest.mark.parametrize("text", ["\\boxed", "so \\boxed", "\\fbox \\boxed", "\\boxed{", "\\boxed{}"])
def test_a_box_without_content_is_no_answer(text):
    assert rewards.extract_answer(text, require_box=True) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_without_an_error(text):
    assert rewards.extract_answer(text) is None or isinstance(rewards.extract_answer(text), str)
    read_number(clean(text))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [None, "1/2", "0.5", r"\frac{2}{4}", "50%", "x+1", "1+x", "(1,2)", "(2,1)", "Ann", "B", "", "x=3", "3"]
        ),
        max_size=10,
    )
)
def test_votes_are_classes(answers):
    classes = rewards.vote(answers)
    assert classes == rewards.vote(answers)
    assert [c is None for c in classes] == [not answer for answer in answers]
    seen = list(dict.fromkeys(c for c in classes if c is not None))
    assert seen == list(range(len(seen)))
    by_answer = {}
    for answer, c in zip(answers, classes, strict=True):
        assert by_answer.setdefault(answer, c) == c


def test_votes_group_what_grading_calls_equal():
    answers = ["1/2", "0.5", None, r"\frac12", "3", r"\sqrt{9}", "(x+1)^2", "x^2+2x+1", "7", "7.0", " 7 "]
    assert rewards.vote(answers) == [0, 0, None, 0, 1, 1, 2, 2, 3, 3, 3]
    before = rewards.stats()["verified"]
    assert rewards.vote(["12", "12.0", "$12$", r"\text{Ann}", "Ann", r"\left(\dfrac12\right)", r"(\frac{1}{2})"])[
        :5
    ] == [0, 0, 0, 1, 1]
    assert rewards.stats()["verified"] - before <= 8
    before = rewards.stats()["verified"]
    assert rewards.vote(["12", "12.0", "$12$", "12"]) == [0, 0, 0, 0]
    assert rewards.stats()["verified"] == before


def test_real_benchmark_golds_equal_themselves():
    import json
    import os
    import pathlib

    folder = pathlib.Path(os.environ.get("GSR_BENCHMARKS", "benchmark_rows"))
    if not (folder / "math500.jsonl").exists():
        pytest.skip("set GSR_BENCHMARKS to a folder with math500.jsonl and olympiadbench.jsonl")
    for name in ("math500", "olympiadbench"):
        golds = [json.loads(line)["answer"] for line in (folder / f"{name}.jsonl").open()]
        verdicts = rewards.grade([f"\\boxed{{{gold}}}" for gold in golds], golds)
        assert verdicts == [1.0] * len(golds)


def test_a_gold_that_is_no_number_is_none():
    from rewards.golds import read_gold

    assert read_gold(float("nan")) is None and read_gold(2.5) == "2.5"

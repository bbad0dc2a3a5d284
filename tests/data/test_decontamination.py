"""Decontamination: copies in other spellings are found, clean problems are spared, every removal is explained."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsr_rl.data.decontamination import decontaminate, tokens_of
from gsr_rl.data.problems import evaluation_rows, read_problems
from tests.support.benchmark_rows import rows_of

PROBLEM = (
    r"Let $x \le \frac{3}{4}$ be a real number with $\left( x_{1} + 2 \right)^{2} \cdot 5 = 1{,}250$. "
    r"Find the sum of all integers $n$ such that $n < x$ and the polynomial $t^2 - nt + 7$ has a root in $[0, 1]$."
)


def row(text, identity="a"):
    return {"id": identity, "problem": text}


def removed(text, evaluation=PROBLEM, **more):
    _, found = decontaminate([row(text)], {"exam": [row(evaluation, "e1")]}, **more)
    return found


@pytest.mark.parametrize(
    "copy",
    [
        PROBLEM,
        PROBLEM.upper().replace("\\LE ", "\\le ").replace("\\FRAC", "\\frac").replace("\\LEFT", "\\left")
        .replace("\\RIGHT", "\\right").replace("\\CDOT", "\\cdot"),
        PROBLEM.replace(" ", "  \n"),
        PROBLEM.replace("$", ""),
        PROBLEM.replace(r"$x \le", r"\( x\leq").replace(r"{4}$", r"{4}\)"),
        PROBLEM.replace(r"\frac{3}{4}", r"\dfrac{3}{4}"),
        PROBLEM.replace(r"\frac{3}{4}", r"\frac34"),
        PROBLEM.replace(r"\left( x_{1} + 2 \right)^{2}", r"(x_1+2)^2"),
        PROBLEM.replace(r"\left(", r"\bigl(").replace(r"\right)", r"\bigr)"),
        PROBLEM.replace(r"\cdot", r"\times"),
        PROBLEM.replace(r"\cdot", "·").replace(r"\le ", "≤ "),
        PROBLEM.replace("1{,}250", "1250"),
        PROBLEM.replace("1{,}250", "1,250"),
        PROBLEM.replace("1{,}250", r"1\,250"),
        PROBLEM.replace(r"\right)^{2}", r"\right)²"),
        PROBLEM.replace("n < x", r"n \lt x").replace("t^2 - nt", r"t^{2}\,-\,nt"),
        PROBLEM.replace("real number", r"\text{real number}"),
        PROBLEM.replace("$t^2 - nt + 7$", r"\[ t^2 - nt + 7 \]"),
        "\u00a0" + PROBLEM.replace("Find", "Ｆｉｎｄ"),
    ],
)  # fmt: skip
def test_a_copy_in_another_spelling_is_equal(copy):
    (one,) = removed(copy)
    assert one["reason"] == "exact" and one["overlap"] == 1.0
    assert one["evaluation_set"] == "exam" and one["evaluation_id"] == "e1" and one["evaluation_problem"] == PROBLEM


@pytest.mark.parametrize(
    "copy",
    [
        f"Solve the following problem and explain each step.\n\n{PROBLEM}\n\nGive your answer as an integer.",
        PROBLEM.replace("Find the sum of all integers", "Determine the sum of all integers"),
        PROBLEM.split(". ", 1)[1],
    ],
)
def test_a_copy_with_other_words_around_it_or_a_part_left_out_overlaps(copy):
    (one,) = removed(copy)
    assert one["reason"] == "overlap" and 0.5 <= one["overlap"] <= 1


@pytest.mark.parametrize(
    "clean",
    [
        r"Find the sum of all integers $n$ such that $n^2 < 50$.",
        r"Let $x$ be a real number with $x^2 = 2$. Find $x^4$.",
        "What is 2+3?",
        PROBLEM.replace("7$ has a root", "9$ has a root"),
        r"Let $f(x) = \frac{3}{4}$ be a constant function. Find the number of roots of $t^2 - 9t + 7$ in $[0, 1]$.",
    ],
)
def test_a_problem_on_the_same_subject_or_with_another_number_is_spared(clean):
    assert removed(clean) == []


def test_a_short_problem_is_compared_for_equality_only():
    assert removed("what is 2 + 3 ?", "What is $2+3$?")[0]["reason"] == "exact"
    assert removed("What is 2+4?", "What is 2+3?") == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"Compute $\sin 60^\circ$.", "Compute $\\sin 60°$."),
        (r"Compute $\sin 60^{\circ}$.", r"Compute $\sin 60\degree$."),
        (r"Compute $\dbinom{5}{2}$.", r"Compute $\binom{5}{2}$."),
        (r"Compute $\tbinom52$.", r"Compute $\binom{5}{2}$."),
        ("What is $2+3$?", "What is $2+3$"),
        ("Compute $2+3.$", "Compute $2+3$"),
        (r"How many are in $\{1,2,3\}$?", r"How many are in \( \{ 1, 2, 3 \} \)?"),
        ("What is 1,234,567.5 + 1?", "What is 1234567.5 + 1?"),
        (r"Let $f: A \to B$.", r"Let $f: A \rightarrow B$."),
        (r"Let $f: A \to B$.", "Let $f: A → B$."),
        (r"Find $\angle ABC$.", "Find ∠ABC."),
        ("Find $x_1$ if $x_{12} + 2 = 5$.", "Find x₁ if x₁₂ + 2 = 5."),
        ("Find $x^{10} + a_{n}^2 + 2^{-1}$.", "Find x¹⁰ + aₙ² + 2⁻¹."),
        (r"Solve $a=b\\c=d$.", r"Solve $a=b\\[4pt]c=d$."),
    ],
)
def test_two_spellings_of_a_sign_are_one(one, other):
    assert tokens_of(one) == tokens_of(other)


@pytest.mark.parametrize(("one", "other"), [("$x_1$", "$x1$"), ("$1,2$", "$12$"), ("$1,20$", "$120$"), ("2²", "22")])
def test_signs_that_make_another_problem_stay(one, other):
    assert tokens_of(one) != tokens_of(other)


def test_the_threshold_is_a_share_of_the_shorter_text():
    words = ["7", *(f"w{chr(97 + i)}" for i in range(20))]  # 12 n-grams of 10
    copy = " ".join([*words[:15], *(f"other{chr(97 + i)}" for i in range(6))])  # 6 of them
    (one,) = removed(copy, " ".join(words), threshold=0.5)
    assert one["overlap"] == 0.5 and removed(copy, " ".join(words), threshold=0.51) == []
    assert removed(copy, " ".join(words), n=16, threshold=0.01) == []


AIME = r"can be written as $\frac{m}{n}$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
TRIANGLE = f"Let $ABC$ be a triangle. The ratio of the areas {AIME}"


def test_without_numbers_a_common_ending_is_no_copy():
    assert removed(f"A coin is tossed until heads appears twice. The probability {AIME}", TRIANGLE) == []
    (one,) = removed(f"Solve this and explain each step: {TRIANGLE}", TRIANGLE)
    assert one["reason"] == "overlap" and one["overlap"] >= 0.8


def test_the_frame_of_generated_problems_is_no_copy():
    frame = "State the final answer to the following arithmetic problem and nothing else at all: {} + {} ="
    rows = [row(frame.format(i, i + 1), f"r{i}") for i in range(100)]
    tests = [row(frame.format(i, i + 2), f"e{i}") for i in range(100)] + [row(frame.format(7, 8), "copy")]
    clean, found = decontaminate(rows, {"exam": tests})
    assert [one["id"] for one in found] == ["r7"] and len(clean) == 99


@given(st.lists(st.sampled_from(["find", "x", "12", "+", "\\sqrt", "\\pi", "(", ")", "=", "y", "sum"]), max_size=30))
def test_white_space_and_braces_never_matter(tokens):
    assert tokens_of(" ".join(tokens)) == tokens_of("  ".join("{" + token + "}\n" for token in tokens))


def test_problems_are_decontaminated_where_they_are_read(tmp_path):
    train, exam = tmp_path / "train.jsonl", tmp_path / "exam.jsonl"
    texts = [PROBLEM.replace("$", ""), *(f"What is {i}+{i}?" for i in range(300))]
    train.write_text("".join(json.dumps({"problem": t, "answer": "1"}) + "\n" for t in texts))
    exam.write_text(json.dumps({"problem": PROBLEM}) + "\n")  # an evaluation set without answers is one too
    from gsr_rl.data.config import ProblemConfig

    problems = read_problems(ProblemConfig(str(train), max_problems=20, decontaminate_against=[str(exam)]))
    assert len(problems.rows) == 20 and PROBLEM not in [one["problem"] for one in problems.rows]
    assert problems.counts["that an evaluation set holds"] == 1
    assert problems.removed_by_set() == {str(exam): {"exact": 1}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"Task": PROBLEM, "Answer": "1"}], r"in 1 rows \(columns: Task, Answer\): call the column .* problem"),
        ([], r"in 0 rows \(columns: none\)"),
    ],
)
def test_an_evaluation_set_without_a_problem_to_compare_with_is_an_error(tmp_path, rows, message):
    exam = tmp_path / "exam.jsonl"
    exam.write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(ValueError, match=rf"decontaminate_against=.*exam.jsonl: it has no problem .*{message}"):
        evaluation_rows(str(exam))


def test_rows_of_an_evaluation_set_without_a_problem_are_counted(tmp_path, capsys):
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"problem": PROBLEM}) + '\n{"problem": null}\n')
    assert len(evaluation_rows(str(exam))) == 1
    assert f"decontaminate_against={exam}: left out 1 rows without a problem" in capsys.readouterr().err


def test_real_sets_planted_copies_are_found_and_nearly_nothing_else():
    evaluation = {name: rows_of(name) for name in ("math500", "aime24", "aime25", "amc23", "gsm8k_test")}
    train = rows_of("gsm8k_train")[:3000]
    planted = []
    for name, rows in evaluation.items():
        for number, one in enumerate(rows[:25]):
            text = one["problem"].replace("\\frac", "\\dfrac").replace("$", " $ ").replace(". ", ".\n")
            planted.append(row(f"Problem {number}. {text}" if number % 2 else text, f"planted-{name}-{number}"))
    _, found = decontaminate(train + planted, evaluation)
    caught = {one["id"] for one in found if one["id"].startswith("planted")}
    short = {one["id"] for one in planted if len(tokens_of(one["problem"])) < 12}
    assert {one["id"] for one in planted} - caught <= short, "all but texts too short for an n-gram with a prefix"
    assert len(found) == len(caught)

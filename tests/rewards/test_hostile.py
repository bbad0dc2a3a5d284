"""Odd, huge and malicious texts get right verdicts in bounded time, from any thread, and are never executed."""

import os
import threading
import time

import pytest

import rewards

pytestmark = pytest.mark.clock

MARKER = "/tmp/gsr-rl-was-executed"
SECONDS = 10.0


def box(text: str) -> str:
    return f"\\boxed{{{text}}}"


# completion, gold, verdict
HANGS_A_SOLVER = [
    (box("9^{9^{9^{9}}}"), "42", 0.0),
    (box("9**9**9**9**9"), "42", 0.0),
    (box("(((50!)!)!)!"), "1", 0.0),
    (box("999999999!"), "1", 0.0),
    (box(r"\frac{1}{99999999!}"), "0", 0.0),
    (box(r"\sum_{k=1}^{10^{12}} \frac{1}{k^3+k}"), "1", 0.0),
    (box(r"\prod_{k=1}^{10^9} k"), "1", 0.0),
    (box(r"\int_0^1 x^{x^{x}} \sin(\cos(\tan(e^x))) dx"), "1", 0.0),
    (box(r"\binom{10^9}{5 \cdot 10^8}"), "1", 0.0),
    (box(r"2^{100000000}"), "2^{100000000}+1", 0.0),
    (box(r"e^{e^{e^{e^{e}}}}"), "1", 0.0),
    (box("(x+y+z+w)^{500}"), "(x+y+z+w)^{501}", 0.0),
    (box("x^{1000}-1=0"), "x=1", 0.0),
    (box(r"\sin(" * 150 + "x" + ")" * 150), "1", 0.0),
    (box(r"\sqrt{2+" * 90 + "2" + "}" * 90), "2", 0.0),
    (box("f(f(f(" * 100 + "x" + ")))" * 100), "x", 0.0),
    (box(r"\int \int \int e^{-x^2 y^2 z^2} dx dy dz"), "1", 0.0),
    (box(r"\tan(10^{100000})"), "1", 0.0),
    (box("10^{10^{10}}"), "10^{10^{10}}", 1.0),
    (
        box(
            r"\det\begin{pmatrix}"
            + r"\\".join("&".join(f"x_{{{i}{j}}}" for j in range(9)) for i in range(9))
            + r"\end{pmatrix}"
        ),
        "1",
        0.0,
    ),
]
HUGE = [
    ("{" * 10_000 + "}" * 10_000, "42", 0.0),
    (box("{" * 10_000 + "}" * 10_000), "42", 0.0),
    (box("(" * 300 + "1" + ")" * 300), "1", 1.0),
    (r"\sqrt{" * 5_000 + "2" + "}" * 5_000, "2", 0.0),
    ("1" * 1_000_000, "42", 0.0),
    (box("1" * 1_000_000), "42", 0.0),
    ("1" * 1_000_000 + " " + box("42"), "42", 1.0),
    (box("42") + " " + "1" * 1_000_000, "42", 1.0),
    (box("1" + "0" * 4_000), "1" + "0" * 4_000, 1.0),
    (box("1" + "0" * 4_000), "1" + "0" * 4_001, 0.0),
    (box("1e999999999"), "1", 0.0),
    (box("0." + "0" * 3_000 + "1"), "0", 0.0),
    (box("1") * 5_000, "1", 1.0),
    (" ".join(box(str(n)) for n in range(5_000)), "4999", 1.0),
    (" ".join(box(str(n)) for n in range(5_000)), "42", 0.0),
    (", ".join(box(str(n)) for n in range(5_000)), "42", 0.0),
    ("\\boxed{" * 5_000 + "7" + "}" * 5_000, "7", 1.0),
    ("\\boxed{" * 5_000, "7", 0.0),
    ("\\boxed" * 10_000, "7", 0.0),
    (box(",".join(map(str, range(800)))), ",".join(map(str, range(800))), 1.0),
    (box("1," * 2_000 + "2"), "1", 0.0),
    (box(r"\begin{pmatrix}" * 100), "1", 0.0),
    (box("x" * 4_000), "42", 0.0),
    (box("x+" * 2_000 + "x"), "42", 0.0),
    ("<think>" * 10_000 + "</think>" * 10_000 + box("1"), "1", 1.0),
    ("<think>" * 10_000 + box("1"), "1", 0.0),
    ("$" * 20_000, "1", 0.0),
    ("the answer is " * 20_000, "1", 0.0),
    ("a" * 1_000_000, "1", 0.0),
    ("\n" * 1_000_000 + box("5"), "5", 1.0),
    ("🙂" * 100_000 + box("5"), "5", 1.0),
]
ODD = [
    (box("\x00\x01\x02\x03"), "42", 0.0),
    ("\u202e" + box("42"), "42", 1.0),
    (box("\u200b42\u200b"), "42", 1.0),
    ("\ud800" + box("5"), "5", 1.0),
    (box("\ud800"), "5", 0.0),
    (box("\ufdfa" * 4_000), "1", 0.0),
    (box("|" * 1_000), "1", 0.0),
    (box("^" * 1_000), "1", 0.0),
    (box("!" * 1_000), "1", 0.0),
    (box("-" * 1_001 + "1"), "2", 0.0),
    (box(r"\left(" * 1_000), "1", 0.0),
    (box(r"\pm 1" * 12), "1", 0.0),
    (box(r"\frac{1}{0}"), "1", 0.0),
    (box("0^{-1}"), "0", 0.0),
    (box(r"\infty-\infty"), "0", 0.0),
    (box("nan"), "0", 0.0),
    (box("1/" + "0" * 1_000), "1", 0.0),
    (box("%s%n%d{0.__class__}"), "1", 0.0),
    (box("'; DROP TABLE rows; --"), "1", 0.0),
]
CODE = [
    (box(f"__import__('os').system('touch {MARKER}')"), "42", 0.0),
    (f"__import__('os').system('touch {MARKER}')", "42", 0.0),
    (box(f"exec(\"open('{MARKER}','w')\")"), "42", 0.0),
    (box(f"eval(compile('open(\"{MARKER}\",\"w\")','','exec'))"), "42", 0.0),
    (box("().__class__.__bases__[0].__subclasses__()"), "42", 0.0),
    (box("lambda: 42"), "42", 0.0),
    (box(r"\input{/etc/passwd}"), "42", 0.0),
    (box(r"\write18{touch " + MARKER + "}"), "42", 0.0),
    (box("$(touch " + MARKER + ")"), "42", 0.0),
    (box("Symbol('x').__reduce__()"), "42", 0.0),
]


def run(rows, timeout):
    """Rows with a wrong verdict or too slow, as (start of the completion, verdict, seconds)."""
    wrong = []
    for completion, gold, verdict in rows:
        began = time.monotonic()
        got = rewards.grade([completion], [gold], timeout=timeout)
        seconds = time.monotonic() - began
        if got != [verdict] or seconds > SECONDS:
            wrong.append((completion[:60], got, seconds))
    return wrong


@pytest.fixture(scope="module", autouse=True)
def started():
    rewards.grade([box("x+1")], ["1+x+x"])


def in_thread(rows, timeout):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(rows, timeout)))
    thread.start()
    thread.join(SECONDS * len(rows))
    assert not thread.is_alive()
    return found[0]


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        pytest.param(HANGS_A_SOLVER, run, id="hangs-main"),
        pytest.param(HANGS_A_SOLVER[:3], in_thread, id="three hangs-thread"),
        pytest.param(HANGS_A_SOLVER[3:], in_thread, id="the other hangs-thread", marks=pytest.mark.slow),
        *(
            pytest.param(rows, where, id=f"{name}-{place}")
            for name, rows in (("huge", HUGE), ("odd", ODD))
            for place, where in (("main", run), ("thread", in_thread))
        ),
    ],
)
def test_hostile_answers_are_graded_right_and_in_time(rows, where):
    assert where(rows, 1.5) == []


@pytest.mark.parametrize("where", [run, in_thread], ids=["main", "thread"])
def test_nothing_is_ever_executed(where):
    if os.path.exists(MARKER):
        os.remove(MARKER)
    assert where(CODE, 1.5) == []
    for completion, *_ in CODE:  # as a gold answer too
        rewards.grade([box("42")], [completion], timeout=1.5)
    assert not os.path.exists(MARKER)


def test_the_default_deadline_leaves_time_to_spare():
    assert run([(box(r"\prod_{k=1}^{10^9} (k+w)"), "1+w", 0.0)], None) == []

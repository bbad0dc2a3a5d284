"""How fast answers are verified: math-verify one row after another, against `rewards.grade` with 2 workers.

    python benchmarks/verify.py [--rows 400] [--workers 2]

Three loads, all made here from a fixed seed: distinct rows (as in an evaluation: 45 % integers and decimals, the rest
fractions, roots, polynomials, tuples, intervals, sets and equations; half of the answers right), formulas alone, and
rows as in GRPO, where 16 rollouts of a problem give few different answers. Each row is a worked solution of some 700
characters that ends in a box. Starting the workers is not counted. Ends with one line of JSON.
"""

import argparse
import json
import logging
import os
import random
import statistics
import time

FILLER = (
    "Let us set up the problem step by step. We first write the condition $a_{n+1} = 2a_n + 3$ and simplify it: "
    "$a_n + 3 = 2^n (a_0 + 3)$. Now count the cases with remainder $r = 1$, and find \\[ N = \\frac{m(m+1)}{2}. \\] "
)


def formula(stream: random.Random) -> tuple[str, str, str]:
    """(gold, the same written otherwise, something else)."""
    a, b, c = stream.randint(2, 90), stream.randint(2, 90), stream.randint(2, 40)
    return stream.choice(
        [
            (
                rf"\frac{{{a}}}{{{a * b + 1}}}",
                rf"\dfrac{{{2 * a}}}{{{2 * a * b + 2}}}",
                rf"\frac{{{a + 1}}}{{{a * b + 1}}}",
            ),
            (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"{a}\sqrt{{{b + 1}}}"),
            (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})", f"(x+{a})(x-{b})"),
            (rf"\left({a}, \frac{{{b}}}{{2}}\right)", f"({a},{b / 2})", f"({b / 2},{a + 1})"),
            (f"[{-a}, {b})", rf"\left[{-a},{b}\right)", f"({-a},{b})"),
            (rf"\{{{a}, {a + b}, {a + b + c}\}}", rf"{a + b + c}, {a}, {a + b}", rf"{a}, {a + b}"),
            (f"{a}x+{b}y={c}", f"y=\\frac{{{c}-{a}x}}{{{b}}}", f"{a}x-{b}y={c}"),
            (
                rf"{a}+\frac{{{b}\pi}}{{{c + 1}}}",
                rf"\frac{{{b}\pi}}{{{c + 1}}}+{a}",
                rf"{a}-\frac{{{b}\pi}}{{{c + 1}}}",
            ),
        ]
    )


def number(stream: random.Random) -> tuple[str, str, str]:
    value = stream.randint(1, 90_000)
    if stream.random() < 0.2:
        return f"{value / 100:.2f}", f"{value / 100:.2f}", f"{value / 100 + 1:.2f}"
    return str(value), f"{value:,}", str(value + stream.randint(1, 9))


def solution(answer: str) -> str:
    return FILLER * 2 + f"Putting this together we get $\\boxed{{{answer}}}$."


def distinct_rows(count: int, formulas: float, seed: int) -> tuple[list[str], list[str]]:
    stream = random.Random(seed)
    golds, completions = [], []
    for row in range(count):
        gold, same, other = formula(stream) if stream.random() < formulas else number(stream)
        golds.append(f"{gold}")
        completions.append(solution(same if row % 2 else other))
    return completions, golds


def grpo_rows(problems: int, rollouts: int, seed: int) -> tuple[list[str], list[str]]:
    stream = random.Random(seed)
    golds, completions = [], []
    for _ in range(problems):
        answers = formula(stream) if stream.random() < 0.55 else number(stream)
        golds += [answers[0]] * rollouts
        completions += [solution(answer) for answer in stream.choices(answers, weights=(5, 2, 3), k=rollouts)]
    return completions, golds


def sequential(completions: list[str], golds: list[str]) -> tuple[float, list[bool]]:
    """Seconds and verdicts of math-verify, row after row, without its own time limits."""
    from math_verify import parse, verify

    began = time.perf_counter()
    verdicts = []
    for completion, gold in zip(completions, golds, strict=True):
        truth = parse(f"${gold}$", parsing_timeout=None)
        verdicts.append(verify(truth, parse(completion, parsing_timeout=None), timeout_seconds=None))
    return time.perf_counter() - began, verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400, help="distinct rows; rows as in GRPO are four times as many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each load, each with new rows; the median counts"
    )
    options = parser.parse_args()
    os.environ["GSR_REWARDS_WORKERS"] = str(options.workers)
    logging.disable(logging.CRITICAL)

    import rewards

    rewards.grade(
        [r"\boxed{x+1}", r"\boxed{2x}"] * options.workers, [f"x+{n}" for n in range(2 * options.workers)]
    )  # start
    sequential(*distinct_rows(20, 0.5, 99))
    loads = {
        "distinct rows": lambda seed: distinct_rows(options.rows, 0.55, seed),
        "formulas alone": lambda seed: distinct_rows(options.rows // 2, 1.0, seed),
        "rows as in GRPO, 16 rollouts": lambda seed: grpo_rows(options.rows // 4, 16, seed),
    }
    ratios = {}
    print(f"{'load':30} {'rows':>6} {'math-verify':>14} {'rewards':>14} {'ratio':>7} {'agree':>7}")
    for name, make in loads.items():
        runs = []
        for repeat in range(options.repeats):
            completions, golds = make(1000 + repeat)
            began = time.perf_counter()
            ours = rewards.grade(completions, golds)
            ours_seconds = time.perf_counter() - began
            theirs_seconds, theirs = sequential(completions, golds)
            agree = sum(bool(a) == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
            runs.append((theirs_seconds / ours_seconds, len(ours) / theirs_seconds, len(ours) / ours_seconds, agree))
        ratio, slow, fast, agree = (statistics.median(column) for column in zip(*runs, strict=True))
        ratios[name] = ratio
        print(f"{name:30} {len(ours):6} {slow:8.0f} rows/s {fast:8.0f} rows/s {ratio:7.2f} {agree:7.1%}")

    began = time.perf_counter()
    rewards.grade(
        [r"\boxed{\prod_{k=1}^{10^9} (k+x)}"], ["1+x"], timeout=1.0
    )  # hangs its worker, which is killed at 1 s
    hung = time.perf_counter() - began - 1.0
    rewards.grade([rf"\boxed{{x+{n}}}" for n in range(options.workers)], [rf"{n}+x" for n in range(options.workers)])
    recover = time.perf_counter() - began - 1.0
    print(
        f"a hung worker: verdict {hung * 1000:.0f} ms after the deadline; "
        f"replaced, and the next rows graded, after {recover * 1000:.0f} ms"
    )
    print(rewards.stats())
    print(
        json.dumps(
            {
                "distinct_ratio": round(ratios["distinct rows"], 2),
                "grpo_ratio": round(ratios["rows as in GRPO, 16 rollouts"], 2),
                "recover_seconds": round(recover, 4),
                "formula_ratio": round(ratios["formulas alone"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()

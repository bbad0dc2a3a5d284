"""Share of graded pairs that come out right, by kind: math-verify alone, and `rewards`.

    python tests/rewards/compare_pairs.py

Prints the table of docs/rewards.md. The pairs stand in pairs.jsonl beside this file: a gold answer, a completion, and
whether it is right (null: the gold answer is none, so nothing may be paid). They were written for these tests.
"""

import collections
import json
import logging
import pathlib
import sys

PAIRS = pathlib.Path(__file__).with_name("pairs.jsonl")


def read_pairs() -> list[dict]:
    return [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


def verdicts_of_rewards(pairs: list[dict]) -> list[float | None]:
    import rewards

    verdicts: list[float | None] = [None] * len(pairs)
    for require_box in (True, False):
        rows = [row for row, pair in enumerate(pairs) if pair["require_box"] == require_box]
        completions, golds = ([pairs[row][key] for row in rows] for key in ("completion", "gold"))
        for row, verdict in zip(rows, rewards.grade(completions, golds, require_box=require_box), strict=True):
            verdicts[row] = verdict
    return verdicts


def verdicts_of_math_verify(pairs: list[dict]) -> list[float]:
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    verdicts = []
    for pair in pairs:
        gold = parse(f"${pair['gold']}$", parsing_timeout=None)
        answer = parse(pair["completion"], parsing_timeout=None)
        verdicts.append(float(verify(gold, answer, timeout_seconds=None)))
    return verdicts


def table() -> list[str]:
    """The lines of the table: a kind of pair each, with the pairs right of all."""
    pairs = read_pairs()
    totals, ours, theirs = (collections.Counter() for _ in range(3))
    for pair, verdict, other in zip(pairs, verdicts_of_rewards(pairs), verdicts_of_math_verify(pairs), strict=True):
        for kind in (pair["kind"], "all"):
            totals[kind] += 1
            ours[kind] += verdict == pair["expected"]
            theirs[kind] += bool(other) == bool(pair["expected"])
    kinds = [*(kind for kind in totals if kind != "all"), "all"]
    lines = ["| kind | pairs | math-verify alone | rewards |", "|---|---|---|---|"]
    for kind in kinds:
        shares = (f"{counts[kind] / totals[kind]:.0%}" for counts in (theirs, ours))
        lines.append(f"| {kind} | {totals[kind]} | {' | '.join(shares)} |")
    return lines


if __name__ == "__main__":
    sys.stdout.write("\n".join(table()) + "\n")

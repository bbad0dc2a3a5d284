"""Pairs by kind, in both directions: what is the gold answer written otherwise, and what only looks like it."""

import pathlib

import pytest

from tests.rewards.compare_pairs import read_pairs, table, verdicts_of_rewards

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "rewards.md"
PAIRS = read_pairs()


@pytest.mark.parametrize("kind", dict.fromkeys(pair["kind"] for pair in PAIRS))
def test_pairs_of_each_kind_are_graded_as_written_down(kind):
    pairs = [pair for pair in PAIRS if pair["kind"] == kind]
    assert {1.0, 0.0} <= {pair["expected"] for pair in pairs}
    wrong = [
        (pair["gold"], pair["completion"], verdict)
        for pair, verdict in zip(pairs, verdicts_of_rewards(pairs), strict=True)
        if verdict != pair["expected"]
    ]
    assert not wrong


def test_the_docs_hold_the_table_that_the_command_prints():
    assert "\n".join(table()) in DOCS.read_text(encoding="utf-8")

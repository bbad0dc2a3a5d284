"""A completion that hangs the math stack inside a real joint step: the step goes on, the other rows are graded."""

import json

import pytest

from tests.support.programs import Program

pytestmark = pytest.mark.clock


@pytest.fixture(scope="module")
def step(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("hostile") / "out.json"
    program = Program("tests/programs/hostile_step.py", out, tiny_model)
    assert program.wait(timeout=400) == 0, program.output()[-6000:]
    return json.loads(out.read_text())


def test_the_step_ends_within_the_deadline_and_two_seconds(step):
    assert len(step["rows"]) == 256
    assert step["timeout"] <= step["log"]["time/reward"] < step["timeout"] + 2
    assert step["stats"]["timeouts"] == 1
    assert step["log"]["loss"] is not None


def test_the_other_255_rows_are_graded_right(step):
    hostile = [row for row in step["rows"] if "prod" in row[0]]
    assert [(correct, stage) for _, correct, _, stage in hostile] == [(0.0, "candidate")]
    others = [row for row in step["rows"] if "prod" not in row[0]]
    assert [correct for _, correct, _, _ in others] == [float("+q" in text) for text, _, _, _ in others]


def test_a_reward_of_one_stage_counts_in_that_stage_alone(step):
    for _, correct, reward, stage in step["rows"]:
        assert reward == correct + (stage == "refinement")
    assert step["log"]["rewards/refinement/format/mean"] == 1.0
    for name in ("timeouts", "unreadable_golds", "missing_answers", "seconds"):
        assert f"verifier/{name}" in step["log"], name

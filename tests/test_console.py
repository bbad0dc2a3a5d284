"""The console of a training: one readable line per log record, of at most 160 characters."""

import pytest

from gsr_rl.cli import clock, log_line

STEP = {
    "loss": 0.0004,
    "candidate/accuracy": 0.461,
    "gap/maj@4": 0.4869,
    "gap/selfref@4": 0.84375,
    "gap/refinement_gap": 0.3568,
    "gap/pass@4": 0.89,
    "candidate/reward": 0.461,
    "refinement/reward": 0.844,
    "candidate/completion_length": 13.7,
    "refinement/completion_length": 14.2,
    "step_time": 6.33,
    "time/rollout": 3.26,
    "time/update": 2.7,
    "tokens/per_second": 8310.3,
}


def test_a_step_in_one_line():
    assert log_line(12, 110, 511, STEP) == (
        " 12/110 8:31 left  pass@1 46.1 maj@4 48.7 selfref@4 84.4 gap +35.7  reward 0.46 0.84  length 14 14"
        "  6.3 s (3.3 + 2.7)  8,310 tok/s"
    )


def test_the_longest_line_has_160_characters_at_most():
    long = STEP | {"candidate/completion_length": 32768, "refinement/completion_length": 32768, "step_time": 1234.5}
    long |= {"time/rollout": 1000.1, "time/update": 234.4, "tokens/per_second": 1234567, "gap/refinement_gap": -0.41}
    long = {name.replace("@4", "@4-16"): value for name, value in long.items()}
    line = log_line(12345, 12345, 99 * 3600, long)
    assert 150 < len(line) <= 160 and line.endswith("1,234,567 tok/s"), line
    longer = log_line(12345, 12345, 9999 * 3600, long | {"candidate/reward": -12345.0, "refinement/reward": -12345.0})
    assert len(longer) <= 160 and longer.endswith("1234 s (1000 + 234)")


def test_sets_of_another_choice_where_none_is_uniform():
    chosen = {name.replace("gap/", "chosen/"): value for name, value in STEP.items()}
    assert log_line(12, 110, 511, chosen) == log_line(12, 110, 511, STEP)


def test_held_out_problems():
    logs = {"eval_pass@1": 0.5, "eval_maj@4": 0.6, "eval_selfref@4": 0.7, "eval_refinement_gap": 0.1}
    logs |= {"eval_problems": 200.0, "eval_seconds": 12.34}
    expected = "50/110 1:00 left  held out: pass@1 50.0 maj@4 60.0 selfref@4 70.0 gap +10.0  12.3 s"
    assert log_line(50, 110, 60, logs).strip() == expected


def test_the_warm_start():
    logs = {"loss": 0.1087, "mean_token_accuracy": 0.957, "step_time": 0.42, "tokens/per_second": 4700.0}
    assert log_line(20, 1575, None, logs) == "  20/1575  loss 0.1087 tokens right 95.7  0.4 s  4,700 tok/s"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (511, "8:31"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text

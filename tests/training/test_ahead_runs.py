"""Runs with `rollout_ahead` against stand-ins of vLLM servers: killed, resumed, on two ranks, with slow rewards."""

import json
import random
import time

import pandas as pd
import pytest
import torch

from gsr_rl.data import tiny_world
from gsr_rl.data.problems import training_rows
from gsr_rl.training.problem_order import ProblemStream
from tests.support.paths import ROOT
from tests.support.programs import FORKED_RANKS, Program
from tests.support.vllm_stand_in import StandIn

PROGRAM = ROOT / "tests" / "programs" / "killable_run.py"
RNG = random.Random(0)


def answer(ids, place):
    """Tokens of the tiny world's tokenizer, others each time, so that rewards differ; the last one ends."""
    return [RNG.randrange(5, 30) for _ in range(4)]


def keys(*servers, **more) -> str:
    values = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": [server.url for server in servers]}
    values |= {"vllm_server_timeout": 20, "server_request_timeout": 60, "rollout_ahead": 1}
    return json.dumps(values | more)


def start(out, model, overrides, accelerate=None, **environment) -> Program:
    prefix = []
    if accelerate:
        prefix = ["-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{accelerate}.yaml"]
        prefix += ["--main_process_port", "0"]
        environment |= FORKED_RANKS
    return Program(*prefix, PROGRAM, out, model, overrides, **environment)


def ended(program, expect=0) -> str:
    assert program.wait(500) == expect, program.output()[-5000:]
    return program.output()


def logs(out) -> list[dict]:
    lines = (out.parent / f"{out.name}_run" / "metrics.jsonl").read_text().splitlines()
    return [log for log in map(json.loads, lines) if "loss" in log]


def trained(out, steps=8) -> list[str]:
    """The problems of each step, as the rollout tables have them, in order of steps and ranks."""
    tables = sorted((out.parent / f"{out.name}_run" / "rollouts").glob("step_*_rank_*.parquet"))
    tables = [pd.read_parquet(table) for table in tables]
    assert {int(step) for table in tables for step in table.step} == set(range(steps))
    return [name for table in tables for name in table.problem_id.unique()]


def epochs(number: int) -> list[str]:
    """The first so many problems of the run's order: ten problems, seed 3."""
    rows = training_rows(tiny_world.generate("mix", "train", 10, 0), "tiny")
    names = [str(row["problem_id"]) for row in rows]
    return [names[index] for index in ProblemStream(10, 3).take(number)]


@pytest.mark.parametrize(
    "ahead, kills",
    [
        (2, ["step 3"]),
        pytest.param(1, [1.0, "saving", 0.6, 0.2, "step 5", "moving"], marks=pytest.mark.slow),
    ],
    ids=["between two checkpoints", "anywhere"],
)
def test_a_run_that_is_killed_trains_on_every_problem_once_and_in_order(tiny_model, tmp_path, ahead, kills):
    out = tmp_path / "run.pt"
    with StandIn(answer, seconds=0.05) as first, StandIn(answer, seconds=0.1) as second:
        for kill in kills:
            program = start(out, tiny_model, keys(first, second, rollout_ahead=ahead), KILL=str(kill))
            assert program.wait(500) in (-9, 137, 0), program.output()[-5000:]
            if not program.wait(0):
                assert kill != kills[0]
                break  # it was too quick to be killed once more
        else:
            ended(start(out, tiny_model, keys(first, second, rollout_ahead=ahead)))
    assert trained(out) == epochs(16)
    assert [log["step"] for log in logs(out)][-1] == 8
    assert all(0 <= log["rollout/staleness"] <= ahead and log["rollout/dropped"] == 0 for log in logs(out))
    assert max(log["rollout/staleness"] for log in logs(out)) > 0
    assert all("candidate/importance_sampling_ratio/clipped" in log for log in logs(out))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("accelerate", ["zero2_cpu", "zero3_cpu"])
def test_two_ranks_go_on_when_a_server_dies_in_the_middle_and_end_alike_when_none_is_left(
    tiny_model, tmp_path, accelerate
):
    out = tmp_path / "run.pt"
    with StandIn(answer, seconds=0.3) as dying, StandIn(answer, seconds=0.3) as other:
        program = start(out, tiny_model, keys(dying, other, max_steps=8), accelerate)
        deadline = time.monotonic() + 400
        while len(dying.pushes) < 3 or not dying.in_flight:
            assert time.monotonic() < deadline and program.process.is_alive(), program.output()[-5000:]
            time.sleep(0.01)
        dying.kill()
        output = ended(program)
        assert output.count(f"the vLLM server at {dying.url} is lost") == 1
        assert trained(out) == epochs(32)
        program = start(tmp_path / "again.pt", tiny_model, keys(other, max_steps=500), accelerate)
        before = len(other.pushes)
        while len(other.pushes) < before + 3:
            assert time.monotonic() < deadline + 400 and program.process.is_alive(), program.output()[-5000:]
            time.sleep(0.01)
        other.kill()
        killed = time.monotonic()
        output = ended(program, expect=1)
        assert time.monotonic() - killed < 30
        assert output.count("RuntimeError: the vLLM servers failed in") >= 2 and "no vLLM server is left" in output


@pytest.mark.slow
def test_over_sampling_a_curriculum_a_random_k_and_a_slow_reward_work_with_it(tiny_model, tmp_path):
    out = tmp_path / "run.pt"
    more = {"oversample": 2.0, "curriculum": True, "min_num_candidates": 1, "num_candidates": 3}
    with StandIn(answer, seconds=0.2) as server:
        ended(start(out, tiny_model, keys(server, **more), REWARD_SECONDS="0.5"))
    assert len(logs(out)) == 8
    for log in logs(out)[1:]:
        assert log["rollout/staleness"] <= 1 and log["oversample/sampled"] >= 1
        assert log["time/waiting"] < log["time/reward"]  # sampled while the reward was computed
    assert torch.load(out)["step"] == 8

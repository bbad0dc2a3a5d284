"""Each script of benchmarks/ runs to its line of JSON on the smallest load; its figures on a large one are no test."""

import json
from types import SimpleNamespace

import pytest
import torch

from gsr_rl.training.packing.rows import pack_rows
from tests.support.paths import ROOT

BASE = "recipes/tiny/models/base"
TEACHER = "recipes/tiny/models/teacher"
SMALLEST = {
    "agreement": ["--model", TEACHER, "--problems", "8", "--num_candidates", "8", "--engine", "transformers"],
    "cluster_plan": ["--gpus", "2", "--steps", "1"],
    "cost_of_length": ["--repeats", "1", "--lengths", "4", "16"],
    "distill": ["--model", TEACHER, "--problems", "4", "--rounds", "1"],
    "end_to_end": ["--steps", "1", "--rounds", "1"],
    "engine_cpu": ["--model", BASE, "--rounds", "1", "--only", "no prefix caching"],
    "overlap": ["--steps", "1", "--rounds", "1", "--problems", "2"],
    "rollout": ["--repeats", "1", "--problems", "2"],
    "serve": ["--model", BASE, "--repeats", "1", "--problems", "4", "--requests", "8", "--at_once", "4"],
    "step_time": ["--model", "small", "--only", "memory"],
    "sync": ["--steps", "1"],
    "verify": ["--rows", "40"],
}


def test_every_script_is_run():
    helps = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "argparse" in path.read_text()}
    assert helps == {*SMALLEST, "gpu_check"}  # tests/test_gpu_check.py


def test_the_recipes_of_a_cpu_are_launched_for_the_devices_there_are(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import end_to_end

    assert end_to_end.launch_options("zero2", 0)[1] == "accelerate_configs/zero2_cpu.yaml"
    assert end_to_end.launch_options("zero2", 4)[1:] == ["accelerate_configs/zero2.yaml", "--num_processes", "4"]
    assert end_to_end.recipe_options(on_gpu=False, with_vllm=True) == []
    options = end_to_end.recipe_options(on_gpu=True, with_vllm=False)
    assert options == ["--use_cpu", "false", "--bf16", "true", "--use_vllm", "false"]


@pytest.mark.slow
def test_the_break_even_is_where_the_line_through_the_gains_crosses_zero(monkeypatch):
    """On a machine whose step takes 1 ms a token, and 5 ms more where a prompt is shared."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cost_of_length

    tokens = []

    def account(trainer, batch):
        """Its step, without the step: the tokens that packing leaves of its one pass."""
        rows = batch.passes[0]
        ids, mask = (torch.cat([rows[f"prompt_{key}"], rows[f"completion_{key}"]], dim=1) for key in ("ids", "mask"))
        packed = pack_rows(ids, mask, rows["completion_ids"].shape[1], trainer.least_saving)
        tokens.append(packed.input_ids.shape[1] + (5 if packed.varlen.prompts is not None else 0))

    def timed(step):
        step()
        return 1e-3 * tokens[-1]

    monkeypatch.setattr(cost_of_length, "make_trainer", lambda *options: SimpleNamespace())
    monkeypatch.setattr(cost_of_length, "our_step", account)
    monkeypatch.setattr(cost_of_length, "timed", timed)
    monkeypatch.setattr(cost_of_length, "in_turn", lambda repeats, *steps: [timed(step) for step in steps])
    monkeypatch.setattr(cost_of_length, "again", lambda step, times: step)
    monkeypatch.setattr(cost_of_length, "SHORT", 0.0)
    figures = cost_of_length.measure_break_even("small", 1)
    assert figures["break_even_saving"] == pytest.approx(5)
    assert figures["sharing_cost"] == pytest.approx(5 * 6 * 128 * (2 * 32 * 8 + 3 * 384))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_ends_with_positive_figures(launch, name):
    printed = launch(f"benchmarks/{name}.py", *SMALLEST[name], timeout=1700)
    figures = json.loads(printed.strip().splitlines()[-1])
    assert figures
    values = [value for value in figures.values() if isinstance(value, int | float)]
    assert values and all(value > 0 for value in values if value != figures.get("solve_overhead"))

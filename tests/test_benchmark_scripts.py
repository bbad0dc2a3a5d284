"""Each script of benchmarks/ runs to its line of JSON on the smallest load; its figures on a large one are no test."""

import json

import pytest

from tests.support.paths import ROOT

BASE = "recipes/tiny/models/base"
TEACHER = "recipes/tiny/models/teacher"
SMALLEST = {
    "agreement": ["--model", TEACHER, "--problems", "8", "--num_candidates", "8", "--engine", "transformers"],
    "cost_of_length": ["--repeats", "1", "--lengths", "4", "16"],
    "distill": ["--model", TEACHER, "--problems", "4", "--rounds", "1"],
    "end_to_end": ["--steps", "1", "--rounds", "1"],
    "engine_cpu": ["--model", BASE, "--rounds", "1", "--only", "no prefix caching"],
    "rollout": ["--repeats", "1", "--problems", "2"],
    "serve": ["--model", BASE, "--repeats", "1", "--problems", "4", "--requests", "8", "--at_once", "4"],
    "step_time": ["--model", "small", "--only", "memory"],
    "sync": ["--steps", "1"],
    "verify": ["--rows", "40"],
}


def test_every_script_is_run():
    helps = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "argparse" in path.read_text()}
    assert helps == set(SMALLEST)


def test_the_recipes_of_a_cpu_are_launched_for_the_devices_there_are(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import end_to_end

    assert end_to_end.launch_options("zero2", 0)[1] == "accelerate_configs/zero2_cpu.yaml"
    assert end_to_end.launch_options("zero2", 4)[1:] == ["accelerate_configs/zero2.yaml", "--num_processes", "4"]
    assert end_to_end.recipe_options(on_gpu=False, with_vllm=True) == []
    options = end_to_end.recipe_options(on_gpu=True, with_vllm=False)
    assert options == ["--use_cpu", "false", "--bf16", "true", "--use_vllm", "false"]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_ends_with_positive_figures(launch, name):
    printed = launch(f"benchmarks/{name}.py", *SMALLEST[name], timeout=900)
    figures = json.loads(printed.strip().splitlines()[-1])
    assert figures
    values = [value for value in figures.values() if isinstance(value, int | float)]
    assert values and all(value > 0 for value in values if value != figures.get("solve_overhead"))

"""What a run gives TensorBoard, trackio and W&B, through transformers' callbacks into packages that stand for them."""

import json
import re

import pytest

from tests.support.paths import ROOT

MODEL = "recipes/tiny/models/base"
EVAL_METRICS = {"eval/pass@1", "eval/maj@2", "eval/selfref@2", "eval/pass@2", "eval/refinement_gap"}


@pytest.fixture(scope="module")
def logged(launch, tmp_path_factory):
    """The lines that each logger got from two steps and their evaluations, and what metrics.jsonl has of them."""
    folder = tmp_path_factory.mktemp("logged")
    values = {
        "config": "recipes/tiny/grpo.yaml",
        "model_name_or_path": MODEL,
        "output_dir": folder / "run",
        "run_name": "two-steps",
        "use_vllm": "false",
        "num_generations": 2,
        "num_candidates": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_problems": 20,
        "max_steps": 2,
        "eval_dataset_name": "tiny/mix",
        "max_eval_problems": 3,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    path = f"{ROOT}:{ROOT / 'tests' / 'loggers'}"
    loggers = ["tensorboard", "trackio", "wandb"]
    env = {"PYTHONPATH": path, "LOGGED": str(folder)}
    console = launch("recipes/grpo_gsr.py", *words, "--report_to", *loggers, env=env)
    files = {name: folder / f"{name}.jsonl" for name in loggers} | {"own": folder / "run" / "metrics.jsonl"}
    logs = {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in files.items()}
    return logs | {"console": console}


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_every_metric_of_a_step_reaches_the_logger_by_its_name(logged, name):
    steps = {1: {}, 2: {}}
    for line in logged[name]:
        if line.get("values") and line["step"]:
            steps[line["step"]] |= line["values"]
    for step, values in steps.items():
        own = next(log for log in logged["own"] if log["step"] == step and "loss" in log)
        metrics = {f"train/{key}": value for key, value in own.items() if key != "step"}
        assert {"train/candidate/accuracy", "train/refinement/accuracy", "train/gap/selfref@2"} <= set(metrics)
        assert values | metrics == values and set(values) >= EVAL_METRICS


def test_a_run_has_its_name_and_its_end(logged):
    assert {"run": "two-steps"} in logged["trackio"] and {"run": "two-steps"} in logged["wandb"]
    assert {"closed": True} in logged["trackio"] and {"closed": True} in logged["tensorboard"]
    assert {"text": "args", "step": None} in logged["tensorboard"]  # every key of the configuration is JSON


def test_the_console_shows_a_line_a_step_and_no_library_warning(logged):
    console = logged["console"]
    for step in (1, 2):
        training, held_out = (line for line in console.splitlines() if line.startswith(f"{step}/2 "))
        assert re.search(r"pass@1 \d+\.\d maj@2 \d+\.\d selfref@2 \d+\.\d gap [+-]\d+\.\d  reward", training), console
        assert "held out: pass@1" in held_out and len(training) <= 160
    assert "FutureWarning" not in console and "'loss'" not in console and "Setting accelerator" not in console

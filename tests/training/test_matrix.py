"""The joint recipe end to end, real vLLM in each process: every sharding, whole models and LoRA, every option."""

import json

import pandas as pd
import pytest
import torch
from safetensors import safe_open

BASE = "recipes/tiny/models/base"
SHARDING = {f"zero{stage}_cpu": f"DeepSpeed ZeRO-{stage}" for stage in (1, 2, 3)}
SHARDING |= {"ddp_cpu": "plain data parallel", "fsdp2_cpu": "FSDP2"}
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": "all-linear", "learning_rate": 0.05}


def train(launch, folder, accelerate, two_on_cpu=False, **more) -> list[dict]:
    """Three steps of a small joint run under an accelerate configuration; its step logs."""
    values = {
        "config": "recipes/tiny/grpo.yaml",
        "model_name_or_path": BASE,
        "output_dir": folder,
        "num_generations": 4,
        "per_device_train_batch_size": 32,  # 16 problems a step: a base that is rarely right still gives some signal
        "gradient_accumulation_steps": 2,
        "max_problems": 200,
        "max_steps": 3,
        "learning_rate": 0.003,
        "warmup_steps": 0,
        "num_examples": 0,
        "unfinished_candidates": "cut",
    } | more
    words = [word for key, value in values.items() for word in (f"--{key}", *map(str, _listed(value)))]
    launch("recipes/grpo_gsr.py", *words, accelerate=accelerate, two_on_cpu=two_on_cpu)
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [log for log in logs if "loss" in log]
    assert len(steps) == values["max_steps"]
    return steps


def _listed(value):
    return value if isinstance(value, list) else [value]


def assert_learns_in_step_with_its_engine(steps: list[dict]) -> None:
    """Both stages have gradients, and after each update the engine has the new weights."""
    assert sum(log["grad_norm"] > 0 for log in steps) >= 2
    for log in steps:
        for stage in ("candidate", "refinement"):
            assert log[f"{stage}/sampling_logp_difference/mean"] < 1e-3


@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("accelerate", SHARDING)
def test_every_sharding_trains_whole_models_and_lora(launch, tmp_path, accelerate, lora):
    steps = train(launch, tmp_path, accelerate, **(LORA if lora else {}))
    launched = json.loads((tmp_path / "versions.json").read_text())["launch"]
    assert launched == {"processes": 2, "sharding": SHARDING[accelerate]}
    assert_learns_in_step_with_its_engine(steps)
    assert (tmp_path / ("adapter_model.safetensors" if lora else "model.safetensors")).is_file()
    assert json.loads((tmp_path / "gsr_config.json").read_text())["num_candidates"] == 4


@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["zero2", "zero3", "zero3_offload", "fsdp2"])
def test_configurations_for_gpus_train_in_bfloat16_on_a_cpu(launch, tmp_path, accelerate):
    keys = {"bf16": True, "dtype": "bfloat16", "vllm_dtype": "bfloat16", "gradient_checkpointing": True}
    steps = train(launch, tmp_path, accelerate, two_on_cpu=True, **keys)
    launched = json.loads((tmp_path / "versions.json").read_text())["launch"]
    sharding = "FSDP2" if accelerate == "fsdp2" else f"DeepSpeed ZeRO-{accelerate[4]}"  # FSDP2: the first rank loads
    assert launched == {"processes": 2, "sharding": sharding}
    assert sum(log["grad_norm"] > 0 for log in steps) >= 2
    for log in steps:  # eight bits of a number are about a hundredth of a log-probability
        for stage in ("candidate", "refinement"):
            assert 1e-5 < log[f"{stage}/sampling_logp_difference/mean"] < 0.05
    with (
        safe_open(tmp_path / "model.safetensors", "pt") as saved,
        safe_open(f"{BASE}/model.safetensors", "pt") as base,
    ):
        dtype = torch.float32 if accelerate == "fsdp2" else torch.bfloat16
        assert all(saved.get_tensor(name).dtype == dtype for name in saved.keys())  # noqa: SIM118
        # ZeRO-2 writes the tied head too, which the base's file leaves to its embedding
        start = {name: base.get_tensor(name).bfloat16().to(dtype) for name in base.keys()}  # noqa: SIM118
        assert any(not saved.get_tensor(name).equal(weight) for name, weight in start.items())


CREDIT = {"num_candidate_sets": 2, "candidate_credit": 0.5, "num_candidates": 2}
OPTIONS = {
    "pass@k": {"candidate_objective": "pass@k", "objective_k": 2},
    "credit": CREDIT,
    "no scale": {"candidate_scale_rewards": "none", "refinement_scale_rewards": "none"},
    "candidates alone": {"refinement_weight": 0},
    "refinements alone": {"candidate_weight": 0},
    "balanced": {"candidate_choice": "balanced", "num_candidates": 2},
    "hard": {"candidate_choice": "hard", "uniform_share": 0.0},
    "paper": {"candidate_choice": "paper", "num_candidate_sets": 2, "num_candidates": 2},
    "random K": {"min_num_candidates": 1, "num_candidates": 4},
    "oversample": {"oversample": 3},
    "credit, oversample": CREDIT | {"oversample": 3},
    "drop": {"drop_from_denominator": True},
    "curriculum": {"curriculum": True},
    "two iterations": {"num_iterations": 2, "max_steps": 4},
    "two windows": {"steps_per_generation": 4, "max_steps": 4},
    "reference model": {"beta": 0.1},
    "entropy filter": {"top_entropy_quantile": 0.5, "max_tokens_per_micro_batch": "null"},
    "sequence ratio": {"vllm_importance_sampling_mode": "sequence_mask", "importance_sampling_level": "sequence"},
    **{
        mode: {"vllm_importance_sampling_mode": mode} for mode in ("token_truncate", "token_mask", "sequence_truncate")
    },
    "two waves": {"streamed_rollout": False},
    "stage rewards": {"reward_funcs": ["accuracy", "refinement/format"], "reward_weights": [1.0, 0.2]},
    **{loss: {"loss_type": loss} for loss in ("grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "luspo")},
    "vespo": {"loss_type": "vespo", "vllm_importance_sampling_mode": "token_mask"},
}
IN_MAKE_TEST = {"credit, oversample"}


@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.parametrize(
    "name", [name if name in IN_MAKE_TEST else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS]
)
def test_every_option_runs_on_two_processes(launch, tmp_path, name):
    options = OPTIONS[name]
    steps = train(launch, tmp_path, "zero2_cpu", **options)
    stages = [stage for stage in ("candidate", "refinement") if options.get(f"{stage}_weight") != 0]
    sampled = steps[:: 2 if name in ("two iterations", "two windows") else 1]
    with_signal = {stage: [log for log in sampled if log[f"{stage}/no_signal"] < 1] for stage in stages}
    assert any(with_signal.values())  # so few refinements of a base may all be wrong
    for stage in stages:
        compared = with_signal[stage] if name == "drop" else sampled  # dropped groups have no tokens to compare
        assert all(log[f"{stage}/sampling_logp_difference/mean"] < 1e-3 for log in compared)
    assert any(log["grad_norm"] > 0 for log in steps)
    if "oversample" in options:
        assert max(log["oversample/sampled"] for log in steps) > 1
    if name in ("balanced", "hard", "paper"):
        assert any("chosen/maj@" in key for log in steps for key in log)
    tables = sorted((tmp_path / "rollouts").glob("*.parquet"))
    table = pd.concat([pd.read_parquet(path) for path in tables])
    assert set(table.stage) == {"candidate", *stages}


@pytest.mark.vllm
@pytest.mark.slow
def test_held_out_problems_are_evaluated_and_the_best_checkpoint_is_kept(launch, tmp_path):
    steps = train(
        launch,
        tmp_path,
        "zero2_cpu",
        eval_dataset_name="tiny/mix",
        max_eval_problems=21,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        metric_for_best_model="eval_selfref@4",
        greater_is_better=True,
        load_best_model_at_end=True,
    )
    logs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [log for log in logs if "eval_selfref@4" in log]
    assert len(evaluations) == len(steps) == 3
    for log in evaluations:
        assert log["eval_problems"] == 21
        assert log["eval_refinement_gap"] == pytest.approx(log["eval_selfref@4"] - log["eval_maj@4"], abs=1e-6)
        assert 0 <= log["eval_pass@1"] <= log["eval_pass@4"] <= 1
    kept = {int(path.name[11:]) for path in tmp_path.glob("checkpoint-[0-9]*")}
    best = max(evaluations, key=lambda log: log["eval_selfref@4"])
    # at the end of a run with a limit of 1, transformers deletes a newest that is worse
    assert kept == {int(best["step"])}

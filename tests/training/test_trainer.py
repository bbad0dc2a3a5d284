"""The joint step on real engines and real sharding: every claim is driven through `accelerate launch`."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.programs import train_fixed

PROGRAMS = "tests/programs"
BASE = "recipes/tiny/models/base"


def gradient(run: dict, step: int) -> torch.Tensor:
    values = {name.removeprefix("module."): value for name, value in run["gradients"][step].items()}
    return torch.cat([values[name].flatten() for name in sorted(values)])


def fixed_run(launch, folder, model, accelerate=None, **overrides) -> dict:
    """A run of two processes under an accelerate configuration; without one, in this process."""
    out = folder / f"{accelerate}.pt"
    if accelerate is None:
        train_fixed.main(str(out), model, json.dumps(overrides))
    else:
        launch(f"{PROGRAMS}/train_fixed.py", out, model, json.dumps(overrides), accelerate=accelerate, forked=True)
    return torch.load(out)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "overrides",
    [
        {"loss_type": "dapo", "candidate_objective": "pass@k"},
        *(
            pytest.param({"loss_type": loss_type, "num_candidate_sets": 2}, marks=pytest.mark.slow)
            for loss_type in ("grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")
        ),
        *(
            pytest.param({"loss_type": "dapo", "num_candidate_sets": 2} | more, marks=pytest.mark.slow)
            for more in (
                {"candidate_credit": 0.5},
                {"candidate_weight": 3.0},
                {"drop_from_denominator": True},
                {"beta": 0.1},
                {"candidate_scale_rewards": "none", "refinement_scale_rewards": "none"},
                {"importance_sampling_level": "sequence"},
                {"candidate_choice": "hard", "min_num_candidates": 1},
                {"candidate_weight": 0},
                {"refinement_weight": 0, "num_candidate_sets": 1},
            )
        ),
    ],
    ids=lambda overrides: "-".join(map(str, overrides)) + "-" + overrides["loss_type"],
)
def test_one_process_and_two_make_the_same_gradient_and_update(launch, tiny_model, tmp_path, overrides):
    one = fixed_run(launch, tmp_path, tiny_model, per_device_train_batch_size=32, **overrides)
    two = fixed_run(launch, tmp_path, tiny_model, "ddp_cpu", per_device_train_batch_size=16, **overrides)
    for step in range(2):
        first, second = gradient(one, step), gradient(two, step)
        assert first.norm() > 0
        assert (first - second).norm() / first.norm() < 1e-4
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, two["weights"][name.removeprefix("module.")], atol=1e-5), name
    for stage in (stage for stage in ("candidate", "refinement") if overrides.get(f"{stage}_weight") != 0):
        for key in (f"{stage}/reward", f"{stage}/no_signal"):
            assert [log[key] for log in one["logs"]] == pytest.approx([log[key] for log in two["logs"]]), key


@pytest.mark.distributed
@pytest.mark.parametrize(
    "accelerate", ["zero2_cpu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero3_cpu", "fsdp2_cpu"))]
)
def test_sharding_makes_the_same_plain_sgd_update_as_one_process(launch, tiny_model, tmp_path, accelerate):
    one = fixed_run(launch, tmp_path, tiny_model, per_device_train_batch_size=32)
    two = fixed_run(launch, tmp_path, tiny_model, accelerate, per_device_train_batch_size=16)
    assert two["distributed_type"] == ("FSDP" if accelerate == "fsdp2_cpu" else "DEEPSPEED")
    expected, found = moved(one, tiny_model), moved(two, tiny_model)
    assert expected.norm() > 0
    assert (expected - found).norm() / expected.norm() < 1e-4


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("accelerate", ["zero3_cpu", "fsdp2_cpu"])
def test_sharded_weights_and_optimizer_are_resumed(launch, tiny_model, tmp_path, accelerate):
    keys = {"optim": "adamw_torch", "learning_rate": 0.01}
    whole = fixed_run(launch, tmp_path, tiny_model, accelerate, max_steps=3, **keys)
    (tmp_path / "cut").mkdir()
    cut = {"save_strategy": "steps", "save_steps": 2}
    fixed_run(launch, tmp_path / "cut", tiny_model, accelerate, max_steps=2, **keys, **cut)
    (checkpoint,) = (tmp_path / "cut" / f"{accelerate}.pt_run").glob("checkpoint-2")
    cut["resume_from_checkpoint"] = str(checkpoint)
    resumed = fixed_run(launch, tmp_path / "cut", tiny_model, accelerate, max_steps=3, **keys, **cut)
    assert [log["step"] for log in resumed["logs"]] == [1, 2, 3]
    expected, found = moved(whole, tiny_model), moved(resumed, tiny_model)
    assert (expected - found).norm() / expected.norm() < 1e-5


def moved(run: dict, model) -> torch.Tensor:
    """The update of all weights of the model's file, in their names' order."""
    start = load_file(f"{model}/model.safetensors")
    weights = {name.removeprefix("module."): value for name, value in run["weights"].items()}
    return torch.cat([(weights[name] - start[name]).flatten() for name in sorted(start)])


@pytest.mark.parametrize(
    "overrides",
    [
        {"loss_type": "grpo", "beta": 0.1, "num_iterations": 2, "max_steps": 2},
        *(
            pytest.param({"loss_type": loss_type, "num_candidate_sets": 2}, marks=pytest.mark.slow)
            for loss_type in ("bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
        ),
        pytest.param({"loss_type": "dapo", "importance_sampling_level": "sequence"}, marks=pytest.mark.slow),
        pytest.param({"loss_type": "dapo", "gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
    ids=lambda overrides: "-".join(map(str, overrides.values())),
)
def test_packing_makes_the_gradients_of_padded_rows(launch, tiny_model, tmp_path, overrides):
    """One pass for everything and many small ones, against TRL's padded rows in micro-batches of rows."""
    plain = fixed_run(launch, tmp_path, tiny_model, shared_prefix=False, **overrides)
    assert plain["planned"] == [[]]
    for budget in (100_000, 120):
        run = fixed_run(launch, tmp_path, tiny_model, max_tokens_per_micro_batch=budget, **overrides)
        ((passes,),) = run["planned"]
        assert passes == 2 if budget > 120 else passes > 4
        for step in range(2):
            first, second = gradient(plain, step), gradient(run, step)
            assert first.norm() > 0
            assert (first - second).norm() / first.norm() < 1e-4
        keys = [key for key in plain["logs"][0] if key.rsplit("/")[-1] in ("entropy", "kl", "region_mean")]
        assert "candidate/entropy" in keys
        for key in keys:
            assert [log[key] for log in run["logs"]] == pytest.approx([log[key] for log in plain["logs"]], abs=1e-3)
        for log, other in zip(run["logs"], plain["logs"], strict=True):
            assert log["tokens/useful"] == other["tokens/useful"] <= log["tokens/computed"] < other["tokens/computed"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "accelerate",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp_cpu", "zero2_cpu", "fsdp2_cpu")), "zero3_cpu"],
)
def test_ranks_with_different_numbers_of_passes_take_one_step_a_window(launch, tiny_model, tmp_path, accelerate):
    overrides = {"learning_rate": 0.1, "gradient_accumulation_steps": 1, "max_steps": 2}
    plain = fixed_run(launch, tmp_path, tiny_model, shared_prefix=False, per_device_train_batch_size=32, **overrides)
    packed = {"per_device_train_batch_size": 16, "max_tokens_per_micro_batch": 62}
    run = fixed_run(launch, tmp_path, tiny_model, accelerate, **(overrides | packed))
    (first,), (second,) = run["planned"]
    assert first != second and min(first, second) > 1
    assert run["steps_taken"] == 2
    expected, found = moved(plain, tiny_model), moved(run, tiny_model)
    assert expected.norm() > 0
    assert (found - expected).norm() / expected.norm() < 1e-4


def joint_run(launch, out, accelerate, seed) -> dict:
    """One joint step with real vLLM in two processes."""
    keys = json.dumps({"seed": seed})
    launch(f"{PROGRAMS}/joint_step.py", out, BASE, keys, accelerate=accelerate, forked=True)
    return json.loads(out.read_text()) | {"folder": f"{out}_run"}


@pytest.fixture(scope="module")
def joint_runs(launch, tmp_path_factory):
    """Under ZeRO-2 with seed 1 and under ZeRO-3 with seed 2."""
    folder = tmp_path_factory.mktemp("joint")
    return {name: joint_run(launch, folder / name, name, seed) for name, seed in (("zero2_cpu", 1), ("zero3_cpu", 2))}


@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.parametrize("sharding", ["zero2_cpu", "zero3_cpu"])
def test_weights_in_vllm_equal_the_trainers_after_a_push(joint_runs, sharding):
    run = joint_runs[sharding]
    mean, largest = run["synced"]
    assert mean < 1e-2 and largest < 0.1
    # And the step did move them: without the push they are far apart. The synced distance is near rounding, so the
    # bound that matters is an absolute one.
    assert run["stale"][0] > max(5 * mean, 1e-2)


@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.parametrize("sharding", ["zero2_cpu", "zero3_cpu"])
def test_a_joint_step_trains_and_logs_both_stages(joint_runs, sharding):
    (log,) = joint_runs[sharding]["logs"]
    assert log["grad_norm"] > 0
    assert log["candidate/sampling_logp_difference/mean"] < 1e-2
    for name in (
        *("candidate/accuracy", "refinement/accuracy", "gap/maj@4", "gap/pass@4", "gap/selfref@4"),
        *("gap/refinement_gap", "candidate/no_signal", "refinement/no_signal", "refinement/cut_prompts"),
        *("refinement/skipped_prompts", "time/rollout", "time/reward", "time/sync", "time/update"),
    ):
        assert name in log, name
    assert log["gap/refinement_gap"] == pytest.approx(log["gap/selfref@4"] - log["gap/maj@4"], abs=1e-6)


@pytest.mark.vllm
@pytest.mark.distributed
def test_two_seeds_and_all_their_ranks_sample_different_streams(joint_runs):
    streams = [json.dumps(rank) for run in joint_runs.values() for rank in run["streams"]]
    assert len(streams) == len(set(streams)) == 4


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
def test_two_seeds_under_one_sharding_sample_different_streams(joint_runs, launch, tmp_path):
    third = joint_run(launch, tmp_path / "seed3", "zero2_cpu", 3)
    streams = [json.dumps(rank) for run in (*joint_runs.values(), third) for rank in run["streams"]]
    assert len(streams) == len(set(streams)) == 6


@pytest.mark.vllm
@pytest.mark.distributed
def test_the_rollout_table_has_both_stages_with_their_true_prompts(joint_runs):
    folder = joint_runs["zero2_cpu"]["folder"]
    table = pd.concat([pd.read_parquet(f"{folder}/rollouts/step_000000_rank_{rank}.parquet") for rank in (0, 1)])
    assert table.groupby(["problem_id", "stage"]).size().tolist() == [4] * (len(table) // 4)
    for _, rows in table.groupby("problem_id"):
        candidates = rows[rows.stage == "candidate"].reset_index(drop=True)
        refinement = rows[rows.stage == "refinement"].iloc[0]
        shown = "".join("\n#" + candidates.completion[index].strip() for index in refinement.shown)
        assert shown + "\n>" in refinement.prompt
        assert refinement.num_correct == sum(candidates.correct[index] for index in refinement.shown)
        for stage in ("candidate", "refinement"):
            assert abs(rows[rows.stage == stage].advantage.sum()) < 1e-3

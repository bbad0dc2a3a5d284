"""The trainer's own parts in one process, on rollouts that depend on the prompt alone."""

import json
from types import SimpleNamespace

import pytest
import torch

from gsr_rl.training.checks import metric_names
from gsr_rl.training.packing.batching import STAGES
from gsr_rl.training.trainer import GSRTrainer
from tests.programs.train_fixed import FixedRollouts, main, make

ROWS = 32  # 4 problems of 4 candidates and 4 refinements


def generated(trainer) -> dict:
    """A generation batch."""
    trainer.model.train()
    return trainer._generate_and_score_completions([trainer.train_dataset[0]] * ROWS)


class WithLogProbabilities(FixedRollouts):
    """An engine that says of each token that its log-probability is -0.5."""

    def sample(self, prompt_ids, n, max_tokens):
        completions, _ = super().sample(prompt_ids, n, max_tokens)
        return completions, [[-0.5] * len(ids) for ids in completions]


def test_drift_is_logged_and_warned_of_by_stage_where_a_generation_serves_several_steps(tiny_model, tmp_path, caplog):
    trainer = make(str(tmp_path), tiny_model, WithLogProbabilities, num_iterations=2, num_examples=0)
    batch, metrics = generated(trainer), trainer._metrics["train"]
    for index, stage in enumerate(STAGES):
        mask = batch["completion_mask"].bool() & (batch["stage"] == index).unsqueeze(1)
        expected = (batch["old_per_token_logps"] + 0.5).abs()[mask]
        assert metrics[f"{stage}/sampling_logp_difference/mean"] == [pytest.approx(expected.mean().item(), rel=1e-5)]
        assert metrics[f"{stage}/sampling_logp_difference/max"] == [pytest.approx(expected.max().item())]
        assert f"{stage}/sampling_logp_difference/mean is" in caplog.text


@pytest.mark.parametrize("correction", [True, False])
def test_drift_is_logged_by_the_loss_with_and_without_the_correction(tiny_model, tmp_path, correction):
    trainer = make(str(tmp_path), tiny_model)
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, correction
    logps = torch.full((2, 3), -1.0)
    rows = {"sampling_per_token_logps": torch.full((2, 3), -1.25), "completion_mask": torch.ones(2, 3)}
    trainer._compare_with_engine(logps, rows)
    assert trainer._metrics["train"]["sampling_logp_difference/mean"] == [pytest.approx(0.25)]
    assert ("importance_sampling_ratio" in rows) == correction
    assert ("importance_sampling_ratio/clipped" in trainer._metrics["train"]) == correction


@pytest.mark.parametrize(
    ("mode", "share"), [("sequence_mask", 3 / 5), ("token_truncate", 1 / 5), ("token_mask", 1 / 5)]
)
def test_the_share_of_tokens_whose_ratio_is_clipped_is_logged(tiny_model, tmp_path, mode, share):
    trainer = make(str(tmp_path), tiny_model)
    trainer.use_vllm, trainer.vllm_importance_sampling_mode = True, mode
    trainer.vllm_importance_sampling_clip_max = 3.0  # log 3 is 1.099
    logps = torch.tensor([[1.2, 0.0, 0.0], [0.5, 0.5, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    rows = {"sampling_per_token_logps": torch.zeros(2, 3), "completion_mask": mask}
    trainer._compare_with_engine(logps, rows)
    assert trainer._metrics["train"]["importance_sampling_ratio/clipped"] == [pytest.approx(share)]
    first = {"sequence_mask": 0.0, "token_truncate": 3.0, "token_mask": 0.0}[mode]
    assert rows["importance_sampling_ratio"][0, 0].item() == pytest.approx(first)


def test_drift_that_the_last_steps_loss_found_is_warned_of_after_its_log(tiny_model, tmp_path, caplog):
    trainer = make(str(tmp_path), tiny_model)
    trainer.model.train()
    with trainer._pass_metrics("candidate", 10, 2):
        trainer._metrics["train"]["sampling_logp_difference/mean"].append(0.4)
    trainer._log_loss_metrics()
    trainer.log({"loss": 0.0})
    assert trainer.state.log_history[-1]["candidate/sampling_logp_difference/mean"] == 0.4
    trainer.rollout_log._warn({})
    assert "candidate/sampling_logp_difference/mean is 0.4" in caplog.text


def test_an_evaluation_leaves_the_metrics_of_training_steps_to_their_own_log(tiny_model, tmp_path):
    trainer = make(str(tmp_path), tiny_model)
    trainer.model.train()
    trainer._metrics["train"]["candidate/reward"].append(0.5)
    trainer.evaluate(trainer.train_dataset.select(range(4)))
    record = trainer.state.log_history[-1]
    assert {f"eval_{name}" for name in metric_names(2)} <= record.keys() and "candidate/reward" not in record
    assert trainer._metrics["train"]["candidate/reward"] == [0.5] and trainer.model.training


def test_rollouts_without_a_reward_are_in_no_denominator(tiny_model, tmp_path):
    def every_second(completions, **_):
        return [None if place % 2 else 1.0 for place in range(len(completions))]

    trainer = make(str(tmp_path), tiny_model, reward_funcs=every_second, num_examples=0)
    counted = generated(trainer)["completion_mask"].any(dim=1)
    assert counted.tolist() == [True, False] * (ROWS // 2)


def test_the_table_of_completions_has_true_prompts_and_advantages(tiny_model, tmp_path):
    trainer = make(str(tmp_path), tiny_model, log_completions=True, num_examples=0)
    generated(trainer)
    rows = [row for block in trainer.blocks for row in block.rows(list(STAGES))]
    assert list(trainer._logs["advantages"]) == [rollout.advantage for rollout, _ in rows]
    shown = list(trainer._logs["prompt"])
    assert len(shown) == len(trainer._logs["completion"]) == ROWS
    for prompt, (_, stage) in zip(shown, rows, strict=True):
        assert prompt.startswith("<user>refine ") == (stage == "refinement")


@pytest.mark.parametrize("name", ["rollout_func", "tools", "environment_factory"])
def test_what_would_change_the_two_stage_rollout_is_refused(tiny_model, tmp_path, name):
    class Another(GSRTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, **{name: [print]})

    with pytest.raises(ValueError, match=f"{name} cannot be set: .* leave it out"):
        make(str(tmp_path), tiny_model, Another)


@pytest.mark.parametrize(("problems", "generations"), [(3, 1), (4, 1), (11, 2)])
def test_an_epoch_has_a_generation_however_few_problems_there_are(problems, generations):
    stand = SimpleNamespace(
        args=SimpleNamespace(generation_batch_size=ROWS, block_size=8, steps_per_generation=2),
        accelerator=SimpleNamespace(is_main_process=True),
        train_dataset=range(problems),
        num_iterations=3,
    )
    indices = list(GSRTrainer._get_train_sampler(stand))
    assert len(indices) == generations * ROWS * 2 * 3
    assert max(indices) < problems


def test_fewer_problems_than_a_step_needs_are_trained_on_more_than_once(tiny_model, tmp_path, caplog):
    trainer = make(str(tmp_path), tiny_model, problems=3, max_steps=2, num_examples=0)
    trainer.train()
    assert trainer.state.global_step == 2
    assert len({block.problem_id for block in trainer.blocks}) < len(trainer.blocks) == 4
    assert "3 problems are fewer than the 4 of one generation" in caplog.text


@pytest.mark.parametrize(
    "loss_type", ["dapo", *(pytest.param(one, marks=pytest.mark.slow) for one in ("grpo", "bnpo", "dr_grpo", "vespo"))]
)
def test_with_one_stage_off_the_others_gradient_is_what_it_is_alone(tiny_model, tmp_path, loss_type):
    def gradient(name: str, **overrides) -> torch.Tensor:
        out = tmp_path / name
        main(str(out), tiny_model, json.dumps({"loss_type": loss_type, "max_steps": 1, "num_examples": 0} | overrides))
        (found,) = torch.load(out)["gradients"]
        return torch.cat([found[key].flatten() for key in sorted(found)])

    joint = gradient("joint", candidate_weight=3.0)
    candidates = gradient("candidates", refinement_weight=0.0, per_device_train_batch_size=8)
    refinements = gradient("refinements", candidate_weight=0.0, per_device_train_batch_size=8)
    assert candidates.norm() > 0 and refinements.norm() > 0
    expected = (3 * candidates + refinements) / 4
    assert (joint - expected).norm() / expected.norm() < 1e-4

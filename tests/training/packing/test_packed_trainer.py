"""The seam to the trainer, in one process: fallback, planned passes, metrics over passes, refused combinations."""

import logging
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from gsr_rl.training.config import GSRConfig
from gsr_rl.training.trainer import GSRTrainer

ROW = {"prompt": [{"role": "user", "content": "1+1"}], "problem": "1+1", "problem_id": "0", "answer": "2"}


def make_trainer(model, folder, attention="sdpa", peft_config=None, **keys) -> GSRTrainer:
    """Of a model or a model's path."""
    if isinstance(model, str):
        model = AutoModelForCausalLM.from_pretrained(model, attn_implementation=attention)
    args = GSRConfig(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_generations=4,
        num_candidates=2,
        prompt_template="tiny",
        max_completion_length=8,
        max_refinement_prompt_length=128,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **keys,
    )
    return GSRTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([ROW] * 4),
        processing_class=AutoTokenizer.from_pretrained(model.name_or_path, padding_side="left"),
        peft_config=peft_config,
    )


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts of 3 and 5 tokens with three completions each, of at most 4 tokens, one of them masked out."""
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 20, (6, 9), generator=stream)
    ids[:3, :5], ids[3:, :5] = ids[0, :5].clone(), ids[3, :5].clone()
    mask = torch.ones_like(ids)
    mask[:3, :2] = 0
    for row, length in enumerate((4, 1, 0, 2, 3, 4)):
        mask[row, 5 + length :] = 0
    return ids, mask


@pytest.mark.parametrize("budget", [None, 8, 1000])
def test_log_probabilities_without_gradient_come_back_in_the_batchs_order(tiny_model, tmp_path, budget):
    trainer = make_trainer(tiny_model, tmp_path, max_tokens_per_micro_batch=budget)
    trainer.least_saving = 0
    ids, mask = rows()
    assert trainer.shares_prefixes
    if budget == 8:
        assert len(trainer._plan_passes(ids, mask, 4)) > 2
    with torch.no_grad():
        found, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, 4, batch_size=2, compute_entropy=True
        )
        plain, plain_entropies, _ = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer, trainer.model, ids, mask, 4, batch_size=2, compute_entropy=True
        )
    assert torch.allclose(found, plain, atol=1e-5)
    assert torch.allclose(entropies, plain_entropies, atol=1e-5)


@pytest.mark.parametrize(
    "prompts, completion, least_saving, computed",
    [
        ("distinct", 58, 0, 4 * 60),  # the last tokens alone would be saved
        ("equal", 40, 0, 20 + 4 * 39),
        ("distinct", 8, 0, 4 * 9),  # a tenth
        ("distinct", 8, 1000, 4 * 10),  # four tokens, less than packing costs such a model
    ],
)
def test_rows_of_which_packing_would_save_little_are_run_as_they_are(
    tiny_model, tmp_path, prompts, completion, least_saving, computed
):
    trainer = make_trainer(tiny_model, tmp_path)
    trainer.least_saving = least_saving
    width = 10 if completion == 8 else 60
    ids = torch.randint(5, 20, (4, width), generator=torch.Generator().manual_seed(0))
    if prompts == "equal":
        ids[:, : width - completion] = ids[0, : width - completion].clone()
    trainer.account.reset()
    logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, torch.ones_like(ids), completion, compute_entropy=True
    )
    assert trainer.account.tokens == computed
    plain, plain_entropies, _ = GRPOTrainer._get_per_token_logps_and_entropies(
        trainer, trainer.model, ids, torch.ones_like(ids), completion, compute_entropy=True
    )
    assert torch.allclose(logps, plain, atol=1e-5)
    assert torch.allclose(entropies, plain_entropies, atol=1e-5)


def test_a_second_trainer_of_a_prepared_model_has_a_reference_that_shares_prompts_too(tiny_model, tmp_path):
    first = make_trainer(tiny_model, tmp_path)
    trainer = make_trainer(first.model, tmp_path, beta=0.1)
    assert trainer.shares_prefixes and trainer.ref_model is not trainer.model
    with torch.no_grad():
        found, expected = (
            trainer._get_per_token_logps_and_entropies(model, *rows(), 4)[0]
            for model in (trainer.ref_model, trainer.model)
        )
    assert torch.equal(found, expected)


def test_under_lora_the_reference_is_the_base_model_on_packed_rows(tiny_model, tmp_path):
    adapters = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = make_trainer(tiny_model, tmp_path, peft_config=adapters, beta=0.1, max_tokens_per_micro_batch=8)
    assert trainer.ref_model is None and trainer.shares_prefixes
    trainer.least_saving = 0
    base = make_trainer(tiny_model, tmp_path / "base", shared_prefix=False)

    def log_probs(of):
        return of._get_per_token_logps_and_entropies(of.model, *rows(), 4, batch_size=2)[0]

    with torch.no_grad():
        with use_adapter(trainer.accelerator.unwrap_model(trainer.model), adapter_name=None):  # as TRL does it
            reference = log_probs(trainer)
        adapted, expected = log_probs(trainer), log_probs(base)
    assert torch.allclose(reference, expected, atol=1e-5)
    assert not torch.allclose(adapted, expected, atol=1e-2)


def test_a_rank_that_needs_fewer_passes_keeps_step_with_empty_ones(tiny_model, tmp_path, monkeypatch):
    trainer = make_trainer(tiny_model, tmp_path, max_tokens_per_micro_batch=1000)
    ids, mask = rows()
    with torch.no_grad():
        expected = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 4, batch_size=2)[0]
        calls = []
        hook = trainer.model.register_forward_hook(lambda *_: calls.append(1))
        monkeypatch.setattr(trainer, "_largest_over_ranks", lambda numbers: [number + 2 for number in numbers])
        found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 4, batch_size=2)[0]
        hook.remove()
    assert len(calls) == 3
    assert torch.equal(found, expected)


def test_a_model_that_cannot_share_prefixes_warns_and_runs_padded_rows(tiny_model, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(tiny_model, tmp_path, attention="eager")
    assert not trainer.shares_prefixes
    assert trainer.token_budget is None
    assert "computes a prompt anew for each completion" in caplog.text
    assert "attn_implementation is eager" in caplog.text
    ids, mask = rows()
    with torch.no_grad():
        found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 4)[0]
        expected = GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, ids, mask, 4)[0]
    assert torch.equal(found, expected)


def test_a_token_budget_is_not_dropped_for_a_model_that_cannot_keep_it(tiny_model, tmp_path):
    with pytest.raises(
        ValueError, match=r"max_tokens_per_micro_batch=64 .* eager, and `attn_implementation: sdpa`"
    ) as e:
        make_trainer(tiny_model, tmp_path, attention="eager", max_tokens_per_micro_batch=64)
    assert "shared_prefix to false" in str(e.value) and "per_device_train_batch_size=8" in str(e.value)


def test_a_mixture_of_experts_with_a_router_loss_of_its_own_is_refused(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = MixtralConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)  # fmt: skip
    model = MixtralForCausalLM(config)
    model.name_or_path = tiny_model
    with pytest.raises(ValueError, match=r"router_aux_loss_coef=0.001 of MixtralForCausalLM's own.* to 0"):
        make_trainer(model, tmp_path)
    assert not make_trainer(model, tmp_path, router_aux_loss_coef=0.0).shares_prefixes


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_an_adapter_of_virtual_tokens_warns_and_runs_padded_rows(tiny_model, tmp_path, caplog, kind):
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(tiny_model, tmp_path, peft_config=kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert not trainer.shares_prefixes
    assert "_TUNING) puts tokens of its own before each row" in caplog.text
    found = trainer._get_per_token_logps_and_entropies(trainer.model, *rows(), 4)[0]
    assert found.shape == (6, 4) and found.requires_grad


def test_metrics_of_passes_are_weighed_by_their_tokens_and_extremes_stay_extremes(tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path)
    trainer.model.train()
    for tokens, entropy, low in ((30, 1.0, 0.5), (10, 3.0, 0.2), (0, math.nan, math.nan)):
        with trainer._pass_metrics("candidate", tokens, 2):
            trainer._metrics["train"]["entropy"].append(entropy)
            trainer._metrics["train"]["clip_ratio/low_min"].append(low)
    trainer._log_loss_metrics()
    assert trainer._metrics["train"]["candidate/entropy"] == [1.5]
    assert trainer._metrics["train"]["candidate/clip_ratio/low_min"] == [0.2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_tokens_per_micro_batch": 0}, "max_tokens_per_micro_batch=0 is below 1"),
        ({"max_tokens_per_micro_batch": 9, "shared_prefix": False}, "=9 needs shared_prefix: true"),
        ({"max_tokens_per_micro_batch": 9, "top_entropy_quantile": 0.2}, "top_entropy_quantile=0.2"),
        ({"entropy_coef": 0.1}, "entropy_coef=0.1: .* set entropy_coef to 0"),
        ({"use_adaptive_entropy": True}, "use_adaptive_entropy=True: .* set use_adaptive_entropy to false"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef=0.1: .* set router_aux_loss_coef to 0"),
    ],
)
def test_what_would_make_the_loss_depend_on_the_micro_batches_is_refused(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        GSRConfig(output_dir=str(tmp_path), per_device_train_batch_size=16, num_generations=8, use_cpu=True, **keys)

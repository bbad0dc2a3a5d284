"""TRL is pinned, and this says by name which private method that we override or call has changed."""

import inspect

import pytest
from trl import GRPOTrainer
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer
from trl.trainer.utils import RepeatSampler

from gsr_rl.training.checkpoints import PushesToHub, WholeCheckpoints
from gsr_rl.training.packing.trainer import PackedGRPOTrainer
from gsr_rl.training.trainer import GSRTrainer
from gsr_rl.training.vllm_colocated import ColocatedVLLM

SIGNATURES = {
    "_get_train_sampler": "(self, dataset)",
    "_load_optimizer_and_scheduler": "(self, checkpoint)",
    "_save_checkpoint": "(self, model, trial)",
    "_get_output_dir": "(self, trial)",
    "_finalize_training": "(self, trial, num_train_samples, start_time)",
    "log": "(self, logs, start_time)",
    "_run_epoch": "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, "
    "trial, ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch)",
    "init_hf_repo": "(self, token)",
    "create_model_card": "(self, model_name, dataset_name, tags)",
    "save_model": "(self, output_dir, _internal_call)",
    "_save": "(self, output_dir, state_dict)",
    "push_to_hub": "(self, commit_message, blocking, token, revision, kwargs)",
    "_push_from_checkpoint": "(self, checkpoint_folder)",
    "evaluate": "(self, eval_dataset, ignore_keys, metric_key_prefix)",
    "training_step": "(self, model, inputs, num_items_in_batch)",
    "_prepare_inputs": "(self, generation_batch)",
    "_generate_and_score_completions": "(self, inputs)",
    "_calculate_rewards": "(self, inputs, prompts, completions, completion_ids_list)",
    "_compute_loss": "(self, model, inputs)",
    "_generate_single_turn": "(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images)",
}


def names(function) -> str:
    return f"({', '.join(inspect.signature(function).parameters)})"


@pytest.mark.parametrize("method", SIGNATURES)
def test_trl_still_has_the_method_with_this_signature(method):
    assert names(getattr(GRPOTrainer, method)) == SIGNATURES[method]


def test_every_private_override_is_in_the_contract():
    ours = vars(PushesToHub) | vars(WholeCheckpoints) | vars(PackedGRPOTrainer) | vars(GSRTrainer)
    methods = {name for name, value in ours.items() if inspect.isfunction(value)}
    ours = {name for name in methods if hasattr(GRPOTrainer, name)}
    assert ours - set(SIGNATURES) == {"__init__", "_get_per_token_logps_and_entropies"}


def test_trl_still_calls_the_forward_with_these_arguments():
    parameters = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert parameters[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert {"compute_entropy", "compute_aux_loss"} <= set(parameters)


def test_trl_still_names_its_engine_where_we_put_ours():
    assert grpo_trainer.VLLMGeneration is VLLMGeneration
    assert vllm_generation.LLM is not None
    assert names(VLLMGeneration._init_vllm) == "(self)" and names(VLLMGeneration.sync_weights) == "(self)"
    assert names(VLLMGeneration.generate) == "(self, prompts, images, num_generations, profiler)"
    assert issubclass(ColocatedVLLM, VLLMGeneration)
    assert hasattr(VLLMGeneration, "_iter_named_params")


def test_trl_still_divides_the_loss_as_we_scale_it():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    for line in (
        "loss = ((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()",
        "loss = (per_token_loss * mask).sum() / mask.sum().clamp(min=1.0)",
        "loss = (per_token_loss * mask).sum() / (per_token_loss.size(0) * self.max_completion_length)",
        'normalizer = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes',
        "normalizer = normalizer * self.current_gradient_accumulation_steps / self.args.steps_per_generation",
        "loss = (per_token_loss * mask).sum(-1).mean()",
    ):
        assert line in source, line


def test_trl_still_samples_blocks_through_this_sampler():
    assert list(inspect.signature(RepeatSampler).parameters)[:5] == [
        "data_source",
        "mini_repeat_count",
        "batch_size",
        "repeat_count",
        "shuffle",
    ]

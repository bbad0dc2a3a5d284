"""Train on rollouts that depend on the prompt alone, and save the gradient and the weights of the first steps.

usage: train_fixed.py OUT MODEL [JSON of config keys]

Run on one process or on several, the rollouts of a problem are the same, so the updates must be too.
"""

import json
import random
import sys

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, TrainerCallback

from gsr_rl.data import tiny_world
from gsr_rl.data.problems import training_rows
from gsr_rl.refinement.candidates import choice_seed
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.launch import shard_on_cpu
from gsr_rl.training.packing.batching import token_passes
from gsr_rl.training.trainer import GSRTrainer
from tests.support.programs import leave


class FixedRollouts(GSRTrainer):
    """An engine whose completions are a function of the prompt and of the place in its group."""

    least_saving = 0  # the model is small, but its prompts are to be shared
    planned = ()  # passes of each window that this rank needs, of the last rollout

    def _token_passes(self, parts):
        columns = ("prompt_ids", "prompt_mask", "completion_mask", "stage")
        limits = (self.token_budget, self.least_saving)
        self.planned = [len(token_passes(*(part[key] for key in columns), *limits)) for part in parts]
        return super()._token_passes(parts)

    def sample(self, prompt_ids, n, max_tokens):
        completions = []
        for ids in prompt_ids:
            rng = random.Random(choice_seed(0, *ids))
            for _ in range(n):
                length = rng.randint(1, max_tokens - 1)
                body = [rng.randrange(5, len(self.processing_class)) for _ in range(length)]
                completions.append([*body, self.eos_token_ids[0]])
        return completions, None


def reward(completions, **columns):
    """0, 0.5 or 1 by the completion's text: enough signal, and the same everywhere."""
    return [choice_seed(0, completion[0]["content"]) % 3 / 2 for completion in completions]


class KeepGradient(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        whole = {name: g.full_tensor() if isinstance(g, DTensor) else g.clone() for name, g in gradients.items()}
        self.gradients.append(whole)


def make(folder: str, model: str, kind=FixedRollouts, reward_funcs=reward, callbacks=(), problems=32, **overrides):
    """A trainer on the tiny world's problems, whose run folder this is, with these keys of its configuration."""
    shard_on_cpu()
    rows = tiny_world.generate("mix", "train", problems, 0)
    dataset = Dataset.from_list(training_rows(rows, "tiny"))
    values = dict(
        output_dir=folder,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_generations=4,
        num_candidates=2,
        prompt_template="tiny",
        max_completion_length=12,
        max_refinement_length=16,
        max_refinement_prompt_length=128,
        max_steps=2,
        learning_rate=0.5,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    return kind(
        model,
        reward_funcs=reward_funcs,
        args=GSRConfig(**(values | overrides)),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        callbacks=[*callbacks],
    )


def main(out: str, model: str, overrides: str = "{}") -> None:
    keep = KeepGradient()
    trainer = make(out + "_run", model, callbacks=[keep], **json.loads(overrides))
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    planned = gather_object([list(trainer.planned)])
    steps_taken = getattr(trainer.model_wrapped, "global_steps", trainer.state.global_step)  # DeepSpeed's own count
    if trainer.accelerator.is_main_process:
        steps = [log for log in trainer.state.log_history if "loss" in log]
        found = {"gradients": keep.gradients, "weights": weights, "logs": steps}
        kind = trainer.accelerator.distributed_type.value
        torch.save(found | {"planned": planned, "steps_taken": steps_taken, "distributed_type": kind}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()

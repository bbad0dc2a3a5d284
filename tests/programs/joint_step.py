"""Joint GRPO steps with a real vLLM in each process, then compare the engine's weights with the trainer's.

usage: joint_step.py OUT MODEL [JSON of config keys]

OUT gets, as JSON: the step logs; `streams`, what each rank's engine samples first for one fixed prompt; and, over all
ranks, how far the engine's log-probabilities of its own samples are from the trainer's, before (`stale`) and after
(`synced`) a weight push that follows an optimizer step, and how many seconds that took.
"""

import json
import sys
import time

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import AutoTokenizer

from gsr_rl.data import tiny_world
from gsr_rl.data.problems import training_rows
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.launch import shard_on_cpu
from gsr_rl.training.trainer import GSRTrainer
from rewards import load_reward_funcs
from tests.support.programs import leave


def distance(trainer, prompts: list[list[int]]) -> tuple[float, float]:
    """Mean and largest difference of log-probability between the engine and the trainer, over all ranks."""
    completions, logprobs = trainer.sample(prompts, 4, 16)
    prompts = [ids for ids in prompts for _ in range(4)]
    differences = []
    for prompt, completion, engine in zip(prompts, completions, logprobs, strict=True):
        ids = torch.tensor([prompt + list(completion)], device=trainer.accelerator.device)
        with torch.no_grad():
            ours, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, torch.ones_like(ids), len(completion)
            )
        differences += (ours[0].cpu() - torch.tensor(engine)).abs().tolist()
    everyone = torch.tensor(gather_object(differences))
    return everyone.mean().item(), everyone.max().item()


def main(out: str, model: str, overrides: str = "{}") -> None:
    shard_on_cpu()
    rows = tiny_world.generate("mix", "train", 32, 0)
    dataset = Dataset.from_list(training_rows(rows, "tiny"))
    families = {row["problem"]: row["family"] for row in rows}
    values = dict(
        output_dir=out + "_run",
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_generations=4,
        prompt_template="tiny",
        unfinished_candidates="cut",
        max_completion_length=32,
        max_refinement_prompt_length=192,
        vllm_max_model_length=256,
        vllm_dtype="float32",
        max_steps=1,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        use_vllm=True,
    )
    args = GSRConfig(**(values | json.loads(overrides)))
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")

    def reward(completions, family, problem, **columns):  # longer is better: every group has signal
        assert family == [families[text] for text in problem], "a column of the set is another row's"
        return [float(len(tokenizer(completion[0]["content"])["input_ids"])) for completion in completions]

    trainer = GSRTrainer(
        model,
        reward_funcs=[*load_reward_funcs(["accuracy"]), reward],
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": rows[0]["problem"]}], add_generation_prompt=True, return_dict=False
    )
    trainer.vllm_generation.sync_weights()
    trainer._last_loaded_step = 0
    streams = gather_object([[list(ids) for ids in trainer.sample([prompt], 8, 16)[0]]])
    trainer.train()
    trainer._last_loaded_step = trainer.state.global_step  # keep `sample` from pushing the new weights by itself
    stale = distance(trainer, [prompt])
    start = time.perf_counter()
    trainer.vllm_generation.sync_weights()
    seconds = time.perf_counter() - start
    synced = distance(trainer, [prompt])
    if trainer.accelerator.is_main_process:
        logs = [log for log in trainer.state.log_history if "loss" in log]
        with open(out, "w") as file:
            found = {"logs": logs, "streams": streams, "stale": stale, "synced": synced, "push_seconds": seconds}
            json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()

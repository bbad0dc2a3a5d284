"""A short joint run that saves often, with transformers generation in fp32: to be killed, and started again.

usage: killable_run.py OUT MODEL [JSON of config keys]

OUT gets the final weights and the order of problems. KILL in the environment ends the process with SIGKILL: `saving`
in the middle of the next checkpoint, `moving` when it is written and not yet in its place, `step N` when that step has
ended, or a number of seconds after training began. DISK_FULL makes writing a checkpoint fail as a full disk does, and
REWARD_SECONDS is how long the reward takes.
"""

import errno
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, set_seed

from gsr_rl.data import tiny_world
from gsr_rl.data.problems import training_rows
from gsr_rl.training import checkpoints
from gsr_rl.training.checkpoints import STOPPED, resume_point
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.launch import shard_on_cpu
from gsr_rl.training.trainer import GSRTrainer
from tests.support.programs import leave


def reward(completions, **columns):
    time.sleep(float(os.environ.get("REWARD_SECONDS", 0)))
    return [float(sum(map(ord, completion[0]["content"])) % 3) / 2 for completion in completions]


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


class KillLater(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        kill = os.environ.get("KILL", "")
        if kill == "saving":
            torch.save = die
        elif kill == "moving":
            checkpoints.os = type("os", (), {"path": os.path, "replace": staticmethod(die)})
        elif kill and not kill.startswith("step"):
            threading.Timer(float(kill), die).start()
        if os.environ.get("DISK_FULL"):
            torch.save = disk_full

    def on_step_end(self, args, state, control, **kwargs):
        if os.environ.get("KILL") == f"step {state.global_step}":
            die()


def main(out: str, model: str, overrides: str = "{}") -> None:
    shard_on_cpu()
    set_seed(3)
    rows = tiny_world.generate("mix", "train", 10, 0)
    values = dict(
        output_dir=out + "_run",
        per_device_train_batch_size=16,
        num_generations=4,
        num_candidates=2,
        prompt_template="tiny",
        unfinished_candidates="cut",
        max_completion_length=8,
        max_refinement_prompt_length=128,
        max_steps=8,
        learning_rate=0.01,
        logging_steps=1,
        report_to="none",
        save_steps=2,
        save_total_limit=2,
        resume_from_checkpoint="true",
        num_examples=0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        use_vllm=False,
        disable_tqdm=True,
        seed=3,
    )
    args = GSRConfig(**(values | json.loads(overrides)))
    trainer = GSRTrainer(
        model,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list(training_rows(rows, "tiny")),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        callbacks=[KillLater()],
    )
    trainer.add_stop_signals()
    trainer.train(resume_from_checkpoint=resume_point(args))
    if trainer.stopped:
        os._exit(STOPPED)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        tables = sorted(Path(args.output_dir, "rollouts").glob("step_*_rank_*.parquet"))
        order = [pd.read_parquet(table).problem_id.unique().tolist() for table in tables]
        state = {"step": trainer.state.global_step, "order": order, "weights": weights}
        torch.save(state | {"tokens": trainer.state.num_input_tokens_seen}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()

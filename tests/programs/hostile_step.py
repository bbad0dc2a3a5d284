r"""One joint step of 256 rows, one of which hangs the math stack. Prints the step's figures as JSON.

usage: hostile_step.py OUT MODEL

The engine is a fixed one whose token ids stand for texts that a comparison must work on (`\boxed{3+q}` for `q+3`).
"""

import json
import os
import sys
import time

from datasets import Dataset
from transformers import AutoTokenizer

import rewards
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.trainer import GSRTrainer

PROBLEMS, G = 16, 8
HOSTILE = r"so \boxed{\prod_{k=1}^{10^9} (k+q)}"


class Spoken(GSRTrainer):
    """Every second completion is right; the fourth candidate of the sixth problem is hostile."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls, self.texts = 0, {}
        decode = self.processing_class.batch_decode

        def batch_decode(sequences, **options):
            plain = decode(sequences, **options)
            return [self.texts.get(tuple(map(int, ids)), one) for ids, one in zip(sequences, plain, strict=True)]

        self.processing_class.batch_decode = batch_decode

    def sample(self, prompt_ids, n, max_tokens):
        self.calls += 1
        texts = {}
        for problem in range(len(prompt_ids)):
            for place in range(n):
                ids = (5 + self.calls, 5 + problem, 5 + place, self.eos_token_ids[0])
                texts[ids] = rf"so \boxed{{{problem}+q}}" if place % 2 else rf"so \boxed{{q-{problem + 1}}}"
                if (self.calls, problem, place) == (1, 5, 3):
                    texts[ids] = HOSTILE
        self.texts |= texts
        return [list(ids) for ids in texts], None


def main(out: str, model: str) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": text}], "problem": text, "problem_id": text, "answer": f"q+{number}"}
        for number, text in enumerate(f"{10 + n}+1" for n in range(PROBLEMS))
    ]
    args = GSRConfig(
        output_dir=out + "_run",
        per_device_train_batch_size=PROBLEMS * 2 * G,
        num_generations=G,
        prompt_template="tiny",
        max_completion_length=8,
        max_refinement_prompt_length=256,
        max_steps=1,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        reward_funcs=["accuracy", "refinement/format"],
    )
    trainer = Spoken(
        model,
        reward_funcs=rewards.load_reward_funcs(args.reward_funcs),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )
    rewards.grade([r"\boxed{1+a}"], ["a+1"])  # the math stack is loaded once a process
    start = time.monotonic()
    trainer.train()
    flat = [row for block in trainer.blocks for row in block.rows(["candidate", "refinement"])]
    found = {
        "seconds": time.monotonic() - start,
        "rows": [[rollout.text, rollout.correct, rollout.reward, stage] for rollout, stage in flat],
        "log": next(log for log in trainer.state.log_history if "loss" in log),
        "stats": rewards.stats(),
        "timeout": rewards.verifier.default_timeout(),
    }
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)

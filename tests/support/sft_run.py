"""A small warm start for tests: its rows and its keys."""

import json
import random
from pathlib import Path

from gsr_rl.data import tiny_world
from gsr_rl.refinement.prompts import get_template, refinement_prompt, solve_prompt


def write_rows(path: Path) -> Path:
    """40 direct solutions and 40 refinements of the tiny world."""
    rng, template, lines = random.Random(0), get_template("tiny"), []
    for row in tiny_world.generate("mix", "sft", 40, 0):
        texts = [tiny_world.corpus_solution(row, rng) for _ in range(4)]
        for stage, prompt, text in (
            ("candidate", solve_prompt(row["problem"], template), texts[0]),
            ("refinement", refinement_prompt(row["problem"], texts, template), tiny_world.solve(row)),
        ):
            message = {"role": "assistant", "content": text}
            lines.append({"prompt": prompt, "completion": [message], "stage": stage, "problem_id": row["id"]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def keys(model, rows_file, folder, **more):
    return {
        "model_name_or_path": model,
        "dtype": "float32",
        "dataset_name": rows_file,
        "output_dir": folder,
        "prompt_template": "tiny",
        "max_refinement_prompt_length": 200,
        "learning_rate": 0.003,
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "group_by_length",
        "bf16": "false",
        "gradient_checkpointing": "false",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
    } | more

"""Folders as the recipes leave them, for tests of what goes to the Hub: a model's run, an evaluation."""

import json
import shutil
from pathlib import Path

import yaml

from gsr_rl.hub.model_card import write_provenance
from tests.support.paths import ROOT

BASE = ROOT / "recipes/tiny/models/base"


def model_folder(folder: Path) -> Path:
    """A run folder with a model, as the joint recipe leaves it, and things in it that are not to be pushed."""
    shutil.copytree(BASE, folder)
    settings = {"num_candidates": 4, "prompt_template": "tiny", "max_refinement_prompt_length": 200}
    settings |= {"unfinished_candidates": "drop", "prompt_template_version": 1}
    (folder / "gsr_config.json").write_text(json.dumps(settings))
    config = {
        "problems": {"dataset_name": "openai/gsm8k", "dataset_config": "main", "dataset_split": "train"},
        "training": {"learning_rate": 3e-4, "output_dir": str(folder), "max_completion_length": 40},
        "model": {"model_name_or_path": "someone/base-model"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_provenance(folder, "someone/base-model", "openai/gsm8k")
    launch = {"processes": 2, "sharding": "DeepSpeed ZeRO-2"}
    versions = {"python": "3.11", "torch": "2.13", "hardware": {}, "launch": launch}
    (folder / "versions.json").write_text(json.dumps(versions))
    for name in ("training_args.bin", "metrics.jsonl", "rollouts/0.parquet", "checkpoint-5/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not to be pushed")
    return folder


def evaluation(folder: Path, selfref: float = 0.6, name: str = "mix", dataset: str = "openai/gsm8k") -> Path:
    """A folder as eval_gsr.py leaves it, with these figures."""

    def one(value):
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 100}

    values = {"pass@1": one(0.4), "maj@4": one(0.5), "maj@5": one(0.52), f"selfref@{4}": one(selfref)}
    values |= {"pass@4": one(0.8), "refinement_gap": one(selfref - 0.5), "fix_rate": {"value": None}}
    summary = {"model": "runs/x", "k": 4, "num_problems": 100, "num_samples": 8, "seed": 0}
    summary |= {"sampling": {stage: {"temperature": 0.6} for stage in ("candidate", "refinement")}}
    summary |= {"num_candidate_sets": 1, "grouping": "resampled", "skipped": {}, "versions": {"vllm": "0.31.0"}}
    folder.mkdir(exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(summary | {"benchmarks": {name: values}}))
    problems = {"dataset_name": dataset, "dataset_split": "test"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"problems": problems}))
    return folder

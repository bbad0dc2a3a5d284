"""A whole joint step of the demo: ours, over the same with the shared prefix, packing and streaming switched off.

    python benchmarks/end_to_end.py [--steps 8] [--rounds 2]

Both sides are `recipes/grpo_gsr.py` with the demo's configuration under ZeRO-2, on two processes of a CPU or on each
GPU there is, with vLLM in each (without vLLM installed, with transformers' generation): the same problems, seeds and
rewards. Switched off, candidates and refinements are sampled in two waves, every row is padded to its stage's longest
and computes its own prompt, as stock TRL does it. The sides run in turn; the first two steps of a run warm up and do
not count; figures are medians of all the others. Starts from the tiny base: `--model` names another, such as the
demo's warm-started runs/demo/sft. Ends with one line of JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
OFF = {"shared_prefix": False, "streamed_rollout": False, "max_tokens_per_micro_batch": None}
OFF |= {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 8}  # 512 padded rows at once do not fit
PARTS = ("step_time", "time/rollout", "time/reward", "time/sync", "time/update")


HAS_VLLM = importlib.util.find_spec("vllm") is not None


def launch_options(sharding: str, gpus: int) -> list[str]:
    """Of `accelerate launch`: on so many GPUs, or on two processes of a CPU."""
    if not gpus:
        return ["--config_file", f"accelerate_configs/{sharding}_cpu.yaml"]
    return ["--config_file", f"accelerate_configs/{sharding}.yaml", "--num_processes", str(gpus)]


def recipe_options(on_gpu: bool, with_vllm: bool) -> list[str]:
    """What the CPU's recipes say otherwise."""
    options = ["--use_cpu", "false", "--bf16", "true"] if on_gpu else []
    return options if with_vllm else [*options, "--use_vllm", "false"]


def run_steps(config: str, sharding: str, more: list[str], warm_up: int = 2) -> tuple[list[dict], float]:
    """Run the joint recipe in a folder of its own, on GPUs where there are some.

    Args:
        config: The recipe's YAML file.
        sharding: `zero2` or `zero3`.
        more: Further options of the recipe.
        warm_up: Steps that do not count.

    Returns:
        The logs of its steps, without those that warm up, and the seconds that the run took beside all its steps.
    """
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher = [*accelerate, *launch_options(sharding, torch.cuda.device_count()), "--main_process_port", "0"]
    more = [*recipe_options(torch.cuda.is_available(), HAS_VLLM), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, "recipes/grpo_gsr.py", "--config", config, "--output_dir", folder]
        command += ["--num_examples", "0", "--save_strategy", "no", *more]
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
        if done.returncode:
            raise SystemExit(f"{done.stderr[-3000:]}\n{' '.join(command)} failed")
        seconds = time.monotonic() - start
        logs = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    steps = [log for log in logs if "loss" in log]
    return steps[warm_up:], seconds - sum(log["step_time"] for log in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="counted steps a run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    parser.add_argument("--model", default="recipes/tiny/models/base")
    args = parser.parse_args()
    sides: dict[str, list[dict]] = {"ours": [], "switched off": []}
    more = ["--model_name_or_path", args.model, "--max_steps", str(args.steps + 2)]
    with tempfile.TemporaryDirectory() as folder:
        configs = {"ours": ROOT / "recipes/tiny/grpo.yaml", "switched off": Path(folder) / "off.yaml"}
        values = yaml.safe_load(configs["ours"].read_text()) | OFF
        configs["switched off"].write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
        for number in range(args.rounds):
            for name in list(sides) if number % 2 else reversed(sides):
                sides[name] += run_steps(str(configs[name]), "zero2", more)[0]
    medians = {
        name: {p: statistics.median(log.get(p, 0.0) for log in logs) for p in PARTS} for name, logs in sides.items()
    }
    print(f"{'median seconds of a step':26}" + "".join(f"{part.removeprefix('time/'):>11}" for part in PARTS))
    for name, found in medians.items():
        print(f"{name:26}" + "".join(f"{found[part]:11.2f}" for part in PARTS))
    ratios = {part: medians["switched off"][part] / max(1e-9, medians["ours"][part]) for part in PARTS}
    print(f"{'ratio':26}" + "".join(f"{ratios[part]:11.2f}" for part in PARTS))
    print(f"{torch.cuda.device_count()} GPUs, {'vLLM' if HAS_VLLM else 'no vLLM installed: transformers generates'}")
    print(f"{args.rounds} x {args.steps} steps a side, load of the machine {os.getloadavg()[0]:.1f}")
    print(json.dumps({"ratio": round(ratios["step_time"], 3)}))


if __name__ == "__main__":
    main()

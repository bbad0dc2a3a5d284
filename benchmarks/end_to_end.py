"""A whole joint step of the demo: ours, over the same with the shared prefix, packing and streaming switched off.

    python benchmarks/end_to_end.py [--steps 8] [--rounds 2]

Both sides are `recipes/grpo_gsr.py` with the demo's configuration under ZeRO-2 on two processes, with vLLM in each:
the same problems, seeds and rewards. Switched off, candidates and refinements are sampled in two waves, every row is
padded to its stage's longest and computes its own prompt, as stock TRL does it. The sides run in turn; the first two
steps of a run warm up and do not count; figures are medians of all the others. Starts from the tiny base: `--model`
names another, such as the demo's warm-started runs/demo/sft. Ends with one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
OFF = {"shared_prefix": False, "streamed_rollout": False, "max_tokens_per_micro_batch": None}
OFF |= {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 8}  # 512 padded rows at once do not fit
PARTS = ("step_time", "time/rollout", "time/reward", "time/sync", "time/update")


def run_steps(config: str, sharding: str, more: list[str], warm_up: int = 2) -> tuple[list[dict], float]:
    """Run the joint recipe in a folder of its own.

    Returns:
        The logs of its steps, without those that warm up, and the seconds that the run took beside all its steps.
    """
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher = [*accelerate, "--config_file", f"accelerate_configs/{sharding}.yaml", "--main_process_port", "0"]
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
                sides[name] += run_steps(str(configs[name]), "zero2_cpu", more)[0]
    medians = {name: {p: statistics.median(log[p] for log in logs) for p in PARTS} for name, logs in sides.items()}
    print(f"{'median seconds of a step':26}" + "".join(f"{part.removeprefix('time/'):>11}" for part in PARTS))
    for name, found in medians.items():
        print(f"{name:26}" + "".join(f"{found[part]:11.2f}" for part in PARTS))
    ratios = {part: medians["switched off"][part] / max(1e-9, medians["ours"][part]) for part in PARTS}
    print(f"{'ratio':26}" + "".join(f"{ratios[part]:11.2f}" for part in PARTS))
    print(f"{args.rounds} x {args.steps} steps a side, load of the machine {os.getloadavg()[0]:.1f}")
    print(json.dumps({"ratio": round(ratios["step_time"], 3)}))


if __name__ == "__main__":
    main()

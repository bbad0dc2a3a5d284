"""What a joint run pays beside sampling and learning: the push of new weights into vLLM, and start-up.

    python benchmarks/sync.py [--steps 5]

Runs the demo's joint step (0.7 M parameters, ZeRO-2) and, where `make smollm2` has been run, SmolLM2-135M's under
ZeRO-3, both on two processes of a CPU, or on each GPU there is, with vLLM in each, and reads the steps' own logs; the
first two steps warm up. Start-up is the run's time beside all its steps: imports, loading of model and engine, the
saving of the model at the end. The last line, of JSON, is the demo's.
"""

import argparse
import json
import statistics
import sys

from end_to_end import HAS_VLLM, ROOT, run_steps

MODEL = ROOT / "runs" / "SmolLM2-135M-Instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="counted steps a model")
    args = parser.parse_args()
    if not HAS_VLLM:
        parser.error("vLLM is not installed, so there is nothing to push weights into: pip install vllm")
    tiny = ["--model_name_or_path", "recipes/tiny/models/base"]
    runs = {"tiny": ("recipes/tiny/grpo.yaml", "zero2", tiny)}
    if MODEL.is_dir():
        sums = ["--dataset_name", "reasoning_gym/chain_sum", "--dataset_config", "", "--max_problems", "100"]
        runs["SmolLM2-135M"] = ("recipes/SmolLM2-135M-Instruct/grpo.yaml", "zero3", sums)
    found = {}
    print(f"{'':14}{'push, s':>10}{'step, s':>10}{'share':>9}{'start-up and end, s':>22}")
    for name, (config, sharding, more) in runs.items():
        logs, beside = run_steps(config, sharding, [*more, "--max_steps", str(args.steps + 2)])
        seconds, step = (statistics.median(log[key] for log in logs) for key in ("time/sync", "step_time"))
        found[name] = {
            "seconds": round(seconds, 4),
            "step_share": round(seconds / step, 4),
            "start_up": round(beside, 1),
        }
        print(f"{name:14}{seconds:10.3f}{step:10.2f}{seconds / step:9.1%}{beside:22.1f}", flush=True)
    print(json.dumps(found["tiny"]))


if __name__ == "__main__":
    sys.exit(main())

"""What sampling beside the update saves: seconds a step with `rollout_ahead: 1` over those with 0, on two CPU cores.

    python benchmarks/overlap.py [--steps 10] [--rounds 2] [--problems 16] [--ahead 1] [--out FILE.json]

A vLLM server is pinned to one core and the trainer, one process, to another, as if each had a machine of its own; both
have the tiny world's base model, and the joint recipe runs in turn with and without `rollout_ahead`. The first three
steps of a run warm up, and the last has no next one to sample for. Figures are means, since with sampling ahead a long
step may follow a short one. The ideal is that of two machines which never wait: the longer of sampling and all the
rest, over their sum, by the runs without. It can be told only where both take about as long: `--problems` changes
neither's share, `--set key=value ...` does (such as num_iterations=2 for more of an update). The push of new weights
is part of the rest, and sampling stands still for it. Ends with one line of JSON; `--out` gets each step's seconds.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "recipes" / "tiny"))

from served import ENVIRONMENT, serve  # noqa: E402

MODEL = "recipes/tiny/models/base"
WARM_UP, G = 3, 8
PARTS = ("step_time", "time/rollout", "time/waiting", "time/reward", "time/sync", "time/update")


def run_steps(core: int, url: str, ahead: int, args) -> list[dict]:
    """The logs of a run's counted steps."""
    number = WARM_UP + args.steps + 1
    values = {
        "config": "recipes/tiny/grpo.yaml", "model_name_or_path": MODEL, "vllm_mode": "server",
        "vllm_server_base_url": url, "rollout_ahead": ahead, "max_steps": number, "num_generations": G,
        "per_device_train_batch_size": 2 * G * args.problems, "num_examples": 0, "save_strategy": "no", "seed": 1,
    } | dict(word.split("=", 1) for word in args.set)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        command = ["taskset", "-c", str(core), sys.executable, "recipes/grpo_gsr.py", "--output_dir", folder]
        command += [word for key, value in values.items() for word in (f"--{key}", str(value))]
        environment = os.environ | ENVIRONMENT
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
        if done.returncode:
            raise SystemExit(f"{done.stdout[-3000:]}{done.stderr[-3000:]}\n{' '.join(command)} failed")
        logs = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [log for log in logs if "loss" in log][WARM_UP:-1]


def report(sides: dict[int, list[dict]], args) -> None:
    """Print the table and the figures of both sides' steps, and write `--out`."""
    means = {
        ahead: {part: statistics.mean(log.get(part, 0.0) for log in logs) for part in PARTS}
        for ahead, logs in sides.items()
    }
    print(f"{'mean seconds of a step':26}" + "".join(f"{part.removeprefix('time/'):>11}" for part in PARTS))
    for ahead, seconds in means.items():
        print(f"{f'rollout_ahead {ahead}':26}" + "".join(f"{seconds[part]:11.2f}" for part in PARTS))
    alone, step = means[0]["time/rollout"], means[0]["step_time"]
    ideal = max(alone, step - alone) / step
    staleness = statistics.mean(log["rollout/staleness"] for log in sides[args.ahead])
    ratio = means[args.ahead]["step_time"] / step
    print(f"ratio {ratio:.3f}, ideal {ideal:.3f}: sampling {alone:.2f} s and all the rest {step - alone:.2f} s a step")
    print(f"{args.rounds} x {args.steps} steps a side, load of the machine {os.getloadavg()[0]:.1f}")
    last = {"overlap_ratio": round(ratio, 3), "staleness_mean": round(staleness, 3)}
    if args.out:
        names = (*PARTS, "rollout/staleness")
        steps = {
            f"rollout_ahead {ahead}": [{name: round(log.get(name, 0.0), 3) for name in names} for log in logs]
            for ahead, logs in sides.items()
        }
        args.out.write_text(json.dumps(last | {"ideal": round(ideal, 3), "steps": steps}, indent=1) + "\n")
    print(json.dumps(last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="counted steps a run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    parser.add_argument("--problems", type=int, default=16, help="problems a step")
    parser.add_argument("--ahead", type=int, default=1, help="rollout_ahead of the other side")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="each step's seconds")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of both sides")
    args = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        parser.error("vLLM is not installed, and the server is its own: pip install vllm")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("this needs two cores, one for the server and one for the trainer")
    sides: dict[int, list[dict]] = {0: [], args.ahead: []}
    with tempfile.TemporaryDirectory() as folder, serve(MODEL, Path(folder) / "server.log", cores[0]) as url:
        for number in range(args.rounds):
            for ahead in list(sides) if number % 2 else reversed(sides):
                sides[ahead] += run_steps(cores[1], url, ahead, args)
    report(sides, args)


if __name__ == "__main__":
    main()

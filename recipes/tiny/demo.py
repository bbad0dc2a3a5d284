"""The whole chain in the tiny world: distil, warm-start, joint GRPO on two ZeRO processes, evaluation after each.

    python recipes/tiny/demo.py                    # what `make demo` runs: seed 0, into runs/demo
    python recipes/tiny/demo.py --seed 1 --output_dir runs/demo_seed1

Each step is one of the four programs with its YAML file, as one would run it by hand; the commands are printed. A step
that has ended is not run again: the same command resumes where it stopped.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"base": "recipes/tiny/models/base"}
ROWS = {"base": "base", "sft": "after SFT", "grpo": "after GRPO"}
COLUMNS = ["pass@1", "maj@4", "selfref@4", "pass@4", "refinement_gap", "selfref_frozen", "selfref_foreign"]
COLUMNS += ["selfref_none"]
CLAIMS = {  # what the demo is to show: the first figure above the second, by a paired interval
    "SFT: selfref@4 above the base's pass@1": (("sft", "selfref@4"), ("base", "pass@1")),
    "SFT: selfref@4 above the base's maj@4": (("sft", "selfref@4"), ("base", "maj@4")),
    "GRPO: selfref@4 above SFT's": (("grpo", "selfref@4"), ("sft", "selfref@4")),
    "GRPO: pass@1 above SFT's": (("grpo", "pass@1"), ("sft", "pass@1")),
    "GRPO: refinement gap above zero": (("grpo", "selfref@4"), ("grpo", "maj@4")),
    "GRPO: selfref@4 above refinement without candidates": (("grpo", "selfref@4"), ("grpo", "selfref_none")),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0, help="Seed of sampling, of SFT and of GRPO.")
    parser.add_argument("--split", default="test", help="Problems of the evaluation: test, or validation for tuning.")
    parser.add_argument("--num_problems", type=int, default=2000, help="Problems of the evaluation.")
    parser.add_argument("--install_seconds", type=float, default=0.0, help="Put into summary.json by `make demo`.")
    return parser.parse_args()


def steps(args: argparse.Namespace) -> list[list[tuple[str, str, list[str]]]]:
    """(name, phase, command) of every step, in order. The steps of one list run side by side, a core each."""
    out, seed = args.output_dir, ["--seed", str(args.seed)]
    config = "recipes/tiny/{}.yaml".format

    def two_processes(kind: str) -> list[str]:
        launcher = ["accelerate", "launch", "--config_file", f"accelerate_configs/{kind}_cpu.yaml"]
        return [*launcher, "--main_process_port", "0"]  # any free port

    def evaluate(name: str, model: str) -> list[str]:
        frozen = [] if name == "base" else ["--candidates_from", f"{out}/eval_base/samples.parquet"]
        problems = ["--dataset_split", args.split, "--max_problems", str(args.num_problems)]
        command = ["python", "recipes/eval_gsr.py", "--config", config("eval"), "--model", model]
        return [*command, "--output_dir", f"{out}/eval_{name}", *problems, *seed, *frozen]

    distill = ["python", "recipes/distill_gsr.py", "--config", config("distill"), "--output_dir", f"{out}/distill"]
    sft = [*two_processes("ddp"), "recipes/sft_gsr.py", "--config", config("sft"), "--output_dir", f"{out}/sft"]
    sft += ["--dataset_name", f"{out}/distill/sft_rows.jsonl"]
    grpo = [*two_processes("zero2"), "recipes/grpo_gsr.py", "--config", config("grpo"), "--output_dir", f"{out}/grpo"]
    grpo += ["--model_name_or_path", f"{out}/sft", "--problem_seed", str(args.seed)]
    return [
        [
            ("eval_base", "eval", evaluate("base", MODELS["base"])),
            ("distill", "distill", [*distill, *seed, "--problem_seed", str(args.seed)]),
        ],
        [("sft", "sft", [*sft, *seed])],
        [("grpo", "grpo", [*grpo, *seed])],
        [
            ("eval_sft", "eval", evaluate("sft", f"{out}/sft")),
            ("eval_grpo", "eval", evaluate("grpo", f"{out}/grpo")),
        ],
    ]


def run(name: str, command: list[str], folder: Path, threads: int) -> float:
    """Run one step, its output into a log file. Returns its seconds, which are kept for a resume."""
    done = folder / "done" / f"{name}.json"
    if done.is_file():
        return json.loads(done.read_text())["seconds"]
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n[{name}] {shlex.join(command)}\n    log: {log}", flush=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",  # nothing here is on the Hub
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
    }
    start = time.monotonic()
    with open(log, "w") as file:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    seconds = time.monotonic() - start
    if code:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:])
        raise SystemExit(f"{tail}\n[{name}] failed with exit code {code}; the whole log is {log}")
    print(f"[{name}] {seconds:.0f} s", flush=True)
    done.parent.mkdir(exist_ok=True)
    done.write_text(json.dumps({"seconds": round(seconds, 1)}))
    return seconds


def summarise(folder: Path, seconds: dict[str, float]) -> dict:
    """summary.json from the three evaluations: figures, and paired differences between the models."""
    from gsr_rl.tables import compare, metrics_from_samples

    runs = {name: json.loads((folder / f"eval_{name}" / "eval.json").read_text()) for name in ROWS}
    benchmark = next(iter(runs["base"]["benchmarks"]))
    results = {name: metrics_from_samples(folder / f"eval_{name}") for name in ROWS}
    pairs = (("sft", "base"), ("grpo", "sft"), ("grpo", "base"))
    differences = {f"{new}-{old}": compare(results[new], results[old])[benchmark] for new, old in pairs}
    return {name: run["benchmarks"][benchmark] for name, run in runs.items()} | {
        "by_family": {
            part: {name: run["benchmarks"][part] for name, run in runs.items()}
            for part in runs["base"]["benchmarks"]
            if part != benchmark
        },
        "within": {name: run["differences"][benchmark] for name, run in runs.items()},
        "differences": differences,
        "num_problems": runs["base"]["num_problems"],
        "seed": runs["sft"]["seed"],
        "versions": runs["base"]["versions"],
        "seconds": seconds,
    }


def claims(folder: Path) -> dict[str, dict]:
    """The paired difference behind each claim; it holds where the whole interval is above zero."""
    from gsr_rl.tables import compare, metrics_from_samples

    results = {name: metrics_from_samples(folder / f"eval_{name}") for name in ROWS}
    found = {}
    for text, ((new, high), (old, low)) in CLAIMS.items():
        differences = next(iter(compare(results[new], results[old], pairs=[(high, low)]).values()))
        found[text] = next(iter(differences.values()))
    return found


def plot(path: Path, summary: dict) -> None:
    """The table as bars with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for place, (name, label) in enumerate(ROWS.items()):
        values = [summary[name].get(column) for column in COLUMNS]
        shown = [(i, v) for i, v in enumerate(values) if v and v["value"] is not None and i != 4]
        centres = [100 * v["value"] for _, v in shown]
        errors = [[100 * abs(v["value"] - v[side]) for _, v in shown] for side in ("low", "high")]
        axes.bar([i + 0.27 * (place - 1) for i, _ in shown], centres, 0.25, yerr=errors, capsize=2, label=label)
    axes.set_xticks(range(len(COLUMNS)), [column if column != "refinement_gap" else "" for column in COLUMNS])
    axes.set_ylabel(f"problems right, % (n = {summary['num_problems']})")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    begin = time.monotonic()
    seconds = {"install": args.install_seconds, "distill": 0.0, "sft": 0.0, "grpo": 0.0, "eval": 0.0}
    total = args.install_seconds
    for group in steps(args):
        processes = 2 if group[0][0] in ("sft", "grpo") else len(group)
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        names, _, commands = zip(*group, strict=True)
        with ThreadPoolExecutor(len(group)) as pool:
            walls = list(pool.map(run, names, commands, [args.output_dir] * len(group), [threads] * len(group)))
        for (_, phase, _), wall in zip(group, walls, strict=True):
            seconds[phase] += wall
        total += max(walls)

    from gsr_rl.report import figure, markdown_table
    from gsr_rl.run_folder import atomic_write

    seconds["total"] = total
    summary = summarise(args.output_dir, {name: round(value, 1) for name, value in seconds.items()})
    summary["claims"] = claims(args.output_dir)
    atomic_write(args.output_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    plot(args.output_dir / "plot.png", summary)
    rows = [[label, *(figure(summary[name].get(column)) for column in COLUMNS)] for name, label in ROWS.items()]
    table = markdown_table(["", *COLUMNS], rows)
    found = [[text, figure(one), "yes" if one["low"] > 0 else "no"] for text, one in summary["claims"].items()]
    report = f"{table}\n\n{markdown_table(['claim', 'difference, points', 'holds'], found)}\n"
    atomic_write(args.output_dir / "summary.md", report)
    print(f"\n{summary['num_problems']} {args.split} problems, percent with 95 % intervals\n\n{report}")
    print(f"{time.monotonic() - begin:.0f} s; in {args.output_dir}: summary.md, summary.json, plot.png")


if __name__ == "__main__":
    main()

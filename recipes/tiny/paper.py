"""Experiments in the tiny world over several seeds: train the arms of arms.yaml, evaluate each, make their tables.

    python recipes/tiny/paper.py --tables demo stages --seeds 0 1 2
    python recipes/tiny/paper.py --report            # the tables again, from results/paper alone

Resumable: what has ended is not run again. Models and logs are kept in runs/paper/seedN; what each arm's figures are
made from goes to results/paper/seedN as soon as the arm ends. README's table is one of those (paper_tables.py).
"""

import argparse
import json
import shlex
from pathlib import Path

import chain
import pandas as pd
import paper_tables
import yaml
from paper_tables import COLUMNS

ARMS = Path(__file__).with_name("arms.yaml")


def parse_args(config: dict) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    tables = list(config["tables"])
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables, help="Default: all.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", help="Problems of the evaluation: test, or validation for tuning.")
    parser.add_argument("--num_problems", type=int, default=2000, help="Problems of the evaluation.")
    parser.add_argument("--state_dir", type=Path, default=Path("runs/paper"), help="Models and logs.")
    parser.add_argument("--results_dir", type=Path, default=Path("results/paper"), help="Figures and tables.")
    parser.add_argument("--report", action="store_true", help="Only make the tables of what has been run.")
    return parser.parse_args()


# Running ----------------------------------------------------------------------------------------------------


def needed(arms: dict, wanted: list[str]) -> list[str]:
    """The wanted arms and those that they start from, in an order in which they can be run."""
    found: list[str] = []
    for name in wanted:
        start = [arms[name]["from"]] if arms[name] else []
        found += [arm for arm in [*needed(arms, start), name] if arm not in found]
    return found


def run_arm(name: str, arm: dict, seed: int, args: argparse.Namespace) -> None:
    """Train an arm, evaluate it, and put what its figures are made from into the results."""
    out = args.state_dir / f"seed{seed}"
    target = args.results_dir / f"seed{seed}" / f"{name}.json"
    if target.is_file():
        return
    seconds = {"train": 0.0}
    model = str(out / name) if arm else chain.BASE
    keys = [word for key, value in arm.get("keys", {}).items() for word in (f"--{key}", str(value))]
    start = (str(out / arm["from"]) if arm["from"] != "base" else chain.BASE) if arm else ""
    command: list[str] = []
    if arm and arm["program"] == "sft":
        chain.run("distill", chain.distill(out / "distill", seed), out, 2)
        command = chain.sft(out / name, seed, start, f"{out}/distill/sft_rows.jsonl", *keys)
    elif arm:
        command = chain.grpo(out / name, seed, start, *keys)
    if command:
        seconds["train"] = chain.run(name, command, out, 1)
    folder, frozen = out / f"eval_{name}", None if name == "base" else out / "eval_base"
    evaluation = chain.evaluate(folder, seed, model, args.split, args.num_problems, frozen)
    seconds["eval"] = chain.run(folder.name, evaluation, out, 2)
    keep(target, folder, out / name, shlex.join(command), seconds)


def keep(target: Path, evaluation: Path, training: Path, command: str, seconds: dict) -> None:
    """Write TARGET.json (settings, cost, table by num_correct) and TARGET.parquet (figures a problem)."""
    from gsr_rl.run_folder import atomic_path, atomic_write
    from gsr_rl.tables import metrics_from_samples

    parts = metrics_from_samples(evaluation).problems["lenient"]
    whole = next(iter(parts))
    tables = [
        pd.DataFrame({"problem_id": one.ids, "part": part} | {name: one.values[name] for name in COLUMNS})
        for part, one in parts.items()
        if part != whole or len(parts) == 1
    ]
    values = pd.concat(tables).astype(dict.fromkeys(COLUMNS, "float32"))
    summary = json.loads((evaluation / "eval.json").read_text())
    logs = training / "metrics.jsonl"
    steps = [json.loads(line) for line in logs.read_text().splitlines()] if logs.is_file() else []
    content = {key: summary[key] for key in ("num_problems", "num_samples", "seed", "sampling", "versions")}
    content |= {"command": command, "seconds": seconds, "by_num_correct": summary["by_num_correct"]}
    content["optimizer_steps"] = int(max((log.get("step", 0) for log in steps), default=0))
    content["training_tokens"] = int(max((log.get("num_tokens", 0) for log in steps), default=0))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target.with_suffix(".parquet")) as temporary:
        values.to_parquet(temporary, index=False, compression="zstd")
    atomic_write(target, json.dumps(content, indent=1) + "\n")


def main() -> None:
    config = yaml.safe_load(ARMS.read_text())
    args = parse_args(config)
    if not args.report:
        wanted = [arm for name in args.tables for arm in config["tables"][name]["arms"]]
        for seed in args.seeds:
            for name in needed(config["arms"], ["base", *wanted]):
                run_arm(name, config["arms"][name], seed, args)

    paper_tables.write(config["tables"], args.results_dir, args.seeds)


if __name__ == "__main__":
    main()

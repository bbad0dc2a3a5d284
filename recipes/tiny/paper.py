"""Experiments in the tiny world over several seeds: train the arms of arms.yaml, evaluate each, make their tables.

    python recipes/tiny/paper.py --tables demo stages --seeds 0 1 2
    python recipes/tiny/paper.py --report            # the tables again, from results/paper alone

Resumable: what has ended is not run again. Models and logs are kept in runs/paper/seedN; what each arm's figures are
made from goes to results/paper/seedN as soon as the arm ends. Intervals over seeds resample seeds and problems.
"""

import argparse
import json
import shlex
from pathlib import Path

import chain
import pandas as pd
import yaml

ARMS = Path(__file__).with_name("arms.yaml")
COLUMNS = ["pass@1", "maj@4", "selfref@4", "pass@4", "refinement_gap", "selfref_frozen", "selfref_foreign"]
COLUMNS += ["selfref_none"]


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


# Tables -----------------------------------------------------------------------------------------------------


def load(results: Path, arm: str, seeds: list[int]) -> list[pd.DataFrame]:
    """Figures a problem of each seed, all in the order of the first seed's problems."""
    tables = [pd.read_parquet(results / f"seed{seed}" / f"{arm}.parquet").set_index("problem_id") for seed in seeds]
    return [table.loc[tables[0].index] for table in tables]


def arms_table(values: dict[str, list[pd.DataFrame]], costs: dict[str, list]) -> str:
    """Arms as rows, each over all problems and then over each family."""
    from gsr_rl.metrics import estimate_over_seeds, share
    from gsr_rl.report import figure, markdown_table

    parts = sorted(set(next(iter(values.values()))[0]["part"]))
    rows = []
    for part in [None, *parts] if len(parts) > 1 else [None]:
        for arm, cost in costs.items():
            frames = [f if part is None else f[f["part"] == part] for f in values[arm]]
            cells = [figure(estimate_over_seeds([share(frame[column]) for frame in frames])) for column in COLUMNS]
            rows.append([part.rsplit("/", 1)[-1] if part else "all", arm, *cells, *(cost if part is None else "---")])
    return markdown_table(["problems", "arm", *COLUMNS, "steps", "tokens", "seconds"], rows)


def claims_table(claims: list[dict], values: dict[str, list[pd.DataFrame]]) -> str:
    """Each claim's paired difference over seeds and problems, and whether its interval bears it out."""
    from gsr_rl.metrics import estimate_over_seeds, share
    from gsr_rl.report import figure, markdown_table

    rows = []
    for claim in claims:
        (new, high), (old, low) = claim["new"], claim["old"]
        pairs = zip(values[new], values[old], strict=True)
        over = estimate_over_seeds([share(a[high] - b.loc[a.index][low]) for a, b in pairs])
        least = claim.get("at_least", 0) / 100
        verdict = "holds" if over["low"] > least else "the opposite" if over["high"] < least else "not shown"
        rows.append([claim["text"], figure(over), ", ".join(f"{100 * one:.1f}" for one in over["seeds"]), verdict])
    return markdown_table(["claim", "difference, points", "by seed", ""], rows)


def section(config: dict, results: Path, seeds: list[int]) -> list[str]:
    """A table of arms and one of claims, over the seeds that all its arms have; [] if there is none."""
    arms = list(config["arms"]) + [claim[side][0] for claim in config["claims"] for side in ("new", "old")]
    run = [seed for seed in seeds if all((results / f"seed{seed}" / f"{arm}.json").is_file() for arm in arms)]
    if not run:
        return []
    values = {arm: load(results, arm, run) for arm in arms}
    costs = {}
    for arm in config["arms"]:
        ones = [json.loads((results / f"seed{seed}" / f"{arm}.json").read_text()) for seed in run]
        mean = {key: sum(one[key] for one in ones) / len(run) for key in ("optimizer_steps", "training_tokens")}
        seconds = sum(one["seconds"]["train"] for one in ones) / len(run)
        costs[arm] = [f"{mean['optimizer_steps']:.0f}", f"{mean['training_tokens']:,.0f}", f"{seconds:.0f}"]
    number, names = len(values[arms[0]][0]), ", ".join(map(str, run))
    head = f"{number} problems, seeds {names}; percent with 95 % intervals over seeds and problems."
    return [
        f"## {config['title']}",
        "",
        head,
        "",
        arms_table(values, costs),
        "",
        claims_table(config["claims"], values),
        "",
    ]


def main() -> None:
    config = yaml.safe_load(ARMS.read_text())
    args = parse_args(config)
    if not args.report:
        wanted = [arm for name in args.tables for arm in config["tables"][name]["arms"]]
        for seed in args.seeds:
            for name in needed(config["arms"], ["base", *wanted]):
                run_arm(name, config["arms"][name], seed, args)

    from gsr_rl.run_folder import atomic_write

    lines = ["# Experiments in the tiny world", "", "Made by `python recipes/tiny/paper.py`; settings of the arms:",
             "`recipes/tiny/arms.yaml`.", ""]  # fmt: skip
    for one in config["tables"].values():
        lines += section(one, args.results_dir, args.seeds)
    atomic_write(args.results_dir / "tables.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()

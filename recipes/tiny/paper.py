"""Experiments in the tiny world over several seeds: train the arms of arms.yaml, evaluate each, make their tables.

    python recipes/tiny/paper.py --tables demo stages --seeds 0 1 2
    python recipes/tiny/paper.py --plan              # what is to be run, and about how long it takes
    python recipes/tiny/paper.py --report            # the tables again, from results/paper alone

Resumable: what has ended is not run again, and what was run with other arguments is refused. Models and logs are kept
in runs/paper/seedN; what each arm's figures are made from goes to results/paper/seedN as soon as the arm ends. An arm
whose figures are there is made again only where another arm starts from its model or refines over its candidates, and
that is not in runs/paper (a fresh clone): its figures stay. README's lines are some of those (paper_readme.py).
"""

import argparse
import json
from itertools import groupby, zip_longest
from pathlib import Path

import chain
import live
import pandas as pd
import paper_tables
import yaml
from chain import Step
from paper_arms import COLUMNS, is_for
from paper_steps import STATE, Seed, needed

from gsr_rl.report.problem_values import metric_name

SEEDS = [0, 1, 2]  # of a table that names none
ARMS = Path(__file__).with_name("arms.yaml")


def parse_args(config: dict) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    tables = list(config["tables"])
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables, help="Default: all.")
    parser.add_argument("--seeds", type=int, nargs="+", help="Default: those that a table names, else 0, 1 and 2.")
    parser.add_argument("--split", default="test", help="Problems of the evaluation: test, or validation for tuning.")
    parser.add_argument("--num_problems", type=int, default=2000, help="Problems of the evaluation.")
    parser.add_argument("--state_dir", type=Path, default=STATE, help="Models and logs.")
    parser.add_argument("--results_dir", type=Path, default=Path("results/paper"), help="Figures and tables.")
    parser.add_argument("--plan", action="store_true", help="Only say what each table takes, in hours on two cores.")
    parser.add_argument("--report", action="store_true", help="Only make the tables of what has been run.")
    return parser.parse_args()


def run_all(arms: list[tuple[Seed, str]]) -> None:
    """Run what is left of the arms, a step of all seeds before the next, and keep the figures of each as it ends."""
    left = [arm for arm in arms if not arm[0].target(arm[1]).is_file()]
    steps: dict[tuple[Path, str], Step] = {}
    of = {}
    for name, group in groupby(left, key=lambda arm: arm[1]):
        seeds = [seed for seed, _ in group]
        for level in zip_longest(*(seed.steps(name) for seed in seeds)):
            for step in filter(None, level):
                steps.setdefault((step.folder, step.name), step)
        of |= {(seed.out, f"eval_{name}"): (seed, name) for seed in seeds}

    def ended(step: Step) -> None:
        if arm := of.get((step.folder, step.name)):
            keep(*arm)

    chain.run_all(list(steps.values()), ended)


def keep(seed: Seed, name: str) -> None:
    """Put what an arm's figures are made from into the results."""
    seconds = {step.name: step.seconds for step in seed.steps(name)}
    costs = {"train": seconds.get(name, 0.0), "eval": seconds[f"eval_{name}"]}
    about = {"split": seed.args.split, "commands": seed.commands(name), "seconds": costs}
    write(seed.target(name), seed.out / f"eval_{name}", seed.out / name, seed.model(name), about)


def write(target: Path, evaluation: Path, training: Path, model: str, about: dict) -> None:
    """Write TARGET.json (settings, cost, table by num_correct) and TARGET.parquet (figures per problem)."""
    from safetensors import safe_open

    from gsr_rl.report.problem_values import SIZED, metrics_from_samples
    from gsr_rl.run_folder import atomic_path, atomic_write

    parts = metrics_from_samples(evaluation).problems["lenient"]
    benchmark = next(iter(parts))
    tables = []
    for part, problems in parts.items():
        if part != benchmark or len(parts) == 1:
            named = {column: problems.values.get(metric_name(column, problems.k)) for column in COLUMNS}
            named = {column: values or [float("nan")] * len(problems.ids) for column, values in named.items()}
            sized = {name: values for name, values in problems.values.items() if SIZED.fullmatch(name)}
            votes = {name: values for name, values in problems.curves.items() if sized and name.startswith("maj@")}
            named |= {name: values for name, values in (votes | sized).items() if name != f"selfref@{problems.k}"}
            tables.append(pd.DataFrame({"problem_id": problems.ids, "part": part} | named))
    figures = pd.concat(tables).astype(dict.fromkeys(named, "float32"))
    summary = json.loads((evaluation / "eval.json").read_text())
    logs = training / "metrics.jsonl"
    steps = [json.loads(line) for line in logs.read_text().splitlines()] if logs.is_file() else []
    with safe_open(f"{model}/model.safetensors", "pt") as weights:  # the head is the embedding, saved twice by ZeRO-2
        names = set(weights.keys()) - {"lm_head.weight"}
        shapes = [weights.get_slice(name).get_shape() for name in names]
    settings = ("k", "num_problems", "num_samples", "seed", "sampling", "versions", "hardware")
    content = {key: summary.get(key) for key in settings} | about
    content["by_num_correct"] = summary["by_num_correct"]
    if summary.get("scaling"):
        content |= {key: summary[key] for key in ("pools", "scaling")}
    content["parameters"] = sum(rows * (columns[0] if columns else 1) for rows, *columns in shapes)
    content["optimizer_steps"] = int(max((log.get("step", 0) for log in steps), default=0))
    content["training_tokens"] = int(max((log.get("num_tokens", 0) for log in steps), default=0))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target.with_suffix(".parquet")) as temporary:
        figures.to_parquet(temporary, index=False, compression="zstd")
    atomic_write(target, json.dumps(content, indent=1) + "\n")


def arms_of(config: dict, seeds: list[Seed], tables: list[str]) -> list[tuple[Seed, str]]:
    """The arms of these tables and those that they start from, an arm of all seeds before the next.

    A table with `seeds` is for those alone, one without for the shipped base's.
    """

    def of(number: int) -> list[str]:
        chosen = [config["tables"][name] for name in tables]
        arms = [arm for table in chosen if is_for(table, number) for arm in table["arms"]]
        return needed(config["arms"], ["base", *arms]) if arms else []

    each = {seed.number: of(seed.number) for seed in seeds}
    order = needed(config["arms"], [name for names in each.values() for name in names])
    return [(seed, name) for name in order for seed in seeds if name in each[seed.number]]


def with_seeds(config: dict) -> dict:
    """The configuration with `seeds` in every table."""
    return config | {"tables": {name: {"seeds": SEEDS} | table for name, table in config["tables"].items()}}


def plan(config: dict, seeds: list[Seed], tables: list[str]) -> str:
    """Hours that each table takes by itself, and hours of it that are left."""
    from gsr_rl.report.markdown import markdown_table

    def hours(steps: list[Step]) -> str:
        steps = {(step.folder, step.name): step for step in steps}.values()
        return f"{sum(config['minutes'][step.kind] * step.places / chain.PLACES for step in steps) / 60:.1f}"

    rows = []
    for name, names in ({name: [name] for name in tables} | {"all": tables}).items():
        arms = arms_of(config, seeds, names)
        every, left = ([step for seed, arm in arms for step in of(seed, arm)] for of in (Seed.steps, Seed.left))
        rows.append([name, str(len({arm for _, arm in arms})), hours(every), hours(left)])
    return markdown_table(["table", "arms", "hours", "hours left"], rows)


def main() -> None:
    config = yaml.safe_load(ARMS.read_text())
    args = parse_args(config)
    if args.plan or not args.report:
        run = with_seeds(config) if args.seeds is None else config
        numbers = args.seeds or sorted({number for name in args.tables for number in run["tables"][name]["seeds"]})
        seeds = [Seed(number, config, args) for number in numbers]
        if args.plan:
            return print(plan(run, seeds, args.tables))
        wanted = arms_of(run, seeds, args.tables)
        for seed, name in wanted:
            seed.left(name)  # refuses what was made with other arguments before anything is run
        with live.stoppable():
            run_all(wanted)

    paper_tables.write(config["tables"], args.results_dir)


if __name__ == "__main__":
    main()

"""The demo over several seeds: one table of figures, one of claims, from the folders of finished runs.

    for seed in 0 1 2; do python recipes/tiny/demo.py --seed $seed --output_dir runs/demo_seed$seed; done
    python recipes/tiny/seeds.py runs/demo_seed0 runs/demo_seed1 runs/demo_seed2 --output_dir results/demo

Intervals over seeds resample both the seeds and the problems.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from demo import CLAIMS, COLUMNS, ROWS

from gsr_rl.metrics import Ratio, estimate_over_seeds, share
from gsr_rl.report import figure, markdown_table
from gsr_rl.run_folder import atomic_write
from gsr_rl.tables import ProblemValues, metrics_from_samples


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="Folders that demo.py has finished, one a seed.")
    parser.add_argument("--output_dir", type=Path, default=Path("results/demo"))
    args = parser.parse_args()
    if unfinished := [str(run) for run in args.runs if not (run / "summary.json").is_file()]:
        parser.error(f"{', '.join(unfinished)}: no summary.json there, run demo.py first")
    return args


def load(run: Path) -> dict[str, dict[str, ProblemValues]]:
    """{model: {all problems, or a family: figures a problem}} of one seed."""
    return {name: metrics_from_samples(run / f"eval_{name}").problems["lenient"] for name in ROWS}


def difference(ids: list[str], new: ProblemValues, high: str, old: ProblemValues, low: str) -> Ratio:
    """Mean over the problems `ids` of high - low: arrays of shape (problems,)."""
    return share(np.array(new.select(ids).values[high]) - np.array(old.select(ids).values[low]))


def main() -> None:
    args = parse_args()
    seeds = [load(run) for run in args.runs]
    summaries = [json.loads((run / "summary.json").read_text()) for run in args.runs]
    whole, *parts = seeds[0]["base"]
    ids = seeds[0]["base"][whole].ids
    if any(set(one[name][whole].ids) != set(ids) for one in seeds for name in ROWS):
        raise SystemExit("the runs were evaluated on different problems: give all the same --num_problems and --split")

    figures: dict[str, dict] = {}
    for part in (whole, *parts):
        for name in ROWS:
            chosen = [one[name][part].select(seeds[0]["base"][part].ids).ratios() for one in seeds]
            known = [column for column in COLUMNS if column in chosen[0]]
            figures.setdefault(part, {})[name] = {
                column: estimate_over_seeds([ratios[column] for ratios in chosen]) for column in known
            }
    found = {
        text: estimate_over_seeds([difference(ids, one[a][whole], x, one[b][whole], y) for one in seeds])
        | {"by_seed": [summary["claims"][text] for summary in summaries]}
        for text, ((a, x), (b, y)) in CLAIMS.items()
    }
    names = [str(summary["seed"]) for summary in summaries]
    lines = [f"{len(ids)} problems, seeds {', '.join(names)}; percent with 95 % intervals over seeds and problems", ""]
    for part in (whole, *parts):
        rows = [[label, *(figure(figures[part][name].get(c)) for c in COLUMNS)] for name, label in ROWS.items()]
        lines += [f"{part}:", "", markdown_table(["", *COLUMNS], rows), ""]
    header = ["claim (difference, points)", *(f"seed {name}" for name in names), "all seeds", "holds on"]
    rows = [
        [
            text,
            *map(figure, one["by_seed"]),
            figure(one),
            f"{sum(x['low'] > 0 for x in one['by_seed'])} of {len(names)}",
        ]
        for text, one in found.items()
    ]
    lines += [markdown_table(header, rows), ""]
    atomic_write(args.output_dir / "seeds.md", "\n".join(lines))
    content = {"seeds": names, "num_problems": len(ids), "figures": figures, "claims": found}
    content |= {"seconds": [s["seconds"] for s in summaries], "versions": summaries[0]["versions"]}
    atomic_write(args.output_dir / "seeds.json", json.dumps(content, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

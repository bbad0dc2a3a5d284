"""Tables of the tiny world's experiments, from results/paper alone: figures by arm, claims, and README's block.

Intervals over seeds resample both the seeds and the problems.
"""

import json
from pathlib import Path

import pandas as pd

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- made by recipes/tiny/paper.py --report -->", "<!-- end -->"
COLUMNS = ["pass@1", "maj@4", "selfref@4", "pass@4", "refinement_gap", "selfref_frozen", "selfref_foreign"]
COLUMNS += ["selfref_none"]


def write(tables: dict, results: Path, seeds: list[int]) -> None:
    """All tables into tables.md, and the demo's into README."""
    from gsr_rl.run_folder import atomic_write

    lines = ["# Experiments in the tiny world", "", "Made by `python recipes/tiny/paper.py`; settings of the arms:"]
    lines += ["[arms.yaml](../../recipes/tiny/arms.yaml).", ""]
    for one in tables.values():
        lines += section(one, results, seeds)
    atomic_write(results / "tables.md", "\n".join(lines))
    text = README.read_text(encoding="utf-8")
    atomic_write(README, with_block(text, readme_block(tables["demo"], results, seeds)))
    print("\n".join(lines))


def with_block(text: str, block: str) -> str:
    """README's text with its results replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


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


def claims_table(claims: list[dict], values: dict[str, list[pd.DataFrame]], seeds: list[int]) -> str:
    """Each claim's paired difference, on each seed and over all, and whether the intervals bear it out."""
    from gsr_rl.metrics import bootstrap_weights, estimate, estimate_over_seeds, share
    from gsr_rl.report import figure, markdown_table

    rows = []
    for claim in claims:
        (new, high), (old, low) = claim["new"], claim["old"]
        ratios = [share(a[high] - b.loc[a.index][low]) for a, b in zip(values[new], values[old], strict=True)]
        weights, least = bootstrap_weights(len(values[new][0])), claim.get("at_least", 0) / 100
        each, over = [estimate(ratio, weights) for ratio in ratios], estimate_over_seeds(ratios)
        holding = sum(one["low"] > least for one in each)
        word = "holds" if over["low"] > least else "the opposite" if over["high"] < least else "not shown"
        rows.append([claim["text"], *map(figure, each), figure(over), f"{word}, {holding} of {len(each)} seeds alone"])
    header = ["claim (difference in points)", *(f"seed {seed}" for seed in seeds), "all", ""]
    return markdown_table(header, rows)


def seeds_of(arms: list[str], results: Path, seeds: list[int]) -> list[int]:
    """The seeds that all arms have been run with."""
    return [seed for seed in seeds if all((results / f"seed{seed}" / f"{arm}.json").is_file() for arm in arms)]


def section(config: dict, results: Path, seeds: list[int]) -> list[str]:
    """A table of arms and one of claims, over the seeds that all its arms have; [] if there is none."""
    arms = list(config["arms"]) + [claim[side][0] for claim in config["claims"] for side in ("new", "old")]
    run = seeds_of(arms, results, seeds)
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
        claims_table(config["claims"], values, run),
        "",
    ]


def readme_block(config: dict, results: Path, seeds: list[int]) -> str:
    """The demo's arms by the main figures, and its claims."""
    from gsr_rl.metrics import estimate_over_seeds, share
    from gsr_rl.report import figure, markdown_table

    run = seeds_of(config["arms"], results, seeds)
    values = {arm: load(results, arm, run) for arm in config["arms"]}
    rows = []
    for arm, name in {"base": "base", "sft": "after SFT", "grpo": "after GRPO"}.items():
        overs = [estimate_over_seeds([share(frame[column]) for frame in values[arm]]) for column in COLUMNS[:5]]
        rows.append([name, *map(figure, overs)])
    head = (
        f"{len(values['base'][0])} test problems, {len(run)} seeds; percent, 95 % intervals over seeds and problems:"
    )
    parts = [head, markdown_table(["", *COLUMNS[:5]], rows), claims_table(config["claims"], values, run)]
    return "\n\n".join(parts)

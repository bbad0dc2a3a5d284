"""Tables of the tiny world's experiments, from results/paper alone: figures by arm, claims, plots.

Intervals over seeds hold both the spread of the seeds and the choice of the problems.
"""

from pathlib import Path

import paper_plots
import paper_readme
import paper_right
import paper_scaling
from paper_arms import SHOWN, Arm, differences, load, seeds_of, titles

SCALING = "scaling.png"


def write(tables: dict, results: Path) -> None:
    """All tables of the seeds that are there into tables.md, their plots beside it, and README's lines."""
    from gsr_rl.run_folder import atomic_write

    text = all_tables(tables, results)
    atomic_write(results / "tables.md", text)
    for name, config in tables.items():
        for against in config.get("plots", []):
            if arms := load(config, results):
                paper_plots.draw(against, arms, results / plot_name(name, against))
        if config.get("scaling") and paper_scaling.with_pools(arms := load(config, results)):
            paper_scaling.draw(arms, results / SCALING)
    print(text)
    paper_readme.write(tables, results)


def all_tables(tables: dict, results: Path) -> str:
    """The text of tables.md: every table of which an arm has been run, with the names of its plots."""
    lines = ["# Experiments in the tiny world", "", "Made by `python recipes/tiny/paper.py`; settings of the arms:"]
    lines += ["[arms.yaml](../../recipes/tiny/arms.yaml).", "", about_intervals(len(seeds_of(results))), ""]
    for name, config in tables.items():
        if arms := load(config, results):
            lines += section(config, arms)
            for against in config.get("plots", []):
                lines += [f"![{config['title']}: {against}]({plot_name(name, against)})", ""]
    return "\n".join(lines)


def plot_name(table: str, against: str) -> str:
    return f"{table}_{against}.png"


def about_intervals(seeds: int) -> str:
    """What the intervals hold, and what they do not say."""
    if seeds < 2:
        return "One seed: the intervals say nothing of the spread between seeds."
    return (
        "Intervals hold the bootstrap over problems and Student's t of the seeds' values; in simulations they cover "
        "93 to 99 of 100, and fewer where one seed in four fails (docs/evaluation.md). They are not corrected for the "
        "number of claims. Not settled: an end is so near the claim's bound that the bootstrap's seed decides."
    )


def section(config: dict, arms: dict[str, Arm]) -> list[str]:
    """A table's part of tables.md."""
    arm = next(iter(arms.values()))
    names = ", ".join(map(str, arm.seeds))
    over = "seeds and problems" if len(arm.seeds) > 1 else "problems"
    head = f"{len(arm.frames[0])} problems, seeds {names}; percent with 95 % intervals over {over}."
    if missing := [name for name in config["arms"] if name not in arms]:
        head += f" Not run yet: {', '.join(missing)}."
    stored = {column for arm in arms.values() for column in arm.frames[0]}
    columns = config.get("columns") or [column for column in SHOWN if column in stored]  # older files lack some
    lines = [f"## {config['title']}", "", head, "", arms_table(arms, columns), ""]
    if config.get("by_num_correct"):
        lines += [paper_right.table(arms), "", paper_right.AGAINST_THE_VOTE, ""]
    lines += [claims_table(config["claims"], arms), ""]
    return lines + (paper_scaling.section(arms, SCALING) if config.get("scaling") else [])


def arms_table(arms: dict[str, Arm], columns: list[str]) -> str:
    """Arms as rows, each over all its problems and then over each family."""
    from gsr_rl.report.markdown import figure, markdown_table

    parts = sorted({part for arm in arms.values() for part in arm.frames[0]["part"]})
    rows = []
    for part in [None, *parts]:
        for name, arm in arms.items():
            families = set(arm.frames[0]["part"])
            if part is not None and (part not in families or len(families) == 1):
                continue
            cells = [figure(arm.estimate(column, part)) for column in columns]
            steps, seconds = arm.mean("optimizer_steps"), arm.mean("seconds", "train")
            unknown = seconds and not steps  # a base keeps no log of its training
            cost = ["-"] * 2 if unknown else [f"{steps:.0f}", f"{arm.mean('training_tokens'):,.0f}"]
            cost += [f"{seconds:.0f}"]
            rows.append([part.rsplit("/", 1)[-1] if part else "all", name, *cells, *(cost if part is None else "---")])
    return markdown_table(["problems", "arm", *titles(columns, arms), "steps", "trained tokens", "seconds"], rows)


def claims_table(claims: list[dict], arms: dict[str, Arm]) -> str:
    """Each claim's paired difference on each seed, over all and in each family, and whether it is borne out."""
    from gsr_rl.report.markdown import figure, markdown_table

    parts = sorted({part for arm in arms.values() for part in arm.frames[0]["part"]})
    parts = parts if len(parts) > 1 else []
    rows = []
    for claim in claims:
        (new, high), (old, low) = claim["new"], claim["old"]
        if not {new, old} <= set(arms):
            continue
        ratios = differences(arms[new], high, arms[old], low)
        each = [settled(claim, [ratio]) for ratio in ratios]
        over, word = settled(claim, ratios)
        holding = sum(of_seed == "reproduced" for _, of_seed in each)
        cells = [*(figure(estimate) for estimate, _ in each), figure(over)]
        cells.append(f"{word}, {holding} of {len(each)} seeds alone")
        for part in parts:
            ratios = differences(arms[new], high, arms[old], low, part)
            over, word = settled(claim, ratios) if ratios else (None, "")
            cells.append(f"{figure(over)} {word}".strip())
        rows.append([claim["text"] + (" (the paper's)" if claim.get("of") == "paper" else ""), *cells])
    seeds = [f"seed {seed}" for seed in next(iter(arms.values())).seeds]
    families = [part.rsplit("/", 1)[-1] for part in parts]
    return markdown_table(["claim (difference in points)", *seeds, "all", "", *families], rows)


def bound_of(claim: dict) -> float:
    """What the interval is compared with, as a share."""
    return claim.get("at_most", claim.get("at_least", 0)) / 100


def settled(claim: dict, ratios: list) -> tuple[dict, str]:
    """The interval over these seeds and the claim's verdict; `not settled` where the bootstrap's seed decides that."""
    from gsr_rl.report.intervals import estimate_over_seeds, redrawn

    drawn = redrawn(lambda seed: estimate_over_seeds(ratios, seed=seed, signed=True), bound_of(claim))
    words = {verdict(claim, interval) for interval in drawn}
    return drawn[0], words.pop() if len(words) == 1 else "not settled"


def verdict(claim: dict, estimate: dict) -> str:
    """`reproduced`, `opposite` or `not reproduced`: which side of the claim's bound the interval lies on."""
    low, high = estimate["low"], estimate["high"]
    if low is None:
        return "not reproduced"
    bound = bound_of(claim)
    if "at_most" in claim:
        return "reproduced" if high <= bound else "opposite" if low > bound else "not reproduced"
    return "reproduced" if low > bound else "opposite" if high < bound else "not reproduced"

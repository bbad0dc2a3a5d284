"""Accuracy against tokens of the tiny world's arms with pools of candidates, over seeds: a table and a plot.

Made of the scaling reports of each seed (gsr_rl/report/scaling.py). Intervals over seeds and problems are given where
the figures of each problem are stored: of votes, flat, tree, and of refine and vote with all refinements of a pool.
"""

from pathlib import Path

from paper_arms import Arm, differences

ABOUT = (
    "Tokens are means over problems and seeds; intervals, over seeds and problems, are of what is stored by problem. "
    "Above the vote: of as many completion tokens on each problem, at most all candidates."
)


def with_pools(arms: dict[str, Arm]) -> dict[str, Arm]:
    """The arms that have a scaling report on each seed."""
    return {name: arm for name, arm in arms.items() if all(settings.get("scaling") for settings in arm.settings)}


def column_of(row: dict, arm: Arm) -> str | None:
    """The column of figures by problem that a row is the mean of; None where only their mean is stored."""
    n = row["candidates"]
    name = {"vote": f"maj@{n}", "flat": f"selfref@{n}", "tree": f"tree@{n}"}.get(row["method"])
    if row["method"] == "refine and vote" and row["refinements"] == int(arm.settings[0]["pools"][str(n)]):
        name = f"refine_and_vote@{n}"
    return name if name in arm.frames[0] else None


def rows_of(arm: Arm, part: str) -> list[dict]:
    """An arm's points over a part of the problems: the means of the seeds' rows, with intervals over seeds."""
    rows, whole = [], min(arm.settings[0]["scaling"], key=len)  # the benchmark; its parts' names start with its own
    for of_seeds in zip(*(settings["scaling"][part] for settings in arm.settings), strict=True):
        first = of_seeds[0]
        row = {key: first[key] for key in ("method", "candidates", "refinements")} | {"low": None, "high": None}
        for key in ("value", "tokens", "prompt_tokens", "distinct_prompt_tokens"):
            row[key] = sum(of_seed[key] for of_seed in of_seeds) / len(of_seeds)
        if column := column_of(first, arm):
            estimate = arm.estimate(column, None if part == whole else part)
            row |= {key: estimate[key] for key in ("value", "low", "high")}
        rows.append(row)
    return rows


def section(arms: dict[str, Arm], plot: str) -> list[str]:
    """The lines of tables.md: each arm's points by completion tokens, over all problems and in each family."""
    from gsr_rl.report.markdown import figure, markdown_table, points

    lines = []
    for name, arm in with_pools(arms).items():
        scaling = {part: rows_of(arm, part) for part in arm.settings[0]["scaling"]}
        table = []
        for place, row in enumerate(next(iter(scaling.values()))):
            cells = [row["method"], str(row["candidates"]), str(row["refinements"])]
            cells += [f"{row[key]:,.0f}" for key in ("tokens", "prompt_tokens", "distinct_prompt_tokens")]
            for rows in scaling.values():
                of_part = rows[place]
                cells.append(points(of_part["value"]) if of_part["low"] is None else figure(of_part))
            table.append([*cells, above_vote(row, arm)])
        header = ["method", "candidates", "refinements", "tokens", "prompt tokens", "of different prompts"]
        header += ["all", *(part.rsplit("/", 1)[-1] for part in list(scaling)[1:]), "above the vote"]
        lines += [f"`{name}`, the points of the plot:", "", markdown_table(header, table), ""]
    return [*lines, ABOUT, "", f"![Accuracy against tokens]({plot})", ""] if lines else []


def above_vote(row: dict, arm: Arm) -> str:
    """Refine and vote less the vote of as many tokens, over all problems."""
    from gsr_rl.report.intervals import estimate_over_seeds
    from gsr_rl.report.markdown import figure

    n = row["candidates"]
    if column_of(row, arm) != f"refine_and_vote@{n}":
        return ""
    ratios = differences(arm, f"refine_and_vote@{n}", arm, f"maj@tokens@{n}")
    return figure(estimate_over_seeds(ratios, signed=True))


def draw(arms: dict[str, Arm], path: Path) -> None:
    """The plot of the last arm of the table that has pools: over all problems and in each family."""
    from gsr_rl.report.plots import scaling_png
    from gsr_rl.run_folder import atomic_write

    arm = list(with_pools(arms).values())[-1]
    parts = list(arm.settings[0]["scaling"])
    shown = {"all problems" if part == parts[0] else part.rsplit("/", 1)[-1]: rows_of(arm, part) for part in parts}
    atomic_write(path, scaling_png(shown))

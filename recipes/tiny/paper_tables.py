"""Tables of the tiny world's experiments, from results/paper alone: figures by arm, claims, plots, README's block.

Intervals over seeds hold both the spread of the seeds and the choice of the problems.
"""

import json
from pathlib import Path

import paper_scaling
from paper_arms import COLUMNS, SHOWN, Arm, load, titles

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BEGIN, END = "<!-- made by recipes/tiny/paper.py --report -->", "<!-- end -->"
AGAINST_THE_VOTE = (
    "Against the vote: on which side of the vote's share, taken as exact, all of refinement's interval lies. Sets "
    "count as if each were of a problem of its own."
)
SCALING = "scaling.png"
RESULTS, SEEDS = ROOT / "results" / "paper", [0, 1, 2]  # what README shows


def write(tables: dict, results: Path) -> None:
    """All tables of the seeds that are there into tables.md, their plots beside it, and the demo's into README."""
    from gsr_rl.run_folder import atomic_write

    text = all_tables(tables, results)
    atomic_write(results / "tables.md", text)
    for name, config in tables.items():
        for against in config.get("plots", []):
            if arms := load(config, results, seeds_of(results)):
                draw(against, arms, results / plot_name(name, against))
        if config.get("scaling") and paper_scaling.with_pools(arms := load(config, results, seeds_of(results))):
            paper_scaling.draw(arms, results / SCALING)
    print(text)
    if why := not_for_readme(tables["demo"], results):
        return print(f"README is left as it is: {why}")
    text = README.read_text(encoding="utf-8")
    atomic_write(README, with_block(text, readme_block(tables["demo"], results, SEEDS)))


def all_tables(tables: dict, results: Path) -> str:
    """The text of tables.md: every table of which an arm has been run, with the names of its plots."""
    seeds = seeds_of(results)
    lines = ["# Experiments in the tiny world", "", "Made by `python recipes/tiny/paper.py`; settings of the arms:"]
    lines += ["[arms.yaml](../../recipes/tiny/arms.yaml).", "", about_intervals(len(seeds)), ""]
    for name, config in tables.items():
        if arms := load(config, results, seeds):
            lines += section(config, arms)
            for against in config.get("plots", []):
                lines += [f"![{config['title']}: {against}]({plot_name(name, against)})", ""]
    return "\n".join(lines)


def seeds_of(results: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("seed")) for folder in results.glob("seed[0-9]*"))


def plot_name(table: str, against: str) -> str:
    return f"{table}_{against}.png"


def not_for_readme(config: dict, results: Path) -> str | None:
    """Why README does not show these results; None if it does."""
    if results.resolve() != RESULTS:
        return f"its table is made from {RESULTS.relative_to(ROOT)}, not from {results}"
    for path in (results / f"seed{seed}" / f"{arm}.json" for seed in SEEDS for arm in config["arms"]):
        if not path.is_file():
            return f"there is no {path}"
        if (split := json.loads(path.read_text(encoding="utf-8"))["split"]) != "test":
            return f"{path} is of the {split} problems, not of the test problems"
    return None


def about_intervals(seeds: int) -> str:
    """What the intervals hold, and what they do not say."""
    if seeds < 2:
        return "One seed: the intervals say nothing of the spread between seeds."
    return (
        "Intervals hold the bootstrap over problems and Student's t of the seeds' values; in simulations they cover "
        "93 to 99 of 100 (tests/report/test_intervals.py). They are not corrected for the number of claims. Not "
        "settled: an end is so near the claim's bound that the bootstrap's seed decides."
    )


def with_block(text: str, block: str) -> str:
    """README's text with its results replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


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
        lines += [right_candidates_table(arms), "", AGAINST_THE_VOTE, ""]
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
        if not {claim["new"][0], claim["old"][0]} <= set(arms):
            continue
        ratios = differences(claim, arms)
        each = [settled(claim, [ratio]) for ratio in ratios]
        over, word = settled(claim, ratios)
        holding = sum(of_seed == "reproduced" for _, of_seed in each)
        cells = [*(figure(estimate) for estimate, _ in each), figure(over)]
        cells.append(f"{word}, {holding} of {len(each)} seeds alone")
        for part in parts:
            ratios = differences(claim, arms, part)
            over, word = settled(claim, ratios) if ratios else (None, "")
            cells.append(f"{figure(over)} {word}".strip())
        rows.append([claim["text"] + (" (the paper's)" if claim.get("of") == "paper" else ""), *cells])
    seeds = [f"seed {seed}" for seed in next(iter(arms.values())).seeds]
    families = [part.rsplit("/", 1)[-1] for part in parts]
    return markdown_table(["claim (difference in points)", *seeds, "all", "", *families], rows)


def differences(claim: dict, arms: dict[str, Arm], part: str | None = None) -> list:
    """A claim's new - old as a ratio for each seed, over one part of the problems or all; [] without such a part."""
    from gsr_rl.refinement.metrics import share

    (new, high), (old, low) = claim["new"], claim["old"]
    ratios = []
    for a, b in zip(arms[new].frames, arms[old].frames, strict=True):
        rows = a if part is None else a[a["part"] == part]
        ratios.append(share(rows[high] - b.loc[rows.index][low]))
    return ratios if len(rows) else []


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


def right_candidates_table(arms: dict[str, Arm]) -> str:
    """Refinement and vote by number of right candidates, the sets of all seeds together."""
    from gsr_rl.report.markdown import figure, markdown_table, points

    rows, header = [], ["problems", "arm", "right candidates", "sets", "selfref@K", "maj@K", "against the vote"]
    tables = [settings["by_num_correct"] for arm in arms.values() for settings in arm.settings]
    stored = {key for table in tables for part in table.values() for row in part.values() for key in row}
    controls = [control for control in ("unseen", "copied", "novel") if control in stored]  # older files lack them
    for name, arm in arms.items():
        tables = [settings["by_num_correct"] for settings in arm.settings]
        for part in tables[0]:
            for number in sorted({number for table in tables for number in table[part]}, key=int):
                of_seeds = [table[part][number] for table in tables if table[part].get(number, {}).get("n")]
                sets = sum(row["n"] for row in of_seeds)
                if not of_seeds:
                    continue
                maj = sum(row["n"] * row["maj"] for row in of_seeds) / sets
                selfref = share_of_sets(of_seeds)
                word = "above" if selfref["low"] > maj else "below" if selfref["high"] < maj else "level"
                cells = [f"{sets:g}", figure(selfref), f"{100 * maj:.1f}", word]
                cells += [points(mean_of_sets(of_seeds, control)) for control in controls]
                rows.append([part.rsplit("/", 1)[-1], name, number, *cells])
    return markdown_table([*header, *controls], rows)


def mean_of_sets(seeds: list[dict], key: str) -> float | None:
    """A share over the sets of all seeds; None without any."""
    known = [row for row in seeds if row.get(key) is not None]
    sets = sum(row["n"] for row in known)
    return sum(row["n"] * row[key] for row in known) / sets if sets else None


def share_of_sets(seeds: list[dict]) -> dict:
    """The share of all sets whose refinement is right: `{"value", "low", "high"}`, as if each were of another problem.

    Wilson's interval, and the spread of the seeds, which weigh as many as they have sets.
    """
    from gsr_rl.report.intervals import widen_by_seeds, wilson

    sets = sum(row["n"] for row in seeds)
    value = sum(row["n"] * row["selfref"] for row in seeds) / sets
    each = [value + row["n"] * len(seeds) / sets * (row["selfref"] - value) for row in seeds]
    low, high = widen_by_seeds(value, wilson(value, sets), each, (0.0, 1.0))
    return {"value": value, "low": low, "high": high}


def draw(against: str, arms: dict[str, Arm], path: Path) -> None:
    """A plot of refinement, vote and gap against K (`candidates`), `parameters` or pass@1 (`accuracy`)."""
    import matplotlib

    from gsr_rl.run_folder import atomic_path

    matplotlib.use("Agg")
    from matplotlib import pyplot

    label = {"candidates": "candidates shown (K)", "parameters": "parameters", "accuracy": "pass@1, %"}[against]

    def place(arm: Arm) -> float:
        if against == "accuracy":
            return 100 * arm.estimate("pass@1")["value"]
        return arm.settings[0]["k" if against == "candidates" else against]

    lines: dict[str, list[Arm]] = {}
    for name, arm in arms.items():
        lines.setdefault(name.split("_")[0], []).append(arm)
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, metric_name in zip(axes, ("selfref@K", "maj@K", "refinement_gap"), strict=True):
        for name, of_line in lines.items():
            points = [(place(arm), arm.estimate(metric_name)) for arm in sorted(of_line, key=place)]
            x, y = [point[0] for point in points], [100 * point[1]["value"] for point in points]
            low = [100 * (estimate["value"] - estimate["low"]) for _, estimate in points]
            high = [100 * (estimate["high"] - estimate["value"]) for _, estimate in points]
            axis.errorbar(x, y, yerr=[low, high], marker="o", capsize=2, label=name)
        axis.set(title=f"{metric_name}, %", xlabel=label)
        if against != "accuracy":
            axis.set_xscale("log", base=2)
            shown = sorted({place(arm) for of_line in lines.values() for arm in of_line})
            axis.set_xticks(shown, [f"{x:g}" if against == "candidates" else f"{x / 1e6:.2f} M" for x in shown])
            axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    pyplot.close(figure)


def readme_block(config: dict, results: Path, seeds: list[int]) -> str:
    """The demo's arms by the main figures, and its claims."""
    from gsr_rl.report.markdown import figure, markdown_table

    arms = load(config, results, seeds)
    rows = []
    for name, shown in {"base": "base", "sft": "after SFT", "grpo": "after GRPO"}.items():
        rows.append([shown, *(figure(arms[name].estimate(column)) for column in COLUMNS[:5])])
    base = arms["base"]
    head = f"{len(base.frames[0])} test problems, {len(base.seeds)} seeds; "
    head += "percent, 95 % intervals over seeds and problems:"
    table = markdown_table(["", *titles(COLUMNS[:5], arms)], rows)
    return "\n\n".join([head, table, about_intervals(len(base.seeds)), claims_table(config["claims"], arms)])

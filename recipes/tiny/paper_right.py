"""Refinement by number of right candidates, over the tiny world's seeds."""

from paper_arms import Arm

AGAINST_THE_VOTE = (
    "Against the vote: on which side of the vote's share, taken as exact, all of refinement's interval lies. Sets "
    "count as if each were of a problem of its own."
)


def table(arms: dict[str, Arm]) -> str:
    """Refinement and vote by number of right candidates, the sets of all seeds together."""
    from gsr_rl.report.markdown import figure, markdown_table, points

    rows, header = [], ["problems", "arm", "right candidates", "sets", "selfref@K", "maj@K", "against the vote"]
    tables = [settings["by_num_correct"] for arm in arms.values() for settings in arm.settings]
    stored = {key for table in tables for part in table.values() for row in part.values() for key in row}
    controls = [control for control in ("unseen", "copied", "novel") if control in stored]  # older files lack them
    seeds = next(iter(arms.values())).seeds if "over_unseen" in stored else []
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
                cells += [against_unseen(of_seed[part].get(number, {})) for of_seed in tables[: len(seeds)]]
                rows.append([part.rsplit("/", 1)[-1], name, number, *cells])
    return markdown_table(
        [*header, *controls, *(f"selfref - unseen (over problems), seed {seed}" for seed in seeds)], rows
    )


def against_unseen(row: dict) -> str:
    """One seed's refinements less the candidates that were not in their sets, over problems; a dash without such."""
    from gsr_rl.report.markdown import figure, points

    if not row.get("over_unseen"):
        return "-"
    return f"{points(row['selfref'])} - {points(row['unseen'])} = {figure(row['over_unseen'])}"


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

"""An evaluation as text: a markdown table with intervals, the table by number of right candidates, and one plot."""

from pathlib import Path

NOTES = {
    "maj": "the vote over the same candidates, ties by expectation",
    "refinement_gap": "selfref - maj on the same candidates",
    "selfref_none": "refinement prompt without candidates",
    "selfref_foreign": "with another problem's candidates",
    "selfref_frozen": "over another run's candidate sets",
}


def main_metrics(k: int) -> list[str]:
    """The columns of a comparison, in order."""
    return ["pass@1", f"maj@{k}", f"selfref@{k}", f"pass@{k}", "refinement_gap"]


def figure(one: dict | None) -> str:
    """A share as points with its interval: `63.0 [61.2, 64.9]`; a dash where there is none."""
    if not one or one["value"] is None:
        return "-"
    return f"{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table with aligned columns."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]

    def line(row):
        return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def comparison_table(runs: dict[str, dict], benchmark: str, metrics: list[str] | None = None) -> str:
    """Runs (name -> content of eval.json) as rows, metrics as columns."""
    k = next(iter(runs.values()))["k"]
    metrics = metrics or main_metrics(k)
    rows = [[name, *(figure(run["benchmarks"][benchmark].get(m)) for m in metrics)] for name, run in runs.items()]
    return markdown_table(["", *metrics], rows)


def report_markdown(summary: dict) -> str:
    """The whole report of one run, from the content of its eval.json."""
    k, sampling = summary["k"], summary["sampling"]
    lines = [
        f"# Evaluation of {summary['model']}",
        "",
        f"{summary['num_problems']} problems, {summary['num_samples']} candidates a problem, K = {k}, seed "
        f"{summary['seed']}. Percent with 95 % bootstrap intervals over problems (Wilson at 0 and 100).",
        "",
    ]
    for stage in ("candidate", "refinement"):
        settings = ", ".join(f"{key} {value}" for key, value in sampling[stage].items())
        lines.append(f"- {stage}s: {settings}")
    lines.append("- " + ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in summary["counts"].items()))
    for name, values in summary["benchmarks"].items():
        strict = summary["strict"][name]
        rows = [
            [
                metric,
                figure(one),
                figure(strict.get(metric)),
                f"{one['n']:g}",
                NOTES.get("maj" if metric == f"maj@{k}" else metric, ""),
            ]
            for metric, one in values.items()
        ]
        rows += [[key, figure(one), "", "", "paired"] for key, one in summary["differences"][name].items()]
        lines += ["", f"## {name}", "", markdown_table(["", "any final answer", "boxed only", "n", ""], rows)]
        table = summary["by_num_correct"][name]
        by = [
            [number, one["n"], *("-" if one[x] is None else f"{100 * one[x]:.1f}" for x in ("selfref", "maj"))]
            for number, one in table.items()
        ]
        lines += ["", markdown_table(["right candidates", "sets", "selfref", "maj"], by)]
    return "\n".join(lines) + "\n"


def write_report(folder: str | Path, summary: dict) -> None:
    """Write report.md, and report.png if matplotlib is installed."""
    from gsr_rl.run_folder import atomic_write

    atomic_write(Path(folder) / "report.md", report_markdown(summary))
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    plot(Path(folder) / "report.png", summary)


def plot(path: str | Path, summary: dict) -> None:
    """Accuracies with intervals, and refinement against majority by number of right candidates (first benchmark)."""
    import io

    from matplotlib.figure import Figure

    from gsr_rl.run_folder import atomic_write

    k = summary["k"]
    name, values = next(iter(summary["benchmarks"].items()))
    wanted = ["pass@1", f"maj@{k}", f"maj@{k + 1}", f"selfref@{k}", f"pass@{k}", "selfref_none", "selfref_foreign"]
    shown = [m for m in wanted if values.get(m) and values[m]["value"] is not None]
    canvas = Figure(figsize=(10, 4), layout="constrained")
    left, right = canvas.subplots(1, 2)
    centres = [100 * values[m]["value"] for m in shown]
    errors = [
        [max(0.0, 100 * (values[m]["value"] - values[m]["low"])) for m in shown],
        [max(0.0, 100 * (values[m]["high"] - values[m]["value"])) for m in shown],
    ]
    colours = ["tab:green" if m == f"selfref@{k}" else "tab:blue" for m in shown]
    left.bar(range(len(shown)), centres, yerr=errors, capsize=3, color=colours)
    left.set_xticks(range(len(shown)), shown, rotation=30, ha="right")
    left.set_ylabel("problems right, %")
    left.set_title(f"{name}, n = {summary['num_problems']}")
    table = summary["by_num_correct"][name]
    for key, label in (("selfref", f"selfref@{k}"), ("maj", f"maj@{k}")):
        points = [(int(number), 100 * one[key]) for number, one in table.items() if one[key] is not None]
        if points:
            right.plot(*zip(*points, strict=True), marker="o", label=label)
            right.legend()
    right.set_xticks(range(k + 1))
    right.set_xlabel(f"right candidates of {k}")
    right.set_title("by number of right candidates")
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=120)
    atomic_write(path, buffer.getvalue())

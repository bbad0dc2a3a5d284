"""Reports of an evaluation as markdown, from the content of eval.json, seeds.json and compare.json."""

from gsr_rl.report.problem_values import about, metric_name
from gsr_rl.report.samples import OLD_SETTINGS
from gsr_rl.run_folder import machine

NUM_CORRECT = ["right candidates", "sets", "selfref", "maj", "selfref - maj", "unseen", "selfref - unseen", "copied",
               "novel"]  # fmt: skip
SCALING = ["method", "candidates", "refinements", "tokens", "prompt tokens", "of different prompts", "right",
           "vote, equal tokens", "capped", "above that vote"]  # fmt: skip
ABOUT_SCALING = (
    "Means over problems. Vote, equal tokens: of as many candidates as take the method's completion tokens on the "
    "problem, between two whole numbers linearly; capped: problems on which that is more than there are."
)
INTERVALS = "bootstrap intervals over problems, at least Wilson's or Newcombe's where few problems tell"


def main_metrics(k: int) -> list[str]:
    """The columns of a comparison, in order."""
    templates = ("pass@1", "maj@K", "selfref@K", "pass@K", "refinement_gap")
    return list(dict.fromkeys(metric_name(template, k) for template in templates))


def figure(estimate: dict | None) -> str:
    """A share as points with its interval: `63.0 [61.2, 64.9]`; a dash where there is none."""
    if not estimate or estimate["value"] is None:
        return "-"
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def points(value: float | None) -> str:
    """A share as points."""
    return "-" if value is None else f"{100 * value:.1f}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table with aligned columns."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]

    def line(row):
        return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def run_lines(summary: dict) -> list[str]:
    """What a run's figures are of, a sentence a line: sampling, candidate sets, what was not asked for."""
    lines = []
    for stage in ("candidate", "refinement"):
        settings = ", ".join(f"{key} {value}" for key, value in summary["sampling"][stage].items())
        lines.append(f"{stage}s: {settings}")
    groups = f"{summary['num_candidate_sets']} a problem, {summary.get('grouping', OLD_SETTINGS['grouping'])}"
    lines.append(f"runs: {summary['num_samples']} candidates a problem; sets of K = {summary['k']}: {groups}")
    if skipped := summary.get("skipped"):  # older eval.json files lack it
        lines.append(skipped_line(skipped))
    return lines


def skipped_line(skipped: dict[str, dict[str, int]]) -> str:
    """What was not asked for, by method."""
    parts = ", ".join(f"{method} {of['skipped']:,} of {of['samples']:,}" for method, of in skipped.items())
    return f"not asked for, as no prompt fits or no candidate can be shown, and counted as wrong: {parts}"


def settings_lines(summary: dict) -> list[str]:
    """How the figures came about, a sentence a line."""
    lines = run_lines(summary)
    lines.append("amounts: " + ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in summary["counts"].items()))
    lines.append(f"versions: {versions_of(summary)}")
    if hardware := summary.get("hardware"):  # a table that is made again elsewhere keeps it
        lines.append(f"sampled on: {machine(hardware)}")
    for key in ("reward_model", "candidates_from", "candidates_model"):
        if summary.get(key) not in (None, summary["model"]):
            lines.append(f"{key.replace('_', ' ')}: {summary[key]}")
    return lines


def versions_of(run: dict) -> str:
    """The versions that a run was made with, in a line."""
    return ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())


def metric_rows(summary: dict, name: str) -> list[list[str]]:
    """Rows of a benchmark's main table: metric, both gradings, n, what it is."""
    k, strict = summary["k"], summary["strict"][name]
    return [
        [metric, figure(estimate), figure(strict.get(metric)), f"{estimate['n']:g}", about(metric, k)]
        for metric, estimate in summary["benchmarks"][name].items()
    ]


def difference_rows(summary: dict, name: str) -> list[list[str]]:
    """The differences as rows of the same table, each `paired`."""
    strict, lenient = strict_differences(summary, name), summary["differences"][name]
    return [[key, figure(estimate), figure(strict.get(key)), "", "paired"] for key, estimate in lenient.items()]


def strict_differences(summary: dict, name: str) -> dict[str, dict]:
    """Paired differences under strict grading; older eval.json files lack them."""
    return summary.get("strict_differences", {}).get(name, {})


def num_correct_rows(summary: dict, name: str) -> list[list[str]]:
    """Rows of the table by number of right candidates; [] without refinements."""
    table = summary["by_num_correct"].get(name) or {}  # older eval.json files lack the last four
    return [
        [number, str(row["n"]), points(row["selfref"]), points(row["maj"]), figure(row.get("gap"))]
        + [points(row.get("unseen")), figure(row.get("over_unseen"))]
        + [points(row.get(name)) for name in ("copied", "novel")]
        for number, row in table.items()
    ]


def scaling_table(rows: list[dict]) -> list[list[str]]:
    """Rows of the scaling table (`SCALING`), from `scaling.scaling_rows`."""
    tokens = ("tokens", "prompt_tokens", "distinct_prompt_tokens")
    return [
        [row["method"], str(row["candidates"]), str(row["refinements"])]
        + ["-" if row[name] is None else f"{row[name]:,.0f}" for name in tokens]
        + [figure(row), points(row.get("maj")), points(row.get("capped")), figure(row.get("difference"))]
        for row in rows
    ]


def spread_lines(summary: dict, name: str) -> list[str]:
    """Sentences on the spread over runs, and on how many problems or runs a difference takes."""
    lines = []
    for metric, runs in (summary.get("runs", {}).get(name) or {}).items():
        if runs["runs"] > 1:
            spread = "overlapping, " if runs["sd"] is None else f"deviation {100 * runs['sd']:.1f} points, "
            low, high = points(runs["min"]), points(runs["max"])
            lines.append(f"{metric} run by run: {runs['runs']} runs, {spread}{low} to {high}.")
    for metric, note in (summary.get("power", {}).get(name) or {}).items():
        text = f"{metric}: {note['problems']} problems with {note['runs']:g} runs show a difference of "
        text += f"{100 * note['detectable']:.1f} points in 80 of 100 cases."
        for difference, needed in note["needed"].items():
            runs = "" if needed["runs"] is None else f", or {needed['runs']} runs on these"
            text += f" {100 * float(difference):g} points take {needed['problems']} problems{runs}."
        lines.append(text)
    return lines


def report_markdown(summary: dict) -> str:
    """The whole report of estimate run, from the content of its eval.json."""
    lines = [
        f"# Evaluation of {summary['model']}",
        "",
        f"{summary['num_problems']} problems, {summary['num_samples']} candidates a problem, K = {summary['k']}, seed "
        f"{summary['seed']}. Percent with 95 % {INTERVALS}.",
        "",
        *(f"- {line}" for line in settings_lines(summary)),
    ]
    for name in summary["benchmarks"]:
        rows = metric_rows(summary, name) + difference_rows(summary, name)
        lines += ["", f"## {name}", "", markdown_table(["", "any final answer", "boxed only", "n", ""], rows)]
        if rows := num_correct_rows(summary, name):
            lines += ["", markdown_table(NUM_CORRECT, rows)]
        if rows := summary.get("scaling", {}).get(name):
            lines += ["", markdown_table(SCALING, scaling_table(rows)), "", ABOUT_SCALING]
        if spread := spread_lines(summary, name):
            lines += ["", *(f"- {line}" for line in spread)]
    return "\n".join(lines) + "\n"


def seeds_markdown(summary: dict) -> str:
    """The table over several seeds, from what `tables.over_seeds` returned."""
    seeds = summary["seeds"]
    lines = [
        f"# Evaluation over {len(seeds)} runs",
        "",
        f"K = {summary['k']}, seeds {', '.join(seeds)}. Percent with 95 % intervals over seeds (Student's t) "
        "and problems (bootstrap). Deviation and single seeds are of any final answer.",
        "",
        *(f"- {line}" for line in run_lines(summary)),
    ]
    for seed, run in summary["of_seed"].items():
        parts = [f"seed {seed}: {run['model']}", versions_of(run)]
        parts += [f"sampled on {machine(run['hardware'])}"] if run["hardware"] else []
        parts += [skipped_line(run["skipped"])] if run["skipped"] else []
        lines.append("- " + "; ".join(parts))
    header = ["", "any final answer", "boxed only", "deviation", *(f"seed {seed}" for seed in seeds), ""]
    for name in summary["benchmarks"]:
        lines += ["", f"## {name}", "", markdown_table(header, seed_rows(summary, name))]
        if missing := summary["missing"][name]:
            without = [f"{metric} (seed {', '.join(lacking)})" for metric, lacking in missing.items()]
            lines += ["", f"Left out, differences included, as some runs have no figure: {'; '.join(without)}."]
    return "\n".join(lines) + "\n"


def seed_rows(summary: dict, name: str) -> list[list[str]]:
    """Rows of a benchmark's table over seeds: each metric, both gradings; then the differences, each `paired`."""
    k, strict, boxed = summary["k"], summary["strict"][name], strict_differences(summary, name)
    lenient, differences = summary["benchmarks"][name].items(), summary["differences"][name].items()
    shares = [(metric, estimate, figure(strict.get(metric)), about(metric, k)) for metric, estimate in lenient]
    paired = [(pair, estimate, figure(boxed.get(pair)), "paired") for pair, estimate in differences]
    return [
        [label, figure(estimate), second, points(estimate["sd"]), *map(points, estimate["seeds"]), what]
        for label, estimate, second, what in shares + paired
    ]


def comparison_markdown(summary: dict) -> str:
    """Model against model: the main metrics that both runs have, from what `tables.comparison` returned."""
    first, second = summary["models"]
    lines = [
        f"# {first} against {second}",
        "",
        f"Percent, K = {summary['k']}. Differences, first less second, are paired by problem, over those that both "
        f"runs hold, with 95 % {INTERVALS}.",
    ]
    if summary["settings"]:
        other = [f"{key} {here} and {there}" for key, (here, there) in summary["settings"].items()]
        lines += ["", f"Settings that differ: {', '.join(other)}."]
    header = ["", "first", "second", "difference", "difference, boxed only"]
    for name, lenient in summary["benchmarks"].items():
        held, strict, values = summary["problems"][name], summary["strict"][name], summary["values"][name]
        shown = {label.split("-")[0]: label for label in lenient}  # "selfref@4-selfref@8" where K differs
        rows = [
            [label, *map(points, values[label]), figure(lenient[label]), figure(strict.get(label))]
            for label in (shown[metric] for metric in main_metrics(summary["k"]) if metric in shown)
        ]
        numbers = f"{summary['compared'][name]} problems compared; the runs hold {held[0]} and {held[1]}."
        lines += ["", f"## {name}", "", numbers, "", markdown_table(header, rows)]
    return "\n".join(lines) + "\n"

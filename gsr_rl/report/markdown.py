"""An evaluation as text and files: report.md with tables and intervals, report.png, and report.html."""

from gsr_rl.report.samples import FIRST
from gsr_rl.run_folder import machine

NOTES = {
    "pass@1": "a candidate alone",
    "pass@k": "any of the k candidates right",
    "maj": "the vote over the same candidates, ties by expectation",
    "maj+1": "the vote with one candidate more: as many completions as refinement takes",
    "maj@tokens": "the vote over as many candidates as refinement takes tokens",
    "maj@tokens_capped": "refinements with more tokens than all candidates, which maj@tokens then is the vote over",
    "selfref": "the refinement over the k candidates",
    "refinement_gap": "selfref - maj on the same candidates",
    "selfref_none": "refinement prompt without candidates",
    "selfref_foreign": "with another problem's candidates",
    "selfref_frozen": "over another run's candidate sets",
    "select": "the model says which candidate is right",
    "best_of": "the candidate that the reward model scores highest",
    "weighted_maj": "the vote weighted by the reward model",
    "select_named": "selections that name a candidate",
    "fix_rate": "refinements right where the vote is wrong",
    "break_rate": "refinements wrong where the vote is right",
    "copy_rate": "refinements that are a candidate word by word",
    "novel_answer": "refinements whose answer is no candidate's",
    "rescue_rate": "refinements right where no candidate is",
    "order_disagreement": "two refinements of a set in two orders, one right and one wrong",
    "resample_disagreement": "the same in one order: what sampling alone does",
    "order_sensitivity": "the first less the second: what the order does",
}
INTERVALS = "bootstrap intervals over problems, at least Wilson's or Newcombe's where few problems tell"


def note(metric: str, k: int) -> str:
    """What a metric is, in words."""
    if metric.startswith("rounds_"):
        number, vote = metric.split("_")[1], metric.endswith("_maj")
        return f"the vote over round {number}'s refinements" if vote else f"refinement, round {number}"
    known = {f"pass@{k}": "pass@k", f"maj@{k + 1}": "maj+1", "pass@1": "pass@1", "maj@tokens": "maj@tokens"}
    return NOTES.get(known.get(metric, metric.removesuffix(f"@{k}")), "")


def main_metrics(k: int) -> list[str]:
    """The columns of a comparison, in order."""
    return list(dict.fromkeys(["pass@1", f"maj@{k}", f"selfref@{k}", f"pass@{k}", "refinement_gap"]))


def figure(one: dict | None) -> str:
    """A share as points with its interval: `63.0 [61.2, 64.9]`; a dash where there is none."""
    if not one or one["value"] is None:
        return "-"
    return f"{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


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
    groups = f"{summary['num_candidate_sets']} a problem, {summary.get('grouping', FIRST['grouping'])}"
    lines.append(f"runs: {summary['num_samples']} candidates a problem; sets of K = {summary['k']}: {groups}")
    if skipped := summary.get("skipped"):  # the first eval.json lack it
        lines.append(skipped_line(skipped))
    return lines


def skipped_line(skipped: dict[str, dict[str, int]]) -> str:
    """What was not asked for, by method."""
    said = ", ".join(f"{method} {one['skipped']:,} of {one['samples']:,}" for method, one in skipped.items())
    return f"not asked for, as no prompt fits or no candidate can be shown, and counted as wrong: {said}"


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
    return ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())


def metric_rows(summary: dict, name: str) -> list[list[str]]:
    """Rows of a benchmark's main table: metric, both gradings, n, what it is; then the differences, each `paired`."""
    k, strict, paired = summary["k"], summary["strict"][name], strict_differences(summary, name)
    rows = [
        [metric, figure(one), figure(strict.get(metric)), f"{one['n']:g}", note(metric, k)]
        for metric, one in summary["benchmarks"][name].items()
    ]
    differences = summary["differences"][name].items()
    return rows + [[key, figure(one), figure(paired.get(key)), "", "paired"] for key, one in differences]


def strict_differences(summary: dict, name: str) -> dict[str, dict]:
    """Paired differences under strict grading; the first eval.json lack them."""
    return summary.get("strict_differences", {}).get(name, {})


def num_correct_rows(summary: dict, name: str) -> list[list[str]]:
    """Rows of the table by number of right candidates; [] without refinements."""
    table = summary["by_num_correct"].get(name) or {}
    return [
        [number, str(one["n"]), points(one["selfref"]), points(one["maj"]), figure(one.get("gap"))]
        for number, one in table.items()
    ]


def spread_lines(summary: dict, name: str) -> list[str]:
    """Sentences on the spread over runs, and on how many problems or runs a difference takes."""
    lines = []
    for metric, one in (summary.get("runs", {}).get(name) or {}).items():
        if one["runs"] > 1:
            spread = "overlapping, " if one["sd"] is None else f"deviation {100 * one['sd']:.1f} points, "
            low, high = points(one["min"]), points(one["max"])
            lines.append(f"{metric} run by run: {one['runs']} runs, {spread}{low} to {high}.")
    for what, one in (summary.get("power", {}).get(name) or {}).items():
        text = f"{what}: {one['problems']} problems with {one['runs']:g} runs show a difference of "
        text += f"{100 * one['detectable']:.1f} points in 80 of 100 cases."
        for difference, needed in one["needed"].items():
            runs = "" if needed["runs"] is None else f", or {needed['runs']} runs on these"
            text += f" {100 * float(difference):g} points take {needed['problems']} problems{runs}."
        lines.append(text)
    return lines


def report_markdown(summary: dict) -> str:
    """The whole report of one run, from the content of its eval.json."""
    lines = [
        f"# Evaluation of {summary['model']}",
        "",
        f"{summary['num_problems']} problems, {summary['num_samples']} candidates a problem, K = {summary['k']}, seed "
        f"{summary['seed']}. Percent with 95 % {INTERVALS}.",
        "",
        *(f"- {line}" for line in settings_lines(summary)),
    ]
    for name in summary["benchmarks"]:
        table = markdown_table(["", "any final answer", "boxed only", "n", ""], metric_rows(summary, name))
        lines += ["", f"## {name}", "", table]
        if rows := num_correct_rows(summary, name):
            lines += ["", markdown_table(["right candidates", "sets", "selfref", "maj", "selfref - maj"], rows)]
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
    for seed, one in summary["of_seed"].items():
        said = [f"seed {seed}: {one['model']}", versions_of(one)]
        said += [f"sampled on {machine(one['hardware'])}"] if one["hardware"] else []
        said += [skipped_line(one["skipped"])] if one["skipped"] else []
        lines.append("- " + "; ".join(said))
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
    shares = [(m, one, figure(strict.get(m)), note(m, k)) for m, one in summary["benchmarks"][name].items()]
    paired = [(key, one, figure(boxed.get(key)), "paired") for key, one in summary["differences"][name].items()]
    return [
        [label, figure(one), second, points(one["sd"]), *map(points, one["seeds"]), what]
        for label, one, second, what in shares + paired
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
        about = f"{summary['compared'][name]} problems compared; the runs hold {held[0]} and {held[1]}."
        lines += ["", f"## {name}", "", about, "", markdown_table(header, rows)]
    return "\n".join(lines) + "\n"

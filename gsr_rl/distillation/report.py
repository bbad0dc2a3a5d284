"""A distillation as something to look at: distill_report.md, distill_report.png."""

import io
from pathlib import Path

from gsr_rl.refinement.candidates import range_text
from gsr_rl.report.markdown import markdown_table
from gsr_rl.run_folder import atomic_write

ROWS_TO_READ = 5


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def report_markdown(counts: dict, rows, config) -> str:
    """The report.

    Args:
        counts: From `make_rows`; with `problems` and `removed` from `read_problems` if they are known.
        rows: The SFT rows; five of them are shown.
        config: The `DistillConfig`.
    """
    funnel = counts["funnel"]
    lines = [
        "# Distillation",
        "",
        f"Student {config.student_model}, teacher {config.teacher_model}, "
        f"K = {range_text(config.min_num_candidates, config.num_candidates)} of "
        f"{config.num_generations}, candidate choice {config.candidate_choice}, seed {config.seed}.",
        "",
    ]
    if counts.get("problems"):
        table = [[name, f"{count:,}"] for name, count in counts["problems"].items() if count]
        lines += ["## Problems", "", markdown_table(["rows", "count"], table), ""]
    if counts.get("removed"):
        table = [[name, one.get("exact", 0), one.get("overlap", 0)] for name, one in counts["removed"].items()]
        lines += [
            "Removed because an evaluation set holds them; each with its counterpart in decontamination.jsonl:",
            "",
        ]
        lines += [markdown_table(["evaluation set", "equal", "common n-grams"], table), ""]
    lines += ["## Funnel", ""]
    lines += [markdown_table(["step", "count"], [[key, f"{value:,}"] for key, value in funnel.items()]), ""]
    for who, what in (("student", "candidates"), ("teacher", "refinements"), ("teacher", "direct solutions")):
        if sampled := funnel.get(f"{what} sampled"):
            lines.append(f"- {who}, {what}: {_share(funnel[f'{what} right'], sampled)} % right of {sampled:,}")
    sets = ", ".join(f"{count:,} {name}" for name, count in counts["policies"].items())
    lines += [f"- candidate sets: {sets or 'none'}", "", "## Refinements by number of right candidates", ""]
    lines += [_by_number(counts["by_num_correct"], "right candidates"), ""]
    lines += ["Fixed: right where the majority of the set was wrong. Broken: wrong where it was right.", ""]
    if config.min_num_candidates is not None:
        table = _by_number(counts["by_num_candidates"], "candidates")
        lines += ["## Refinements by number of candidates", "", table, ""]
    lines += ["## Lengths in tokens", ""]
    quantiles = ["mean", "p10", "p50", "p90", "p100"]
    table = [[name, *(f"{one[key]:,.0f}" for key in quantiles)] for name, one in counts["lengths"].items()]
    lines += [markdown_table(["", "mean", "10 %", "median", "90 %", "longest"], table), ""]
    lines += ["## Sampled", ""]
    names = ["requests", "prompt tokens", "completion tokens"]
    table = [[who, *(f"{one.get(name, 0):,}" for name in names)] for who, one in counts["tokens"].items()]
    lines += [markdown_table(["", *names], table), "", "## Rows to read", ""]
    for row in rows[:ROWS_TO_READ]:
        right = "" if row["num_correct"] is None else f", {row['num_correct']} candidates right"
        lines += [f"### {row['stage']}, problem {row['problem_id']}, answer {row['answer']}{right}", ""]
        lines += [_quoted(row["prompt"][-1]["content"]), "", _quoted(row["completion"][-1]["content"]), ""]
    return "\n".join(lines)


def _by_number(table: dict[str, dict], counted: str) -> str:
    header = [counted, "refinements", "right, %", "majority right, %", "fixed, %", "broken, %", "rows"]
    rows = []
    whole: dict[str, float] = {}
    for number, one in table.items():
        rows.append([number, *_rates(one)])
        for key, value in one.items():
            whole[key] = whole.get(key, 0) + value
    return markdown_table(header, [*rows, ["all", *_rates(whole)]])


def _rates(one: dict) -> list[str]:
    sampled, majority = one.get("sampled", 0), one.get("majority", 0)
    return [
        f"{sampled:,}",
        _share(one.get("right", 0), sampled),
        _share(majority, sampled),
        _share(one.get("fixed", 0), sampled - majority),
        _share(one.get("broken", 0), majority),
        f"{one.get('kept', 0):,}",
    ]


def _quoted(text: str) -> str:
    """A fenced block that the text cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def write_report(folder: str | Path, counts: dict, rows, config) -> str:
    """Write distill_report.md, and distill_report.png if matplotlib is installed. Returns the text."""
    text = report_markdown(counts, rows, config)
    atomic_write(Path(folder) / "distill_report.md", text)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return text
    canvas = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = canvas.subplots(1, 3)
    _plot_funnel(left, counts["funnel"])
    _plot_by_num_correct(middle, counts["by_num_correct"])
    for name, one in counts["lengths"].items():
        numbers, edges = one["histogram"]
        right.stairs([number / max(1, sum(numbers)) for number in numbers], edges, label=name)
    right.set_xlabel("tokens")
    right.set_ylabel("share")
    if counts["lengths"]:
        right.legend()
    right.set_title("lengths")
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=120)
    atomic_write(Path(folder) / "distill_report.png", buffer.getvalue())
    return text


def _plot_funnel(axes, funnel: dict) -> None:
    names = ["candidates sampled", "candidates right", "refinements sampled", "refinements right"]
    names = [*names, "refinements after balance", "refinement rows", "direct rows"]
    names = [name for name in names if name in funnel]
    axes.barh(names[::-1], [funnel[name] for name in names][::-1])
    axes.set_title("funnel")


def _plot_by_num_correct(axes, table: dict) -> None:
    numbers = [int(number) for number in table]
    for key, label in (("right", "refinement"), ("majority", "majority")):
        axes.plot(numbers, [100 * one.get(key, 0) / one["sampled"] for one in table.values()], marker="o", label=label)
    if numbers:
        axes.set_xticks(numbers)
        axes.legend()
    axes.set_xlabel("right candidates of the set")
    axes.set_ylabel("right, %")
    axes.set_title("teacher against the vote")

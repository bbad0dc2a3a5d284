"""What a distillation will take (its dry run), and what it took: distill_report.md, distill_report.png."""

import io
from collections import Counter
from pathlib import Path

from gsr_rl.refinement.candidates import range_text
from gsr_rl.report.markdown import markdown_table
from gsr_rl.run_folder import atomic_write

ROWS_TO_READ = 5
BYTES_PER_TOKEN = 4.5  # of stored text, its JSON included; an estimate for mathematical English
SOLVE_PROMPT_TOKENS = 150  # where nothing is known
SAMPLED = ("requests", "prompt tokens", "completion tokens")
QUANTILES = {"mean": "mean", "p10": "10 %", "p50": "median", "p90": "90 %", "p100": "longest"}
FUNNEL = ("candidates sampled", "candidates right", "refinements sampled", "refinements right",
          "refinements after balance", "refinement rows", "direct rows")  # fmt: skip


def stated_problems(problem_config, config) -> int | None:
    """How many problems the configuration says that there are, so that a dry run need not read them."""
    stated = (config.expected or {}).get("problems")
    if stated is None:
        return None
    return min(int(stated), problem_config.max_problems or int(stated))


def _figures(problems: int, config, known: dict, part: float) -> dict[str, float]:
    """The figures of a dry run that need no price; a mean length that is not `known` is this `part` of its limit."""
    sets, per_set = config.num_candidate_sets, config.refinements_per_set
    fitting = problems * known.get("fitting", 1.0)
    direct = problems * config.direct_generations if config.direct_source == "teacher" else 0
    direct_ratio = config.direct_ratio if config.direct_source != "none" else 0.0
    candidate = known.get("candidate_tokens", config.max_completion_length * part)
    refinement = known.get("refinement_tokens", config.max_refinement_length * part)
    prompt = known.get("refinement_prompt_tokens", config.max_refinement_prompt_length * part)
    solve_prompt = (config.expected or {}).get("solve_prompt_tokens", SOLVE_PROMPT_TOKENS)
    rows = fitting * known.get("refinement_rows", sets * per_set)
    written = problems * config.num_generations * candidate, (fitting * sets * per_set + direct) * refinement
    # A refinement row, like a set in its shard, holds its candidates twice: as texts and in the prompt.
    disk = sum(written) + 2 * fitting * sets * prompt + rows * (2 * prompt + refinement + direct_ratio * refinement)
    return {
        "problems": problems,
        "candidates": problems * config.num_generations,
        "candidate sets within the prompt's budget": fitting * sets,
        "refinements": fitting * sets * per_set,
        "direct solutions of the teacher": direct,
        "refinement rows": rows,
        "rows": rows * (1 + direct_ratio),
        "requests to the student": problems,
        "requests to the teacher": fitting * sets + (problems if direct else 0),
        "student, completion tokens": written[0],
        "teacher, completion tokens": written[1],
        "teacher, tokens of refinement prompts": fitting * sets * prompt,
        "tokens of solve prompts": problems * solve_prompt * (2 if direct else 1),
        "disk, MB": BYTES_PER_TOKEN * disk / 1e6,
    }


def _prompt_tokens(figures: dict[str, float], who: str) -> float:
    """What the student or the teacher reads: of the solve prompts the teacher has half, for direct solutions."""
    solve, direct = figures["tokens of solve prompts"], bool(figures["direct solutions of the teacher"])
    if who == "student":
        return solve / (1 + direct)
    return figures["teacher, tokens of refinement prompts"] + solve / 2 * direct


def plan(num_problems: int, config) -> dict[str, str]:
    """The figures of a dry run for `num_problems` of the whole job, as expected and at most (with `shard`: its part).

    `config.expected` gives what is known beforehand. Where it does not, a mean length is taken as half its limit, a
    solve prompt as 150 tokens, no prompt as too long, and every refinement as kept by the balance, so the figure is an
    upper one.
    """
    if config.shard:
        number, of = map(int, config.shard.split("/"))
        num_problems = len(range(number - 1, num_problems, of))
    both = (_figures(num_problems, config, config.expected or {}, 0.5), _figures(num_problems, config, {}, 1.0))
    texts = {name: _both(expected, both[1][name]) for name, expected in both[0].items()}
    for who in ("student", "teacher"):
        price, speed = getattr(config, f"{who}_price"), getattr(config, f"{who}_tokens_per_second")
        read = [_prompt_tokens(figures, who) for figures in both]
        written = [figures[f"{who}, completion tokens"] for figures in both]
        if price:
            costs = [(r * price[0] + w * price[1]) / 1e6 for r, w in zip(read, written, strict=True)]
            texts[f"{who}, cost"] = _both(*costs, digits=2)
        if speed:
            texts[f"{who}, hours"] = _both(*(tokens / speed / 3600 for tokens in written), digits=1)
    return texts


def _both(expected: float, limit: float, digits: int = 0) -> str:
    return f"{expected:>18,.{digits}f} expected  {limit:>18,.{digits}f} at most"


def _share(part: float, total: float) -> str:
    return f"{100 * part / total:.1f}" if total else "-"


def report_markdown(counts: dict, rows, config) -> str:
    """The report on `counts` of `make_rows`, with `problems` and `removed` of `read_problems` if they are known."""
    k = range_text(config.min_num_candidates, config.num_candidates)
    lines = [
        "# Distillation",
        "",
        f"Student {config.student_model}, teacher {config.teacher_model}, K = {k} of "
        f"{config.num_generations}, candidate choice {config.candidate_choice}, seed {config.seed}.",
        "",
        *_problem_lines(counts),
        *_funnel_lines(counts),
        "## Refinements by number of right candidates",
        "",
        _by_number(counts["by_num_correct"], "right candidates"),
        "",
        "Fixed: right where the majority of the set was wrong. Broken: wrong where it was right.",
        "",
    ]
    if config.min_num_candidates is not None:
        table = _by_number(counts["by_num_candidates"], "candidates")
        lines += ["## Refinements by number of candidates", "", table, ""]
    table = [[name, *(f"{length[key]:,.0f}" for key in QUANTILES)] for name, length in counts["lengths"].items()]
    lines += ["## Lengths in tokens", "", markdown_table(["", *QUANTILES.values()], table), ""]
    table = [[who, *(f"{sampled.get(name, 0):,}" for name in SAMPLED)] for who, sampled in counts["tokens"].items()]
    lines += ["## Sampled", "", markdown_table(["", *SAMPLED], table), "", "## Rows to read", ""]
    for row in rows[:ROWS_TO_READ]:
        lines += _row_lines(row)
    return "\n".join(lines)


def _problem_lines(counts: dict) -> list[str]:
    """How many problems were read, and how many of them evaluation sets hold."""
    lines = []
    if counts.get("problems"):
        table = [[name, f"{count:,}"] for name, count in counts["problems"].items() if count]
        lines += ["## Problems", "", markdown_table(["rows", "count"], table), ""]
    if counts.get("removed"):
        table = [[name, by.get("exact", 0), by.get("overlap", 0)] for name, by in counts["removed"].items()]
        lines += [
            "Removed because an evaluation set holds them; each with its counterpart in decontamination.jsonl:",
            "",
            markdown_table(["evaluation set", "equal", "common n-grams"], table),
            "",
        ]
    return lines


def _funnel_lines(counts: dict) -> list[str]:
    funnel = counts["funnel"]
    table = markdown_table(["step", "count"], [[key, f"{value:,}"] for key, value in funnel.items()])
    lines = ["## Funnel", "", table, ""]
    for who, what in (("student", "candidates"), ("teacher", "refinements"), ("teacher", "direct solutions")):
        if sampled := funnel.get(f"{what} sampled"):
            lines.append(f"- {who}, {what}: {_share(funnel[f'{what} right'], sampled)} % right of {sampled:,}")
    sets = ", ".join(f"{count:,} {name}" for name, count in counts["policies"].items())
    return [*lines, f"- candidate sets: {sets or 'none'}", ""]


def _row_lines(row: dict) -> list[str]:
    right = "" if row["num_correct"] is None else f", {row['num_correct']} candidates right"
    heading = f"### {row['stage']}, problem {row['problem_id']}, answer {row['answer']}{right}"
    return [heading, "", _quoted(row["prompt"][-1]["content"]), "", _quoted(row["completion"][-1]["content"]), ""]


def _by_number(table: dict[str, dict], counted: str) -> str:
    header = [counted, "refinements", "right, %", "majority right, %", "fixed, %", "broken, %", "rows"]
    totals = Counter()
    for counts in table.values():
        totals.update(counts)
    rows = [[number, *_rates(counts)] for number, counts in table.items()]
    return markdown_table(header, [*rows, ["all", *_rates(totals)]])


def _rates(counts: dict) -> list[str]:
    sampled, majority = counts.get("sampled", 0), counts.get("majority", 0)
    return [
        f"{sampled:,}",
        _share(counts.get("right", 0), sampled),
        _share(majority, sampled),
        _share(counts.get("fixed", 0), sampled - majority),
        _share(counts.get("broken", 0), majority),
        f"{counts.get('kept', 0):,}",
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
    names = [name for name in reversed(FUNNEL) if name in counts["funnel"]]
    left.barh(names, [counts["funnel"][name] for name in names])
    left.set_title("funnel")
    _plot_by_num_correct(middle, counts["by_num_correct"])
    for name, length in counts["lengths"].items():
        numbers, edges = length["histogram"]
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


def _plot_by_num_correct(axes, table: dict) -> None:
    numbers = [int(number) for number in table]
    for key, label in (("right", "refinement"), ("majority", "majority")):
        shares = [100 * counts.get(key, 0) / counts["sampled"] for counts in table.values()]
        axes.plot(numbers, shares, marker="o", label=label)
    if numbers:
        axes.set_xticks(numbers)
        axes.legend()
    axes.set_xlabel("right candidates of the set")
    axes.set_ylabel("right, %")
    axes.set_title("teacher against the vote")

"""report.html: one file that opens offline, with plots, tables, and examples with their candidates side by side.

Everything that a model or a data set wrote is escaped by the template engine, and the page's own policy forbids
scripts and anything from elsewhere.
"""

import base64
from collections import defaultdict

from gsr_rl.refinement import metrics
from gsr_rl.report import INTERVALS, metric_rows, num_correct_rows, settings_lines, spread_lines
from gsr_rl.report_page import PAGE
from gsr_rl.report_plots import svgs

SHOWN_CHARACTERS = 6000  # of a text: its start and its end
GRADING = "lenient"


def report_html(summary: dict, samples: list[dict], num_examples: int = 3) -> str:
    """The whole page.

    Args:
        summary: The content of eval.json.
        samples: Rows of samples.parquet with their texts; without them there are no examples.
        num_examples: Triumphs and failures of each benchmark.
    """
    from jinja2 import Environment

    by_benchmark = defaultdict(list)
    for sample in samples:
        by_benchmark[sample["benchmark"]].append(sample)
    sections = [
        {
            "name": name,
            "plots": {title: _data_address(svg) for title, svg in svgs(summary, name).items()},
            "rows": [row for row in metric_rows(summary, name) if row[4] != "paired"],
            "differences": [row[:2] for row in metric_rows(summary, name) if row[4] == "paired"],
            "num_correct": num_correct_rows(summary, name),
            "spread": spread_lines(summary, name),
            "examples": examples(by_benchmark[name], num_examples) if name in by_benchmark else [],
        }
        for name in summary["benchmarks"]
    ]
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    settings = settings_lines(summary)
    return page.render(summary=summary, settings=settings, intervals=INTERVALS, sections=sections)


def _data_address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def examples(samples: list[dict], number: int) -> list[dict]:
    """Refinements to look at: right where the vote is wrong, those over the fewest right candidates first; and wrong
    where the vote is right, those over the most right candidates first.

    Args:
        samples: Rows of one benchmark.
        number: So many of each at most, of different problems.
    """
    direct, found = defaultdict(dict), []
    for sample in samples:
        if sample["method"] == "direct":
            direct[sample["problem_id"]][sample["index"]] = sample
    for sample in samples:
        if sample["method"] != "selfref" or sample["skipped"] or sample[f"correct_{GRADING}"] is None:
            continue
        candidates = [direct[sample["problem_id"]][index] for index in sample["candidates"]]
        correct = [one[f"correct_{GRADING}"] for one in candidates]
        vote = metrics.maj_correct([one[f"class_{GRADING}"] for one in candidates], correct)
        if vote == vote:
            right = sum(value == 1.0 for value in correct)
            found.append((sample[f"correct_{GRADING}"] - vote, right, sample, candidates))
    triumphs = sorted((one for one in found if one[0] > 0), key=lambda one: (one[1], -one[0]))
    failures = sorted((one for one in found if one[0] < 0), key=lambda one: (-one[1], one[0]))
    return [
        _example(kind, *one[1:])
        for kind, chosen in (("triumph", triumphs), ("failure", failures))
        for one in _of_different_problems(chosen, number)
    ]


def _of_different_problems(found: list[tuple], number: int) -> list[tuple]:
    first: dict[str, tuple] = {}
    for one in found:
        first.setdefault(one[2]["problem_id"], one)
    return list(first.values())[:number]


def _example(kind: str, right: int, sample: dict, candidates: list[dict]) -> dict:
    return {
        "kind": kind,
        "problem_id": sample["problem_id"],
        "problem": _shortened(sample.get("problem") or ""),
        "gold": sample["gold"],
        "right": right,
        "of": len(candidates),
        "columns": [_column(f"candidate {place}", one) for place, one in enumerate(candidates, 1)],
        "refinement": _column("refinement", sample),
    }


def _column(title: str, sample: dict) -> dict:
    correct = sample[f"correct_{GRADING}"]
    verdict = "not graded" if correct is None else "right" if correct == 1.0 else "wrong"
    return {
        "title": title,
        "verdict": verdict,
        "cut": not sample["finished"],
        "answer": sample[f"answer_{GRADING}"],
        "text": _shortened(sample["text"]),
        "tokens": sample["tokens"],
    }


def _shortened(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"

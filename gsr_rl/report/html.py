"""report.html: one file that opens offline, with plots, tables, and examples with their candidates side by side.

Everything that a model or a data set wrote is escaped by the template engine, and the page's own policy forbids
scripts and anything from elsewhere.
"""

import json
from base64 import b64encode
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from gsr_rl.refinement import metrics
from gsr_rl.refinement.metrics import is_scored
from gsr_rl.report import markdown
from gsr_rl.report.plots import png, scaling_png, svgs
from gsr_rl.run_folder import atomic_write

SHOWN_CHARACTERS = 6000  # of a text: its start and its end
GRADING = "lenient"
SVG = "data:image/svg+xml;base64,"  # the start of its address

# The page
TEXT = """{% macro text(column, kind) %}
<div class="text {{ column.verdict }} {{ kind }}">
<header>{{ column.title }}: <b>{{ column.verdict }}</b>{% if column.cut %}, cut off{% endif %}</header>
<p class="soft">answer {{ column.answer if column.answer is not none else "none" }}, {{ column.tokens }} tokens</p>
<pre>{{ column.text }}</pre>
</div>
{% endmacro %}
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Evaluation of {{ summary.model }}</title>
<style>
:root { --ink: #1c2024; --soft: #5b6570; --line: #d9dee3; --right: #00694d; --wrong: #a63d00; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; max-width: 1180px;
  padding: 24px 20px 60px; }
h1 { font-size: 24px; overflow-wrap: anywhere; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 40px 0 12px; padding-bottom: 4px; border-bottom: 2px solid var(--line); }
h3 { font-size: 16px; margin: 28px 0 8px; }
.soft { color: var(--soft); }
nav a { margin-right: 14px; }
ul { padding-left: 20px; margin: 8px 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 16px; }
.plots img { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0; }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { font-weight: 600; white-space: nowrap; }
.differences { columns: 3 320px; column-gap: 28px; }
.differences div { display: flex; justify-content: space-between; border-bottom: 1px solid var(--line);
  padding: 4px 0; break-inside: avoid; font-variant-numeric: tabular-nums; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 10px 0; padding: 8px 14px; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(250px, 100%), 1fr)); gap: 10px; }
.text { border: 1px solid var(--line); border-top-width: 4px; border-radius: 6px; padding: 8px 10px; min-width: 0; }
.text.right { border-top-color: var(--right); }
.text.wrong { border-top-color: var(--wrong); }
.text.refinement { margin-top: 10px; background: #f6f8f9; }
.text header { font-weight: 600; margin-bottom: 4px; }
.right b { color: var(--right); }
.wrong b { color: var(--wrong); }
pre { font: 12.5px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  max-height: 420px; overflow-y: auto; }
</style>
</head>
<body>
<h1>Evaluation of {{ summary.model }}</h1>
<p class="soft">{{ summary.num_problems }} problems, {{ summary.num_samples }} candidates a problem,
K = {{ summary.k }}, seed {{ summary.seed }}. Percent with 95 % {{ intervals }}.</p>
{% if sections|length > 1 %}
<nav>{% for section in sections %}<a href="#part{{ loop.index }}">{{ section.name }}</a>{% endfor %}</nav>
{% endif %}
<ul>
{% for line in settings %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% for section in sections %}
<section id="part{{ loop.index }}">
<h2>{{ section.name }}</h2>
{% if section.plots %}
<div class="plots">
{% for title, address in section.plots.items() %}
<img alt="{{ section.name }}: {{ title }}" src="{{ address }}">
{% endfor %}
</div>
{% else %}
<p class="soft">No plots: matplotlib is not installed.</p>
{% endif %}
<div class="wide"><table>
<thead><tr><th></th><th>any final answer</th><th>boxed only</th><th>n</th><th></th></tr></thead>
<tbody>
{% for name, lenient, strict, n, about in section.rows %}
<tr><td class="name">{{ name }}</td>
<td class="number">{{ lenient }}</td><td class="number">{{ strict }}</td><td class="number">{{ n }}</td>
<td class="soft">{{ about }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if section.differences %}
<h3>Differences, paired by problem, in points</h3>
<div class="differences">
{% for name, value in section.differences %}
<div><span>{{ name }}</span><span>{{ value }}</span></div>
{% endfor %}
</div>
{% endif %}
{% if section.num_correct %}
<h3>By the number of right candidates</h3>
<table>
<thead><tr>{% for cell in num_correct %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in section.num_correct %}
<tr>{% for cell in row %}<td class="number">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endif %}
{% if section.scaling %}
<h3>More candidates</h3>
<p class="soft">{{ about_scaling }}</p>
<div class="wide"><table>
<thead><tr>{% for cell in scaling %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in section.scaling %}
<tr>{% for cell in row %}<td class="number">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if section.spread %}
<h3>Spread and power</h3>
<ul>{% for line in section.spread %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
{% if section.examples %}
<h3>Examples</h3>
{% for example in section.examples %}
<details{% if loop.first %} open{% endif %}>
<summary>{{ "Triumph" if example.kind == "triumph" else "Failure" }}: problem {{ example.problem_id }},
{{ example.right }} of {{ example.of }} candidates right, the refinement {{ example.refinement.verdict }}</summary>
<h3>Problem</h3>
<pre>{{ example.problem }}</pre>
<p>Answer: <b>{{ example.gold }}</b></p>
<div class="columns">
{% for column in example.columns %}
{{ text(column, "") }}
{% endfor %}
</div>
{{ text(example.refinement, "refinement") }}
</details>
{% endfor %}
{% endif %}
</section>
{% endfor %}
</body>
</html>
"""


@dataclass
class Example:
    """A refinement with its candidates: rows of samples.parquet."""

    refinement: dict
    candidates: list[dict]

    def __post_init__(self):
        correct = [candidate[f"correct_{GRADING}"] for candidate in self.candidates]
        vote = metrics.maj_correct([candidate[f"class_{GRADING}"] for candidate in self.candidates], correct)
        self.gap = self.refinement[f"correct_{GRADING}"] - vote  # NaN if the vote is unscored
        self.num_correct = sum(value == 1.0 for value in correct)


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
            "plots": {title: SVG + b64encode(svg.encode()).decode() for title, svg in svgs(summary, name).items()},
            "rows": markdown.metric_rows(summary, name),
            "differences": [row[:2] for row in markdown.difference_rows(summary, name)],
            "num_correct": markdown.num_correct_rows(summary, name),
            "scaling": markdown.scaling_table(summary.get("scaling", {}).get(name, [])),
            "spread": markdown.spread_lines(summary, name),
            "examples": examples(by_benchmark[name], num_examples) if name in by_benchmark else [],
        }
        for name in summary["benchmarks"]
    ]
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEXT + PAGE)
    texts = {"settings": markdown.settings_lines(summary), "intervals": markdown.INTERVALS}
    texts |= {name.lower(): getattr(markdown, name) for name in ("NUM_CORRECT", "SCALING", "ABOUT_SCALING")}
    return page.render(summary=summary, sections=sections, **texts)


def examples(samples: list[dict], number: int) -> list[dict]:
    """Refinements to look at: right where the vote is wrong, those over the fewest right candidates first; and wrong
    where the vote is right, those over the most right candidates first. Of each at most `number`, of different
    problems; `samples` are rows of one benchmark.
    """
    direct, shown = defaultdict(dict), []
    for sample in samples:
        if sample["method"] == "direct":
            direct[sample["problem_id"]][sample["index"]] = sample
    for sample in samples:
        if sample["method"] == "selfref" and not sample["skipped"] and sample[f"correct_{GRADING}"] is not None:
            example = Example(sample, [direct[sample["problem_id"]][index] for index in sample["candidates"]])
            if is_scored(example.gap):
                shown.append(example)
    triumphs = sorted((e for e in shown if e.gap > 0), key=lambda e: (e.num_correct, -e.gap))
    failures = sorted((e for e in shown if e.gap < 0), key=lambda e: (-e.num_correct, e.gap))
    return [
        _shown(kind, example)
        for kind, chosen in (("triumph", triumphs), ("failure", failures))
        for example in _of_different_problems(chosen)[:number]
    ]


def _of_different_problems(shown: list[Example]) -> list[Example]:
    first: dict[str, Example] = {}
    for example in shown:
        first.setdefault(example.refinement["problem_id"], example)
    return list(first.values())


def _shown(kind: str, example: Example) -> dict:
    sample = example.refinement
    return {
        "kind": kind,
        "problem_id": sample["problem_id"],
        "problem": _shortened(sample.get("problem") or ""),
        "gold": sample["gold"],
        "right": example.num_correct,
        "of": len(example.candidates),
        "columns": [_column(f"candidate {place}", row) for place, row in enumerate(example.candidates, 1)],
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


def write_report(folder: str | Path, summary: dict, samples: list[dict] | None = None, num_examples: int = 3) -> None:
    """Write report.md and report.html (arguments as `report_html`), and report.png if matplotlib is installed.

    Of a run with a scaling report also scaling.json, its settings and rows by benchmark, and scaling.png.
    """
    atomic_write(Path(folder) / "report.md", markdown.report_markdown(summary))
    atomic_write(Path(folder) / "report.html", report_html(summary, samples or [], num_examples))
    if image := png(summary):
        atomic_write(Path(folder) / "report.png", image)
    if summary.get("scaling"):
        settings = ("model", "k", "seed", "num_problems", "num_samples", "pools", "sampling", "versions")
        content = {key: summary.get(key) for key in settings} | {"scaling": summary["scaling"]}
        atomic_write(Path(folder) / "scaling.json", json.dumps(content, indent=1) + "\n")
        if image := scaling_png(summary["scaling"]):
            atomic_write(Path(folder) / "scaling.png", image)

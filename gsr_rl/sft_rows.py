"""From the samples of a distillation to SFT rows: balance, mixing, duplicates, and a report on what became of all."""

import json
import random
from collections import Counter, defaultdict

from gsr_rl.candidates import choice_seed
from gsr_rl.prompts import candidate_text, get_template, solve_prompt


def balanced(right: list[int], num_sampled: int, max_if_all_right: int, rng: random.Random) -> list[int]:
    """The paper's rule for one problem: of `right` refinements all are kept, unless all `num_sampled` are right."""
    if len(right) < num_sampled or len(right) <= max_if_all_right:
        return right
    return sorted(rng.sample(right, max_if_all_right))


def training_text(text: str, keep_thinking: bool) -> str:
    """The completion that is trained on. A closing tag gets the opening one that the prompt had taken away."""
    if not keep_thinking:
        return candidate_text(text)
    if "</think>" in text and "<think>" not in text:
        return "<think>\n" + text
    return text


def make_rows(rows: list[dict], candidates: dict, refinements: dict, config) -> tuple[list[dict], dict]:
    """SFT rows (DESIGN.md's format) from all units, and the counts of the funnel."""
    rng = random.Random(choice_seed(config.seed, "rows"))
    funnel: Counter = Counter(problems=len(rows))
    by_nc: dict[int, Counter] = defaultdict(Counter)
    refine_rows = _Unique()
    for row in rows:
        group = candidates[row["id"]]["samples"]
        funnel["candidates sampled"] += len(group)
        funnel["candidates right"] += sum(s["correct"] == 1.0 for s in group)
        funnel["candidates finished"] += sum(s["finished"] for s in group)
        unit = refinements[row["id"]]
        funnel["problems with a candidate set"] += bool(unit["sets"])
        funnel["candidate sets"] += len(unit["sets"])
        funnel["candidates cut to fit"] += sum(one["cut"] for one in unit["sets"])
        sampled = [s for s in unit["samples"] if s["stage"] == "refinement"]
        right = [i for i, s in enumerate(sampled) if s["correct"] == 1.0 and s["finished"]]
        for sample in sampled:
            nc = by_nc[unit["sets"][sample["set"]]["num_correct"]]
            nc["sampled"] += 1
            nc["right"] += sample["correct"] == 1.0
        kept = balanced(right, len(sampled), config.max_if_all_right, rng)
        funnel["refinements sampled"] += len(sampled)
        funnel["refinements right"] += len(right)
        funnel["refinements after balance"] += len(kept)
        for index in kept:
            one = unit["sets"][sampled[index]["set"]]
            text = training_text(sampled[index]["text"], config.keep_thinking)
            if refine_rows.add(_row(row, "refinement", one["prompt"], text, config.teacher_model, one)):
                by_nc[one["num_correct"]]["kept"] += 1
    found = list(refine_rows)
    funnel["refinement rows"] = len(found)
    direct = _direct_rows(rows, candidates, refinements, config, round(config.direct_ratio * len(found)), rng)
    funnel["direct rows"] = len(direct)
    result = found + direct
    rng.shuffle(result)
    funnel["rows"] = len(result)
    counts = {"funnel": dict(funnel), "by_num_correct": {str(k): dict(by_nc[k]) for k in sorted(by_nc)}}
    counts["tokens"] = {
        "candidates": sum(s["tokens"] for unit in candidates.values() for s in unit["samples"]),
        "refinements": sum(s["tokens"] for unit in refinements.values() for s in unit["samples"]),
    }
    return result, counts


class _Unique(dict):
    """Rows without doubles of prompt and completion, in order."""

    def add(self, row: dict) -> bool:
        """Whether the row was new."""
        key = json.dumps([row["prompt"], row["completion"]])
        new = key not in self
        self.setdefault(key, row)
        return new

    def __iter__(self):
        return iter(self.values())


def _row(row: dict, stage: str, prompt: list[dict], text: str, source: str, one: dict | None = None) -> dict:
    return {
        "prompt": prompt,
        "completion": [{"role": "assistant", "content": text}],
        "stage": stage,
        "problem_id": row["id"],
        "answer": row["answer"],
        "candidates": one["candidates"] if one else None,
        "num_correct": one["num_correct"] if one else None,
        "source": source,
    }


def _direct_rows(rows, candidates, refinements, config, wanted: int, rng: random.Random) -> list[dict]:
    """Up to `wanted` direct solutions: one of every problem in random order, then a second of each, and so on.

    A student's unfiltered samples may repeat each other: that is its distribution, so doubles of them stay.
    """
    kind = config.direct_source
    if kind == "none" or wanted == 0:
        return []
    template = get_template(config.prompt_template)
    pools = []
    for row in rows:
        if kind == "gold":
            pool = [str(row["solution"])] if row.get("solution") else []
        elif kind == "teacher":
            samples = [s for s in refinements[row["id"]]["samples"] if s["stage"] == "candidate"]
            pool = [s["text"] for s in samples if s["correct"] == 1.0 and s["finished"]]
        else:
            samples = [s for s in candidates[row["id"]]["samples"] if s["finished"]]
            pool = [s["text"] for s in samples if kind == "student" or s["correct"] == 1.0]
        if kind != "student":
            pool = list(dict.fromkeys(pool))
        if pool:
            pools.append((row, rng.sample(pool, len(pool))))
    rng.shuffle(pools)
    source = {"teacher": config.teacher_model, "gold": "gold"}.get(kind, config.student_model)
    found = []
    for depth in range(max((len(pool) for _, pool in pools), default=0)):
        for row, pool in pools:
            if depth < len(pool) and len(found) < wanted:
                text = training_text(pool[depth], config.keep_thinking)
                found.append(_row(row, "candidate", solve_prompt(row["problem"], template), text, source))
    return found


def report_markdown(counts: dict, rows: list[dict], config) -> str:
    """distill_report.md: the funnel, refinements by number of right candidates, rows to read."""
    from gsr_rl.report import markdown_table

    funnel, lines = counts["funnel"], ["# Distillation", ""]
    lines += [f"Student {config.student_model}, teacher {config.teacher_model}, K = {config.num_candidates}.", ""]
    lines += [markdown_table(["step", "count"], [[key, f"{value:,}"] for key, value in funnel.items()]), ""]
    shares = (
        ("student", "candidates right", "candidates sampled"),
        ("teacher", "refinements right", "refinements sampled"),
    )
    for who, top, bottom in shares:
        if funnel.get(bottom):
            lines.append(f"- {who}: {100 * funnel[top] / funnel[bottom]:.1f} % right")
    lines += [f"- tokens sampled: {counts['tokens']['candidates']:,} + {counts['tokens']['refinements']:,}", ""]
    table = [
        [
            number,
            one.get("sampled", 0),
            f"{100 * one.get('right', 0) / max(1, one.get('sampled', 0)):.1f}",
            one.get("kept", 0),
        ]
        for number, one in counts["by_num_correct"].items()
    ]
    lines += [markdown_table(["right candidates", "refinements", "right, %", "rows"], table), ""]
    for row in rows[:5]:
        lines += [
            f"## {row['stage']} · {row['problem_id']}",
            "",
            "```",
            row["prompt"][-1]["content"],
            "```",
            "",
            "```",
        ]
        lines += [row["completion"][-1]["content"], "```", ""]
    return "\n".join(lines)


# Reading them back ------------------------------------------------------------------------------------------


def load_sft_rows(config) -> list[dict]:
    """The rows that a `GSRSFTConfig` names: of its stages, `max_rows` of them chosen by its seed.

    Returns:
        Rows with at least `prompt`, `completion` (lists of messages) and `stage`.

    Raises:
        ValueError: A row that lacks one of the three, an unknown stage, or no row left.
    """
    name = str(config.dataset_name)
    if name.endswith((".jsonl", ".json", ".parquet", ".csv")):
        from pathlib import Path

        from gsr_rl.problems import read_local

        rows = read_local(Path(name))
    else:
        import datasets

        rows = datasets.load_dataset(name, config.dataset_config, split=config.dataset_split).to_list()
    for number, row in enumerate(rows, 1):
        for key in ("prompt", "completion"):
            messages = row.get(key) if isinstance(row, dict) else None
            if not isinstance(messages, list) or not all(isinstance(m, dict) and m.get("content") for m in messages):
                raise ValueError(
                    f"{name}, row {number}: `{key}` must be a list of messages with role and content, as "
                    "distill_gsr.py writes it"
                )
        if row.get("stage") not in ("candidate", "refinement"):
            raise ValueError(f"{name}, row {number}: stage={row.get('stage')!r}, use candidate or refinement")
    kept = [row for row in rows if row["stage"] in config.stages]
    if not kept:
        raise ValueError(f"{name}: no row of stages={config.stages}, {len(rows)} rows in all: change stages")
    if config.max_rows and config.max_rows < len(kept):
        kept = random.Random(choice_seed(config.seed, "max_rows")).sample(kept, config.max_rows)
    return kept

"""Tables of an evaluation, made from its stored samples alone: no model, no verifier. Two runs are compared paired."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gsr_rl import metrics
from gsr_rl.candidates import choice_seed
from gsr_rl.evaluation import GRADINGS, read_samples
from gsr_rl.metrics import Ratio

COLUMNS = ["benchmark", "part", "problem_id", "method", "index", "candidates", "tokens", "finished", "skipped"]
COLUMNS += [f"{kind}_{grading}" for grading in GRADINGS for kind in ("correct", "class")]


@dataclass
class ProblemValues:
    """One benchmark under one grading: figures a problem, and the candidate sets behind them.

    Attributes:
        ids: Problem ids, length P.
        values: By metric, P values in [0, 1] (gap: [-1, 1]); NaN where unscored.
        sets: One `(problem place, num_correct, selfref, maj)` a candidate set.
    """

    k: int
    ids: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sets: list[tuple[int, int, float, float]] = field(default_factory=list)

    def ratios(self) -> dict[str, Ratio]:
        """Every metric as a ratio of sums over problems."""
        found = {name: metrics.share(values) for name, values in self.values.items()}
        found = {name: ratio for name, ratio in found.items() if ratio.count or not name.startswith("selfref_")}
        if self.sets:
            places, _, refined, maj = zip(*self.sets, strict=True)
            for name, rate in (("fix_rate", metrics.fix_rate), ("break_rate", metrics.break_rate)):
                found[name] = self._by_problem(rate(maj, refined), places)
        return found

    def _by_problem(self, ratio: Ratio, places: tuple[int, ...]) -> Ratio:
        """A ratio over sets as one over problems; a problem's sets share one unit of weight."""
        size = len(self.ids)
        sets = np.maximum(np.bincount(places, minlength=size), 1)
        top = np.bincount(places, weights=ratio.numerator, minlength=size) / sets
        return Ratio(top, np.bincount(places, weights=ratio.denominator, minlength=size) / sets)

    def select(self, ids: list[str]) -> "ProblemValues":
        """The same figures for `ids`, in that order."""
        place = {identity: index for index, identity in enumerate(self.ids)}
        new = {place[identity]: index for index, identity in enumerate(ids)}
        values = {name: [values[place[identity]] for identity in ids] for name, values in self.values.items()}
        sets = [(new[one[0]], *one[1:]) for one in self.sets if one[0] in new]
        return ProblemValues(self.k, list(ids), values, sets)

    def by_num_correct(self) -> dict:
        """The table by number of right candidates; a set whose candidates are not all scored is left out."""
        kept = [one for one in self.sets if one[1] >= 0]
        columns = list(zip(*kept, strict=True)) or [(), (), (), ()]
        return metrics.by_num_correct(columns[1], columns[2], columns[3], self.k)


@dataclass
class Results:
    """All figures of a run: its settings, and `ProblemValues` by grading and benchmark."""

    header: dict
    problems: dict[str, dict[str, ProblemValues]]
    counts: dict[str, float]


def metrics_from_samples(path: str | Path) -> Results:
    """Per-problem figures from a samples.parquet, or from the run folder that holds one."""
    path = Path(path) / "samples.parquet" if Path(path).is_dir() else Path(path)
    header, samples = read_samples(path, COLUMNS)
    grouped: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        grouped[sample["benchmark"]][sample["problem_id"]].append(sample)
        if sample["part"] is not None:
            grouped[f"{sample['benchmark']}/{sample['part']}"][sample["problem_id"]].append(sample)
    problems = {
        grading: {name: _problem_values(group, header, grading) for name, group in grouped.items()}
        for grading in GRADINGS
    }
    return Results(header, problems, _counts(samples))


def _counts(samples: list[dict]) -> dict[str, float]:
    """Amounts beside the figures: tokens and finished shares by stage, skipped and unscored samples."""
    counts: dict[str, float] = {}
    for stage, chosen in (("candidate", ("direct",)), ("refinement", ("selfref",))):
        rows = [sample for sample in samples if sample["method"] in chosen]
        if rows:
            counts[f"{stage}_tokens_mean"] = round(sum(row["tokens"] for row in rows) / len(rows), 3)
            counts[f"{stage}_finished"] = round(sum(row["finished"] for row in rows) / len(rows), 6)
    counts["tokens"] = sum(sample["tokens"] for sample in samples)
    counts["skipped_refinements"] = sum(sample["skipped"] for sample in samples)
    counts["unscored_samples"] = sum(sample["correct_lenient"] is None for sample in samples)
    return counts


def _mean(values: list[float | None]) -> float:
    scored = [value for value in values if metrics.is_scored(value)]
    return sum(scored) / len(scored) if scored else math.nan


def _problem_values(group: dict[str, list[dict]], header: dict, grading: str) -> ProblemValues:
    k = header["k"]
    result = ProblemValues(k)
    values = result.values
    for place, (identity, samples) in enumerate(group.items()):
        result.ids.append(identity)
        direct = sorted((s for s in samples if s["method"] == "direct"), key=lambda s: s["index"])
        correct = [s[f"correct_{grading}"] for s in direct]
        classes = [s[f"class_{grading}"] for s in direct]
        scored = [value for value in correct if value is not None]
        values["pass@1"].append(_mean(correct))
        values[f"pass@{k}"].append(
            metrics.pass_at_k(len(scored), sum(value == 1.0 for value in scored), k) if len(scored) >= k else math.nan
        )
        seed = choice_seed(header["seed"], identity, "maj")
        values[f"maj@{k + 1}"].append(metrics.maj_at_k(classes, correct, k + 1, seed=seed))
        votes, refined = [], []
        for sample in samples:
            if sample["method"] != "selfref":
                continue
            chosen = [correct[i] for i in sample["candidates"]]
            votes.append(metrics.maj_correct([classes[i] for i in sample["candidates"]], chosen))
            one = sample[f"correct_{grading}"]
            refined.append(math.nan if one is None else one)
            right = -1 if None in chosen else sum(value == 1.0 for value in chosen)
            result.sets.append((place, right, refined[-1], votes[-1]))
        values[f"maj@{k}"].append(_mean(votes))
        values[f"selfref@{k}"].append(_mean(refined))
        values["refinement_gap"].append(_mean([r - v for r, v in zip(refined, votes, strict=True)]))
        for name in ("selfref_none", "selfref_foreign", "selfref_frozen"):
            values[name].append(_mean([s[f"correct_{grading}"] for s in samples if s["method"] == name]))
    return result


def summarise(results: Results) -> dict:
    """The content of eval.json: lenient grading in `benchmarks`, strict in `strict`, paired differences, settings."""
    k = results.header["k"]
    summary = dict(results.header) | {"benchmarks": {}, "strict": {}, "differences": {}, "by_num_correct": {}}
    for grading, target in zip(GRADINGS, ("benchmarks", "strict"), strict=True):
        for name, values in results.problems[grading].items():
            weights = metrics.bootstrap_weights(len(values.ids), seed=results.header["seed"])
            ratios = values.ratios()
            summary[target][name] = {metric: metrics.estimate(ratio, weights) for metric, ratio in ratios.items()}
            gap = metrics.estimate_difference(ratios[f"selfref@{k}"], ratios[f"maj@{k}"], weights)
            summary[target][name]["refinement_gap"] |= gap
            if grading == "lenient":
                selfref = f"selfref@{k}"
                summary["differences"][name] = {
                    f"{selfref}-{other}": metrics.estimate_difference(ratios[selfref], ratios[other], weights)
                    for other in (f"maj@{k + 1}", "pass@1", f"pass@{k}", "selfref_none", "selfref_foreign")
                    if other in ratios
                }
                summary["by_num_correct"][name] = values.by_num_correct()
    return summary | {"counts": results.counts}


def compare(
    run_a: str | Path | Results,
    run_b: str | Path | Results,
    pairs: list[tuple[str, str]] | None = None,
    grading: str = "lenient",
    seed: int = 0,
) -> dict[str, dict[str, dict]]:
    """Paired differences run_a - run_b on the problems that both hold.

    Args:
        run_a, run_b: Run folders, samples.parquet files, or what `metrics_from_samples` returned.
        pairs: (metric of a, metric of b). Default: every metric that both have, with itself.

    Returns:
        `{benchmark: {METRIC or "METRIC_A-METRIC_B": {"value", "low", "high"}}}`.
    """
    a, b = (run if isinstance(run, Results) else metrics_from_samples(run) for run in (run_a, run_b))
    found = {}
    for name, first in a.problems[grading].items():
        second = b.problems[grading].get(name)
        known = set(second.ids) if second else set()
        common = [identity for identity in first.ids if identity in known]
        if not common:
            continue
        left, right = first.select(common).ratios(), second.select(common).ratios()
        weights = metrics.bootstrap_weights(len(common), seed=seed)
        wanted = pairs or [(metric, metric) for metric in left if metric in right]
        found[name] = {
            x if x == y else f"{x}-{y}": metrics.estimate_difference(left[x], right[y], weights) for x, y in wanted
        }
    if not found:
        raise ValueError("the two runs have no problem in common: evaluate the same problems with both models")
    return found

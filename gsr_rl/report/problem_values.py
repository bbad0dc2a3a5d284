"""Figures a problem, from its stored samples: what every table of an evaluation is made of. No model, no verifier."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gsr_rl.refinement import metrics
from gsr_rl.refinement.candidates import candidate_sets
from gsr_rl.refinement.metrics import Ratio
from gsr_rl.report import intervals
from gsr_rl.report.samples import GRADINGS, read_samples, samples_path, skipped_of

ACCURACIES = ("selfref_none", "selfref_foreign", "selfref_frozen")
SETS_OF = ("selfref", "select", "rounds")  # methods whose samples say which sets there are
COLUMNS = ["benchmark", "part", "problem_id", "problem", "gold", "method", "index", "round", "order", "repeat"]
COLUMNS += ["candidates", "chosen", "copied", "score", "tokens", "prompt_tokens", "finished", "skipped"]
COLUMNS += [f"{kind}_{grading}" for grading in GRADINGS for kind in ("correct", "class")]


@dataclass
class ProblemValues:
    """One benchmark under one grading: figures a problem, and the candidate sets behind them.

    Attributes:
        ids: Problem ids, length P.
        values: By metric, P values in [0, 1] (differences: [-1, 1]); NaN where unscored.
        sets: One `(problem place, num_correct, selfref, maj)` a candidate set.
        rates: By metric, `(problem place, hit, weight)` a candidate set: shares of only some of the sets.
        curves: By `pass@j` and `maj@j` for several j, P values.
        runs: By metric, for each problem its values run by run.
        spent: By metric, P numbers of completion tokens.
    """

    k: int
    ids: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sets: list[tuple[int, int, float, float]] = field(default_factory=list)
    rates: dict[str, list[tuple[int, float, float]]] = field(default_factory=lambda: defaultdict(list))
    curves: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    runs: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    spent: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def ratios(self) -> dict[str, Ratio]:
        """Every metric as a ratio of sums over problems; controls that the run has not are left out."""
        found = {name: metrics.share(values) for name, values in self.values.items()}
        found = {name: ratio for name, ratio in found.items() if ratio.count or name not in ACCURACIES}
        if self.sets and "refinement_gap" in self.values:
            places, _, refined, maj = zip(*self.sets, strict=True)
            for name, rate in (("fix_rate", metrics.fix_rate), ("break_rate", metrics.break_rate)):
                one = rate(maj, refined)
                found[name] = self._by_problem(one.numerator, one.denominator, places)
        for name, rows in self.rates.items():
            places, hits, weights = (np.array(column) for column in zip(*rows, strict=True))
            found[name] = self._by_problem(hits * weights, weights, places)
        return found

    def _by_problem(self, numerator, denominator, places) -> Ratio:
        """A ratio over sets as one over problems; a problem's sets share one unit of weight."""
        size = len(self.ids)
        sets = np.maximum(np.bincount([one[0] for one in self.sets], minlength=size), 1)
        top = np.bincount(places, weights=numerator, minlength=size) / sets
        scored = [place for place, _, *both in self.sets if all(map(metrics.is_scored, both))]
        bottom = np.bincount(places, weights=denominator, minlength=size) / sets
        return Ratio(top, bottom, np.isin(np.arange(size), scored))

    def select(self, ids: list[str]) -> "ProblemValues":
        """Values, sets and rates of `ids`, in that order."""
        place = {identity: index for index, identity in enumerate(self.ids)}
        new = {place[identity]: index for index, identity in enumerate(ids)}
        values = {name: [values[place[identity]] for identity in ids] for name, values in self.values.items()}
        sets = [(new[one[0]], *one[1:]) for one in self.sets if one[0] in new]
        rates = {name: [(new[o[0]], *o[1:]) for o in rows if o[0] in new] for name, rows in self.rates.items()}
        rates = {name: rows for name, rows in rates.items() if rows}
        return ProblemValues(self.k, list(ids), values, sets, rates)

    def by_num_correct(self, weights) -> dict:
        """The table by number of right candidates; a set whose candidates are not all scored is left out.

        Args:
            weights: (resamples, P), of `intervals.bootstrap_weights`.

        Returns:
            The rows of `metrics.by_num_correct`, and in each `gap`: selfref - maj over its sets, with its interval
            over problems; None without sets.
        """
        kept = [one for one in self.sets if one[1] >= 0]
        columns = list(zip(*kept, strict=True)) or [(), (), (), ()]
        table = metrics.by_num_correct(columns[1], columns[2], columns[3], self.k)
        for number, row in table.items():
            its = [one for one in kept if one[1] == int(number) and all(map(metrics.is_scored, one[2:]))]
            row["gap"] = self._gap_of(its, weights) if its else None
        return table

    def _gap_of(self, sets: list[tuple[int, int, float, float]], weights) -> dict:
        """selfref - maj over some sets. A vote that is the same in all of them takes nothing from the interval."""
        places, _, selfref, maj = (np.array(column) for column in zip(*sets, strict=True))
        size = len(self.ids)
        number = np.bincount(places, minlength=size)
        if (maj != maj[0]).any():
            return intervals.estimate(Ratio(np.bincount(places, selfref - maj, size), number), weights, signed=True)
        one = intervals.estimate(Ratio(np.bincount(places, selfref, size), number), weights)
        return one | {key: round(one[key] - float(maj[0]), metrics.DIGITS) for key in ("value", "low", "high")}


@dataclass
class Results:
    """All figures of a run.

    Attributes:
        header: Its settings.
        names: Its benchmarks.
        problems: `ProblemValues` by grading and benchmark; then by each part of one, as `BENCHMARK/PART`.
        counts: Amounts: tokens, finished shares, unscored samples.
        skipped: By method, samples that the model was not asked for (`skipped_of`).
        texts: Problem and gold answer by benchmark and problem id.
    """

    header: dict
    names: list[str]
    problems: dict[str, dict[str, ProblemValues]]
    counts: dict[str, float]
    skipped: dict[str, dict[str, int]]
    texts: dict[tuple[str, str], tuple[str | None, str | None]]


def metrics_from_samples(path: str | Path) -> Results:
    """Per-problem figures from a samples.parquet, or from the run folder that holds one."""
    header, samples = read_samples(samples_path(path), COLUMNS)
    grouped: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        grouped[sample["benchmark"]][sample["problem_id"]].append(sample)
        if sample["part"] is not None:
            grouped[f"{sample['benchmark']}/{sample['part']}"][sample["problem_id"]].append(sample)
    problems = {
        grading: {name: problem_values(group, header, grading) for name, group in grouped.items()}
        for grading in GRADINGS
    }
    firsts = {(name, identity): one[0] for name, group in grouped.items() for identity, one in group.items()}
    texts = {key: (first["problem"], first["gold"]) for key, first in firsts.items()}
    names = list(dict.fromkeys(sample["benchmark"] for sample in samples))
    header["num_problems"] = sum(len(grouped[name]) for name in names)
    return Results(header, names, problems, _counts(samples), skipped_of(samples), texts)


def _counts(samples: list[dict]) -> dict[str, float]:
    """Amounts beside the figures: tokens and finished shares by stage, unscored samples."""
    counts: dict[str, float] = {}
    for stage, chosen in (("candidate", ("direct",)), ("refinement", ("selfref",))):
        rows = [sample for sample in samples if sample["method"] in chosen]
        if rows:
            counts[f"{stage}_tokens_mean"] = round(sum(row["tokens"] for row in rows) / len(rows), 3)
            counts[f"{stage}_finished"] = round(sum(row["finished"] for row in rows) / len(rows), 6)
    counts["tokens"] = sum(sample["tokens"] for sample in samples)
    first = [s for s in samples if not (s["index"] if s["method"] == "direct" else s["repeat"])]
    counts["prompt_tokens"] = sum(sample["prompt_tokens"] or 0 for sample in first)
    counts["unscored_samples"] = sum(sample["correct_lenient"] is None for sample in samples)
    return counts


def problem_values(group: dict[str, list[dict]], header: dict, grading: str) -> ProblemValues:
    """The figures of one benchmark.

    Args:
        group: Samples by problem id.
        header: The settings of samples.parquet.
        grading: `lenient` or `strict`.
    """
    result = ProblemValues(header["k"])
    methods = {sample["method"] for samples in group.values() for sample in samples}
    scored = any(sample.get("score") is not None for samples in group.values() for sample in samples)
    for place, (identity, samples) in enumerate(group.items()):
        result.ids.append(identity)
        one = _Problem(identity, samples, header, grading)
        _votes(result, one, header)
        if "selfref" in methods:
            _refinements(result, one, place)
        else:
            maj = one.votes()
            result.sets += [(place, one.right(i), math.nan, maj[i]) for i in one.sets]
        _other_methods(result, one, methods)
        if scored:
            _by_score(result, one)
    return result


class _Problem:
    """One problem's samples under one grading."""

    def __init__(self, identity: str, samples: list[dict], header: dict, grading: str):
        self.identity, self.k = identity, header["k"]
        self.by_method: dict[str, list[dict]] = defaultdict(list)
        for sample in samples:
            self.by_method[sample["method"]].append(sample)
        self._correct, self._class = f"correct_{grading}", f"class_{grading}"
        self.direct = sorted(self.by_method["direct"], key=lambda sample: sample["index"])
        self.correct = [self.value(sample) for sample in self.direct]
        self.classes = [sample[self._class] for sample in self.direct]
        self.tokens = [sample["tokens"] for sample in self.direct]
        self.sets = self._sets(header)
        known, shown = [sample["index"] for sample in self.direct], {i for one in self.sets.values() for i in one}
        if known != list(range(len(known))) or not shown <= set(known):
            raise ValueError(
                f"samples of problem {identity}: candidates are missing or twice: there are {known}, and its sets "
                f"hold {sorted(shown)}: take the file as the evaluation wrote it"
            )

    def _sets(self, header: dict) -> dict[int, list[int]]:
        for method in SETS_OF:
            found = [s for s in self.by_method[method] if not s.get("order") and (s.get("round") or 1) == 1]
            if found:
                return {sample["index"]: sample["candidates"] for sample in found}
        seed, number = header.get("sets_seed", header["seed"]), header["num_candidate_sets"]
        return dict(enumerate(candidate_sets(self.identity, len(self.direct), self.k, number, seed)))

    def value(self, sample: dict) -> float:
        """Its correctness; NaN if unscored."""
        value = sample[self._correct]
        return math.nan if value is None else value

    def group(self, sample: dict) -> int | None:
        """Its class of answers; None without an answer."""
        return sample[self._class]

    def votes(self) -> dict[int, float]:
        """The vote over each set."""
        return {
            index: metrics.maj_correct([self.classes[i] for i in chosen], [self.correct[i] for i in chosen])
            for index, chosen in self.sets.items()
        }

    def right(self, index: int) -> int:
        """Right candidates of a set; -1 if one is unscored."""
        values = [self.correct[i] for i in self.sets[index]]
        return -1 if any(value != value for value in values) else sum(value == 1.0 for value in values)

    def set_tokens(self, index: int) -> int:
        """Completion tokens of a set's candidates."""
        return sum(self.tokens[i] for i in self.sets[index])


def mean(values) -> float:
    """The mean of the scored values; NaN without any."""
    scored = [value for value in values if metrics.is_scored(value)]
    return sum(scored) / len(scored) if scored else math.nan


def ladder(most: int, k: int) -> list[int]:
    """The numbers of candidates that curves are drawn at: powers of two, K, K + 1 and all."""
    powers = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return sorted({*powers, most, *(number for number in (k, k + 1) if number <= most)})


def _votes(result: ProblemValues, one: _Problem, header: dict) -> None:
    """pass@k and maj@k."""
    k, values, scored = one.k, result.values, [value for value in one.correct if value == value]
    right = sum(value == 1.0 for value in scored)
    values["pass@1"].append(mean(one.correct))
    if k > 1:
        values[f"pass@{k}"].append(metrics.pass_at_k(len(scored), right, k) if len(scored) >= k else math.nan)
    values[f"maj@{k + 1}"].append(metrics.maj_at_k(one.classes, one.correct, k + 1))
    values[f"maj@{k}"].append(mean(one.votes().values()))
    result.runs["pass@1"].append(one.correct)
    result.runs[f"maj@{k}"].append(list(one.votes().values()))
    each = mean(one.tokens)
    for number in ladder(header["num_samples"], k):
        enough = len(scored) >= number
        result.curves[f"pass@{number}"].append(metrics.pass_at_k(len(scored), right, number) if enough else math.nan)
        result.curves[f"maj@{number}"].append(metrics.maj_at_k(one.classes, one.correct, number))
        result.spent[f"maj@{number}"].append(number * each)
    result.spent["pass@1"].append(each)


def _refinements(result: ProblemValues, one: _Problem, place: int) -> None:
    """selfref@k, the gap, the vote at equal tokens, and what refinements take from their candidates."""
    k, votes = one.k, one.votes()
    refined, gaps, equal, capped, spent = [], [], [], [], []
    each = mean(one.tokens)
    most = sum(map(metrics.is_scored, one.correct))
    for sample in sorted(one.by_method["selfref"], key=lambda sample: sample["index"]):
        index, value = sample["index"], one.value(sample)
        result.sets.append((place, one.right(index), value, votes[index]))
        refined.append(value)
        gaps.append(value - votes[index])
        spent.append(one.set_tokens(index) + sample["tokens"])
        count = spent[-1] / each if each else float(k)
        equal.append(metrics.maj_at_count(one.classes, one.correct, count))
        capped.append(float(spent[-1] * len(one.tokens) > most * sum(one.tokens)) if most else math.nan)
        if one.right(index) == 0 and value == value:
            result.rates["rescue_rate"].append((place, value, 1.0))
        if sample["skipped"]:
            continue
        if sample.get("copied") is not None:
            result.rates["copy_rate"].append((place, float(sample["copied"]), 1.0))
        if one.group(sample) is not None and sample.get("copied") is not None:
            known = {one.classes[i] for i in one.sets[index]}
            result.rates["novel_answer"].append((place, float(one.group(sample) not in known), 1.0))
    result.values[f"selfref@{k}"].append(mean(refined))
    result.values["refinement_gap"].append(mean(gaps))
    result.values["maj@tokens"].append(mean(equal))
    result.values["maj@tokens_capped"].append(mean(capped))
    result.runs[f"selfref@{k}"].append(refined)
    result.runs["refinement_gap"].append(gaps)
    result.spent[f"selfref@{k}"].append(mean(spent))
    result.spent["maj@tokens"].append(min(mean(spent), sum(one.tokens)) if spent else math.nan)


def _other_methods(result: ProblemValues, one: _Problem, methods: set[str]) -> None:
    """Controls, selection, rounds, orders: those that the run has."""
    values, spent, k = result.values, result.spent, one.k
    for name in ACCURACIES:  # NaN in a run without them, so that runs can be put side by side
        values[name].append(mean(map(one.value, one.by_method[name])))
    if "selfref_none" in methods:
        spent["selfref_none"].append(mean(sample["tokens"] for sample in one.by_method["selfref_none"]))
    if "select" in methods:
        samples = one.by_method["select"]
        values[f"select@{k}"].append(mean(map(one.value, samples)))
        values["select_named"].append(mean(float(sample["chosen"] is not None) for sample in samples))
        spent[f"select@{k}"].append(mean(one.set_tokens(s["index"]) + s["tokens"] for s in samples))
    if "rounds" in methods:
        _rounds(result, one)
    if "orders" in methods:
        _orders(result, one)


def _rounds(result: ProblemValues, one: _Problem) -> None:
    """Each round's refinements, and the vote over them."""
    samples = one.by_method["rounds"]
    before = {index: float(one.set_tokens(index)) for index in one.sets}
    for number in sorted({sample["round"] for sample in samples}):
        of_set = {index: [s for s in samples if s["round"] == number and s["index"] == index] for index in one.sets}
        result.values[f"rounds_{number}"].append(mean(mean(map(one.value, group)) for group in of_set.values()))
        votes = [metrics.maj_correct([*map(one.group, g)], [*map(one.value, g)]) for g in of_set.values()]
        result.values[f"rounds_{number}_maj"].append(mean(votes))
        tokens = {index: [sample["tokens"] for sample in group] for index, group in of_set.items()}
        result.spent[f"rounds_{number}"].append(mean(before[i] + mean(tokens[i]) for i in of_set))
        before = {index: before[index] + sum(tokens[index]) for index in of_set}
        result.spent[f"rounds_{number}_maj"].append(mean(before.values()))


def _orders(result: ProblemValues, one: _Problem) -> None:
    """How often two refinements of a set disagree: in its own order, and across orders. Of sets that have another."""
    same, other = [], []
    for index in one.sets:
        samples = [sample for sample in one.by_method["orders"] if sample["index"] == index]
        own = [one.value(sample) for sample in samples if sample["order"] == 0]
        same.append(metrics.disagreement(own))
        other.append(metrics.disagreement(own, [one.value(sample) for sample in samples if sample["order"]]))
    result.values["order_disagreement"].append(mean(other))
    result.values["resample_disagreement"].append(mean(same))
    result.values["order_sensitivity"].append(mean(o - s for o, s in zip(other, same, strict=True)))


def _by_score(result: ProblemValues, one: _Problem) -> None:
    """Best of K, and the vote weighted by the scores as probabilities."""
    best, weighted = [], []
    scores = [sample["score"] for sample in one.direct]
    weights = [1 / (1 + math.exp(-max(-700.0, s))) if metrics.is_scored(s) else None for s in scores]
    for chosen in one.sets.values():
        correct, classes = [one.correct[i] for i in chosen], [one.classes[i] for i in chosen]
        best.append(metrics.best_of([scores[i] for i in chosen], correct))
        weighted.append(metrics.maj_correct(classes, correct, [weights[i] for i in chosen]))
    result.values[f"best_of@{one.k}"].append(mean(best))
    result.values[f"weighted_maj@{one.k}"].append(mean(weighted))
    for name in (f"best_of@{one.k}", f"weighted_maj@{one.k}"):
        result.spent[name].append(mean(map(one.set_tokens, one.sets)))

"""From the stored samples of a run to the values of each problem: the table of all metrics, with their formulas.

    samples.parquet -> Problem        one problem's samples under one grading (gsr_rl/report/samples.py)
                    -> ProblemValues  what the metrics below make of them
                    -> Problems       those of a benchmark, or a part of it: each figure is a ratio of sums over them

No model, no verifier. A new metric or control is an entry of METRICS or RATES: its interval, its place in the reports
and its comparison between runs follow from that.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path

import numpy as np

from gsr_rl.refinement import metrics
from gsr_rl.refinement.metrics import Ratio, is_scored
from gsr_rl.report import scaling
from gsr_rl.report.samples import (
    COLUMNS,
    GRADINGS,
    CandidateSet,
    Problem,
    counts_of,
    mean,
    read_samples,
    samples_path,
    skipped_of,
    vote,
)


@dataclass(frozen=True)
class Metric:
    """A value of each problem; its figure is the mean over the scored problems.

    Attributes:
        template: Its name, in which K is the size of the candidate sets.
        about: What it is, in words.
        value: Its formula: from a problem to [0, 1] (differences: [-1, 1]); NaN where unscored.
        tokens: Completion tokens that it takes on a problem; None for what is no method of its own.
        runs: Its values run by run, for the spread and the power note.
        needs: The kind of samples without which there is no such metric (`Problem.kinds`).
        is_accuracy: Whether it is a share of problems solved, to be compared with other such shares.
        is_signed: Whether it is a difference.
    """

    template: str
    about: str
    value: Callable[[Problem], float]
    tokens: Callable[[Problem], float] | None = None
    runs: Callable[[Problem], list[float]] | None = None
    needs: str = "direct"
    is_accuracy: bool = True
    is_signed: bool = False


@dataclass(frozen=True)
class Rate:
    """The share of `hit` among candidate sets, each of which counts by its `weight` (`Problems.rate`).

    Attributes:
        hit, weight: Of a set, in [0, 1]; where one is NaN the set takes no part.
        is_optional: Left out where no set takes part.
    """

    template: str
    about: str
    hit: Callable[[CandidateSet], float]
    weight: Callable[[CandidateSet], float] = lambda s: 1.0
    is_optional: bool = True


def metric_name(template: str, k: int) -> str:
    """`maj@5` of `maj@K+1`, for sets of K = 4."""
    return template.replace("@K+1", f"@{k + 1}").replace("@K", f"@{k}")


VOTES = (
    Metric("pass@1", "a candidate alone", lambda p: mean(p.correct),
           tokens=lambda p: mean(p.tokens), runs=lambda p: p.correct),
    Metric("pass@K", "any of the k candidates right", lambda p: p.pass_at(p.k)),
    Metric("maj@K+1", "the vote with one candidate more: as many completions as refinement takes",
           lambda p: p.maj_at(p.k + 1)),
    Metric("maj@K", "the vote over the same candidates, ties by expectation", lambda p: mean(s.maj for s in p.sets),
           runs=lambda p: [s.maj for s in p.sets]),
)  # fmt: skip
VERDICT = Metric("verdict@K", "the vote among candidates that say their check held, of all where none does",
                 lambda p: mean(s.verdict for s in p.sets), tokens=lambda p: mean(s.tokens for s in p.sets),
                 needs="verdicts")  # fmt: skip
REFINEMENT = (
    Metric("selfref@K", "the refinement over the k candidates", lambda p: mean(s.selfref for s in p.sets),
           tokens=lambda p: mean(s.refined_tokens for s in p.sets), runs=lambda p: [s.selfref for s in p.sets],
           needs="selfref"),
    Metric("refinement_gap", "selfref - maj on the same candidates", lambda p: mean(s.selfref - s.maj for s in p.sets),
           runs=lambda p: [s.selfref - s.maj for s in p.sets], needs="selfref", is_accuracy=False, is_signed=True),
    Metric("maj@tokens", "the vote over as many candidates as refinement takes tokens",
           lambda p: mean(p.maj_at_tokens(s.refined_tokens) for s in p.sets),
           tokens=lambda p: min(mean(s.refined_tokens for s in p.sets), sum(p.tokens)), needs="selfref"),
    Metric("maj@tokens_capped",
           "refinements with more tokens than all candidates, which maj@tokens then is the vote over",
           lambda p: mean(p.is_capped(s.refined_tokens) for s in p.sets), needs="selfref", is_accuracy=False),
)  # fmt: skip
CONTROLS = (
    Metric("selfref_none", "refinement prompt without candidates", lambda p: p.accuracy("selfref_none"),
           tokens=lambda p: mean(sample.tokens for sample in p.samples["selfref_none"]), needs="selfref_none"),
    Metric("selfref_foreign", "with another problem's candidates", lambda p: p.accuracy("selfref_foreign"),
           needs="selfref_foreign"),
    Metric("selfref_frozen", "over another run's candidate sets", lambda p: p.accuracy("selfref_frozen"),
           needs="selfref_frozen"),
)  # fmt: skip
SELECTION = (
    Metric("select@K", "the model says which candidate is right", lambda p: p.accuracy("select"),
           tokens=lambda p: mean(s.tokens + sample.tokens for s in p.sets for sample in s.samples["select"]),
           needs="select"),
    Metric("select_named", "selections that name a candidate",
           lambda p: mean(float(sample.chosen is not None) for sample in p.samples["select"]),
           needs="select", is_accuracy=False),
)  # fmt: skip
ORDERS = (
    Metric("order_disagreement", "two refinements of a set in two orders, one right and one wrong",
           lambda p: mean(s.disagreement(reordered=True) for s in p.sets), needs="orders", is_accuracy=False),
    Metric("resample_disagreement", "the same in one order: what sampling alone does",
           lambda p: mean(s.disagreement(reordered=False) for s in p.sets), needs="orders", is_accuracy=False),
    Metric("order_sensitivity", "the first less the second: what the order does",
           lambda p: mean(s.disagreement(reordered=True) - s.disagreement(reordered=False) for s in p.sets),
           needs="orders", is_accuracy=False, is_signed=True),
)  # fmt: skip
REWARD_MODEL = (
    Metric("best_of@K", "the candidate that the reward model scores highest", lambda p: mean(s.best() for s in p.sets),
           tokens=lambda p: mean(s.tokens for s in p.sets), needs="scores"),
    Metric("weighted_maj@K", "the vote weighted by the reward model",
           lambda p: mean(s.weighted_maj() for s in p.sets), tokens=lambda p: mean(s.tokens for s in p.sets),
           needs="scores"),
)  # fmt: skip
METRICS = (*VOTES, VERDICT, *REFINEMENT, *CONTROLS, *SELECTION, *ORDERS, *REWARD_MODEL)
RATES = (
    Rate("fix_rate", "refinements right where the vote is wrong", lambda s: s.selfref, lambda s: 1 - s.maj,
         is_optional=False),
    Rate("break_rate", "refinements wrong where the vote is right", lambda s: 1 - s.selfref, lambda s: s.maj,
         is_optional=False),
    Rate("rescue_rate", "refinements right where no candidate is",
         lambda s: s.selfref if s.num_correct == 0 else math.nan),
    Rate("copy_rate", "refinements that are a candidate word by word", lambda s: s.copied),
    Rate("novel_answer", "refinements whose answer is no candidate's", lambda s: s.novel),
)  # fmt: skip
SIGNED = {metric.template for metric in METRICS if metric.is_signed}
NO_ACCURACY = {metric.template for metric in METRICS if not metric.is_accuracy} | {rate.template for rate in RATES}


@lru_cache
def of_round(number: int) -> tuple[Metric, Metric]:
    """The refinements of a round, each over a set of the round before, and the vote over them."""

    def tokens(p: Problem) -> float:
        return mean(s.tokens_through(number - 1) + mean(sample.tokens for sample in s.round(number)) for s in p.sets)

    return (
        Metric(f"rounds_{number}", f"refinement, round {number}",
               lambda p: mean(mean(sample.correct for sample in s.round(number)) for s in p.sets),
               tokens=tokens, needs="rounds"),
        Metric(f"rounds_{number}_maj", f"the vote over round {number}'s refinements",
               lambda p: mean(vote(s.round(number)) for s in p.sets),
               tokens=lambda p: mean(s.tokens_through(number) for s in p.sets), needs="rounds"),
    )  # fmt: skip


SIZED = re.compile(r"(selfref|refine_and_vote|maj@tokens|tree)@(\d+)")


@lru_cache
def of_size(kind: str, n: int) -> Metric:
    """What is made of n candidates, beside K: one of `SIZED`."""
    about, needs, point = {
        "selfref": (f"the refinement over {n} candidates", "flat", lambda p: scaling.of_flat(p, n)),
        "refine_and_vote": (f"the vote over refinements of sets out of {n} candidates", "refine_and_vote",
                            lambda p: scaling.of_pool(p, n, len(p.pools[n]))),
        "maj@tokens": (f"the vote over as many candidates as refine_and_vote@{n} takes tokens", "refine_and_vote",
                       lambda p: scaling.vote_at_tokens(p, of_size("refine_and_vote", n).tokens(p))),
        "tree": (f"refinements of refinements until one is left of {n} candidates", "tree",
                 lambda p: scaling.of_tree(p, n)),
    }[kind]  # fmt: skip
    tokens = lambda p: point(p).spent.tokens  # noqa: E731
    return Metric(f"{kind}@{n}", about, lambda p: point(p).value, tokens=tokens, needs=needs)


def composed_of(problem: Problem) -> list[Metric]:
    """The metrics of other numbers of candidates than K that a problem has samples for."""
    sizes = [("selfref", n) for n in problem.flat]
    sizes += [(kind, n) for kind in ("refine_and_vote", "maj@tokens") for n in problem.pools]
    sizes += [("tree", n) for n in scaling.tree_sizes(problem).values()]
    return [of_size(*size) for size in sizes]


def metrics_of(problem: Problem) -> dict[str, Metric]:
    """By name, the metrics that a problem has samples for, in the order of the reports."""
    rounds = chain.from_iterable(of_round(number) for number in problem.rounds)
    named: dict[str, Metric] = {}
    composed = composed_of(problem)
    refined = (*VOTES, VERDICT, *REFINEMENT, *composed, *CONTROLS)
    for metric in (*refined, *SELECTION, *rounds, *ORDERS, *REWARD_MODEL):
        if metric.needs in problem.kinds:
            named.setdefault(metric_name(metric.template, problem.k), metric)  # pass@1 is pass@K too where K is 1
    return named


def about(name: str, k: int) -> str:
    """What a metric of a run with sets of `k` is, in words; empty if it is not known."""
    number = re.match(r"rounds_(\d+)", name)
    table = of_round(int(number[1])) if number else (*METRICS, *RATES)
    if sized := SIZED.fullmatch(name):
        table = (*table, of_size(sized[1], int(sized[2])))
    return next((metric.about for metric in table if metric_name(metric.template, k) == name), "")


def curve_numbers(num_samples: int, k: int) -> list[int]:
    """The numbers of candidates that pass@k and maj@k are drawn at: powers of two, K, K + 1 and all."""
    powers = [2**power for power in range(num_samples.bit_length()) if 2**power <= num_samples]
    return sorted({*powers, num_samples, *(number for number in (k, k + 1) if number <= num_samples)})


@dataclass(frozen=True)
class ProblemValues:
    """What one problem comes to under one grading.

    Attributes:
        values: By metric; NaN where unscored.
        curves: `pass@n` and `maj@n` for several n.
        tokens: By metric, completion tokens.
        runs: By metric, its values run by run.
        points: For the scaling report (gsr_rl/report/scaling.py); {} without its methods, and under strict grading.
    """

    identity: str
    values: dict[str, float]
    curves: dict[str, float]
    tokens: dict[str, float]
    runs: dict[str, list[float]]
    sets: list[CandidateSet]
    points: dict[scaling.Key, scaling.Point]

    @classmethod
    def of(cls, problem: Problem, num_samples: int) -> "ProblemValues":
        table = metrics_of(problem)
        curves, tokens, each = {}, {}, mean(problem.tokens)
        for number in curve_numbers(num_samples, problem.k):
            curves[f"pass@{number}"], curves[f"maj@{number}"] = problem.pass_at(number), problem.maj_at(number)
            tokens[f"maj@{number}"] = number * each
        values = {name: metric.value(problem) for name, metric in table.items()}
        tokens |= {name: metric.tokens(problem) for name, metric in table.items() if metric.tokens}
        runs = {name: metric.runs(problem) for name, metric in table.items() if metric.runs}
        scales = problem.grading == "lenient" and scaling.COMPOSED & problem.kinds
        points = scaling.points_of(problem) if scales else {}
        return cls(problem.identity, values, curves, tokens, runs, problem.sets, points)


@dataclass
class Problems:
    """The problems of one benchmark, or of one part of it, under one grading; K is the size of the candidate sets."""

    k: int
    problems: list[ProblemValues]

    @cached_property
    def ids(self) -> list[str]:
        return [problem.identity for problem in self.problems]

    @cached_property
    def values(self) -> dict[str, list[float]]:
        """By metric, its value on each problem; `curves`, `tokens` and `runs` likewise."""
        return columns([problem.values for problem in self.problems], math.nan)

    @cached_property
    def curves(self) -> dict[str, list[float]]:
        return columns([problem.curves for problem in self.problems], math.nan)

    @cached_property
    def tokens(self) -> dict[str, list[float]]:
        return columns([problem.tokens for problem in self.problems], math.nan)

    @cached_property
    def runs(self) -> dict[str, list[list[float]]]:
        return columns([problem.runs for problem in self.problems], [])

    def ratios(self) -> dict[str, Ratio]:
        """Every metric as a ratio of sums over problems; controls that the run has not are left out."""
        ratios = {name: metrics.share(values) for name, values in self.values.items()}
        controls = {control.template for control in CONTROLS}
        ratios = {name: ratio for name, ratio in ratios.items() if ratio.count or name not in controls}
        if "refinement_gap" not in ratios:
            return ratios
        sets = [candidate_set for problem in self.problems for candidate_set in problem.sets]
        first = {  # the first set that takes part: in this order the optional ones are shown
            rate: next((place for place, candidate_set in enumerate(sets) if takes_part(rate, candidate_set)), None)
            for rate in RATES
            if rate.is_optional
        }
        shown = [rate for rate in RATES if not rate.is_optional]
        shown += sorted((rate for rate in first if first[rate] is not None), key=first.get)
        return ratios | {rate.template: self.ratio_of(rate) for rate in shown}

    def ratio_of(self, rate: Rate) -> Ratio:
        """A rate over candidate sets as a ratio over problems, whose sets share one unit of weight.

        With S_p sets of problem p: sum_p 1/S_p sum_s weight_s hit_s over sum_p 1/S_p sum_s weight_s.
        """
        hits, weights, scored = [], [], []
        for problem in self.problems:
            sets = [candidate_set for candidate_set in problem.sets if takes_part(rate, candidate_set)]
            unit = max(1, len(problem.sets))
            hits.append(sum(rate.weight(s) * rate.hit(s) for s in sets) / unit)
            weights.append(sum(map(rate.weight, sets)) / unit)
            scored.append(any(candidate_set.is_scored for candidate_set in problem.sets))
        return Ratio(np.array(hits, float), np.array(weights, float), np.array(scored, bool))

    def select(self, ids: list[str]) -> "Problems":
        """These problems, in this order."""
        known = dict(zip(self.ids, self.problems, strict=True))
        return Problems(self.k, [known[identity] for identity in ids])


def takes_part(rate: Rate, candidate_set: CandidateSet) -> bool:
    """Whether a candidate set counts in a rate."""
    return is_scored(rate.hit(candidate_set)) and is_scored(rate.weight(candidate_set))


def columns(rows: list[dict], missing) -> dict[str, list]:
    """Rows that need not have the same keys, by key."""
    return {name: [row.get(name, missing) for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}


@dataclass
class Results:
    """All figures of a run.

    Attributes:
        header: Its settings.
        names: Its benchmarks.
        problems: By grading and benchmark; then by each part of one, as `BENCHMARK/PART`.
        counts: Amounts: tokens, finished shares, unscored samples.
        skipped: By method, samples that the model was not asked for (`skipped_of`).
        texts: Problem and gold answer by benchmark and problem id.
    """

    header: dict
    names: list[str]
    problems: dict[str, dict[str, Problems]]
    counts: dict[str, float]
    skipped: dict[str, dict[str, int]]
    texts: dict[tuple[str, str], tuple[str | None, str | None]]


def metrics_from_samples(path: str | Path) -> Results:
    """Per-problem figures from a samples.parquet, or from the run folder that holds one."""
    header, samples = read_samples(samples_path(path), COLUMNS)
    rows_of: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for sample in samples:
        rows_of[sample["benchmark"], sample["problem_id"]].append(sample)
    problems: dict[str, dict[str, Problems]] = {grading: {} for grading in GRADINGS}
    texts = {}
    for (benchmark, identity), rows in rows_of.items():
        part = rows[0]["part"]
        names = [benchmark] if part is None else [benchmark, f"{benchmark}/{part}"]
        texts |= {(name, identity): (rows[0]["problem"], rows[0]["gold"]) for name in names}
        for grading in GRADINGS:
            values = ProblemValues.of(Problem(identity, rows, header, grading), header["num_samples"])
            for name in names:
                problems[grading].setdefault(name, Problems(header["k"], [])).problems.append(values)
    header["num_problems"] = len(rows_of)
    names = list(dict.fromkeys(benchmark for benchmark, _ in rows_of))
    return Results(header, names, problems, counts_of(samples), skipped_of(samples), texts)

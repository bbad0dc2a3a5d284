"""Tables of an evaluation, made from its stored samples alone: no model, no verifier. Two runs are compared paired."""

import math
from itertools import chain
from pathlib import Path

import numpy as np

from gsr_rl.refinement import metrics
from gsr_rl.report import intervals, scaling
from gsr_rl.report.intervals import of_two_models, power_note, variance
from gsr_rl.report.problem_values import (
    METRICS,
    NO_ACCURACY,
    SIGNED,
    SIZED,
    Problems,
    Results,
    metric_name,
    metrics_from_samples,
)
from gsr_rl.report.samples import GRADINGS, CandidateSet, check_same_problems, mean

# By grading, the keys of its figures and of their paired differences in eval.json and seeds.json.
TABLES = {"lenient": ("benchmarks", "differences"), "strict": ("strict", "strict_differences")}
SEED_KEYS = {  # what runs of several seeds share: key -> where a run's settings hold it
    "num_candidates": ("k",),
    "num_generations": ("num_samples",),
    "num_candidate_sets": ("num_candidate_sets",),
    "grouping": ("grouping",),
    "own_candidates": ("own_candidates",),
    "refinements_per_pool": ("pools",),
    "engine": ("engine",),
    "reward_model": ("reward_model",),
    "temperature": ("sampling", "candidate", "temperature"),
    "top_p": ("sampling", "candidate", "top_p"),
    "max_completion_length": ("sampling", "candidate", "max_tokens"),
    "refinement_temperature": ("sampling", "refinement", "temperature"),
    "refinement_top_p": ("sampling", "refinement", "top_p"),
    "max_refinement_length": ("sampling", "refinement", "max_tokens"),
    "prompt_template": ("sampling", "prompt_template"),
    "prompt_template_version": ("sampling", "prompt_template_version"),
    "max_refinement_prompt_length": ("sampling", "max_refinement_prompt_length"),
    "unfinished_candidates": ("sampling", "unfinished_candidates"),
}
SHARED = ("num_samples", "num_candidate_sets", "grouping", "engine", "sampling")


def summarise(results: Results) -> dict:
    """The content of eval.json: figures and paired differences under both gradings, what else is lenient, settings."""
    tables = (*chain.from_iterable(TABLES.values()), "by_num_correct", "by_k", "tokens", "runs", "power", "scaling")
    summary = results.header | {"names": results.names} | {table: {} for table in tables}
    for grading, (target, paired) in TABLES.items():
        for name, values in results.problems[grading].items():
            weights = intervals.bootstrap_weights(len(values.ids), seed=results.header["seed"])
            ratios = values.ratios()
            summary[target][name] = {
                metric: intervals.estimate(ratio, weights, signed=metric in SIGNED) for metric, ratio in ratios.items()
            }
            summary[paired][name] = {
                f"{x}-{y}": intervals.estimate_difference(ratios[x], ratios[y], weights)
                for x, y in wanted_pairs(values.k, ratios)
            }
            if grading == "lenient":
                _add_details(summary, name, values, ratios, weights)
    return summary | {"counts": results.counts, "skipped": results.skipped}


def _add_details(summary: dict, name: str, values: Problems, ratios: dict, weights) -> None:
    """What is given under lenient grading only: by right candidates, scaling, curves, tokens, spread, power."""
    if "refinement_gap" in ratios:
        summary["by_num_correct"][name] = by_num_correct(values, weights)
    summary["by_k"][name] = {
        kind: {
            curve.removeprefix(f"{kind}@"): intervals.estimate(metrics.share(points), weights)
            for curve, points in values.curves.items()
            if curve.startswith(f"{kind}@")
        }
        for kind in ("pass", "maj")
    }
    if rows := scaling.scaling_rows([problem.points for problem in values.problems], weights):
        summary["scaling"][name] = rows
    means = {metric: [t for t in tokens if not math.isnan(t)] for metric, tokens in values.tokens.items()}
    summary["tokens"][name] = {m: round(math.fsum(t) / len(t), 3) for m, t in means.items() if t}
    apart = summary["num_candidate_sets"] * values.k <= summary["num_samples"]  # then sets share no candidate
    independent = {metric: apart or metric == "pass@1" for metric in values.runs}
    summary["runs"][name] = {metric: runs_of(groups, independent[metric]) for metric, groups in values.runs.items()}
    parts = {metric: variance(groups, independent[metric]) for metric, groups in values.runs.items()}
    notes = {"refinement_gap": power_note(parts.get("refinement_gap"))}
    notes |= {f"{metric} of two models": power_note(of_two_models(of_one)) for metric, of_one in parts.items()}
    summary["power"][name] = {key: note for key, note in notes.items() if note}


def by_num_correct(values: Problems, weights) -> dict:
    """The table by number of right candidates; a set whose candidates are not all scored is left out.

    Args:
        weights: (resamples, P) of `intervals.bootstrap_weights`.

    Returns:
        The rows of `metrics.by_num_correct`, and in each, None without sets: `gap`, selfref - maj; `unseen`, the share
        of right ones among the candidates that are not in the set, and `over_unseen`, selfref - unseen over sets that
        have such; `copied` and `novel`, shares of refinements (`CandidateSet`).
    """
    sets = [candidate_set for problem in values.problems for candidate_set in problem.sets]
    figures = ([getattr(s, name) for s in sets] for name in ("num_correct", "selfref", "maj"))
    table = metrics.by_num_correct(*figures, values.k)
    for number, row in table.items():
        groups = [[s for s in p.sets if s.num_correct == int(number) and s.is_scored] for p in values.problems]
        row["gap"] = _gap(groups, weights) if row["n"] else None
        beside = [[s for s in of_problem if metrics.is_scored(s.unseen)] for of_problem in groups]
        over = _over_sets(beside, lambda s: s.selfref - s.unseen)
        row["over_unseen"] = intervals.estimate(over, weights, signed=True) if over.count else None
        for name in ("unseen", "copied", "novel"):
            row[name] = metrics.rounded(mean(getattr(s, name) for of_problem in groups for s in of_problem))
    return table


def _over_sets(groups: list[list[CandidateSet]], value) -> metrics.Ratio:
    """The mean of a value over candidate sets; a problem weighs by how many it has."""
    sums = np.array([sum(map(value, sets)) for sets in groups], float)
    return metrics.Ratio(sums, np.array([len(sets) for sets in groups], float))


def _gap(groups: list[list[CandidateSet]], weights) -> dict:
    """selfref - maj over sets, by problem. A vote that is the same in all takes nothing from the interval."""
    votes = {candidate_set.maj for sets in groups for candidate_set in sets}
    if len(votes) > 1:
        return intervals.estimate(_over_sets(groups, lambda s: s.selfref - s.maj), weights, signed=True)
    share, maj = intervals.estimate(_over_sets(groups, lambda s: s.selfref), weights), votes.pop()
    return share | {key: round(share[key] - maj, metrics.DIGITS) for key in ("value", "low", "high")}


def wanted_pairs(k: int, known) -> list[tuple[str, str]]:
    """The differences within a run: refinement against all else, the other methods against the vote.

    What is made of other numbers of candidates: against refinement, and refine and vote against the vote by tokens.
    """
    selfref, maj = f"selfref@{k}", f"maj@{k}"
    others = [metric for metric in known if metric not in (*NO_ACCURACY, selfref)]
    sized = [metric for metric in others if SIZED.fullmatch(metric) and not metric.startswith("maj@")]
    direct = ("pass@", "maj@", "selfref_")
    pairs = []
    if selfref in known:
        pairs = [(selfref, other) for other in others if other != maj and not SIZED.fullmatch(other)]
        pairs += [(metric, selfref) for metric in sized]
    by_tokens = {metric: metric.replace("refine_and_vote", "maj@tokens") for metric in sized}
    pairs += [pair for pair in by_tokens.items() if pair[0] != pair[1] and pair[1] in known]
    return pairs + [(other, maj) for other in others if not other.startswith(direct)]


def runs_of(groups: list[list[float]], independent: bool = True) -> dict:
    """The spread over runs: `{"runs", "mean", "sd", "min", "max"}` of each run's accuracy over all problems.

    Args:
        groups: For each problem its values run by run; NaN where unscored.
        independent: The runs share no candidates; otherwise their deviation would be too small.

    Returns:
        `sd` is None with one run, and where runs are not independent. Runs that not every problem has are left out.
    """
    number = min(map(len, groups), default=0)
    columns = [[group[run] for group in groups if metrics.is_scored(group[run])] for run in range(number)]
    means = [math.fsum(column) / len(column) for column in columns if column]
    if not means:
        return {"runs": 0, "mean": None, "sd": None, "min": None, "max": None}
    centre = math.fsum(means) / len(means)
    spread = math.fsum((mean - centre) ** 2 for mean in means)
    sd = round(math.sqrt(spread / (len(means) - 1)), 6) if len(means) > 1 and independent else None
    figures = {"runs": len(means), "mean": round(centre, 6), "sd": sd}
    return figures | {"min": round(min(means), 6), "max": round(max(means), 6)}


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
        pairs: (metric of a, metric of b). Default: every metric that both have, with itself; of runs of different K,
            figures over sets of K with those over the other's, `selfref@4` with `selfref@8`.

    Returns:
        `{benchmark: {METRIC or "METRIC_A-METRIC_B": {"value", "low", "high"}}}`.

    Raises:
        ValueError: The runs have no problem in common, or another problem under the same id; a run lacks a metric.
    """
    return _paired(_in_common(_results(run_a), _results(run_b), grading), pairs, seed)


def _paired(common: dict, pairs: list[tuple[str, str]] | None = None, seed: int = 0) -> dict[str, dict[str, dict]]:
    """`compare` on the result of `_in_common`."""
    tables = {}
    for name, both in common.items():
        left, right = (values.ratios() for values in both)
        for metric, known in [side for x, y in pairs or [] for side in ((x, left), (y, right))]:
            if metric not in known:
                raise ValueError(f"pairs: {metric} is no metric of {name}: there are {', '.join(known)}")
        weights = intervals.bootstrap_weights(len(both[0].ids), seed=seed)
        wanted = pairs or _same_metrics(left, right, both[0].k, both[1].k)
        tables[name] = {_label(x, y): intervals.estimate_difference(left[x], right[y], weights) for x, y in wanted}
    return tables


def _same_metrics(left, right, left_k: int, right_k: int) -> list[tuple[str, str]]:
    """What both sides have, with itself; of different K, a figure over sets with that over the other's sets."""
    templates = [metric.template for metric in METRICS if metric.template.endswith("@K")]
    of_sets = {metric_name(template, left_k): metric_name(template, right_k) for template in templates}
    pairs = [(metric, metric if metric == "pass@1" else of_sets.get(metric, metric)) for metric in left]
    return [(x, y) for x, y in pairs if y in right]


def _results(run: str | Path | Results) -> Results:
    return run if isinstance(run, Results) else metrics_from_samples(run)


def _in_common(a: Results, b: Results, grading: str) -> dict[str, tuple[Problems, Problems]]:
    """By benchmark, the problems that both runs hold, in the order of the first."""
    shared = {}
    for name, first in a.problems[grading].items():
        second = b.problems[grading].get(name)
        known = set(second.ids) if second else set()
        if common := [identity for identity in first.ids if identity in known]:
            check_same_problems(a.texts, b.texts, [(name, identity) for identity in common])
            shared[name] = first.select(common), second.select(common)
    if not shared:
        raise ValueError("the two runs have no problem in common: evaluate the same problems with both models")
    return shared


def comparison(run_a: str | Path | Results, run_b: str | Path | Results) -> dict:
    """The content of compare.json: model against model, on the problems that both runs hold.

    Returns:
        `k` of run_a; `models`, PAIR (of run_a and of run_b); `settings` in which they differ, `{KEY: PAIR}`; numbers
        of `problems` that they hold, `{BENCHMARK: PAIR}`, and that are `compared`, `{BENCHMARK: number}`; `values`
        under lenient grading, `{BENCHMARK: {METRIC: PAIR}}`; `benchmarks` (lenient) and `strict`, as from `compare`,
        whose names of metrics `values` has too.

    Raises:
        ValueError: See `compare`.
    """
    a, b = _results(run_a), _results(run_b)
    both = _in_common(a, b, "lenient")
    return {
        "k": a.header["k"],
        "models": [a.header["model"], b.header["model"]],
        "settings": _settings_that_differ(a.header, b.header),
        "problems": {name: [len(run.problems["lenient"][name].ids) for run in (a, b)] for name in both},
        "compared": {name: len(left.ids) for name, (left, _) in both.items()},
        "values": {name: _values(*pair) for name, pair in both.items()},
        "benchmarks": _paired(both),
        "strict": _paired(_in_common(a, b, "strict")),
    }


def _values(a: Problems, b: Problems) -> dict[str, list[float | None]]:
    """What each side has of every metric of both, over the problems that are scored on both."""
    left, right = a.ratios(), b.ratios()
    pairs = {_label(x, y): metrics.scored_on_both(left[x], right[y]) for x, y in _same_metrics(left, right, a.k, b.k)}
    return {m: [round(ratio.value, 6) if ratio.count else None for ratio in pair] for m, pair in pairs.items()}


def _label(x: str, y: str) -> str:
    return x if x == y else f"{x}-{y}"


def _check_seeds(runs: list[Results]) -> None:
    """Raises `ValueError` unless the runs have the same problems and settings, and each another seed."""
    first = runs[0]
    for run in runs[1:]:
        if set(run.problems["lenient"]) != set(first.problems["lenient"]):
            here, there = (", ".join(sorted(results.problems["lenient"])) for results in (first, run))
            raise ValueError(
                f"from_samples: the benchmarks are {here} in one run and {there} in another: evaluate the same ones"
            )
        for key, (here, there) in _settings_that_differ(first.header, run.header).items():
            raise ValueError(
                f"from_samples: {key} is {here} in one run and {there} in another: evaluate both with the same {key}, "
                "or look at each run alone"
            )
    seeds = [run.header["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        models = ", ".join(f"seed {run.header['seed']} of {run.header['model']}" for run in runs)
        raise ValueError(
            f"from_samples: a seed repeats ({models}): name one run of each seed. Two models are compared by "
            "--from_samples RUN --compare_with OTHER, and models trained with several seeds are each evaluated with "
            "--seed of their own"
        )
    for name, values in first.problems["lenient"].items():
        if any(set(run.problems["lenient"][name].ids) != set(values.ids) for run in runs):
            raise ValueError(f"from_samples: the runs hold different problems of {name}: evaluate the same ones")
        for run in runs[1:]:
            keys = [(name, identity) for identity in values.ids]
            check_same_problems(first.texts, run.texts, keys, "from_samples: ")


def _settings_that_differ(here: dict, there: dict) -> dict[str, list]:
    """Both values of each of `SEED_KEYS` in which two runs differ, if both say what it was."""
    pairs = {key: [_setting(header, path) for header in (here, there)] for key, path in SEED_KEYS.items()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and None not in pair}


def _setting(header: dict, path: tuple[str, ...]):
    """A setting of a run; None if it does not say."""
    for key in path:
        header = (header or {}).get(key)
    return header


def over_seeds(runs: list[Results]) -> dict:
    """The content of seeds.json: runs of several seeds on the same problems, intervals over seeds and problems.

    Returns:
        `k` and `seeds` (text); the settings that all runs share (`SHARED`); `of_seed`, what differs between them,
        `{SEED: {"model", "versions", "hardware", "skipped"}}`; `benchmarks` (lenient) and `strict`,
        `{BENCHMARK: {METRIC: FIGURE}}`; paired, `differences` and `strict_differences`,
        `{BENCHMARK: {"X-Y": FIGURE}}`; and `missing`, `{BENCHMARK: {METRIC: [seeds]}}`, what is left out under lenient
        grading and the seeds without it. FIGURE is
        `{"value", "low", "high", "seeds": [...], "sd"}`, `sd` that of the seeds' values.

    Raises:
        ValueError: The runs differ in more than the seed and the model that was trained with it, or a seed repeats.
    """
    _check_seeds(runs)
    k, seeds = runs[0].header["k"], [str(run.header["seed"]) for run in runs]
    summary: dict = {"k": k, "seeds": seeds} | {key: runs[0].header.get(key) for key in SHARED}
    summary["of_seed"] = {
        seed: {key: run.header.get(key) for key in ("model", "versions", "hardware")} | {"skipped": run.skipped}
        for seed, run in zip(seeds, runs, strict=True)
    }
    summary |= {table: {} for table in (*chain.from_iterable(TABLES.values()), "missing")}
    for name in runs[0].problems["lenient"]:
        of_seeds = {grading: _of_seeds(runs, name, grading) for grading in GRADINGS}
        for grading, (target, paired) in TABLES.items():
            ratios = of_seeds[grading]
            pairs = wanted_pairs(k, [metric for metric, of_metric in ratios.items() if all(of_metric)])
            differences = {f"{x}-{y}": [*map(metrics.difference, ratios[x], ratios[y])] for x, y in pairs}
            summary[target][name] = _figures(ratios)
            summary[paired][name] = _figures(differences, signed=True)
        summary["missing"][name] = {
            metric: [seed for seed, ratio in zip(seeds, ratios, strict=True) if not ratio]
            for metric, ratios in of_seeds["lenient"].items()
            if not all(ratios)
        }
    return summary


def _of_seeds(runs: list[Results], name: str, grading: str) -> dict[str, list[metrics.Ratio | None]]:
    """Every metric that any run has of a benchmark, run by run, problems in one order; None without a figure."""
    ids = runs[0].problems[grading][name].ids
    each = [run.problems[grading][name].select(ids).ratios() for run in runs]
    scored = [{metric: ratio for metric, ratio in ratios.items() if ratio.count} for ratios in each]
    return {metric: [ratios.get(metric) for ratios in scored] for metric in dict.fromkeys(chain.from_iterable(each))}


def _figures(of_seeds: dict[str, list[metrics.Ratio | None]], signed: bool = False) -> dict[str, dict]:
    """Those that every seed has, estimated over the seeds."""
    figures = {
        metric: intervals.estimate_over_seeds(ratios, signed=signed or metric in SIGNED)
        for metric, ratios in of_seeds.items()
        if all(ratio and ratio.count for ratio in ratios)
    }
    return {metric: figure | {"sd": runs_of([figure["seeds"]])["sd"]} for metric, figure in figures.items()}

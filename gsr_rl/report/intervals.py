"""95 % intervals of ratios (gsr_rl/refinement/metrics.py): one bootstrap over problems serves all, so all are paired.

With few informative problems it is too narrow: then the interval is at least Wilson's or Newcombe's
(docs/evaluation.md). Below: how many problems and runs it takes to see a difference.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from gsr_rl.refinement.metrics import DIGITS, Ratio, difference, is_scored, scored_on_both

RESAMPLES = 2000
Z95 = 1.959963984540054
# Student's t of 95 %, by degrees of freedom from 1 on
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
# With fewer problems that differ, or differ by less than all, the bootstrap of a difference covers 40 to 90 instead of
# 95 of 100; with fewer off 0, or off 1, that of a share covers from 77 on.
FEW = 15
# Of the furthest: a problem that is less far off an end is not informative, as most are a little off over many runs.
OFF = 0.2
_UNIT = 2.0**28  # whole numbers of it add without rounding, up to 2**25 problems
REDRAWS = 8  # further seeds of a bootstrap for an interval with an end near a bound
NEAR = (
    0.05  # of its width: over three times the deviation of an end between seeds, 0.06 standard errors of 2,000 draws
)
Z80 = 0.8416212335729143  # a test at 5 %, two-sided, sees so large an effect in 80 of 100 cases
DIFFERENCES = (0.01, 0.02, 0.05)  # that the power note is about


@dataclass(frozen=True)
class Variance:
    """Parts of the variance of a difference.

    Attributes:
        between: Of the problems' own means. Without several independent runs it holds both parts.
        within: Of one run about its problem's mean; None without several independent runs.
        problems, runs: How many there were; `runs` is a mean.
    """

    between: float
    within: float | None
    problems: int
    runs: float

    def of_mean(self, runs: float) -> float:
        """Variance of a problem's mean over so many runs."""
        return self.between + (self.within or 0.0) / runs


@lru_cache(maxsize=4)  # a table uses the same again and again: over all problems and over parts of them
def bootstrap_weights(num_problems: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each problem is in each resample: shape (resamples, problems), read-only. Rows sum to `num_problems`.

    Statistics that share these weights are resampled together, that is, paired.
    """
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, num_problems))
    for row in range(resamples):
        drawn = rng.integers(0, num_problems, size=num_problems)
        weights[row] = np.bincount(drawn, minlength=num_problems)
    weights.flags.writeable = False
    return weights


def _resampled(ratios: Sequence[Ratio], weights: np.ndarray) -> np.ndarray:
    """The statistics in each resample, shape (resamples, ratios); NaN where the denominator is 0.

    The sums are of whole numbers, so they are the same whatever the order in which a machine and its threads add.
    """
    parts = [ratio.numerator for ratio in ratios] + [ratio.denominator for ratio in ratios]
    top, bottom = np.split(weights @ np.rint(np.stack(parts, axis=1) * _UNIT), 2, axis=1)
    return np.divide(top, bottom, out=np.full_like(top, math.nan), where=bottom > 0)


def _summary(value: float, low: float, high: float) -> dict[str, float | None]:
    figures = {"value": value, "low": low, "high": high}
    return {name: None if math.isnan(figure) else round(figure, DIGITS) for name, figure in figures.items()}


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    draws = draws[~np.isnan(draws)]
    return tuple(np.percentile(draws, [2.5, 97.5]).tolist()) if len(draws) else (math.nan, math.nan)


def wilson(value: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share `value` in [0, 1] of `n` trials, n > 0."""
    centre = (value + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(value * (1 - value) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))


def _trials(ratio: Ratio) -> float:
    """How many trials a ratio stands for: its denominator, or fewer where problems count more than once."""
    return min(ratio.count, ratio.count**2 / math.fsum(ratio.denominator**2))


def _newcombe(up: float, down: float, n_up: float, n_down: float) -> tuple[float, float]:
    """Newcombe's 95 % interval of the difference of two shares, from their Wilson intervals."""
    (low_up, high_up), (low_down, high_down) = wilson(up, n_up), wilson(down, n_down)
    low = up - down - math.hypot(up - low_up, high_down - down)
    high = up - down + math.hypot(high_up - up, down - low_down)
    return max(-1.0, low), min(1.0, high)


def _widened(interval: tuple[float, float], least: tuple[float, float]) -> tuple[float, float]:
    return min(least[0], interval[0]), max(least[1], interval[1])


def _is_too_narrow(interval: tuple[float, float], ratio: Ratio, *ends: float) -> bool:
    """Whether few problems are well off one of the `ends` (values that a problem can have), or the width is 0."""
    parts = [np.rint(np.abs(ratio.numerator - end * ratio.denominator) * _UNIT) for end in ends]
    off = min(np.count_nonzero(part >= max(1.0, np.floor(OFF * part.max()))) for part in parts)
    return off < FEW or interval[0] >= interval[1]


def _at_least_wilson(interval: tuple[float, float], ratio: Ratio) -> tuple[float, float]:
    """Where the bootstrap of a share is too narrow, widened to Wilson's of as many trials."""
    if not _is_too_narrow(interval, ratio, 0, 1):
        return interval
    return _widened(interval, wilson(ratio.value, _trials(ratio)))


def _largest(ratio: Ratio) -> float:
    """The largest value that a problem can have: 1, or 2 where it is the difference of two gaps."""
    return 2.0 if (np.abs(ratio.numerator) > ratio.denominator * 1.001).any() else 1.0


def _at_least_newcombe(interval: tuple[float, float], signed: Ratio) -> tuple[float, float]:
    """Where the bootstrap of a difference is too narrow, widened to Newcombe's of how much problems gain and lose."""
    if not _is_too_narrow(interval, signed, -1, 0, 1):
        return interval
    largest = _largest(signed)
    up, down = (math.fsum(np.maximum(sign * signed.numerator, 0.0)) / signed.count / largest for sign in (1, -1))
    low, high = _newcombe(up, down, *[_trials(signed)] * 2)
    return _widened(interval, (largest * low, largest * high))


def estimate(ratio: Ratio, weights: np.ndarray, signed: bool = False) -> dict[str, float | None]:
    """`{"value", "low", "high", "n"}`: the statistic, its 95 % interval, its denominator.

    Bootstrap over problems. With fewer than `FEW` problems well off 0, or off 1, it is too narrow, down to no width at
    all, and is widened to Wilson's interval; so too where all problems are the same. None without a scored problem.

    Args:
        signed: It is a difference: see `estimate_difference`.
    """
    value = ratio.value
    if math.isnan(value):
        low = high = math.nan
    else:
        widened = _at_least_newcombe if signed else _at_least_wilson
        low, high = widened(_percentiles(_resampled([ratio], weights)), ratio)
    return _summary(value, low, high) | {"n": round(ratio.count, DIGITS)}


def estimate_difference(first: Ratio, second: Ratio, weights: np.ndarray) -> dict[str, float | None]:
    """`{"value", "low", "high"}` of `first` - `second`, paired by problem: over those that are scored on both sides.

    Bootstrap over problems. With fewer than `FEW` problems that well differ, or by less than all, its interval is too
    narrow, down to no width at all, and is widened to Newcombe's. So too of two rates over different problems, where
    one of them has fewer than `FEW` problems off 0, or off 1.
    """
    first, second = scored_on_both(first, second)
    value = first.value - second.value
    if math.isnan(value):
        return _summary(value, math.nan, math.nan)
    interval = _percentiles(np.subtract(*_resampled([first, second], weights).T))
    if np.array_equal(first.denominator, second.denominator):
        return _summary(value, *_at_least_newcombe(interval, difference(first, second)))
    rates = (first, second)
    if all((rate.numerator >= 0).all() for rate in rates) and any(_is_too_narrow(interval, r, 0, 1) for r in rates):
        interval = _widened(interval, _newcombe(first.value, second.value, _trials(first), _trials(second)))
    return _summary(value, *interval)


def estimate_over_seeds(
    ratios: Sequence[Ratio], resamples: int = RESAMPLES, seed: int = 0, signed: bool = False
) -> dict:
    """The mean over several seeds' runs on the same problems, with what seeds and what problems leave open.

    The half widths of two intervals are added in squares: the bootstrap over problems of the seeds' mean, at least as
    wide as Wilson's or Newcombe's with few informative problems (see `estimate`); and Student's t of the seeds'
    values, because resampling two or three of them shows only a part of how much seeds differ.

    Args:
        ratios: The statistic of each seed.
        signed: It is a difference: 0 everywhere is no share of 0.

    Returns:
        `{"value", "low", "high", "seeds": [value of each seed]}`; None where a seed has no scored problem.
    """
    values = [ratio.value for ratio in ratios]
    each = {"seeds": [None if math.isnan(v) else round(v, DIGITS) for v in values]}
    value = math.fsum(values) / len(values)
    if math.isnan(value):
        return _summary(value, math.nan, math.nan) | each
    weights = bootstrap_weights(len(ratios[0].numerator), resamples, seed)
    interval = _percentiles(np.mean(_resampled(ratios, weights).T, axis=0))
    mean = Ratio(*(np.mean([vars(r)[part] for r in ratios], axis=0) for part in ("numerator", "denominator")))
    interval = (_at_least_newcombe if signed else _at_least_wilson)(interval, mean)
    largest = max(map(_largest, ratios))
    return _summary(value, *widen_by_seeds(value, interval, values, (-largest if signed else 0.0, largest))) | each


def redrawn(estimate: Callable[[int], dict], bound: float) -> list[dict]:
    """An interval by the bootstrap of seed 0; with an end within `NEAR` of `bound`, those of `REDRAWS` more seeds too.

    What is said of the bound is settled if it is the same of all of them.

    Args:
        estimate: Gives `{"value", "low", "high"}` by the seed of its bootstrap.
    """
    first = estimate(0)
    if first["low"] is None:
        return [first]
    margin = NEAR * (first["high"] - first["low"])
    near = min(abs(first[end] - bound) for end in ("low", "high")) <= margin
    return [first, *(map(estimate, range(1, REDRAWS + 1)) if near else ())]


def widen_by_seeds(
    value: float, interval: tuple[float, float], seeds: Sequence[float], bounds: tuple[float, float]
) -> tuple[float, float]:
    """The interval of one set of seeds around their mean `value`, widened by how much the seeds' values differ."""
    if len(seeds) < 2:
        return interval
    spread = T95[min(len(seeds) - 1, len(T95)) - 1] * statistics.stdev(seeds) / math.sqrt(len(seeds))
    low, high = (math.hypot(value - end, spread) for end in interval)
    return max(bounds[0], value - low), min(bounds[1], value + high)


def variance(groups: Sequence[Sequence[float | None]], independent: bool = True) -> Variance | None:
    """Split the variance of a difference, from each problem's values by run; None with fewer than two problems.

    Runs that are not `independent`, as of candidate sets that overlap, cannot tell the two parts apart.
    """
    scored = [[value for value in group if is_scored(value)] for group in groups]
    scored = [group for group in scored if group]
    if len(scored) < 2:
        return None
    runs = len(scored) / math.fsum(1 / len(group) for group in scored)  # harmonic, as it enters the variance
    total = _sample_variance([math.fsum(group) / len(group) for group in scored])
    several = [group for group in scored if len(group) > 1]
    if not several or not independent:
        return Variance(total, None, len(scored), runs)
    freedom = sum(len(group) - 1 for group in several)
    within = math.fsum(_sample_variance(group) * (len(group) - 1) for group in several) / freedom
    return Variance(max(0.0, total - within / runs), within, len(scored), runs)


def _sample_variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def detectable(parts: Variance, problems: int | None = None, runs: float | None = None) -> float:
    """The smallest difference that is seen in 80 of 100 cases, with these or other numbers of problems and runs."""
    return (Z95 + Z80) * math.sqrt(parts.of_mean(runs or parts.runs) / (problems or parts.problems))


def problems_needed(parts: Variance, difference: float, runs: float | None = None) -> int:
    """Problems that it takes to see `difference` in 80 of 100 cases, with so many runs of each (default: as now)."""
    return max(2, math.ceil(((Z95 + Z80) / difference) ** 2 * parts.of_mean(runs or parts.runs)))


def runs_needed(parts: Variance, difference: float, problems: int | None = None) -> int | None:
    """Runs that it takes on so many problems (default: as now).

    None if no number suffices, as the problems differ too much, or if one run per problem cannot tell.
    """
    if parts.within is None:
        return None
    left = (problems or parts.problems) * (difference / (Z95 + Z80)) ** 2 - parts.between
    return max(1, math.ceil(parts.within / left)) if left > 0 else None


def of_two_models(parts: Variance | None) -> Variance | None:
    """Of the difference of two equal models with as many runs each as one has: the same on every problem.

    None if one run per problem cannot tell.
    """
    if parts is None or parts.within is None:
        return None
    return replace(parts, between=0.0, within=2 * parts.within)


def power_note(parts: Variance | None) -> dict | None:
    """The note on one difference, for eval.json; None without its variance, or where no problem and no run differs."""
    if parts is None or not parts.between + (parts.within or 0.0):
        return None
    needed = {
        f"{difference:g}": {"problems": problems_needed(parts, difference), "runs": runs_needed(parts, difference)}
        for difference in DIFFERENCES
    }
    return {
        "between": round(parts.between, 6),
        "within": None if parts.within is None else round(parts.within, 6),
        "problems": parts.problems,
        "runs": round(parts.runs, 6),
        "detectable": round(detectable(parts), 6),
        "needed": needed,
    }

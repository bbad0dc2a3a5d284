"""pass@k, maj@k, the refinement gap, fix and break rates, and their intervals. Pure functions on lists and arrays.

A result is *unscored* where its correctness is None or NaN. Unscored results are in no mean, count or denominator.
Every statistic of a table is a ratio of two sums over problems (`Ratio`), so one bootstrap over problems serves all of
them, paired by construction. What each is: docs/concepts.md and docs/evaluation.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations

import numpy as np

RESAMPLES = 2000
Z95 = 1.959963984540054
FEW = 15  # with fewer problems that differ, or differ by less than all, the bootstrap of a difference covers 40 to 90
# instead of 95 of 100; with fewer off 0, or off 1, that of a share covers from 87 on
_UNIT = 2.0**28  # whole numbers of it add without rounding, up to 2**25 problems
_DIGITS = 6  # figures are rounded to this, so that they do not depend on the order of a machine's summation


def is_scored(correct: float | None) -> bool:
    """Whether a result has a number for its correctness."""
    return correct is not None and not math.isnan(correct)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the probability that any of `k` samples is right, with `c` of `n` samples right.

    Raises:
        ValueError: Unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_correct(
    classes: Sequence[int | None], correct: Sequence[float | None], weights: Sequence[float | None] | None = None
) -> float:
    """Expected correctness of a vote over one candidate set, in [0, 1].

    The vote takes one of the largest classes at random; a class is right with the share of its members graded right.

    Args:
        classes: Equivalence class of each candidate's answer; None abstains.
        correct: Correctness of each candidate; None or NaN (unscored) takes no part in the vote.
        weights: What each vote counts, at least 0; None or NaN counts nothing. Default: 1 each.

    Returns:
        The expectation; 0 if all scored candidates abstain; NaN if none is scored.
    """
    members: dict[int, list[tuple[float, float]]] = {}
    any_scored = False
    for place, (group, value) in enumerate(zip(classes, correct, strict=True)):
        if not is_scored(value):
            continue
        any_scored = True
        weight = 1.0 if weights is None else weights[place]
        if group is not None and is_scored(weight):
            members.setdefault(group, []).append((weight, value))
    if not members:
        return 0.0 if any_scored else math.nan
    totals = {group: math.fsum(weight for weight, _ in votes) for group, votes in members.items()}
    largest = max(totals.values())
    tied = [members[group] for group, total in totals.items() if total >= largest * (1 - 1e-12)]
    shares = [sum(value for _, value in votes) / len(votes) for votes in tied]
    return sum(shares) / len(shares)


def best_of(scores: Sequence[float | None], correct: Sequence[float | None]) -> float:
    """Expected correctness of the candidate with the highest score, a random one of those that share it.

    Returns:
        The expectation; 0 if no scored candidate has a score (None and NaN are none); NaN if none is scored.
    """
    scored = [(score, value) for score, value in zip(scores, correct, strict=True) if is_scored(value)]
    if not scored:
        return math.nan
    rated = [(score, value) for score, value in scored if is_scored(score)]
    if not rated:
        return 0.0
    highest = max(score for score, _ in rated)
    tied = [value for score, value in rated if score == highest]
    return sum(tied) / len(tied)


def maj_at_k(classes: Sequence[int | None], correct: Sequence[float | None], k: int) -> float:
    """Mean of `maj_correct` over all groups of `k` of a problem's samples, by counting; NaN with fewer scored ones."""
    members: dict[int, list[float]] = {}
    scored = 0
    for group, value in zip(classes, correct, strict=True):
        if is_scored(value):
            scored += 1
            if group is not None:
                members.setdefault(group, []).append(value)
    if scored < k:
        return math.nan
    return _vote_over_groups(tuple(sorted((len(values), math.fsum(values)) for values in members.values())), scored, k)


@lru_cache(maxsize=1 << 16)
def _vote_over_groups(classes: tuple[tuple[int, float], ...], number: int, k: int) -> float:
    """`maj_at_k` of `number` scored samples, given the size of each class and how many of it are right.

    For each number of votes `most` that may be the largest: in how many groups classes have that many, none more. A
    class that is tied in a group is right, over all such groups, with the share of its members.
    """
    total = Fraction(0)
    for most in range(1, k + 1):
        large = [(size, Fraction(right) / size) for size, right in classes if size >= most]
        others = number - sum(size for size, _ in large)  # of smaller classes or without an answer: never the largest
        counts = {(0, 0): (1, Fraction(0))}  # (drawn, tied) -> groups, and the sum of the tied ones' shares over them
        for size, share_right in large:
            new: dict[tuple[int, int], tuple[int, Fraction]] = {}
            for (drawn, tied), (groups, right) in counts.items():
                for votes in range(min(most, k - drawn) + 1):
                    ways, ties = math.comb(size, votes), votes == most
                    before = new.get((drawn + votes, tied + ties), (0, 0))
                    shares = (right + groups * share_right if ties else right) * ways
                    new[drawn + votes, tied + ties] = (before[0] + groups * ways, before[1] + shares)
            counts = new
        for (drawn, tied), (_, right) in counts.items():
            total += right * math.comb(others, k - drawn) / max(tied, 1)
    return float(total / math.comb(number, k))


def maj_at_count(classes: Sequence[int | None], correct: Sequence[float | None], count: float) -> float:
    """`maj_at_k` for a number of votes that is no whole number, as tokens give: between its two neighbours, linearly.

    Not more votes than there are scored samples. NaN without any.
    """
    most = sum(is_scored(value) for value in correct)
    if not most:
        return math.nan
    count = min(max(count, 1.0), float(most))
    low, part = int(count), count - int(count)
    first = maj_at_k(classes, correct, low)
    return first if not part else (1 - part) * first + part * maj_at_k(classes, correct, low + 1)


def disagreement(first: Sequence[float | None], second: Sequence[float | None] | None = None) -> float:
    """Share of pairs of results of which one is right and the other is not.

    Args:
        first, second: A pair takes one result of each. Without `second`, two different results of `first`.

    Returns:
        The share; NaN without a pair of scored results.
    """
    left = [value for value in first if is_scored(value)]
    if second is None:
        pairs = list(combinations(left, 2))
    else:
        pairs = [(a, b) for a in left for b in second if is_scored(b)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs) if pairs else math.nan


@dataclass(frozen=True)
class Ratio:
    """A statistic: the sum of `numerator` over the sum of `denominator`, both of shape (problems,).

    `scored` says which problems have a score; one that has may still count 0, as in a rate. Default: all.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    scored: np.ndarray | None = None

    @property
    def value(self) -> float:
        """The statistic; NaN if its denominator is 0."""
        total = self.count
        return math.fsum(self.numerator) / total if total > 0 else math.nan

    @property
    def count(self) -> float:
        """The denominator: a number of problems, or for a rate their summed probability."""
        return math.fsum(self.denominator)

    def over(self, problems: np.ndarray) -> "Ratio":
        """The statistic over some of the problems (a mask); the others count nothing."""
        return Ratio(np.where(problems, self.numerator, 0.0), np.where(problems, self.denominator, 0.0), problems)


def share(values: Sequence[float | None]) -> Ratio:
    """The mean of `values`, one a problem, over the problems that have one."""
    array = np.array([math.nan if value is None else value for value in values], dtype=float)
    scored = ~np.isnan(array)
    return Ratio(np.where(scored, array, 0.0), scored.astype(float), scored)


def fix_rate(maj: Sequence[float | None], selfref: Sequence[float | None]) -> Ratio:
    """Share of refinements that are right where the majority is wrong. A tied problem counts by its probability."""
    return _rate(maj, selfref, fix=True)


def break_rate(maj: Sequence[float | None], selfref: Sequence[float | None]) -> Ratio:
    """Share of refinements that are wrong where the majority is right. A tied problem counts by its probability."""
    return _rate(maj, selfref, fix=False)


def _rate(maj, selfref, fix: bool) -> Ratio:
    vote, refined = share(maj), share(selfref)
    both = vote.denominator * refined.denominator
    weight = both * ((1 - vote.numerator) if fix else vote.numerator)
    hit = refined.numerator if fix else 1 - refined.numerator
    return Ratio(weight * hit, weight, both > 0)


def difference(first: Ratio, second: Ratio) -> Ratio:
    """`first` - `second` of two shares, problem by problem, over those that are scored on both sides."""
    first, second = scored_on_both(first, second)
    return Ratio(first.numerator - second.numerator, first.denominator)


def scored_on_both(first: Ratio, second: Ratio) -> tuple[Ratio, Ratio]:
    """Both over the problems that are scored on both sides."""
    sides = [one.scored for one in (first, second) if one.scored is not None]
    return tuple(one.over(np.logical_and.reduce(sides)) for one in (first, second)) if sides else (first, second)


def by_num_correct(
    num_correct: Sequence[int], selfref: Sequence[float | None], maj: Sequence[float | None], k: int
) -> dict[str, dict[str, float | int | None]]:
    """Refinement and majority accuracy by the number of right candidates in the set.

    Args:
        num_correct: Nc of each candidate set, 0 to `k`.
        selfref, maj: Correctness over the same sets.

    Returns:
        `{"0".."K": {"n", "selfref", "maj"}}`; n counts sets with both scored, accuracies are None where n is 0.
    """
    table = {}
    for number in range(k + 1):
        pairs = [
            (s, m)
            for c, s, m in zip(num_correct, selfref, maj, strict=True)
            if c == number and is_scored(s) and is_scored(m)
        ]
        n = len(pairs)
        table[str(number)] = {
            "n": n,
            "selfref": round(sum(s for s, _ in pairs) / n, _DIGITS) if n else None,
            "maj": round(sum(m for _, m in pairs) / n, _DIGITS) if n else None,
        }
    return table


# Intervals --------------------------------------------------------------------------------------------------


def bootstrap_weights(num_problems: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each problem is in each resample: shape (resamples, problems), read-only. Rows sum to `num_problems`.

    Statistics that share these weights are resampled together, that is, paired.
    """
    return _drawn_weights(num_problems, resamples, seed)


@lru_cache(maxsize=4)  # a table asks for the same again and again: over all problems and over parts of them
def _drawn_weights(num_problems: int, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, num_problems))
    for row in range(resamples):
        drawn = rng.integers(0, num_problems, size=num_problems)
        weights[row] = np.bincount(drawn, minlength=num_problems)
    weights.flags.writeable = False
    return weights


def _resampled(ratio: Ratio, weights: np.ndarray) -> np.ndarray:
    """The statistic in each resample, shape (resamples,); NaN where the denominator is 0.

    The sums are of whole numbers, so they are the same whatever the order in which a machine and its threads add.
    """
    top, bottom = (weights @ np.rint(part * _UNIT) for part in (ratio.numerator, ratio.denominator))
    return np.divide(top, bottom, out=np.full_like(top, math.nan), where=bottom > 0)


def _summary(value: float, low: float, high: float) -> dict[str, float | None]:
    def number(x: float) -> float | None:
        return None if math.isnan(x) else round(x, _DIGITS)

    return {"value": number(value), "low": number(low), "high": number(high)}


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return math.nan, math.nan
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


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
    """Whether few problems are off one of the `ends`, values that a problem can have, or none is off the others."""
    parts = (ratio.numerator - end * ratio.denominator for end in ends)
    off = min(np.count_nonzero(np.rint(part * _UNIT)) for part in parts)
    return off < FEW or interval[0] >= interval[1]


def _at_least_wilson(interval: tuple[float, float], ratio: Ratio) -> tuple[float, float]:
    """Where the bootstrap of a share is too narrow, widened to Wilson's of as many trials."""
    if not _is_too_narrow(interval, ratio, 0, 1):
        return interval
    return _widened(interval, wilson(ratio.value, _trials(ratio)))


def _at_least_newcombe(interval: tuple[float, float], signed: Ratio) -> tuple[float, float]:
    """Where the bootstrap of a difference is, widened to Newcombe's of how much problems are better and worse."""
    if not _is_too_narrow(interval, signed, -1, 0, 1):
        return interval
    most = 2.0 if (np.abs(signed.numerator) > signed.denominator * 1.001).any() else 1.0  # of two gaps: up to 2
    up, down = (math.fsum(np.maximum(sign * signed.numerator, 0.0)) / signed.count / most for sign in (1, -1))
    low, high = _newcombe(up, down, *[_trials(signed)] * 2)
    return _widened(interval, (most * low, most * high))


def estimate(ratio: Ratio, weights: np.ndarray, signed: bool = False) -> dict[str, float | None]:
    """`{"value", "low", "high", "n"}`: the statistic, its 95 % interval, its denominator.

    Bootstrap over problems. With fewer than `FEW` problems off 0, or off 1, it is too narrow, down to no width at all,
    and Wilson's interval is the least; so too where all problems are the same. All None without any scored problem.

    Args:
        signed: It is a difference: see `estimate_difference`.
    """
    value = ratio.value
    if math.isnan(value):
        low = high = math.nan
    else:
        widened = _at_least_newcombe if signed else _at_least_wilson
        low, high = widened(_percentiles(_resampled(ratio, weights)), ratio)
    return _summary(value, low, high) | {"n": round(ratio.count, _DIGITS)}


def estimate_difference(first: Ratio, second: Ratio, weights: np.ndarray) -> dict[str, float | None]:
    """`{"value", "low", "high"}` of `first` - `second`, paired by problem: over those that are scored on both sides.

    Bootstrap over problems. With fewer than `FEW` problems that differ, or that differ by less than all, its interval
    is too narrow, down to none at all, and Newcombe's is the least. So too of two rates over different problems, where
    one of them has fewer than `FEW` problems off 0, or off 1.
    """
    first, second = scored_on_both(first, second)
    value = first.value - second.value
    if math.isnan(value):
        return _summary(value, math.nan, math.nan)
    interval = _percentiles(_resampled(first, weights) - _resampled(second, weights))
    if np.array_equal(first.denominator, second.denominator):
        return _summary(value, *_at_least_newcombe(interval, difference(first, second)))
    rates = (first, second)
    if all((rate.numerator >= 0).all() for rate in rates) and any(_is_too_narrow(interval, r, 0, 1) for r in rates):
        interval = _widened(interval, _newcombe(first.value, second.value, _trials(first), _trials(second)))
    return _summary(value, *interval)


def estimate_over_seeds(
    ratios: Sequence[Ratio], resamples: int = RESAMPLES, seed: int = 0, signed: bool = False
) -> dict:
    """The mean over several seeds' runs on the same problems, resampling seeds and problems.

    At least Wilson's interval, or for a difference Newcombe's, where few problems tell, as in `estimate`: of one
    seed's problems, as they are the same ones.

    Args:
        ratios: The statistic of each seed.
        signed: It is a difference: 0 everywhere is no share of 0.

    Returns:
        `{"value", "low", "high", "seeds": [value of each seed]}`.
    """
    values = [ratio.value for ratio in ratios]
    each = {"seeds": [round(v, _DIGITS) for v in values]}
    weights = bootstrap_weights(len(ratios[0].numerator), resamples, seed)
    draws = np.stack([_resampled(ratio, weights) for ratio in ratios], axis=1)  # (resamples, seeds)
    chosen = np.random.default_rng(seed + 1).integers(0, len(ratios), size=draws.shape)
    interval = _percentiles(np.take_along_axis(draws, chosen, axis=1).mean(axis=1))
    if not any(map(math.isnan, values)):
        mean = Ratio(*(np.mean([vars(r)[part] for r in ratios], axis=0) for part in ("numerator", "denominator")))
        interval = (_at_least_newcombe if signed else _at_least_wilson)(interval, mean)
    return _summary(sum(values) / len(values), *interval) | each

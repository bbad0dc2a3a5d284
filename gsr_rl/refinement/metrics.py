"""pass@k, maj@k, the refinement gap, fix and break rates. Pure functions on lists and arrays.

A result is *unscored* where its correctness is None or NaN. Unscored results are in no mean, count or denominator.
Every statistic of a table is a ratio of two sums over problems (`Ratio`); its interval: gsr_rl/report/intervals.py.
What each is: docs/concepts.md and docs/evaluation.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations

import numpy as np

DIGITS = 6  # figures are rounded to this, so that they do not depend on the order of a machine's summation


def is_scored(correct: float | None) -> bool:
    """Whether a result has a number for its correctness."""
    return correct is not None and not math.isnan(correct)


def rounded(value: float, digits: int = DIGITS) -> float | None:
    """As it is written to a file: None for NaN."""
    return None if math.isnan(value) else round(value, digits)


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


def best_at_k(scores: Sequence[float | None], correct: Sequence[float | None], k: int) -> float:
    """Mean of `best_of` over all groups of `k` of a problem's samples, by counting; NaN with fewer scored ones.

    A group without any score counts 0.
    """
    scored = [(score, value) for score, value in zip(scores, correct, strict=True) if is_scored(value)]
    if len(scored) < k:
        return math.nan
    by_score: dict[float, list[float]] = {}
    for score, value in scored:
        if is_scored(score):
            by_score.setdefault(score, []).append(value)
    total, below = Fraction(0), len(scored) - sum(map(len, by_score.values()))
    for score in sorted(by_score):
        values = by_score[score]
        groups = math.comb(below + len(values), k) - math.comb(below, k)  # whose highest score this is
        total += groups * Fraction(math.fsum(values)) / len(values)
        below += len(values)
    return float(total / math.comb(len(scored), k))


def maj_at_k(classes: Sequence[int | None], correct: Sequence[float | None], k: int) -> float:
    """Mean of `maj_correct` over all groups of `k` of a problem's samples, by counting; NaN with fewer scored ones.

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"maj@k needs k >= 1, got {k}")
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

    Exact. For each class that is right, and each number of votes `top` that may be the largest: the groups in which it
    has that many and no other class more, each divided by how many are tied. Groups of several classes are counted by
    products of polynomials in x, whose power is the number of candidates drawn (`_draws`).
    """
    total, mask, common = Fraction(0), (1 << number) - 1, math.lcm(*range(1, len(classes) + 1))
    for place, (size, right) in enumerate(classes):
        others, groups = [other for rest, (other, _) in enumerate(classes) if rest != place], 0
        for top in range(1, min(size, k) + 1) if right else ():
            large = [other for other in others if other >= top]
            small = number - size - sum(large)  # of smaller classes or without an answer: never the largest
            if small + top * len(large) < k - top:
                continue
            ties = [_draws(small, small, number)]  # by the number of other classes that are tied
            for other in large:
                fewer, tied = _draws(other, top - 1, number), math.comb(other, top) << number * top
                pairs = zip([*ties, 0], [0, *ties], strict=True)
                ties = [without * fewer + one_less * tied for without, one_less in pairs]
            counts = [(ways >> number * (k - top)) & mask for ways in ties]
            shares = sum(count * (common // (tied + 1)) for tied, count in enumerate(counts))
            groups += shares * math.comb(size, top)
        total += groups * Fraction(right) / (size * common)
    return float(total / math.comb(number, k))


@lru_cache(maxsize=1 << 12)
def _draws(size: int, largest: int, bits: int) -> int:
    """In how many ways 0, 1, ..., `largest` of `size` are drawn: a polynomial as a number, `bits` a coefficient.

    No coefficient of a product over classes of `bits` members in all reaches 2**bits.
    """
    return sum(math.comb(size, drawn) << bits * drawn for drawn in range(min(largest, size) + 1))


def maj_at_count(classes: Sequence[int | None], correct: Sequence[float | None], count: float) -> float:
    """`maj_at_k` for a number of votes that is no whole number, as tokens give: between its two neighbours, linearly.

    Not more votes than there are scored samples. NaN without any.
    """
    scored = sum(is_scored(value) for value in correct)
    if not scored:
        return math.nan
    count = min(max(count, 1.0), float(scored))
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
    masks = [ratio.scored for ratio in (first, second) if ratio.scored is not None]
    if not masks:
        return first, second
    both = np.logical_and.reduce(masks)
    return first.over(both), second.over(both)


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
            "selfref": round(sum(s for s, _ in pairs) / n, DIGITS) if n else None,
            "maj": round(sum(m for _, m in pairs) / n, DIGITS) if n else None,
        }
    return table

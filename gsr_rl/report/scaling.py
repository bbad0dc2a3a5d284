"""Accuracy against what is spent: each way of using N candidates as points, all from the stored samples.

Of a vote over n candidates, or over R' of the R refinements of a pool, a point is the mean over all groups, by
counting (`metrics.maj_at_k`); of a tree over n candidates, the mean over parts of the stored one that have so many.
Completion tokens are those that the method takes on the problem. Prompt tokens: `prompt_tokens` with each completion,
as they are sent; `distinct_prompt_tokens` once for all completions of one prompt.
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

from gsr_rl.refinement import metrics
from gsr_rl.refinement.metrics import is_scored
from gsr_rl.report import intervals
from gsr_rl.report.samples import Problem, Sample, mean, vote

COMPOSED = {"flat", "refine_and_vote", "tree"}  # methods with which a run has a scaling report
Key = tuple[str, int, int]  # method, candidates, refinements


@dataclass(frozen=True)
class Spent:
    """Tokens on a problem, means where a method takes sets or groups at random."""

    tokens: float
    prompt_tokens: float
    distinct_prompt_tokens: float

    @classmethod
    def on(cls, samples: list[Sample], share: float = 1.0, one_prompt: bool = False) -> "Spent":
        """On a share of these samples, which have a prompt each, or all the same."""
        prompts = [math.nan if s.prompt_tokens is None else s.prompt_tokens for s in samples]
        distinct = prompts[0] if one_prompt and prompts else share * sum(prompts)
        return cls(share * sum(sample.tokens for sample in samples), share * sum(prompts), distinct)

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def mean_spent(spent: Iterable[Spent]) -> Spent:
    """The mean of each kind of tokens."""
    return Spent(*map(mean, zip(*map(astuple, spent), strict=True)))


@dataclass(frozen=True)
class Point:
    """What a method comes to on a problem: its expected correctness in [0, 1], NaN if unscored, and its tokens.

    Attributes:
        maj: The vote over candidates of as many completion tokens (`vote_at_tokens`); NaN for a vote.
        capped: 1 where all candidates take fewer tokens, so that this vote has fewer, else 0; NaN for a vote.
    """

    value: float
    spent: Spent
    maj: float = math.nan
    capped: float = math.nan


def of_vote(p: Problem, n: int) -> Point:
    """The vote over n candidates."""
    return Point(p.maj_at(n), Spent.on(p.candidates, n / len(p.candidates), one_prompt=True))


def of_verdict(p: Problem, n: int) -> Point:
    """Of n candidates the vote among those with a `verdict`, of all n where none has one."""
    scored = [candidate for candidate in p.candidates if is_scored(candidate.correct)]
    held, rest = ([c for c in scored if bool(c.verdict) is has_one] for has_one in (True, False))
    groups, total = math.comb(len(scored), n), 0.0
    for drawn in range(max(0, n - len(rest)), min(n, len(held)) + 1):
        voters = held if drawn else rest
        share = math.comb(len(held), drawn) * math.comb(len(rest), n - drawn) / groups
        total += share * metrics.maj_at_k([c.answer for c in voters], [c.correct for c in voters], drawn or n)
    return Point(total if groups else math.nan, of_vote(p, n).spent)


def of_best(p: Problem, n: int) -> Point:
    """Of n candidates the one that the reward model scores highest."""
    scores = [candidate.score for candidate in p.candidates]
    return Point(metrics.best_at_k(scores, p.correct, n), of_vote(p, n).spent)


def of_flat(p: Problem, n: int) -> Point:
    """One refinement over n candidates in one prompt."""
    refined = [s.refinement for s in p.sets] if n == p.k else p.flat[n]
    spent = [_on_candidates(p, sample.candidates) + Spent.on([sample]) for sample in refined]
    return Point(mean(sample.correct for sample in refined), mean_spent(spent))


def of_pool(p: Problem, n: int, r: int) -> Point:
    """Refine and vote: the vote over r refinements, each over a set of K drawn from the first n candidates."""
    refined = p.pools[n]
    answers, correct = [sample.answer for sample in refined], [sample.correct for sample in refined]
    value = vote(refined) if r == len(refined) else metrics.maj_at_k(answers, correct, r)
    return Point(value, _on_candidates(p, range(n)) + Spent.on(refined, r / len(refined)))


def of_tree(p: Problem, n: int) -> Point:
    """A tree over n candidates: refinements of sets of K, refinements of K of those, until one is left."""
    level = next(level for level, size in tree_sizes(p).items() if size == n)
    values, spent = [], []
    for root in range(max(1, p.tree[1][0].pool // n)):
        parts = _on_candidates(p, range(root * n, root * n + n))
        for below, refined in p.tree.items():
            width = p.k ** (level - below) if below <= level else 0
            parts += Spent.on(refined[root * width : (root + 1) * width])
        values.append(p.tree[level][root].correct)
        spent.append(parts)
    return Point(mean(values), mean_spent(spent))


def tree_sizes(p: Problem) -> dict[int, int]:
    """By level, over how many candidates a refinement of the tree is: K**level, at the top all. K alone is no tree."""
    if not p.tree:
        return {}
    top, size = max(p.tree), p.tree[1][0].pool
    return {level: size if level == top else p.k**level for level in p.tree if level > 1 or level == top}


def of_rounds(p: Problem, number: int, voting: bool) -> Point:
    """One refinement of a round over the K of the round before, or the vote over K of them."""
    values, spent = [], []
    for s in p.sets:
        refined = s.round(number)
        values.append(vote(refined) if voting else mean(sample.correct for sample in refined))
        before = [Spent.on(s.round(earlier), one_prompt=True) for earlier in range(1, number)]
        last = Spent.on(refined, 1.0 if voting else 1 / len(refined), one_prompt=True)
        spent.append(sum(before, last + _on_candidates(p, [candidate.index for candidate in s.candidates])))
    return Point(mean(values), mean_spent(spent))


def _on_candidates(p: Problem, indices: Iterable[int]) -> Spent:
    return Spent.on([p.candidates[index] for index in indices], one_prompt=True)


def vote_at_tokens(p: Problem, tokens: float) -> Point:
    """The vote over as many candidates as take so many completion tokens, between two whole numbers linearly.

    At most all candidates: then its own tokens are fewer.
    """
    spent = Spent.on(p.candidates, one_prompt=True)
    share = min(1.0, tokens / spent.tokens) if spent.tokens else 1.0
    return Point(p.maj_at_tokens(tokens), Spent.on(p.candidates, share, one_prompt=True))


def powers(last: int) -> list[int]:
    """1, 2, 4, ... and the last."""
    return sorted({*(2**power for power in range(last.bit_length())), last})


def points_of(p: Problem) -> dict[Key, Point]:
    """All points that the samples of a problem give, by method, candidates and refinements."""
    votes = {("vote", n, 0): of_vote(p, n) for n in powers(len(p.candidates))}
    points: dict[Key, Point] = {}
    for kind, method, point in (("scores", "best of n", of_best), ("verdicts", "verdict", of_verdict)):
        if kind in p.kinds:
            points |= {(method, n, 0): point(p, n) for n in powers(len(p.candidates))}
    flat = [*p.flat, p.k] if "selfref" in p.kinds else p.flat
    points |= {("flat", n, 1): of_flat(p, n) for n in sorted(flat)}
    for number in p.rounds:
        for voting in (False, True):
            refinements = p.k * (number - 1) + (p.k if voting else 1)
            points["rounds, vote" if voting else "rounds", p.k, refinements] = of_rounds(p, number, voting)
    for n in tree_sizes(p).values():
        points["tree", n, sum(_level_sizes(n, p.k))] = of_tree(p, n)
    for n, refined in p.pools.items():
        points |= {("refine and vote", n, r): of_pool(p, n, r) for r in powers(len(refined))}
    return votes | {key: _beside_vote(p, point) for key, point in points.items()}


def _beside_vote(p: Problem, point: Point) -> Point:
    tokens = point.spent.tokens
    return replace(point, maj=vote_at_tokens(p, tokens).value, capped=p.is_capped(tokens))


def _level_sizes(number: int, k: int) -> Iterable[int]:
    """How many refinements each level of a tree over so many candidates has."""
    while number > 1:
        number = -(-number // k)
        yield number


def scaling_rows(problems: list[dict[Key, Point]], weights) -> list[dict]:
    """The rows of scaling.json over these problems, from `points_of` each.

    Args:
        weights: (resamples, P) of `intervals.bootstrap_weights`.

    Returns:
        Of each point `method`, `candidates`, `refinements`; `value`, `low`, `high`; `tokens`, `prompt_tokens` and
        `distinct_prompt_tokens`, means over problems; and of all but votes `maj`, `capped` and `difference`, what it
        is above the vote of as many tokens, paired by problem, `{"value", "low", "high"}`.
    """
    rows, missing = [], Point(math.nan, Spent(*[math.nan] * 3))
    for key in dict.fromkeys(key for points in problems for key in points):
        points = [of_problem.get(key, missing) for of_problem in problems]
        value, maj = (metrics.share([getattr(point, name) for point in points]) for name in ("value", "maj"))
        row = dict(zip(("method", "candidates", "refinements"), key, strict=True))
        row |= intervals.estimate(value, weights)
        spent = mean_spent(point.spent for point in points)
        row |= {name: metrics.rounded(tokens, 3) for name, tokens in vars(spent).items()}
        if maj.count:
            row |= {
                "maj": metrics.rounded(maj.value),
                "capped": metrics.rounded(mean(point.capped for point in points)),
            }
            row["difference"] = intervals.estimate_difference(value, maj, weights)
        rows.append(row)
    return rows

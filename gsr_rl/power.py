"""How many problems and runs it takes to see a difference: variance between problems and within, and a power note.

For a difference that each problem shows in each of its runs: its variance between problems (some problems are helped
more than others) and within a problem (sampling). With P problems and R runs each, the standard error of the mean is
sqrt((between + within / R) / P): more runs take away only the second part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gsr_rl.intervals import Z95
from gsr_rl.refinement.metrics import is_scored

Z80 = 0.8416212335729143  # a test at 5 %, two-sided, sees so large an effect in 80 of 100 cases
DIFFERENCES = (0.01, 0.02, 0.05)


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


def variance(groups: Sequence[Sequence[float | None]], independent: bool = True) -> Variance | None:
    """Split the variance of a difference, from each problem's values by run; None with fewer than two problems.

    Runs that are not `independent`, as of candidate sets that overlap, do not tell the two parts apart.
    """
    scored = [[value for value in group if is_scored(value)] for group in groups]
    scored = [group for group in scored if group]
    if len(scored) < 2:
        return None
    means = [math.fsum(group) / len(group) for group in scored]
    runs = len(scored) / math.fsum(1 / len(group) for group in scored)  # harmonic, as it enters the variance
    total = _sample_variance(means)
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

    None if no number suffices, as the problems differ too much, or if one run a problem does not tell.
    """
    if parts.within is None:
        return None
    left = (problems or parts.problems) * (difference / (Z95 + Z80)) ** 2 - parts.between
    return max(1, math.ceil(parts.within / left)) if left > 0 else None


def of_two_models(parts: Variance | None) -> Variance | None:
    """Of the difference of two equal models with as many runs each as one has: the same on every problem.

    None if one run a problem does not tell.
    """
    if parts is None or parts.within is None:
        return None
    return replace(parts, between=0.0, within=2 * parts.within)


def power_note(parts: Variance | None) -> dict | None:
    """The note on one difference, for eval.json; None without its variance, or where no problem and no run differs."""
    if parts is None or not parts.between + (parts.within or 0.0):
        return None
    needed = {
        f"{difference:g}": {
            "problems": problems_needed(parts, difference),
            "runs": runs_needed(parts, difference),
        }
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

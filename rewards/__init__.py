"""Verifiable rewards for mathematics that can be trusted and never hang.

    >>> import rewards
    >>> rewards.grade(["so it is \\\\boxed{0.5}"], ["\\\\frac12"])
    [1.0]

Importing this package is cheap: the math stack is loaded in worker processes, when the first row needs it.
docs/rewards.md states the rules.
"""

from rewards.extraction import extract_answer
from rewards.grading import grade, shutdown, stats, vote
from rewards.registry import load_reward_funcs

__all__ = ["extract_answer", "grade", "load_reward_funcs", "shutdown", "stats", "vote"]

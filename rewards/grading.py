"""Grade completions against gold answers, and group answers for a vote."""

import collections
import os
import threading

from rewards import normalisation
from rewards.extraction import MAX_ANSWER, extract_answer
from rewards.verifier import Verifier, default_timeout

CACHE_SIZE = 65536  # pairs of (gold, answer)

_verifier = Verifier()
_cache: collections.OrderedDict[tuple[str, str], dict] = collections.OrderedDict()
_cache_lock = threading.Lock()
_counts: collections.Counter = collections.Counter()


def _after_fork() -> None:
    global _cache_lock
    _cache_lock = threading.Lock()
    _counts.clear()
    _verifier.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def grade(
    completions: list[str], answers: list[str], *, require_box: bool = False, timeout: float | None = None
) -> list[float | None]:
    """1.0 for each completion whose answer is its gold answer, 0.0 if it is not, None where the gold answer cannot be read.

    Args:
        completions: texts to grade.
        answers: one gold answer each.
        require_box: whether only a boxed answer counts.
        timeout: seconds a row may take; a row past it is 0.0. Default 5, or `GSR_REWARDS_TIMEOUT`.

    A failure of the worker pool itself gives None too.
    """
    if len(completions) != len(answers):
        raise ValueError(
            f"{len(completions)} completions but {len(answers)} answers: pass one gold answer a completion"
        )
    extracted = [extract_answer(completion, require_box=require_box) for completion in completions]
    return [judgement["score"] for judgement in judge(list(zip(answers, extracted, strict=True)), timeout=timeout)]


def judge(pairs: list[tuple[str, str | None]], *, timeout: float | None = None) -> list[dict]:
    """{"score": float | None, "why": str, "status": str} for each pair (gold answer, extracted answer or None)."""
    timeout = default_timeout() if timeout is None else timeout
    settled: dict[tuple, dict] = {}
    todo = []
    for pair in dict.fromkeys(pairs):
        judgement = _quick(*pair)
        if judgement is None:
            with _cache_lock:
                judgement = _cache.get(pair)
            if judgement is None:
                todo.append(pair)
                continue
            _counts["cache_hits"] += 1
        settled[pair] = judgement
    if todo:
        requests = [{"gold": gold, "answer": answer} for gold, answer in todo]
        for pair, reply in zip(todo, _verifier.run(requests, timeout), strict=True):
            settled[pair] = judgement = _judgement(reply)
            if judgement["status"] != "failed":
                with _cache_lock:
                    _cache[pair] = judgement
                    while len(_cache) > CACHE_SIZE:
                        _cache.popitem(last=False)
    _counts["rows"] += len(pairs)
    _counts["verified"] += len(todo)
    return [settled[pair] for pair in pairs]


def _judgement(reply: dict) -> dict:
    if "failed" in reply:
        return {"score": None, "status": "failed", "why": reply["failed"]}
    if reply.get("timeout"):
        if reply["gold_read"]:
            return {"score": 0.0, "status": "timeout", "why": "comparing took longer than the deadline"}
        return {"score": None, "status": "gold", "why": "reading the gold answer took longer than the deadline"}
    if reply.get("died"):
        return {"score": 0.0, "status": "died", "why": "two workers died of it"}
    if reply["verdict"] is None:
        return {"score": None, "status": "gold", "why": reply["why"]}
    return {"score": float(reply["verdict"]), "status": "compared", "why": reply["why"]}


def _quick(gold: str, answer: str | None) -> dict | None:
    """The judgement where no worker is needed."""
    if not isinstance(gold, str) or not gold.strip():
        return {"score": None, "status": "gold", "why": "the gold answer is empty"}
    if answer is None:
        return {"score": 0.0, "status": "no answer", "why": "no answer found"}
    left, right = normalisation.canonical(gold[: 2 * MAX_ANSWER]), normalisation.canonical(answer[: 2 * MAX_ANSWER])
    if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
        same = gold.strip() == answer.strip()
        return {"score": float(same), "status": "quick", "why": "too long to be parsed, compared as text"}
    if left == right and left:
        return {"score": 1.0, "status": "quick", "why": f"both are {left}"}
    numbers = normalisation.as_number(left), normalisation.as_number(right)
    if None not in numbers and "%" not in left + right:
        if numbers[0] == numbers[1]:
            return {"score": 1.0, "status": "quick", "why": f"both are {numbers[0]}"}
        if numbers[0].denominator == numbers[1].denominator == 1:
            return {"score": 0.0, "status": "quick", "why": f"{numbers[1]} is not {numbers[0]}"}
    return None


def vote(answers: list[str | None], *, timeout: float | None = None) -> list[int | None]:
    """Class of each answer, by the notion of sameness that `grade` uses; None for an answer that is None.

    Ids count up from 0 in order of first appearance. An answer joins the first class whose first member it equals, so classes do not
    overlap, whatever the order of comparison.
    """
    keys = [None if answer is None else answer.strip() for answer in answers]
    representatives: list[str] = []
    classes: dict[str, int] = {}
    for key in dict.fromkeys(key for key in keys if key):
        judgements = judge([(other, key) for other in representatives], timeout=timeout)
        same = next((index for index, judgement in enumerate(judgements) if judgement["score"] == 1.0), None)
        if same is None:
            same = len(representatives)
            representatives.append(key)
        classes[key] = same
    return [classes.get(key) if key else None for key in keys]


def stats() -> dict[str, int]:
    """Counts of this process since it started: rows, verified, cache_hits, timeouts, restarts, died, pool_failures."""
    names = ("rows", "verified", "cache_hits", "timeouts", "restarts", "died", "pool_failures")
    total = _counts + _verifier.counts
    return {name: total[name] for name in names}


def shutdown() -> None:
    """End the workers. They end with this process too; a later call starts new ones."""
    _verifier.shutdown()

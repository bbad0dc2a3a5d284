"""Grade completions against gold answers, and group answers for a vote."""

import atexit
import collections
import functools
import os
import re
import threading
import time

from rewards import golds, normalisation
from rewards.extraction import MAX_ANSWER, answer_of_kind
from rewards.numeric import read_number, same_number
from rewards.verifier import Verifier, default_timeout

CACHE_SIZE = 65536  # pairs of (gold, answer)
HUNG_SECONDS = 600.0  # how long a pair that hung is not tried again: no longer, it may have been the machine's fault

_verifier = Verifier()
_cache: collections.OrderedDict[tuple[str, str], dict] = collections.OrderedDict()
_hung: collections.OrderedDict[object, float] = collections.OrderedDict()  # pair, or its answer -> when it hung
_cache_lock = threading.Lock()
_counts: collections.Counter = collections.Counter()


def _after_fork() -> None:
    global _cache_lock
    _cache_lock = threading.Lock()
    _counts.clear()
    _verifier.abandon()


atexit.register(_verifier.shutdown)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def grade(
    completions: list[str], answers: list[str], *, require_box: bool = False, timeout: float | None = None
) -> list[float | None]:
    """1.0 for a completion whose answer is its gold answer, 0.0 if it is not, None where the gold cannot be read.

    Args:
        completions: texts to grade.
        answers: one gold answer each.
        require_box: whether only a boxed answer counts.
        timeout: seconds a row may take; a row past it is 0.0. Default 3, or `GSR_REWARDS_TIMEOUT`.

    A failure of the worker pool itself gives None too.
    """
    if len(completions) != len(answers):
        counts = f"{len(completions)} completions but {len(answers)} answers"
        raise ValueError(f"{counts}: pass one gold answer a completion")
    pairs = extract_pairs(completions, answers, require_box=require_box)
    return [judgement["score"] for judgement in judge(pairs, timeout=timeout)]


def extract_pairs(completions: list[str], answers: list, *, require_box: bool) -> list[tuple[str | None, str | None]]:
    """(gold answer, extracted answer) for each row; None for a gold that cannot be read and for a missing answer."""
    read = {answer: golds.read_gold(answer) for answer in set(map(_hashable, answers))}
    pairs = []
    for completion, answer in zip(completions, answers, strict=True):
        gold = read[_hashable(answer)]
        kind = golds.kind_of(gold) if gold else "formula"
        pairs.append((gold, answer_of_kind(completion, kind, require_box=require_box)))
    return pairs


def _hashable(answer):
    return answer if isinstance(answer, str | int | float) else None


def judge(
    pairs: list[tuple[str, str | None]], *, timeout: float | None = None, blame_answer: bool = True
) -> list[dict]:
    """{"score": float | None, "why": str, "status": str} for each pair (gold answer, extracted answer or None).

    A pair past the deadline is not tried again for `HUNG_SECONDS`; with `blame_answer` its answer votes for itself
    alone as long (see `vote`).
    """
    timeout = default_timeout() if timeout is None else timeout
    settled: dict[tuple, dict] = {}
    todo = []
    for pair in dict.fromkeys(pairs):
        judgement = _quick(*pair)
        if judgement is None:
            with _cache_lock:
                judgement = _cache.get(pair)
            if judgement is None and _has_hung(pair):
                judgement = _judgement({"timeout": True})
            if judgement is None:
                todo.append(pair)
                continue
            _counts["cache_hits"] += 1
        settled[pair] = judgement
    if todo:
        requests = [{"gold": gold, "answer": answer} for gold, answer in todo]
        for pair, reply in zip(todo, _verifier.run(requests, timeout), strict=True):
            settled[pair] = judgement = _judgement(reply)
            if judgement["status"] == "timeout":
                _remember_hung(pair, *([pair[1]] if blame_answer else []))
            if judgement["status"] == "compared":
                with _cache_lock:
                    _cache[pair] = judgement
                    while len(_cache) > CACHE_SIZE:
                        _cache.popitem(last=False)
    _counts["rows"] += len(pairs)
    _counts["verified"] += len(todo)
    return [settled[pair] for pair in pairs]


def _has_hung(what: object) -> bool:
    """Whether a pair, or an answer, went past its deadline within the last `HUNG_SECONDS`."""
    return time.monotonic() - _hung.get(what, -HUNG_SECONDS) < HUNG_SECONDS


def _remember_hung(*what: object) -> None:
    with _cache_lock:
        for pair in what:
            _hung[pair] = time.monotonic()
            _hung.move_to_end(pair)
        while len(_hung) > CACHE_SIZE:
            _hung.popitem(last=False)


def _judgement(reply: dict) -> dict:
    if "failed" in reply:
        return _settled(None, "failed", reply["failed"])
    if reply.get("timeout"):
        return _settled(0.0, "timeout", "comparing took longer than the deadline")
    if reply.get("died"):
        return _settled(0.0, "died", "two workers died of it")
    return _settled(reply["verdict"], "compared", reply["why"])


def _settled(score: bool | float | None, status: str, why: str) -> dict:
    return {"score": None if score is None else float(score), "status": status, "why": why}


def _quick(gold: str | None, answer: str | None) -> dict | None:
    """The judgement where no worker is needed; None where one is."""
    if gold is None:
        return _settled(None, "gold", "the gold answer cannot be read: it is empty, breaks off, or is no text")
    if answer is None:
        return _settled(0.0, "no answer", "no answer found")
    if max(len(gold), len(answer)) > MAX_ANSWER:
        return _settled(gold.strip() == answer.strip(), "quick", "too long to be parsed, so compared as text")
    numbers = _number(gold), _number(answer)
    if all(numbers):
        same = same_number(*numbers)
        return _settled(same, "quick", f"{answer} {'is' if same else 'is not'} {gold} as a number")
    left, right = _key(gold), _key(answer)
    if left == right and normalisation.balanced(left) and re.search(r"\w", left):
        return _settled(1.0, "quick", f"both are written {left}")
    return None


@functools.lru_cache(maxsize=4096)
def _number(text: str):
    return read_number(normalisation.clean(text))


@functools.lru_cache(maxsize=4096)
def _key(text: str) -> str:
    return normalisation.compact(normalisation.clean(text))


def vote(answers: list[str | None], *, timeout: float | None = None) -> list[int | None]:
    """Class of each answer, by the notion of sameness that `grade` uses; None for an answer that is None or empty.

    Ids count up from 0 in order of first appearance. Answers spelled alike, and equal numbers, are one class without
    asking a worker. Any other answer joins the first class whose first member it equals, read either way round; so
    classes never overlap and the same list always gives the same classes. An answer that made a comparison go past
    its deadline is a class of its own, so a hostile one costs a vote two deadlines at most, and none after `grade`
    has met it.
    """
    keys = [_vote_key(answer) for answer in answers]
    members: dict = {}  # key -> the first answer spelled so
    for key, answer in zip(keys, answers, strict=True):
        if key is not None:
            members.setdefault(key, answer)
    representatives: list[str] = []
    classes: dict = {}
    for key, answer in members.items():
        same = None if _has_hung(answer) else _same_as(answer, representatives, timeout)
        if same is None:
            same = len(representatives)
            representatives.append(answer)
        classes[key] = same
    return [None if key is None else classes[key] for key in keys]


def _same_as(answer: str, representatives: list[str], timeout: float | None) -> int | None:
    """The first representative that the answer equals, read either way round; hung ones are passed over."""
    for place, other in enumerate(representatives):
        for pair in ((other, answer), (answer, other)):
            if _has_hung(other):
                break
            (judgement,) = judge([pair], timeout=timeout, blame_answer=False)
            if judgement["score"] == 1.0:
                return place
            if judgement["status"] == "timeout":  # whose fault is it? The one that hangs beside something harmless
                judge([("0", text) for text in pair], timeout=timeout)
                if not _has_hung(other):
                    _remember_hung(answer)
                if _has_hung(answer):
                    return None
    return None


def _vote_key(answer: str | None):
    """What makes two answers one without a look at their meaning; None for no answer."""
    if not isinstance(answer, str) or not answer.strip():
        return None
    if len(answer) > MAX_ANSWER:
        return answer.strip()
    number = _number(answer) if "," not in answer else None  # "2,450" is 2450, and also how some write {2, 450}
    return (number.value, number.percent) if number else _key(answer) or answer.strip()


def stats() -> dict[str, int]:
    """Counts of this process since it started: rows, verified, cache_hits, timeouts, restarts, died, pool_failures."""
    names = ("rows", "verified", "cache_hits", "timeouts", "restarts", "died", "pool_failures")
    total = _counts + _verifier.counts
    return {name: total[name] for name in names}


def shutdown() -> None:
    """End the workers. They end with this process too; a later call starts new ones."""
    _verifier.shutdown()

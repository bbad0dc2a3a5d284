"""Reward 1 for a right answer, 0 for a wrong one, None where the gold answer cannot be read."""

import time

from rewards import grading


def completion_text(completion) -> str:
    """The text of a completion: a string, or the content of the last message of a conversation."""
    if isinstance(completion, str):
        return completion
    if not completion:
        return ""
    content = completion[-1].get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


class AccuracyReward:
    """TRL reward function that compares each completion's answer with the column `answer`.

    Args:
        require_box: whether only a boxed answer counts. Default True.
        timeout: seconds a row may take.
    """

    __name__ = "accuracy"

    def __init__(self, require_box: bool = True, timeout: float | None = None):
        if not isinstance(require_box, bool):
            raise ValueError(f"accuracy: require_box={require_box!r}: true or false is expected")
        if timeout is not None and (type(timeout) not in (int, float) or not 0 < timeout < float("inf")):
            raise ValueError(f"accuracy: timeout={timeout!r}: a positive number of seconds is expected")
        self.require_box, self.timeout = require_box, timeout

    def __call__(self, prompts=None, completions=None, completion_ids=None, *, answer, log_metric=None, **columns):
        began = time.monotonic()
        raw = next((row for row, gold in enumerate(answer) if isinstance(gold, bytes | bytearray)), None)
        if raw is not None:
            raise ValueError(f"accuracy: the column `answer` holds bytes (row {raw}): decode it to text first")
        texts = [completion_text(completion) for completion in completions]
        pairs = grading.extract_pairs(texts, answer, require_box=self.require_box)
        judgements = grading.judge(pairs, timeout=self.timeout)
        if log_metric is not None and judgements:
            statuses = [judgement["status"] for judgement in judgements]
            log_metric("verifier/timeouts", statuses.count("timeout") / len(statuses))
            log_metric("verifier/unreadable_golds", statuses.count("gold") / len(statuses))
            log_metric("verifier/failures", statuses.count("failed") / len(statuses))
            log_metric("verifier/missing_answers", sum(extracted is None for _, extracted in pairs) / len(pairs))
            log_metric("verifier/seconds", time.monotonic() - began)
        return [judgement["score"] for judgement in judgements]

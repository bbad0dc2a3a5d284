"""Whether two answers are the same, as a mathematician would say. Runs in a worker: it imports the math stack."""

from math_verify import parse, verify

from rewards import normalisation


def warm_up() -> None:
    """Load what the first row would load."""
    answer_request({"gold": "\\frac{1}{2}", "answer": "\\sqrt{\\frac{1}{4}}+x"}, lambda: None)


def answer_request(request: dict, gold_was_read) -> dict:
    """Reply to a request {"gold", "answer"}: {"verdict": bool | None, "why": str}, verdict None if the gold cannot be read."""
    gold = read(request["gold"])
    if not gold:
        return {"verdict": None, "why": "the gold answer cannot be read"}
    gold_was_read()
    answer = read(request["answer"])
    verdict = verify(gold, answer, timeout_seconds=None) or verify(gold, answer, timeout_seconds=None, strict=False)
    return {
        "verdict": bool(verdict),
        "why": f"gold read as {gold[0]!s}, answer as {answer[0]!s}" if answer else "unreadable answer",
    }


def read(text: str) -> list:
    return parse("$" + normalisation.plain(text).strip().strip("$") + "$", parsing_timeout=None)

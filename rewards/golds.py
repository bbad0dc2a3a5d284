"""Gold answers: the answer in a reference solution, and what kind it is."""

import re

from rewards import roles, structure
from rewards.extraction import MAX_ANSWER, answer_of_kind, boxed_answer
from rewards.normalisation import balanced, clean, words
from rewards.numeric import read_number

_SOLUTION = re.compile(r"<answer>|####|\banswer\b[^\n]{0,60}\S", re.IGNORECASE)


def read_gold(gold) -> str | None:
    """The answer of a gold text, which may be a whole solution or a number; None if there is none."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        return None
    text = str(gold).strip()
    if re.search(r"\\(?:boxed|fbox)(?![a-zA-Z])", text):
        text = boxed_answer(text) or ""
    elif _SOLUTION.search(text) and len(text) > 12:
        found = answer_of_kind(text, "words")
        text = found if found else text
    return None if len(text) <= MAX_ANSWER and unreadable(text) else text


def unreadable(gold: str) -> str | None:
    """Why a gold answer cannot be read, or None if it can."""
    text = clean(gold)
    if not re.search(r"\w|\\(?:infty|emptyset|pi)|[^\x00-\x7f]", text):
        return "the gold answer is empty"
    if not balanced(text):
        return "the gold answer has braces that do not close"
    if words(text) or read_number(text) or structure.gold_choice(text):
        return None
    if re.search(r"\\frac\s*(?:$|[^{\s])|\\frac\s*\{[^{}]*\}\s*$|\\sqrt\s*$|[\^_=+*/-]\s*$|\{\s*\}\s*$", text):
        return "the gold answer breaks off"
    return None


def kind_of(gold: str) -> str:
    """What the answer is looked for as: "roles" (who is a knight), "choice" (a letter), "words", or "formula"."""
    if len(gold) > MAX_ANSWER:
        return "formula"
    if roles.roles(gold) is not None:
        return "roles"
    text = clean(gold)
    if structure.gold_choice(text):
        return "choice"
    return "words" if words(text) and not re.search(r"[\d=^]|\\[a-zA-Z]", text) else "formula"

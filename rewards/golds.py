"""Gold answers: the answer in a reference solution, and what kind it is."""

import re

from rewards import choices, roles
from rewards.extraction import MAX_ANSWER, answer_of_kind, boxed_answer
from rewards.normalisation import balanced, clean, language, words
from rewards.numeric import read_number

_SOLUTION = re.compile(r"<answer>|####|\banswer\b[^\n]{0,60}\S", re.IGNORECASE)

_BROKEN_OFF = re.compile(r"\\frac\s*(?:$|[^{\s])|\\frac\s*\{[^{}]*\}\s*$|\\sqrt\s*$|[\^_=+*/-]\s*$|\{\s*\}\s*$")
_NO_GOLD = re.compile(
    r"(?:an? |the )?(?:proof|answer|solution)?(?: (?:is|was))? ?"
    r"(?:omitted|left to the reader|not (?:found|available|given|provided)|missing|unavailable)"
    r"|(?:the )?proof|n/?a|nan|null|nil|tb[dac]|todo|q ?e ?d|not ?found|no ?answer|placeholder|xxx+"
    r"|(?:see|refer to|check|given in|as in|as) (?:the )?(?:above|below|solutions?|proof|explanation|figure|diagram"
    r"|picture|attachment|text|answer(?: key)?)|(?:answers?|results?) (?:may |will )?var(?:y|ies)",
    re.IGNORECASE,
)


def read_gold(gold) -> str | None:
    """The answer of a gold text, which may be a whole solution or a number; None if there is none."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float) or gold != gold:
        return None
    text = str(gold).strip()
    if re.search(r"\\(?:boxed|fbox)(?![a-zA-Z])", text):
        text = boxed_answer(text, adjacent=True) or _unclosed(text)
    elif _SOLUTION.search(text) and (len(text) > 12 or "####" in text):
        text = answer_of_kind(text, "words") or text
    return None if len(text) <= MAX_ANSWER and unreadable(text) else text


def _unclosed(text: str) -> str:
    """What a last box holds that lacks only its own closing brace."""
    inside = text.rpartition("boxed{")[2]
    return inside if balanced(inside) else ""


def unreadable(gold: str) -> bool:
    """Whether a gold answer is missing ("TBD", "see solution"), empty, has braces that do not close, or breaks off."""
    text = clean(gold)
    if _NO_GOLD.fullmatch(re.sub(r"[\s_.:!()\[\]<>-]+", " ", text).strip()):
        return True
    if re.fullmatch(r"[<>=]|\\(?:le|ge)", text):  # "which sign belongs between them?"
        return False
    if not re.search(r"\w|\\(?:infty|emptyset|pi)|[^\x00-\x7f]", text) or not balanced(text):
        return True
    return not (words(text) or read_number(text) or choices.gold_choice(text)) and bool(_BROKEN_OFF.search(text))


def kind_of(gold: str) -> str:
    """What the answer is looked for as: "roles" (who is a knight), "choice" (a letter), "words", or "formula"."""
    if len(gold) > MAX_ANSWER:
        return "formula"
    if roles.roles(gold) is not None:
        return "roles"
    text = clean(gold)
    if choices.gold_choice(text):
        return "choice"
    said = language(text)
    if not said or re.search(r"[=^]|\\[a-zA-Z]", text):
        return "formula"
    digit = re.search(r"\d", text)  # "June 20" is words, "20 apples" is a number with its unit
    return "words" if not digit or said[0].start() < digit.start() else "formula"

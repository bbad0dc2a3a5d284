"""Answers that are words, times of day, or digits in another base: compared as they are written."""

import re

from rewards.normalisation import words
from rewards.numeric import read_number

_ARTICLES = re.compile(r"\b(?:a|an|the|it|is|are|answer|final|of|there|exactly)\b")


def same_words(gold: str, answer: str) -> bool | None:
    """Words against words. None if the gold answer is not words alone."""
    said = words(gold)
    if not said and words(answer) and _SYNONYMS.get(bag_of_words(gold), "") == _SYNONYMS.get(bag_of_words(answer)):
        return True
    if not said or re.search(r"\d|\\(?!text)[a-zA-Z]|[=<>^]", gold):
        return None
    left, right = (bag_of_words(side) for side in (gold, answer))
    if left == right and left:
        return True
    synonym = {_SYNONYMS.get(side, side) for side in (left, right)}
    if len(synonym) == 1:
        return True
    if read_number(gold) or "emptyset" in synonym or "infty" in synonym:
        return None
    return False if any(len(word) > 3 or word.lower() in _SHORT_WORDS for word in said) else None


_SHORT_WORDS = (
    "yes",
    "no",
    "odd",
    "one",
    "two",
    "six",
    "ten",
    "all",
    "not",
    "sat",
    "sun",
    "mon",
    "tue",
    "wed",
    "thu",
    "fri",
)


_SYNONYMS = {
    "yes": "true", "no": "false", "correct": "true", "incorrect": "false",
    "empty set": "emptyset", "\\emptyset": "emptyset", "no solution": "none", "no solutions": "none", "none": "none",
    "no real solutions": "none", "does not exist": "none", "dne": "none", "undefined": "undefined",
    "all real numbers": "reals", "\\mathbb{r}": "reals", "all reals": "reals", "real numbers": "reals",
    "infinity": "infty", "\\infty": "infty", "infinite": "infty", "infinitely many": "infty",
}  # fmt: skip


def bag_of_words(text: str) -> str:
    """The words of `text` without case, articles and punctuation."""
    text = text.casefold()
    plain = re.sub(r"\s+", " ", _ARTICLES.sub(" ", re.sub(r"[\"'`*.,;:!?(){}\[\]-]", " ", text))).strip()
    return plain if words(plain) else re.sub(r"\s+", "", text)


def same_time(gold: str, answer: str) -> bool | None:
    """Times of day, "12:30" or "9:05 am". None if the gold answer is none."""
    match = re.fullmatch(r"(\d{1,2}):(\d{2})\s*([ap]\.?\s?m\.?)?", gold, re.IGNORECASE)
    if not match:
        return None
    other = re.fullmatch(r"0?(\d{1,2}):(\d{2})\s*([ap]\.?\s?m\.?)?", answer, re.IGNORECASE)
    if not other:
        return None if not match[3] else False
    half = [(m[3] or "").replace(".", "").replace(" ", "").lower() for m in (match, other)]
    return int(match[1]) == int(other[1]) and match[2] == other[2] and (half[0] == half[1] or not all(half))


BASED = re.compile(r"([0-9A-Z]+)\s*_\s*\{?\s*(\d{1,2}|[a-z]+)\s*\}?")


def same_digits(gold: str, answer: str) -> bool | None:
    """Numbers in another base: the digits decide, and the base where both name it."""
    left, right = BASED.fullmatch(gold), BASED.fullmatch(answer)
    if (left and not left[2].isdigit()) or (right and not right[2].isdigit()):
        return None
    if left and right:
        try:
            return int(left[1], int(left[2])) == int(right[1], int(right[2]))
        except ValueError:
            return False
    if (left and left[1].isdigit()) or (right and right[1].isdigit()):
        return (left[1] if left else gold).strip() == (right[1] if right else answer).strip()
    return None

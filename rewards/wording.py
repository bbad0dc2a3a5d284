"""Answers that are words, times of day, or digits in another base: compared as they are written."""

import re

from rewards import units
from rewards.normalisation import compact, words
from rewards.numeric import read_number, split_percent

_ARTICLES = re.compile(r"\b(?:a|an|the|it|is|are|answer|final|of|there|exactly)\b")
_SHORT_WORDS = re.compile("yes|no|odd|one|two|six|ten|all|not|sat|sun|mon|tue|wed|thu|fri")
_ALIKE = {
    "true": "yes|correct", "false": "no|incorrect", "none": "empty set|\\emptyset|no solution|does not exist|dne",
    "reals": "all reals|\\mathbb{r}", "integers": "all integers|\\mathbb{z}",
    "infty": "infinity|\\infty|infinite|infinitely many|infinitely many solutions|infinite solutions",
}  # fmt: skip
_SYNONYMS = {phrase: name for name, phrases in _ALIKE.items() for phrase in (name, *phrases.split("|"))}
_NONE = re.compile(
    r"(?:(?:\w+ )?has )?no (?:\w+ ){0,2}?(?:solutions?|roots?|values?|integers?|numbers?|such \w+)"
    r"(?: (?:exists?|possible|works?))?|none exists?"
)
_REALS = re.compile(r"(?:[a-z] )?(?:can be |in )?(?:set )?(?:all |any |every )?(?:real numbers?|reals?|real values?)")
_MONTH = r"(january|february|march|april|may|june|july|august|september|october|november|december)"
_DAY = re.compile(rf"\b(\d{{1,2}})(?: |st |nd |rd |th ){{1,2}}{_MONTH}|{_MONTH} (\d{{1,2}})(?:st|nd|rd|th)?\b")
_INTERVAL = re.compile(r"([(\[])[^()\[\]]*(?:\d|infty)[^()\[\]]*([)\]])")
_REMARK = re.compile(r"(.*[\w}%)\]])(?:\s+[(\[]|(?<=[\d}%)\]])\()([^()\[\]]{1,200})[)\]]", re.DOTALL)
_NO_REMARK = re.compile(r"\s*(?:or|and|also|maybe|perhaps|possibly|mod|base|if|for|when|where)\b", re.IGNORECASE)
_ASIDE = re.compile(r"\s*(?:\\approx(?![a-zA-Z])|i\.?\s?e\b)")
_REASON = re.compile(r"(yes|no|true|false)\b[\s,.;:]*(?:because|since|as)\s+\S.*", re.IGNORECASE | re.DOTALL)
_TIME = re.compile(r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_LEAD_IN = re.compile(r"(?:so |thus |hence |therefore,? )?(?:the )?(?:final |correct )?answer(?: is\b|:)[\s:]*", re.I)
BASED = re.compile(r"\(?([0-9A-Z]+)\)?\s*_\s*\{?\s*(\d{1,2}|[a-z]+)\s*\}?")
_ROW = re.compile(r"(?!\d{1,3}(?: \d{3})+$)\d+(?:\.\d+)?(?:\s+\d+(?:\.\d+)?)+")


def same_words(gold: str, answer: str) -> bool | None:
    """Words against words. None if the gold answer is not words alone."""
    said = words(gold)
    if not said and words(answer) and _SYNONYMS.get(bag_of_words(gold), "") == _SYNONYMS.get(bag_of_words(answer)):
        return True
    if _DAY.search(gold.casefold()):
        return bag_of_words(gold) == bag_of_words(answer)
    if not said or re.search(r"\d|\\(?!text)[a-zA-Z]|[=<>^]", gold):
        return None
    left, right = (bag_of_words(side) for side in (gold, answer))
    if left == right and left:
        return True
    synonym = {_SYNONYMS.get(side, side) for side in (left, right)}
    if len(synonym) == 1:
        return True
    if read_number(gold) or "none" in synonym or "infty" in synonym:
        return None
    return False if any(len(word) > 3 or _SHORT_WORDS.fullmatch(word.lower()) for word in said) else None


def bag_of_words(text: str) -> str:
    """The words of `text` without case, articles and punctuation. The brackets of intervals count."""
    text = text.casefold()
    if not words(text):
        return "all reals" if compact(text).replace("+", "") == r"(-\infty,\infty)" else compact(text)
    brackets = "".join(match[1] + match[2] for match in _INTERVAL.finditer(text) if "," in match[0])
    text = re.sub(r"[\"'`*;:!?(){}\[\]]|[-.,](?!\d)", " ", text)
    plain = re.sub(r"\s+", " ", _ARTICLES.sub(" ", text)).strip()
    plain = _DAY.sub(lambda m: f"{m[2]} {m[1]}" if m[1] else f"{m[3]} {m[4]}", plain)
    plain = "no solution" if _NONE.fullmatch(plain) else "all reals" if _REALS.fullmatch(plain) else plain
    return plain + brackets


def without_remark(text: str) -> str:
    """ "7 (units)", "7 (i.e. 7)", "\\pi (\\approx 3.14)" without what stands in brackets; "7 (cm)" as "7 cm"."""
    match = _REMARK.fullmatch(text) if text.endswith((")", "]")) else None
    if not match or not re.search(r"\d|\\[a-z]", match[1]) or _NO_REMARK.match(match[2]):
        return text
    head, inside = match[1].strip(), re.sub(r"^\s*(?:in|i\.?\s?e\.?,?)\s+", "", match[2])
    if units.dimension(inside) and not units.split_unit(head)[1]:
        return f"{head} {inside}"
    numbers = read_number(head), read_number(inside)
    said = any(len(word) > 2 for word in words(inside))
    if not said and not _ASIDE.match(match[2]) and not split_percent(inside)[1]:
        return text
    return text if all(numbers) and numbers[0].value != numbers[1].value else head


def without_reason(text: str) -> str:
    """ "No, because 2 divides it" as "No"."""
    return match[1] if (match := _REASON.fullmatch(text)) else text


def same_time(gold: str, answer: str) -> bool | None:
    """Times of day, "12:30", "9:05 am" or "21:05:00". None if the gold answer is none."""
    match, other = _TIME.fullmatch(gold), _TIME.fullmatch(answer)
    if not match or not other or not (match[2] or match[4]) or not (other[2] or other[4]):
        return False if match and match[4] else None
    left, right = _seconds(match), _seconds(other)
    plain = [time for time in (match, other) if not time[4]]
    if len(plain) == 1 and int(plain[0][1]) <= 12:  # it leaves open which half of the day it means
        return left % (12 * 3600) == right % (12 * 3600)
    return left == right


def _seconds(match: re.Match) -> int:
    half = (match[4] or "").lower()
    hour = int(match[1]) % 12 + 12 * (half == "p") if half else int(match[1])
    return hour * 3600 + int(match[2] or 0) * 60 + int(match[3] or 0)


def without_lead_in(text: str) -> str:
    """ "the answer is 9" as "9"."""
    return text[match.end() :] if (match := _LEAD_IN.match(text)) else text


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


def same_row(gold: str, answer: str) -> bool | None:
    """Numbers side by side, as the rows of a grid have them: no product, so each is compared in its place."""
    if _ROW.fullmatch(gold.strip()):
        return re.split(r"[\s,;|\[\]]+", answer.strip(" ,;|[]")) == gold.split()
    return False if _ROW.fullmatch(answer.strip()) and read_number(gold) else None

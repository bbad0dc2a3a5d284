"""Letters that may stand for any number ("k\\pi, k \\in \\mathbb{Z}", "cx for any constant c"), and their names."""

import re

from rewards.normalisation import is_function

_LETTER = r"(?:[a-zA-Z]|\\[a-z]+)(?:_\{?\w\}?)?"
_LETTERS = rf"{_LETTER}(?:\s*,\s*{_LETTER})*"
_ANY = r"(?:(?:any|all|every|each|some|an?|arbitrary)\s+)"
_KIND = r"(?:(?:arbitrary |real )?constants?|real(?: numbers?| values?)?|integers?|whole numbers?|natural numbers?)"
_QUALIFIER = re.compile(
    r"(?P<text>.+?)(?:\s*[,;(]\s*|\s+(?=for\b|where\b|with\b|\\forall))(?:(?:for|where|with|and)\s+|\\forall\s*)?(?:"
    rf"{_ANY}?(?P<in>{_LETTERS})\s*(?:\\in|in)\s*\\mathbb\{{(?P<set>[ZNRQC])\}}"
    rf"|(?P<is>{_LETTERS})\s+(?:(?:is|are|being)\s+)?{_ANY}*(?P<kind>{_KIND})"
    rf"|{_ANY}*(?P<like>{_KIND})\s+(?P<of>{_LETTERS})"
    rf"|(?:(?<=\\forall)|(?<=\\forall )|(?<=for ){_ANY})\s*(?P<all>{_LETTERS}))\s*\)?",
    re.DOTALL,
)
_QUALIFIES = re.compile(r"\\in|\\forall|for |where |with |integer|constant|real")
_SETS = {"i": "Z", "w": "Z", "n": "N"}
_WORD = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]+")


def qualified(text: str) -> tuple[str, dict[str, str | None]]:
    """`text` without what it says of its letters at its end, and that: the set that each is from, or None."""
    kinds: dict[str, str | None] = {}
    while _QUALIFIES.search(text) and (match := _QUALIFIER.fullmatch(text)):
        rest = match["text"].strip(" ,;")
        named = re.findall(_LETTER, match["in"] or match["is"] or match["of"] or match["all"])
        if rest.count("(") != rest.count(")") or not set(named) <= letters(rest):
            break
        kind = match["kind"] or match["like"]
        kinds |= dict.fromkeys(named, match["set"] or (_SETS.get(kind[0]) if kind else None))
        text = rest
    return text, kinds


def letters(text: str) -> set[str]:
    """The letters of a formula; "cx" has two."""
    return {letter for word in _WORD.findall(text) for letter in _split(word)}


def _split(word: str) -> list[str]:
    return [] if is_function(word) else [word] if word[0] == "\\" or len(word) > 3 else list(word)


def renamed(text: str, names: dict[str, str]) -> str:
    """`text` with other letters, all at once."""
    return _WORD.sub(lambda m: "".join(names.get(letter, letter) for letter in _split(m[0])) or m[0], text)


def aligned(gold: str, answer: str) -> tuple[str, str] | None:
    """Both without what they say of their letters, the answer's named as in the gold; None if that differs."""
    (gold, fixed), (answer, free) = qualified(gold), qualified(answer)
    if fixed:
        ours, theirs = letters(gold), letters(answer)
        missing = [name for name in fixed if name not in theirs]
        extra = [name for name in free if name not in ours] or sorted(theirs - ours)
        if len(missing) == len(extra):
            names = dict(zip(extra, missing, strict=True))
            answer = renamed(answer, names)
            free = {names.get(name, name): kind for name, kind in free.items()}
    if any(free.get(name) and kind and free[name] != kind for name, kind in fixed.items()):
        return None
    return gold, answer


def with_arguments_of(gold: str, answer: str, value: str) -> str | None:
    """The value of the answer's "f(t)" in the letters of the gold's "f(x)"; None if one of them is no such name."""
    ours, theirs = (re.fullmatch(r"[a-zA-Z](\([a-zA-Z](?:,[a-zA-Z])*\))", name) for name in (gold, answer))
    if not ours or not theirs:
        return None
    left, right = re.findall(r"\w", ours[1]), re.findall(r"\w", theirs[1])
    if len(left) != len(right):
        return None
    names = dict(zip(right, left, strict=True))
    spare = dict(zip((n for n in left if n not in right), (n for n in right if n not in left), strict=True))
    return renamed(value, names | spare)

"""Which training problems are, or hold, problems of an evaluation set. Pure: texts in, findings out.

Texts are compared as sequences of words, numbers and signs, with spelling taken away that does not change a problem:
letter case, white space, Unicode forms, math delimiters, LaTeX's spacing, sizing, fonts and braces, the last stop.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

# n-grams in more than this many texts, and in more than this share of them, are common phrases: they say nothing.
COMMON_COUNT, COMMON_SHARE = 20, 0.001
# The least share of common n-grams if a text has no numbers, by which other problems of its wording are told apart.
WITHOUT_NUMBERS = 0.8

_FRACTION = re.compile(r"\\[dtc](frac|binom)(?![a-zA-Z])")
_SPACING = re.compile(
    r"\\(?:[,;:!> ]|(?:q?quad|thinspace)(?![a-zA-Z])|hspace\*?\{[^{}]*\})|~|&(?![a-z]+;)"
    r"|\\\\(?:\*?\[-?[\d.]+ ?(?:pt|em|ex|mm|cm|in)\])?"
)
_SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])\.?")
_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|emph|mathrm|mathbf|mathit|mathsf|operatorname|mbox|boldsymbol)\*?(?![a-zA-Z])"
)
_DELIMITER = re.compile(r"\\[()\[\]]|\$+|\\(?:begin|end)\{[a-z]+\*?\}")
_SAME = {
    "\\le": "<=", "\\leq": "<=", "\\leqslant": "<=", "≤": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=",
    "≥": ">=", "\\ne": "!=", "\\neq": "!=", "≠": "!=", "\\cdot": "*", "\\times": "*", "×": "*", "·": "*", "⋅": "*",
    "−": "-", "–": "-", "\\ldots": "...", "\\dots": "...", "\\cdots": "...", "…": "...", "\\degree": "\\circ",
    "°": "\\circ", "π": "\\pi", "∞": "\\infty", "√": "\\sqrt", "\\lt": "<", "\\gt": ">", "**": "^",
    "\\rightarrow": "\\to", "→": "\\to", "∠": "\\angle", "‘": "'", "’": "'", "“": '"', "”": '"', "``": '"', "''": '"',
}  # fmt: skip
_RAISED, _LOWERED = re.compile("[¹²³⁰-ⁿ]+"), re.compile("[₀-ₜ]+")
_TOKEN = re.compile(
    r"\\[a-zA-Z]+|\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)*|[^\W\d_]+|<=|>=|!=|\.\.\.|\*\*|``|''|[^\s\w{}]|_"
)


def tokens_of(text: str) -> list[str]:
    r"""The words, numbers and signs of a problem's text, in the spelling that all its spellings share.

    >>> tokens_of(r"Find $\dfrac{1}{2} + x_{1}$.") == tokens_of(r"find \( \frac12  +x_1 \) .")
    False
    >>> tokens_of(r"Find $\dfrac{1}{2} + x_{1}$.") == tokens_of(r"find \( \frac 1 2  +x_1 \) .")
    True
    """
    text = unicodedata.normalize("NFC", text).replace("{,}", ",").replace("\\$", " ").replace("\\%", "%")
    text = re.sub(r"(?<=\d)\\[,;:!](?=\d{3}(?!\d))", "", text)
    text = _FRACTION.sub(r"\\\1", _DELIMITER.sub(" ", _SPACING.sub(" ", text)))
    text = _FONT.sub(" ", _SIZING.sub(" ", text))
    text = re.sub(r"\\(frac|binom)\s*(\d)(\d)", r"\\\1 \2 \3", text)
    text = _LOWERED.sub(r" _\g<0> ", _RAISED.sub(r" ^\g<0> ", text))
    text = unicodedata.normalize("NFKC", re.sub("[≤≥≠×·⋅−–…°π∞√‘’“”]", lambda sign: f" {_SAME[sign[0]]} ", text))
    text = re.sub(r"\^[\s{]*(?=\\(?:circ|degree)(?![a-zA-Z]))", "", text)
    tokens = [_SAME.get(token, token).casefold() for token in _TOKEN.findall(text)]
    while tokens and tokens[-1] in (".", "?"):
        tokens.pop()
    return [token.replace(",", "") if token[0].isdigit() else token for token in tokens]


@dataclass(frozen=True)
class Finding:
    """Why a training problem is removed: `exact`, or `overlap` with its share of common n-grams in [0, 1]."""

    id: str
    problem: str
    reason: str
    overlap: float
    evaluation_set: str
    evaluation_id: str
    evaluation_problem: str


@dataclass(frozen=True)
class _Problem:
    """A problem of an evaluation set."""

    evaluation_set: str
    row: dict
    tokens: list[str]


class _Index:
    """Problems of evaluation sets, to be found by their texts and by their n-grams.

    `texts` are tokens of the training problems, which say with the others what a common phrase is.
    """

    def __init__(self, problems: list[_Problem], texts: list[list[str]], n: int):
        self._problems, self._n = problems, n
        self._exact = {tuple(problem.tokens): place for place, problem in reversed(list(enumerate(problems)))}
        self._places = _places([problem.tokens for problem in problems], texts, n)
        self._sizes = Counter(place for places in self._places.values() for place in places)

    def find(self, tokens: list[str], threshold: float) -> tuple[_Problem, str, float] | None:
        """The problem that a training problem is or holds, with reason and overlap: the first of the most alike."""
        if (place := self._exact.get(tuple(tokens))) is not None:
            return self._problems[place], "exact", 1.0
        grams = _grams(tokens, self._n)
        shared = Counter(place for gram in grams for place in self._places.get(gram, ()))
        shares = {place: count / min(len(grams), self._sizes[place]) for place, count in shared.items()}
        copied = [p for p, share in shares.items() if share >= _threshold(tokens, self._problems[p].tokens, threshold)]
        if not copied:
            return None
        place = max(copied, key=lambda place: (shares[place], -place))
        return self._problems[place], "overlap", shares[place]


def decontaminate(
    rows: list[dict], evaluation: dict[str, Iterable[dict]], n: int = 10, threshold: float = 0.5
) -> tuple[list[dict], list[dict]]:
    """Split training problems into clean ones and those that an evaluation set holds.

    A problem is removed if it equals an evaluation problem in the common spelling (`tokens_of`), or if at least
    `threshold` of the n-grams of the shorter of the two texts stand in the other one and so do all numbers of one of
    them: with other numbers it is another problem, and without any the share is at least `WITHOUT_NUMBERS`. Shorter
    texts than n tokens are compared for equality only, and n-grams that many texts share (`COMMON_COUNT`,
    `COMMON_SHARE`) are not counted: a turn of phrase, or the frame of generated problems, is no copy.

    Args:
        rows: Problem rows with `id` and `problem`.
        evaluation: Rows of each evaluation set, by the set's name.
        n: Length of the n-grams in tokens, at least 1.
        threshold: In (0, 1].

    Returns:
        The clean rows in their order, and a `Finding` as a mapping for each row removed.
    """
    problems = [_Problem(name, row, tokens_of(row["problem"])) for name, held in evaluation.items() for row in held]
    texts = [tokens_of(row["problem"]) for row in rows]
    index = _Index(problems, texts, n)
    clean, removed = [], []
    for row, tokens in zip(rows, texts, strict=True):
        if not (match := index.find(tokens, threshold)):
            clean.append(row)
            continue
        problem, reason, overlap = match
        found_in = problem.evaluation_set, problem.row["id"], problem.row["problem"]
        removed.append(asdict(Finding(row["id"], row["problem"], reason, round(overlap, 4), *found_in)))
    return clean, removed


def _grams(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)}


def _threshold(tokens: list[str], other: list[str], threshold: float) -> float:
    """The share of n-grams from which on two texts are one problem; with other numbers they never are."""
    left, right = (Counter(token for token in text if token[0].isdigit()) for text in (tokens, other))
    if not left or not right:
        return max(threshold, WITHOUT_NUMBERS)
    return threshold if left <= right or right <= left else math.inf


def _places(others: list[list[str]], texts: list[list[str]], n: int) -> dict[tuple[str, ...], list[int]]:
    """The evaluation problems that hold each n-gram, without the n-grams that are common phrases."""
    places: dict[tuple[str, ...], list[int]] = {}
    for place, tokens in enumerate(others):
        for gram in _grams(tokens, n):
            places.setdefault(gram, []).append(place)
    counts = Counter({gram: len(holders) for gram, holders in places.items()})
    for tokens in map(list, dict.fromkeys(map(tuple, texts))):
        counts.update(gram for gram in _grams(tokens, n) if gram in places)
    limit = max(COMMON_COUNT, COMMON_SHARE * (len(others) + len(texts)))
    return {gram: holders for gram, holders in places.items() if counts[gram] <= limit}

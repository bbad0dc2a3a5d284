"""A small, fast reader of plain formulas: numbers, letters, + - * / ^ !, fractions, roots; evaluated at points.

It settles most comparisons in a fraction of a millisecond; whatever it does not know, it leaves to the LaTeX parser.
Text is never handed to Python: a formula becomes a tree of tuples, and powers and factorials that would be huge are
left alone.
"""

import random
import re
from functools import lru_cache

import mpmath

MAX_LENGTH = 400
MAX_DEPTH = 40
MAX_LOG = 100_000.0  # of the size of a value
CONTEXT = mpmath.mp.clone()
CONTEXT.dps = 50
TOLERANCE = CONTEXT.mpf(10) ** -30

_GREEK = "alpha|beta|gamma|delta|epsilon|varepsilon|theta|lambda|mu|nu|xi|rho|sigma|tau|phi|varphi|chi|psi|omega|ell"
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\(?:frac|sqrt|pi|cdot|times|{_GREEK})(?![a-zA-Z]))"
    r"|(?P<word>[a-zA-Z]+)(?P<sub>\s*_\s*(?:\{\w{1,6}\}|\w))?|(?P<power>\*\*)|(?P<sign>[-+*/^!(){}\[\]]))"
)
_FUNCTIONS = re.compile(
    r"(?:sin|cos|tan|cot|sec|csc|log|ln|lg|exp|sqrt|pi|inf|oo|mod|gcd|lcm|max|min|det|abs|arg|lim|sup|arc\w+|and|or|if|for|d[xyt])"
)


class Unknown(ValueError):
    """The formula uses something that this reader does not know."""


@lru_cache(maxsize=4096)
def read(text: str):
    """The tree of a plain formula, or None."""
    if len(text) > MAX_LENGTH:
        return None
    tokens, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            return None
        position = match.end()
        if match["word"]:
            word = match["word"]
            if len(word) > 3 or _FUNCTIONS.fullmatch(word):
                return None
            tokens += [("v", letter) for letter in word[:-1]]
            tokens.append(("v", word[-1] + re.sub(r"[\s{}]", "", match["sub"] or "")))
        elif match["number"]:
            tokens.append(("n", match["number"]))
        else:
            tokens.append(("s", "^" if match["power"] else (match["command"] or match["sign"])))
    reader = _Reader(tokens)
    try:
        tree = reader.total(0)
    except (Unknown, IndexError, RecursionError):
        return None
    return tree if reader.at == len(tokens) else None


class _Reader:
    def __init__(self, tokens: list):
        self.tokens, self.at = tokens, 0

    def peek(self) -> tuple:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, sign: str) -> bool:
        if self.peek() == ("s", sign):
            self.at += 1
            return True
        return False

    def total(self, depth: int):
        if depth > MAX_DEPTH:
            raise Unknown
        tree = self.product(depth)
        while self.peek() in (("s", "+"), ("s", "-")):
            sign = self.peek()[1]
            self.at += 1
            tree = (sign, tree, self.product(depth))
        return tree

    def product(self, depth: int):
        if self.take("-"):
            return ("neg", self.product(depth + 1))
        if self.take("+"):
            return self.product(depth + 1)
        tree = self.power(depth)
        while True:
            if self.take("*") or self.take("\\cdot") or self.take("\\times"):
                tree = ("*", tree, self.signed(depth))
            elif self.take("/"):
                divisor = self.signed(depth)
                kind = self.peek()[0]
                if kind == "v" or kind == "n" or self.peek() == ("s", "("):
                    raise Unknown  # 1/2x: two readings
                tree = ("/", tree, divisor)
            elif (
                self.peek()[0] == "v"
                or self.peek()[1] in ("(", "{", "\\frac", "\\sqrt", "\\pi")
                or (self.peek()[1].startswith("\\") and self.peek()[1] not in ("\\cdot", "\\times"))
            ):
                if self.peek()[1] == "\\frac" and tree[0] == "n":
                    raise Unknown  # 2\frac12: a mixed number or a product
                tree = ("*", tree, self.power(depth))
            elif self.peek()[0] == "n":
                raise Unknown  # 2 3: not a product
            else:
                return tree

    def signed(self, depth: int):
        return ("neg", self.power(depth)) if self.take("-") else self.power(depth)

    def power(self, depth: int):
        tree = self.atom(depth + 1)
        while self.take("!"):
            tree = ("!", tree)
        if self.take("^"):
            if self.take("-"):
                return ("^", tree, ("neg", self.exponent(depth)))
            return ("^", tree, self.exponent(depth))
        return tree

    def exponent(self, depth: int):
        kind, token = self.peek()
        if (
            (kind, token) in (("s", "{"), ("s", "("))
            or (kind == "n" and len(token) == 1)
            or kind == "v"
            or token in ("\\pi", "\\frac")
            or kind == "n"
        ):
            tree = self.atom(depth + 1)
        else:
            raise Unknown
        return ("^", tree, self.exponent(depth + 1)) if self.take("^") else tree

    def atom(self, depth: int):
        if depth > MAX_DEPTH:
            raise Unknown
        kind, token = self.tokens[self.at]
        self.at += 1
        if kind in "nv":
            return (kind, token)
        for opening, closing in (("(", ")"), ("{", "}")):
            if token == opening:
                tree = self.total(depth + 1)
                if not self.take(closing):
                    raise Unknown
                return tree
        if token == "\\frac":
            return ("/", self.group(depth), self.group(depth))
        if token == "\\sqrt":
            index = None
            if self.take("["):
                index = self.total(depth + 1)
                if not self.take("]"):
                    raise Unknown
            return ("root", self.group(depth), index)
        if token == "\\pi":
            return ("pi",)
        if token.startswith("\\") and token not in ("\\cdot", "\\times"):
            return ("v", token)
        raise Unknown

    def group(self, depth: int):
        if self.peek() != ("s", "{"):
            raise Unknown
        return self.atom(depth + 1)


@lru_cache(maxsize=4096)
def letters(tree) -> frozenset[str]:
    """Names of the variables in a tree."""
    if tree[0] == "v":
        return frozenset() if tree[1] in ("e", "i") else frozenset([tree[1]])
    return frozenset().union(*(letters(part) for part in tree[1:] if isinstance(part, tuple)))


def value(tree, point: dict):
    """The value of a tree with 50 digits. Raises Unknown or ArithmeticError where there is none."""
    kind = tree[0]
    if kind == "n":
        return CONTEXT.mpf(tree[1])
    if kind == "pi":
        return +CONTEXT.pi
    if kind == "v":
        return CONTEXT.e + 0 if tree[1] == "e" else CONTEXT.mpc(0, 1) if tree[1] == "i" else point[tree[1]]
    if kind == "root" and tree[2] is None:
        return CONTEXT.sqrt(value(tree[1], point))
    parts = [value(part, point) for part in tree[1:] if part is not None]
    if kind == "neg":
        return -parts[0]
    if kind == "+":
        return parts[0] + parts[1]
    if kind == "-":
        return parts[0] - parts[1]
    if kind == "*":
        return parts[0] * parts[1]
    if kind == "/":
        return parts[0] / parts[1]
    if kind == "root":
        return _power(parts[0], 1 / parts[1])
    if kind == "!":
        if not CONTEXT.isint(parts[0]) or not 0 <= parts[0] <= 5000:
            raise Unknown
        return CONTEXT.factorial(parts[0])
    return _power(*parts)


def _power(base, exponent):
    if base == 0:
        if exponent == 0 or CONTEXT.re(exponent) < 0:
            raise Unknown
        return base
    if abs(exponent) * (abs(CONTEXT.log(abs(base))) + 1) > MAX_LOG:
        raise Unknown
    return CONTEXT.power(base, exponent)


def _near(left, right) -> bool:
    return abs(left - right) <= TOLERANCE * max(abs(left), abs(right))


def _points(names: list[str]):
    stream = random.Random(20240901)
    for trial in range(6):
        if any(name[0] in "nmk" for name in names):  # may stand for whole numbers only
            yield False, {name: CONTEXT.mpf(2 + stream.randint(0, 6) + 2 * place) for place, name in enumerate(names)}
        else:
            sign = -1 if trial % 3 == 2 else 1
            yield (
                sign < 0,
                {name: sign * CONTEXT.mpf(stream.randint(11, 400)) / stream.choice((97, 101, 103)) for name in names},
            )


def same(gold: str, answer: str) -> bool | None:
    """Whether two plain formulas have the same values; None if that cannot be told here."""
    left, right = read(gold), read(answer)
    if left is None or right is None:
        return None
    names = sorted(letters(left) | letters(right))
    for negative, point in _points(names) if names else [(False, {})]:
        try:
            values = value(left, point), value(right, point)
        except (Unknown, ArithmeticError, ValueError):
            return None
        if not _near(*values):
            return None if negative else False
    if names:
        return True
    return True if abs(values[0]) < 10**20 else None  # larger ones are compared exactly elsewhere


def same_equation(gold: tuple[str, str], answer: tuple[str, str]) -> bool | None:
    """Whether two equations (left side, right side) are multiples of each other; None if that cannot be told here."""
    trees = [read(side) for side in (*gold, *answer)]
    if None in trees:
        return None
    names = sorted(frozenset().union(*map(letters, trees)))
    if not names or letters(trees[0]) | letters(trees[1]) != letters(trees[2]) | letters(trees[3]):
        return None
    ratio = None
    for _, point in _points(names):
        try:
            one, two, three, four = (value(tree, point) for tree in trees)
            if _near(one, two) or _near(three, four):
                return None
            this = (one - two) / (three - four)
        except (Unknown, ArithmeticError, ValueError):
            return None
        if ratio is not None and not abs(this - ratio) <= TOLERANCE * abs(ratio):
            degrees = [max(_degree(a), _degree(b)) for a, b in (trees[:2], trees[2:])]
            return False if degrees[0] == degrees[1] != -1 else None
        ratio = this
    return True


def _degree(tree) -> int:
    """The degree of a polynomial; -1 for anything else, or for what may be written more simply."""
    kind = tree[0]
    if kind in ("n", "pi"):
        return 0
    if kind == "v":
        return 0 if tree[1] in "ei" else 1
    if kind == "neg":
        return _degree(tree[1])
    degrees = [_degree(part) for part in tree[1:] if part is not None]
    if -1 in degrees:
        return -1
    if kind in "+-":
        return max(degrees)
    if kind == "*":
        return sum(degrees)
    if kind == "/":
        return degrees[0] if degrees[1] == 0 else -1
    if kind == "^":
        return (
            degrees[0] * int(tree[2][1]) if tree[2][0] == "n" and tree[2][1].isdigit() and len(tree[2][1]) < 4 else -1
        )
    return 0 if max(degrees) == 0 else -1


def constant(text: str):
    """The value of a plain formula without letters as an mpmath number, or None."""
    tree = read(text)
    if tree is None or letters(tree):
        return None
    try:
        return value(tree, {})
    except (Unknown, ArithmeticError, ValueError):
        return None

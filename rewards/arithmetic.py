"""A small, fast reader of plain formulas: numbers, letters, + - * / ^ !, fractions, roots; evaluated at points.

It settles most comparisons in a fraction of a millisecond; whatever it does not know, it leaves to the LaTeX parser.
Text is never handed to Python: a formula becomes a tree of tuples, and powers and factorials that would be huge are
left alone.
"""

import operator
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


_TIMES = ("*", "\\cdot", "\\times")
_BRACKETS = {"(": ")", "{": "}"}
_CONSTANTS = {"e": CONTEXT.e + 0, "i": CONTEXT.mpc(0, 1)}
_decimal = lru_cache(maxsize=4096)(CONTEXT.mpf)


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
        if word := match["word"]:
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

    def take_any(self, *signs: str) -> str | None:
        """The first of `signs` that comes next, taken."""
        return next((sign for sign in signs if self.take(sign)), None)

    def total(self, depth: int):
        if depth > MAX_DEPTH:
            raise Unknown
        tree = self.product(depth)
        while sign := self.take_any("+", "-"):
            tree = (sign, tree, self.product(depth))
        return tree

    def product(self, depth: int):
        if sign := self.take_any("-", "+"):
            tree = self.product(depth + 1)
            return ("neg", tree) if sign == "-" else tree
        tree = self.power(depth)
        while True:
            if self.take_any(*_TIMES):
                tree = ("*", tree, self.signed(depth))
            elif self.take("/"):
                tree = ("/", tree, self.signed(depth))
                if self.peek()[0] in ("v", "n") or self.peek() == ("s", "("):
                    raise Unknown  # 1/2x: two readings
            elif self.peek()[0] == "n" or (self.peek()[1] == "\\frac" and tree[0] == "n"):
                raise Unknown  # 2 3 is no product, 2\frac12 a mixed number or a product
            elif self.peek()[0] == "v" or self.peek()[1] in ("(", "{") or self.peek()[1].startswith("\\"):
                tree = ("*", tree, self.power(depth))
            else:
                return tree

    def signed(self, depth: int):
        return ("neg", self.power(depth)) if self.take("-") else self.power(depth)

    def power(self, depth: int):
        tree = self.atom(depth + 1)
        while self.take("!"):
            tree = ("!", tree)
        if self.take("^"):
            negative = self.take("-")
            exponent = self.exponent(depth)
            return ("^", tree, ("neg", exponent) if negative else exponent)
        return tree

    def exponent(self, depth: int):
        kind, token = self.peek()
        if kind not in ("n", "v") and token not in ("{", "(", "\\pi", "\\frac"):
            raise Unknown
        tree = self.atom(depth + 1)
        return ("^", tree, self.exponent(depth + 1)) if self.take("^") else tree

    def atom(self, depth: int):
        if depth > MAX_DEPTH:
            raise Unknown
        kind, token = self.tokens[self.at]
        self.at += 1
        if kind in "nv":
            return (kind, token)
        if token in _BRACKETS:
            return self.inside(_BRACKETS[token], depth)
        if token == "\\frac":
            return ("/", self.group(depth), self.group(depth))
        if token == "\\sqrt":
            index = self.inside("]", depth) if self.take("[") else None
            return ("root", self.group(depth), index)
        if token == "\\pi":
            return ("pi",)
        if token.startswith("\\") and token not in _TIMES:
            return ("v", token)
        raise Unknown

    def inside(self, closing: str, depth: int):
        tree = self.total(depth + 1)
        if not self.take(closing):
            raise Unknown
        return tree

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
        return _decimal(tree[1])
    if kind == "pi":
        return +CONTEXT.pi
    if kind == "v":
        return point[tree[1]] if tree[1] not in _CONSTANTS else _CONSTANTS[tree[1]]
    parts = [value(part, point) for part in tree[1:] if part is not None]
    return _OPERATIONS[kind](*parts)


def _root(radicand, index=None):
    return CONTEXT.sqrt(radicand) if index is None else _power(radicand, 1 / index)


def _factorial(number):
    if not CONTEXT.isint(number) or not 0 <= number <= 5000:
        raise Unknown
    return CONTEXT.factorial(number)


def _power(base, exponent):
    if base == 0:
        if exponent == 0 or CONTEXT.re(exponent) < 0:
            raise Unknown
        return base
    if abs(exponent) * (abs(CONTEXT.log(abs(base))) + 1) > MAX_LOG:
        raise Unknown
    return CONTEXT.power(base, exponent)


_OPERATIONS = {
    "neg": operator.neg, "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "root": _root, "!": _factorial, "^": _power,
}  # fmt: skip


def _near(left, right) -> bool:
    return abs(left - right) <= TOLERANCE * max(abs(left), abs(right))


def _points(names: list[str]):
    stream = random.Random(20240901)
    for trial in range(6):
        if any(name[0] in "nmk" for name in names):  # may stand for whole numbers only
            yield False, {name: CONTEXT.mpf(2 + stream.randint(0, 6) + 2 * place) for place, name in enumerate(names)}
            continue
        sign = -1 if trial % 3 == 2 else 1
        fractions = ((stream.randint(11, 400), stream.choice((97, 101, 103))) for _ in names)
        yield sign < 0, {name: sign * CONTEXT.mpf(a) / b for name, (a, b) in zip(names, fractions, strict=True)}


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
            left, right, other_left, other_right = (value(tree, point) for tree in trees)
            if _near(left, right) or _near(other_left, other_right):
                return None
            this = (left - right) / (other_left - other_right)
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
    if kind in ("n", "pi", "v"):
        return int(kind == "v" and tree[1] not in _CONSTANTS)
    degrees = [_degree(part) for part in tree[1:] if part is not None]
    if -1 in degrees:
        return -1
    if kind in ("+", "-", "neg"):
        return max(degrees)
    if kind == "*":
        return sum(degrees)
    if kind == "/":
        return degrees[0] if degrees[1] == 0 else -1
    if kind == "^":
        exponent = tree[2][1] if tree[2][0] == "n" and len(tree[2][1]) < 4 else ""
        return degrees[0] * int(exponent) if exponent.isdigit() else -1
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

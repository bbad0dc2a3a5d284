"""Formulas: read by math-verify's LaTeX parser, compared at random points, then by math-verify. Worker only."""

import logging
import random
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended import latex2sympy
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import Basic, Eq, Expr, Float, MatrixBase, Symbol
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

from rewards import normalisation
from rewards.numeric import Number, same_number

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

DIGITS = 30
POINTS = 4
MAX_FORMULA = 1500  # characters that the parser is given
MAX_NESTING = 60  # brackets within brackets
MAX_EXPONENT = 10_000_000  # of a power of numbers that is ever worked out
MAX_FACTORIAL = 100_000
_PLAIN_FUNCTION = re.compile(
    r"(?<![\\a-zA-Z])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|infty|infinity|inf|oo|theta|alpha|beta|lambda|phi)(?![a-zA-Z])"
)
_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|arc)")  # degrees matter beside these alone
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|[a-zA-Z]|\\[a-z]+)\s*\^\\circ(?![a-zA-Z])")
_BRACKETED_ROOT, _BRACKETED_EXPONENT, _BRACKETED_EXP = (
    re.compile(rf"{head}\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)") for head in (r"(?:\\|(?<!\\)\b)sqrt", r"\^", r"\\exp")
)
_ALIASES = {"infinity": "\\infty", "inf": "\\infty", "oo": "\\infty"}


class Unreadable(ValueError):
    """The text is no formula that the parser knows."""


def latex(text: str) -> str:
    """`clean` text as the LaTeX that the parser reads: Python's operators and bare function names translated."""
    text = re.sub(r"\+\s*-", "-", text.replace("**", "^"))
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s*(\d+)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])abs\s*\(([^()]*)\)", r"|\1|", text)
    text = _BRACKETED_ROOT.sub(r"\\sqrt{\1}", text)
    text = _BRACKETED_EXPONENT.sub(r"^{\1}", text)
    text = re.sub(r"\^\s*([+-]?\d+)", r"^{\1}", text) if re.search(r"\^\s*(?:[+-]|\d\d)", text) else text
    text = _PLAIN_FUNCTION.sub(lambda m: _ALIASES.get(m[1], "\\" + m[1]) + " ", text)
    text = _BRACKETED_EXP.sub(r"e^{\1}", text)
    text = re.sub(r"(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", _mixed, text)
    text = text.replace("*", " \\cdot ")
    if _ANGLE.search(text):
        text = _DEGREES.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text)
    text = re.sub(r"\\lg(?![a-zA-Z])", r"\\log_{10}", text)
    text = re.sub(r"(\d)\s*!\s*!", r"\1!!", text)
    return re.sub(r"\s+", " ", text).strip()


def _mixed(match: re.Match) -> str:
    whole, above, below = match.groups()
    return f"({whole}+\\frac{{{above}}}{{{below}}})" if int(above[:20]) < int(below[:20]) else match[0]


def _tried(function: Callable, *arguments, **options):
    """What the math stack makes of it, None where it fails: its parsers and solvers raise all kinds of errors."""
    try:
        return function(*arguments, **options)
    except (RecursionError, MemoryError):
        raise
    except Exception:
        return None


@lru_cache(maxsize=1024)
def parse(text: str):
    """The sympy object that `clean` text stands for. Raises Unreadable."""
    text = re.sub(r"(?<![\d.])(\d{1,3}(?: \d{3})+)(?![\d ])", lambda m: m[0].replace(" ", ""), text)
    if not text.strip() or len(text) > MAX_FORMULA or not normalisation.balanced(text) or _tangled(text):
        raise Unreadable(text)
    source = latex(text)
    is_real = not should_treat_as_complex(source)
    parsed = _tried(latex2sympy, source, is_real=is_real, convert_degrees=False, normalization_config=None)
    if not isinstance(parsed, (Basic, MatrixBase)):
        raise Unreadable(text)
    _magnitude(parsed)
    if isinstance(parsed, Expr) and re.search(r"(?<![a-zA-Z\\])i(?![a-zA-Z])", source) and "_{i" not in source:
        parsed = parsed.subs({symbol: sympy.I for symbol in parsed.free_symbols if symbol.name == "i"})
    return parsed


def _tangled(text: str) -> bool:
    """Whether `text` nests brackets, or repeats signs, as no answer does."""
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if re.search(r"(?<![\d.^_])\d+(?:\.\d+)? \d", text):  # side by side, no product
        return True
    return deepest > MAX_NESTING or bool(re.search(r"([-+!|^_'~])(?:\s*\1){11}", text))


def _magnitude(node) -> float:
    """An estimate of log10 |node| for a constant without working it out; 0 if unknown. Raises Unreadable if huge."""
    if isinstance(node, MatrixBase) or not isinstance(node, Basic):
        return 0.0
    if node.is_Number:
        if node.is_Integer or node.is_Rational:
            return (abs(int(node.p)).bit_length() - int(node.q).bit_length()) * 0.30103
        return float(sympy.log(abs(node), 10)) if node.is_finite and node != 0 else 0.0
    parts = [_magnitude(part) for part in node.args]
    if isinstance(node, sympy.Pow):
        exponent, base = node.exp, parts[0]
        if not exponent.free_symbols and parts[1] > 7 and not (node.base.is_Number and abs(node.base) == 1):
            raise Unreadable("a power too large to work out")
        if not node.free_symbols:
            size = 10 ** min(parts[1], 8)
            if base * size > 10_000_000:
                raise Unreadable("a power too large to work out")
            return min(max(base, 0.31) * size, 1e8) if parts[1] > 0 else base
    if isinstance(node, (sympy.factorial, sympy.factorial2, sympy.binomial, sympy.gamma)) and not node.free_symbols:
        if max(parts) > 5:
            raise Unreadable("a factorial too large to work out")
        return 10 ** max(parts) * max(parts)
    if isinstance(node, sympy.Mul):
        return min(sum(parts), 1e8)
    return max(parts, default=0.0)


def same_formula(gold, answer) -> bool:
    """Whether two parsed formulas are the same."""
    if gold.has(sympy.zoo, sympy.nan) or answer.has(sympy.zoo, sympy.nan):
        return False  # 1/0: the same only if written the same
    if all(isinstance(side, Expr) and not getattr(side, "is_Matrix", False) for side in (gold, answer)):
        verdict = _numerically(gold, answer)
        if verdict is not None:
            return verdict
    conditions = isinstance(gold, Boolean) and isinstance(answer, Boolean)
    if (
        conditions
        and any(isinstance(side, Relational) for side in (gold, answer))
        and _tried(_same_solutions, gold, answer)
    ):
        return True
    return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))


def _same_solutions(gold: Boolean, answer: Boolean) -> bool:
    """Whether the same set solves two inequalities in one variable."""
    if isinstance(gold, Eq) or isinstance(answer, Eq) or gold.free_symbols != answer.free_symbols:
        return False
    (symbol,) = gold.free_symbols
    x = Symbol("x", real=True)
    left, right = (condition.doit().subs(symbol, x).as_set() for condition in (gold, answer))
    return left == right


def _numerically(gold: Expr, answer: Expr) -> bool | None:
    """Compare values at random points; None where there are none to compare."""
    symbols = _tried(lambda: sorted(gold.free_symbols | answer.free_symbols, key=str))
    if symbols is None:
        return None
    if not symbols:
        return _same_value(gold, answer)
    if any(not isinstance(symbol, Symbol) for symbol in symbols) or gold.atoms(sympy.core.function.AppliedUndef):
        return None
    stream = random.Random(20240901)
    agreed = 0
    for trial in range(3 * POINTS):
        sign = -1 if trial % 3 == 2 else 1
        draws = [(stream.randint(11, 400), stream.choice((97, 101, 103))) for _ in symbols]
        point = {symbol: sympy.Rational(sign * a, b) for symbol, (a, b) in zip(symbols, draws, strict=True)}
        if any(symbol.name in ("n", "k", "m") for symbol in symbols):
            places = stream.sample(range(len(symbols)), len(symbols))
            values = [sympy.Integer(2 + stream.randint(0, 7) + 3 * place) for place in places]
            point = dict(zip(symbols, values, strict=True))
        left, right = (_value(expression.subs(point)) for expression in (gold, answer))
        if left is None or right is None:
            if sign > 0 and (left is None) != (right is None):
                return None
            continue
        if not _near(left, right):
            return False
        agreed += any(left) or any(right)  # zeros on both sides say little: a factorial's poles give them
        if agreed >= POINTS:
            return True
    return None


def _value(expression):
    """The value of a constant as a complex of 30 digits, or None."""
    value = _tried(lambda: sympy.N(expression.doit(), DIGITS))
    if value is None or not _tried(
        lambda: value.is_number and not value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
    ):
        return None
    return _tried(value.as_real_imag)


def _near(left, right) -> bool:
    size = max(abs(part) for part in (*left, *right))
    if size == 0:
        return True
    gap = max(abs(a - b) for a, b in zip(left, right, strict=True))
    return bool(gap <= size * Float("1e-20"))


def _same_value(gold: Expr, answer: Expr) -> bool | None:
    """Compare constants; decimals agree as rounded numbers do."""
    if gold == answer:
        return True
    left, right = _value(gold), _value(answer)
    if left is None or right is None:
        return None
    inexact = gold.atoms(Float) | answer.atoms(Float)
    if _near(left, right):
        return True if inexact else _difference_is_zero(gold, answer)
    if left[1] == 0 and right[1] == 0 and isinstance(gold, Float) != isinstance(answer, Float):
        return None  # a decimal against an exact value: the text knows how many digits were written
    if inexact:
        scale = max(abs(part) for part in (*left, *right))
        return bool(max(abs(a - b) for a, b in zip(left, right, strict=True)) <= scale * Float("1e-9"))
    return False


def _difference_is_zero(gold: Expr, answer: Expr) -> bool:
    """Whether constants that agree to twenty digits agree."""
    left, right = gold.doit(), answer.doit()
    difference = left - right
    if difference.is_Rational:
        return bool(difference == 0)
    size, gap = abs(sympy.N(left, 15)), abs(difference.evalf(5, maxn=300))
    return bool(gap <= size * Float("1e-200", 15)) or gap._prec == 1 if isinstance(gap, Float) else True


def decimal_agrees(number: Number, expression) -> bool | None:
    """Whether a decimal, read from text, is a constant to the digits that it has; None if that is no constant."""
    if not isinstance(expression, Expr) or expression.free_symbols:
        return None
    value = _value(expression)
    if value is None or value[1] != 0:
        return None
    exact = Fraction(int(value[0] * sympy.Integer(10) ** 25), 10**25)
    if abs(exact) < Fraction(1, 10**10):
        return None
    return same_number(number, Number(exact)) or abs(exact - number.value) < abs(exact) / 10**14

"""Bring the many ways to write one answer to one spelling, by string work alone."""

import re
import unicodedata
from fractions import Fraction

_SPACES = re.compile(r"\\[,;:!> ]|\\(?:quad|qquad|,)(?![a-zA-Z])|~|\s")
_WRAPPERS = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|limits|mathstrut)(?![a-zA-Z])")
_NUMBER = re.compile(r"([+-]?)(\d{1,40}|\d{1,3}(?:,\d{3}){1,12})?(?:\.(\d{0,40}))?(?:/(\d{1,40}))?(\\?%)?")
_FRACTION = re.compile(r"([+-]?)\\[dtc]?frac\{([+-]?\d{1,40})\}\{([+-]?\d{1,40})\}")


def plain(text: str) -> str:
    """`text` in compatibility form with ASCII digits, signs and brackets."""
    text = unicodedata.normalize("NFKC", text)
    if text.isascii():
        return text
    out = []
    for char in text:
        digit = unicodedata.decimal(char, None)
        out.append(str(digit) if digit is not None else char)
    return "".join(out).translate(_SIGNS)


_SIGNS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "‐": "-",
        "‑": "-",
        "٫": ".",
        "٬": ",",
        "،": ",",
        "٪": "%",
        "×": "\\times ",
        "·": "\\cdot ",
        "÷": "/",
        "π": "\\pi ",
        "∞": "\\infty ",
        "√": "\\sqrt",
        "≤": "\\le ",
        "≥": "\\ge ",
        "°": "^\\circ ",
        "∪": "\\cup ",
        "∅": "\\emptyset ",
    }
)


def canonical(text: str) -> str:
    """A spelling under which trivially identical answers are equal strings."""
    text = plain(text).strip()
    text = _WRAPPERS.sub("", text)
    text = _SPACES.sub("", text)
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\$", "").replace("$", "")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    return text.rstrip(".")


def as_number(text: str) -> Fraction | None:
    """The exact value of a plain integer, decimal, fraction or percentage of bounded length, in `canonical` spelling."""
    match = _FRACTION.fullmatch(text)
    if match:
        sign, above, below = match.groups()
        return Fraction(int(sign + "1") * int(above), int(below)) if int(below) else None
    match = _NUMBER.fullmatch(text)
    if not match or not (match[2] or match[3]):
        return None
    sign, whole, decimals, below, percent = match.groups()
    if below and not (decimals is None and int(below)):
        return None
    value = Fraction((whole or "0").replace(",", "") + "." + (decimals or "0"))
    if below:
        value /= int(below)
    if percent:
        value /= 100
    return -value if sign == "-" else value

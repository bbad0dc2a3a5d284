"""Plain numbers: read exactly, and compared with a stated tolerance. No evaluation, bounded digits."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rewards.magnitudes import PARTS, SCALES

MAX_DIGITS = 400
MAX_EXPONENT = 400
ENOUGH_DIGITS = 5  # a decimal with so many significant digits may stand for the number that it rounds
FLOAT_DIGITS = 14  # a decimal with so many is what a computer printed, with its rounding error

_D = r"\d{1,400}"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<whole>[1-9]\d{{0,2}}(?:,\d{{3}})+|[1-9]\d{{0,2}}(?: \d{{3}})+|{_D})?"
    r"(?:\.(?P<decimals>\d{0,400}))?)"
    rf"(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*[{{(]?\s*(?P<exponent>[+-]?\d{{1,4}})\s*[}})]?|[eE](?P<e>[+-]?\d{{1,4}}))?"
)
_POWER_OF_TEN = re.compile(r"(?P<sign>[+-]?)10\s*(?:\^|\*\*)\s*[{(]?\s*(?P<exponent>[+-]?\d{1,4})\s*[})]?")
_RATIO = re.compile(
    rf"([+-]?)\s*(?:({_D})\s*/\s*([+-]?{_D})|\\frac\s*\{{\s*([+-]?{_D})\s*\}}\s*\{{\s*([+-]?{_D})\s*\}})"
)
_MIXED = re.compile(
    r"([+-]?)\s*(\d{1,3}(?: \d{3})+|\d{1,20})(?:\s+(\d{1,20})\s*/\s*(\d{1,20})"
    r"|\s*\\frac\s*\{\s*(\d{1,20})\s*\}\s*\{\s*(\d{1,20})\s*\})"
)
_REPEATING = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<whole>\d{0,40})\.(?P<decimals>\d{0,40})(?:\\overline\s*\{\s*(?P<over>\d{1,40})\s*\}|\((?P<paren>\d{1,40})\)|\\dot\s*\{?(?P<dot>\d)\}?(?:(?P<middle>\d*)\s*\\dot\s*\{?(?P<last>\d)\}?)?)"
)
_GROUPED = re.compile(
    r"([+-]?[1-9]\d{0,2}(?:([ .'])\d{3})(?:\2\d{3})*)(?:,(\d+))?(\.\d+)?"  # "12 345,67", "1.234.567"
)
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen"
)
_TENS = "ten twenty thirty forty fifty sixty seventy eighty ninety hundred"
_WORDS = {word: value for value, word in enumerate(_ONES.split())}
_WORDS |= {word: 10 * value for value, word in enumerate(_TENS.split(), 1)}
_WORD_NUMBER = re.compile(
    rf"(?:(?P<hundreds>{'|'.join(_ONES.split()[1:10])}) hundred(?: and)?)? ?"
    rf"(?P<tens>{'|'.join(_TENS.split()[1:9])})?[- ]?(?P<ones>[a-z]+)?"
)
_SCALED = re.compile(rf"(.+?)\s*({'|'.join(SCALES)})", re.IGNORECASE)
_HEXADECIMAL = re.compile(r"[+-]?0x[0-9a-f]+", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(?:%|\bpercent(?:age)?\b|\bpct\b|\bper cent\b)(?:\s*points?)?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    """An exact value, the decimals it was written with (None for an exact one), and whether as a percentage."""

    value: Fraction
    decimals: int | None = None
    percent: bool = False

    @property
    def digits(self) -> int:
        """Significant digits as written."""
        return len(str(abs(int(self.value * 10**self.decimals)))) if self.decimals else 0


def split_percent(text: str) -> tuple[str, bool]:
    """`text` without a percent sign at its end, and whether it had one."""
    match = _PERCENT.search(text)
    return (text[: match.start()], True) if match else (text, False)


@lru_cache(maxsize=8192)
def read_number(text: str) -> Number | None:
    """A plain or hexadecimal integer, decimal, fraction, mixed number, power of ten or percentage; of `clean` text."""
    if len(text) > 2 * MAX_DIGITS + 40:
        return None
    text, percent = split_percent(text)
    text = text.strip()
    while len(text) > 2 and text[0] + text[-1] in ("()", "{}") and "(" not in text[1:-1]:
        if text[0] == "(" and "," in text:
            break
        text = text[1:-1].strip()
    value = _read(text)
    return Number(*value, percent) if value else None


def _read(text: str) -> tuple[Fraction, int | None] | None:
    if not text:
        return None
    if text[0].isalpha():
        if (match := _SCALED.fullmatch(text)) and (number := _in_words(match[1].lower())):
            return number[0] * SCALES[match[2].lower()], None
        return _in_words(text.lower())
    if _HEXADECIMAL.fullmatch(text):
        return Fraction(int(text, 16)), None
    if match := _POWER_OF_TEN.fullmatch(text):
        return _scaled(Fraction(1), match["exponent"], match["sign"], None)
    if match := _RATIO.fullmatch(text):
        sign, above, below = (part for part in match.groups() if part is not None)
        return (_signed(Fraction(int(above), int(below)), sign), None) if int(below) else None
    if match := _MIXED.fullmatch(text):
        sign, whole, above, below = (part for part in match.groups() if part is not None)
        if int(above) >= int(below):
            return None
        return _signed(int(whole.replace(" ", "")) + Fraction(int(above), int(below)), sign), None
    if match := _REPEATING.fullmatch(text):
        period = match["over"] or match["paren"] or match["dot"] + (match["middle"] or "") + (match["last"] or "")
        value = Fraction((match["whole"] or "0") + "." + (match["decimals"] or "0"))
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(match["decimals"]))
        return _signed(value, match["sign"]), None
    match = _NUMBER.fullmatch(_with_point(text))
    if not match or not (match["whole"] or match["decimals"]):
        return None
    whole = (match["whole"] or "0").replace(",", "").replace(" ", "")
    value = Fraction(whole + "." + (match["decimals"] or "0"))
    decimals = len(match["decimals"]) if match["decimals"] else None
    return _scaled(value, match["exponent"] or match["e"] or "0", match["sign"], decimals)


def _signed(value: Fraction, sign: str) -> Fraction:
    return -value if sign == "-" else value


def _with_point(text: str) -> str:
    """ "12 345,67", "12.345,67", "1.234.567" and "12'345.6" with a decimal point, and digits in one group."""
    match = _GROUPED.fullmatch(text)
    if not match or (match[3] and match[4]):
        return text
    if match[2] == "." and (match[4] or (not match[3] and text.count(".") == 1)):
        return text
    return match[1].replace(match[2], "") + (f".{match[3]}" if match[3] else match[4] or "")


def _in_words(text: str) -> tuple[Fraction, None] | None:
    """ "seven", "forty-two", "three hundred and five", "two thirds"."""
    above, _, part = text.replace("-", " ").partition(" ")
    if part := PARTS.get(part.rstrip("s").replace("halve", "half")):
        return (Fraction(_WORDS[above], part), None) if above in _WORDS else None
    if text in _WORDS:
        return Fraction(_WORDS[text]), None
    match = _WORD_NUMBER.fullmatch(text)
    if not match or not (match["hundreds"] or match["tens"]):
        return None
    hundreds, tens, ones = (_WORDS.get(word) if word else 0 for word in match.groups())
    if ones is None or ones > (9 if tens else 19):
        return None
    return Fraction(100 * hundreds + tens + ones), None


def _scaled(value: Fraction, exponent: str, sign: str, decimals: int | None) -> tuple[Fraction, int | None] | None:
    power = int(exponent)
    if abs(power) > MAX_EXPONENT:
        return None
    if decimals is not None:
        decimals = max(0, decimals - power) or None
    return _signed(value * Fraction(10) ** power, sign), decimals


def same_number(gold: Number, answer: Number) -> bool:
    """Equal exactly, or one is the other's rounding to at least five significant digits; 28 % is 28 and 0.28."""
    if gold.percent != answer.percent:
        sides = (Number(n.value / 100, n.decimals and n.decimals + 2) if n.percent else n for n in (gold, answer))
        return _close(*sides) or gold.value == answer.value
    return _close(gold, answer)


def _close(gold: Number, answer: Number) -> bool:
    if gold.value == answer.value:
        return True
    if max(gold.digits, answer.digits) >= FLOAT_DIGITS:
        return abs(gold.value - answer.value) < abs(gold.value) / 10**12
    return _rounds(gold, answer) or _rounds(answer, gold)


def _rounds(decimal: Number, exact: Number) -> bool:
    """Whether a decimal of enough digits is `exact`, rounded."""
    if not decimal.decimals or decimal.digits < ENOUGH_DIGITS or 0 < (exact.decimals or 0) <= decimal.decimals:
        return False
    return abs(decimal.value - exact.value) < Fraction(1, 10**decimal.decimals)

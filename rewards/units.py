"""Units after a number: told from the number, and converted where both sides name one."""

import re
from fractions import Fraction

_TABLE = {
    "length": "m 1 meter 1 meters 1 metre 1 metres 1 cm 1/100 centimeter 1/100 centimeters 1/100 centimetre 1/100"
    " centimetres 1/100 mm 1/1000 millimeter 1/1000 millimeters 1/1000 km 1000 kilometer 1000 kilometers 1000"
    " kilometre 1000 kilometres 1000"
    " in 127/5000 inch 127/5000 inches 127/5000 ft 381/1250 foot 381/1250 feet 381/1250 yard 1143/1250 yards 1143/1250"
    " mile 201168/125 miles 201168/125 mi 201168/125",
    "mass": "kg 1 kilogram 1 kilograms 1 g 1/1000 gram 1/1000 grams 1/1000 mg 1/1000000 ton 1000 tons 1000",
    "time": "second 1 seconds 1 sec 1 secs 1 minute 60 minutes 60 min 60 mins 60 hour 3600 hours 3600 hr 3600 hrs 3600"
    " day 86400 days 86400 week 604800 weeks 604800",
    "volume": "liter 1 liters 1 litre 1 litres 1 ml 1/1000 milliliter 1/1000 milliliters 1/1000",
    "money": "dollar 1 dollars 1 usd 1 bucks 1 cent 1/100 cents 1/100",
    "angle": "degree 1 degrees 1 deg 1",
    "turn": "rad 1 radian 1 radians 1",
    "celsius": "degreesC 1",
    "fahrenheit": "degreesF 1",
}
UNITS = {
    name: (kind, Fraction(factor))
    for kind, row in _TABLE.items()
    for name, factor in zip(row.split()[::2], row.split()[1::2], strict=True)
}
_BELOW = {"s": "sec", "h": "hr", "s^2": "sec^2"}  # letters that are units below a slash alone
_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_POWER = re.compile(r"\s*(?:\^\s*\{?\s*([23])\s*\}?|([23]))$")
_PREFIX = re.compile(r"(?:sq(?:uare|\.)?|cubic|cu\.?)\s+", re.IGNORECASE)
_SPLIT = re.compile(
    r"(?P<number>.*?[\d})!]|\\pi|.*?\\pi|(?:^|.*?[\d})\s])\\?[a-z])(?:\s*|\s*-\s*)"
    r"(?P<unit>(?:\^\\circ\s*[CF]?|(?:(?:sq(?:uare|\.)?|cubic|cu\.?)\s+)?(?:[^\W\d_]{2,}|[\u4e00-\u9fff])[^\d=<>+*()\\\[\]{}]*|[mgLsh](?![\w(])[^\d=<>+*()\\\[\]{}]*)(?:\s*\^\s*\{?\s*-?[123]\s*\}?|(?<=[mtn])[23])?"
    r"(?:\s*/\s*[^\W\d_]+(?:\s*\^\s*\{?\s*-?[123]\s*\}?)?)?)",
    re.DOTALL,
)
_NOT_UNITS = re.compile(
    r"(?:and|or|if|for|when|where|mod|choose|to|by|in|is|base|i|e|x|y|z|n|k|sin|cos|tan|log|ln|pi|sqrt|C|P|infty)\b"
)


def split_unit(text: str) -> tuple[str, str]:
    """(value, unit) of `clean` text such as "5 cm^2", "17 apples" or "90^\\circ"; the unit is "" if there is none."""
    text = text.strip()
    if _ANGLE.search(text):  # degrees belong to the function
        return text, ""
    if text.endswith("^\\circ"):
        return text[: -len("^\\circ")].strip(), "degrees"
    match = _SPLIT.fullmatch(text)
    if not match or not match["number"].strip():
        return text, ""
    number, unit = match["number"].strip(), match["unit"].strip()
    if (
        (_NOT_UNITS.match(unit) and not re.fullmatch(r"in(?:\s*\^?\s*\{?[23]\}?)?", unit))
        or re.fullmatch(r".*\\", number)
        or number.endswith(("^", "_", "=", "\\text"))
    ):
        return text, ""
    if not re.search(r"\d|\\pi|\\frac|\\sqrt", number):
        return text, ""
    spaced = text[len(match["number"])].isspace() if len(text) > len(match["number"]) else False
    if unit.isascii() and dimension(unit) is None and not (spaced and len(re.match(r"[^\W\d_]*", unit)[0]) > 2):
        return text, ""
    return number, unit


def dimension(unit: str) -> tuple[str, Fraction] | None:
    """(dimension, factor) of a known unit, with its power; None for an unknown one such as "apples"."""
    unit = re.sub(r"\^\\circ\s*", "degrees", unit).strip().rstrip(".")
    power = 1
    if match := _PREFIX.match(unit):
        power, unit = (2 if unit.lower().startswith("s") else 3), unit[match.end() :]
    if match := _POWER.search(unit):
        power, unit = int(match[1] or match[2]), unit[: match.start()]
    above, slash, below = unit.partition("/")
    if slash:
        parts = dimension(above), dimension(_BELOW.get(below.strip(), below))
        return (f"{parts[0][0]}/{parts[1][0]}", parts[0][1] / parts[1][1]) if all(parts) else None
    known = UNITS.get(unit.strip()) or UNITS.get(unit.strip().lower())
    return (f"{known[0]}^{power}", known[1] ** power) if known else None

"""Units after a number: told from the number, and converted where both sides name one.

Each name has one or more readings (a pound is a mass and a currency), each a factor and powers of base units.
"""

import re
from fractions import Fraction
from itertools import pairwise

from rewards.magnitudes import changes
from rewards.normalisation import language
from rewards.numeric import read_number

# base unit, power: names and the size of each, in base units
_TABLE = {
    "m": "m meter metre 米 1; km kilometer kilometre 公里 千米 1000; dm decimeter decimetre 分米 1/10; cm centimeter"
    " centimetre 厘米 1/100; mm millimeter millimetre 毫米 1/1000; um micrometer micrometre micron 1/1000000;"
    " nm nanometer nanometre 1/1000000000; in inch inche 127/5000; ft foot feet 381/1250; yd yard 1143/1250; mi mile"
    " 201168/125; nauticalmile 1852",
    "m^2": "hectare ha 10000; acre 316160658/78125; sqm 1; sqft 145161/1562500",
    "m^3": "L l liter litre 升 1/1000; ml milliliter millilitre cc 毫升 1/1000000; cl centiliter centilitre 1/100000;"
    " dl deciliter decilitre 1/10000; gal gallon 473176473/125000000000; qt quart 473176473/500000000000; pint"
    " 473176473/1000000000000; cup 473176473/2000000000000; oz ounce floz fluidounce 473176473/16000000000000;"
    " tablespoon tbsp 473176473/32000000000000; teaspoon tsp 157725491/32000000000000",
    "kg": "kg kilogram kilo 公斤 千克 1; g gram gramme 克 1/1000; mg milligram 1/1000000; ton tonne 吨 1000; lb pound"
    " 45359237/100000000; oz ounce 45359237/1600000000; stone 317514659/50000000",
    "s": "second sec s 秒 1; ms millisecond 1/1000; minute min 分钟 60; hour hr h 小时 3600; day 天 86400;"
    " week 604800; fortnight 1209600",
    "month": "month 1; year yr 年 12; decade 120; century centurie 1200",
    "dollar": "dollar buck usd 1; cent 1/100",
    "euro": "euro eur 1; cent 1/100",
    "gbp": "gbp pound quid 1; penny pence 1/100",
    "m/s": "mph 1397/3125; kmh kph kmph 5/18; knot 463/900",
    "N": "newton 1", "J": "J joule 1; kJ kilojoule 1000; calorie cal 523/125; kilocalorie kcal 4184",
    "W": "W watt 1; kW kilowatt 1000", "Pa": "pascal 1", "Hz": "Hz hertz 1", "V": "volt 1", "A": "ampere amp 1",
    "ohm": "ohm 1", "K": "kelvin 1", "mol": "mole mol 1", "bit": "bit 1; byte 8", "KB": "kb kilobyte 1",
    "MB": "mb megabyte 1", "GB": "gb gigabyte 1", "degree": "degree deg 1", "celsius": "degreesC degree celsius 1",
    "fahrenheit": "degreesF degree fahrenheit 1", "rad": "rad radian 1", "turn": "revolution rev 1", "yen": "yen 円 1",
    "yuan": "yuan 元 rmb 1", "rupee": "rupee 1", "ruble": "ruble rouble 1", "won": "won 1", "lira": "lira 1",
    "dong": "dong 1", "baht": "baht 1", "peso": "peso 1", "franc": "franc 1",
}  # fmt: skip
_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_POWER = re.compile(r"\s*(?:\^\s*\{?\s*(-?[123])\s*\}?|([23])| (squared|cubed))$")
_PREFIX = re.compile(r"(?:sq(?:uare|\.)?|cubic|cu\.?)\s+", re.IGNORECASE)
_PER = re.compile(r"\s*(?:/|\bper\b|\b(?:an?|each) (?=hour|minute|second|day|week|month|year))\s*")
_SPLIT = re.compile(
    r"(?P<number>.*?[\d})!]|\\pi|.*?\\pi|(?:^|.*?[\d})\s])\\?[a-z])(?:\s*|\s*-\s*)"
    r"(?P<unit>(?:\^\\circ\s*[CF]?|(?:(?:sq(?:uare|\.)?|cubic|cu\.?)\s+)?(?:[^\W\d_]{2,}|[\u4e00-\u9fff])[^\d=<>+*()\\\[\]{}]*|[mgLsh](?![\w(])[^\d=<>+*()\\\[\]{}]*)(?:\s*\^\s*\{?\s*-?[123]\s*\}?|(?<=[mtn])[23])?"
    r"(?:\s*/\s*[^\W\d_]+(?:\s*\^\s*\{?\s*-?[123]\s*\}?)?)?)",
    re.DOTALL,
)
_FOREIGN = re.compile(  # "共26个", "26개입니다"
    r"(?P<total>(?:一?共(?:有|计)?|总共|合[计計]|总计|全部で|모두|총)\s*)?(?P<number>[\x00-\x7f]*[\d})])\s*(?P<unit>[^\x00-\x7f][^\d\\=<>+*^(){}]*)?"
)
_FRACTION_OF_UNITS = re.compile(r"\\frac\{\s*([^\W\d_]+)\s*\}\{\s*([^\W\d_]+(?:\s*\^\s*\{?\d\}?)?)\s*\}$")
_NOT_UNITS = re.compile(
    r"(?:and|or|if|for|when|where|mod|choose|to|by|in|is|base|i|e|x|y|z|n|k|sin|cos|tan|log|ln|pi|sqrt|C|P|infty)\b"
)
_PIECE = re.compile(
    r"\s*(?:(?:,\s*)?(?:and|et|und|y|e)\s+|,\s*)?"
    r"(\d+(?:\.\d+)?(?: \d+/\d+)?|\\frac\{\d+\}\{\d+\})\s*-?\s*([^\W\d_]+)\.?"
)
_COMPOUND = re.compile(rf"(?:{_PIECE.pattern}){{2,}}")
_IN_COMPOUND = {"h": "hour", "m": "minute", "s": "second"}


def _readings() -> dict[str, list[tuple[tuple, Fraction]]]:
    table: dict[str, list] = {}
    for base, row in _TABLE.items():
        above, _, below = base.partition("/")
        name, _, power = above.partition("^")
        powers = ((name, int(power or 1)), *([(below, -1)] if below else []))
        for group in row.split(";"):
            *names, size = group.split()
            for unit in names:
                table.setdefault(unit, []).append((powers, Fraction(size)))
    return table


UNITS = _readings()


def split_unit(text: str) -> tuple[str, str]:
    """(value, unit) of `clean` text such as "5 cm^2", "17 apples" or "90^\\circ"; the unit is "" if there is none."""
    text = re.sub(r"^\(([^(),]*)\)$", r"\1", text.strip())
    if _ANGLE.search(text):  # degrees belong to the function
        return text, ""
    if text.endswith("^\\circ"):
        return text[: -len("^\\circ")].strip(), "degrees"
    text = _FRACTION_OF_UNITS.sub(lambda m: f"{m[1]}/{m[2]}" if dimension(f"{m[1]}/{m[2]}") else m[0], text)
    match = _FOREIGN.fullmatch(text)
    if match and (match["total"] or match["unit"]) and not language(match["number"]):
        unit = match["unit"] or ""
        return (text, "") if changes(unit) else (match["number"], unit or match["total"])
    match = _SPLIT.fullmatch(text)
    if not match or not match["number"].strip():
        return text, ""
    number, unit = match["number"].strip(), match["unit"].strip()
    preposition = _NOT_UNITS.match(unit) and not re.fullmatch(r"in(?:\s*\^?\s*\{?[23]\}?)?", unit)
    if preposition or changes(unit) or number.endswith(("\\", "^", "_", "=", "\\text")):
        return text, ""
    if not re.search(r"\d|\\pi|\\frac|\\sqrt", number):
        return text, ""
    spaced = text[len(match["number"]) :][:1].isspace()
    if unit in ("s", "h") and not spaced:  # 5s may be a formula
        return text, ""
    if unit.isascii() and dimension(unit) is None and not (spaced and len(re.match(r"[^\W\d_]*", unit)[0]) > 2):
        return text, ""
    return number, unit


def dimension(unit: str) -> list[tuple[tuple, Fraction]] | None:
    """The readings (powers of base units, factor) of a known unit; None for an unknown one such as "apples".

    Words after a unit, as in "miles in all", do not count.
    """
    unit = re.sub(r"\^\\circ\s*", "degrees", unit).strip().rstrip(".")
    above, *below = _PER.split(unit, maxsplit=1)
    if below:
        sides = _powers(above), _powers(below[0])
        if not all(sides):
            return sides[0]
        return [(_product(p, q, -1), f / g) for p, f in sides[0] for q, g in sides[1]]
    return _powers(unit)


def _powers(unit: str) -> list[tuple[tuple, Fraction]] | None:
    power = 1
    if match := _PREFIX.match(unit):
        power, unit = (2 if unit.lower().startswith("s") else 3), unit[match.end() :]
    if match := _POWER.search(unit):
        power = int(match[1] or match[2] or {"squared": 2, "cubed": 3}[match[3]])
        unit = unit[: match.start()]
    known = _lookup(unit.strip())
    return [(_product((), powers, power), factor**power) for powers, factor in known] if known else None


def _lookup(name: str) -> list | None:
    for key in dict.fromkeys((name, name.lower())):
        if known := UNITS.get(key) or UNITS.get(key.removesuffix("s")):
            return known
    first, _, rest = name.partition(" ")
    if first.lower() in ("degree", "degrees", "nautical", "fluid", "fl") and rest:
        known = UNITS.get(rest.lower().split()[0]) or UNITS.get((first + rest).lower().removesuffix("s"))
        return known or UNITS.get(first.lower().removesuffix("s"))
    return _lookup(first) if rest and len(first) > 2 else None


def _product(powers: tuple, others: tuple, sign: int) -> tuple:
    total = dict(powers)
    for name, power in others:
        total[name] = total.get(name, 0) + sign * power
    return tuple(sorted((name, power) for name, power in total.items() if power))


def conversions(unit: str, other: str) -> list[Fraction] | None:
    """Factors by which a value in `unit` becomes one in `other`; none if they differ; None if one is unknown."""
    left, right = dimension(unit), dimension(other)
    if not left or not right:
        return None
    return list(dict.fromkeys(f / g for powers, f in left for others, g in right if powers == others))


def compound(text: str) -> list[tuple[tuple, Fraction]] | None:
    """The readings (powers, value) of "1 hour 30 minutes" or "5 feet 4 inches"; None for anything else."""
    pieces = _PIECE.findall(text) if _COMPOUND.fullmatch(text.strip()) else []
    names = [_IN_COMPOUND.get(unit, unit) if "h" in text else unit for _, unit in pieces]
    sizes = [dict(dimension(name) or ()) for name in names]
    numbers = [read_number(number) for number, _ in pieces]
    shared = [powers for powers in sizes[0] if all(powers in size for size in sizes)] if all(numbers) and sizes else []
    if any(larger[powers] <= smaller[powers] for powers in shared for larger, smaller in pairwise(sizes)):
        return None
    parts = list(zip(numbers, sizes, strict=True))
    return [(powers, sum(number.value * size[powers] for number, size in parts)) for powers in shared] or None


def same_compound(gold: str, answer: str) -> bool | None:
    """Compare where one side is a compound; None where neither is."""
    left, right = compound(gold), compound(answer)
    if not left and not right:
        return None
    return bool(set(left or _single(gold)) & set(right or _single(answer)))


def _single(text: str) -> list[tuple[tuple, Fraction]]:
    """The readings of a value with one unit."""
    number, unit = split_unit(text)
    value = read_number(number)
    return [(powers, value.value * factor) for powers, factor in dimension(unit) or ()] if value else []

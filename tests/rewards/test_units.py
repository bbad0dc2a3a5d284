"""Units: which are known, what they convert to, and values of several units."""

from fractions import Fraction

import pytest

from rewards.units import compound, conversions, dimension, same_compound, split_unit


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("8 cm^2", "8", "cm^2"),
        ("8 miles per hour", "8", "miles per hour"),
        ("8 \\frac{ km }{ h }", "8", "km/h"),
        ("共8个", "8", "个"),
        ("8개입니다", "8", "개입니다"),
        ("8 s", "8", "s"),
        ("8s", "8s", ""),  # may be a formula
        ("8 in all", "8 in all", ""),
        ("8 more than x", "8 more than x", ""),
    ],
)
def test_a_unit_is_told_from_its_number(text, value, unit):
    assert split_unit(text) == (value, unit)


@pytest.mark.parametrize(
    ("unit", "other", "factors"),
    [
        ("km", "m", [1000]),
        ("m^2", "cm^2", [10000]),
        ("km/h", "m/s", [Fraction(5, 18)]),
        ("mph", "miles per hour", [1]),
        ("L", "cm^3", [1000]),
        ("years", "months", [12]),
        ("pounds", "ounces", [16]),
        ("gbp", "pounds", [1]),
        ("euros", "cents", [100]),
        ("dollars", "cents", [100]),
        ("dollars", "euros", []),
        ("months", "weeks", []),
        ("kg", "cm", []),
        ("m", "m^2", []),
        ("km/h", "km", []),
        ("degreesC", "degreesF", []),
        ("apples", "cm", None),
    ],
)
def test_known_units_convert_or_differ(unit, other, factors):
    assert conversions(unit, other) == factors


def test_words_after_a_unit_do_not_count():
    assert dimension("hours of work") == dimension("hour")
    assert dimension("apples") is None


def test_values_of_several_units_have_one_value():
    assert compound("2 hours and 6 minutes") == [((("s", 1),), Fraction(7560))]
    assert compound("2 feet 6 in") == [((("m", 1),), 30 * Fraction(127, 5000))]
    for no_compound in ("6 minutes, 2 hours", "3 cm, 4 cm", "2 hours", "2 hours 3 apples", "2 feet 3 seconds"):
        assert compound(no_compound) is None
    assert same_compound("2 hours 6 minutes", "126 minutes") and same_compound("2.1 hours", "2 h 6 m")
    assert same_compound("2 hours 6 minutes", "127 minutes") is False
    assert same_compound("2 hours", "120 minutes") is None

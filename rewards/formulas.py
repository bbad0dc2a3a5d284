"""Formulas: compared by the small reader where it can, else by the LaTeX parser. And what an equation states."""

from rewards import arithmetic, structure, symbolic, wording
from rewards.numeric import read_number, split_percent


def stated(equation: str) -> str | None:
    """What an equation says that something is: 6 of "f(2) = 6"; None of "2x = 6", "3 = 6" and the like."""
    *left, right = structure.split_top(equation, ("=",))
    if structure.is_name(right) and read_number(left[0]):
        left, right = [right], left[0]
    values = [arithmetic.constant(side) for side in (*left, right)]
    result = values[-1]
    if result is not None and any(value is not None and abs(value - result) > abs(result) / 100 for value in values):
        return None  # a writer may round
    return right if all(map(structure.states, left[:1])) else None


def same(gold: str, answer: str, numbers: tuple) -> bool:
    """Compare values: by the small reader where it can, else by what the LaTeX parser makes of both."""
    (gold, left_percent), (answer, right_percent) = split_percent(gold), split_percent(answer)
    decimal = (numbers[0] and numbers[0].decimals) or (numbers[1] and numbers[1].decimals)
    if not decimal and not left_percent and not right_percent:
        verdict = _by_arithmetic(gold, answer)
        if verdict is not None:
            return verdict
    try:
        left, right = symbolic.parse(gold), symbolic.parse(answer)
    except symbolic.Unreadable:
        return wording.bag_of_words(gold) == wording.bag_of_words(answer)
    for number, other in ((numbers[0], right), (numbers[1], left)):
        if number and number.decimals and not (left_percent or right_percent):
            agrees = symbolic.decimal_agrees(number, other)
            if agrees is not None:
                return agrees
    if symbolic.same_formula(left, right):
        return True
    if left_percent != right_percent:
        sides = ((gold, left_percent), (answer, right_percent))
        try:
            scaled = [symbolic.parse(f"\\frac{{{side}}}{{100}}" if percent else side) for side, percent in sides]
        except symbolic.Unreadable:
            return False
        return symbolic.same_formula(*scaled)
    return False


def _by_arithmetic(gold: str, answer: str) -> bool | None:
    sides = [structure.split_top(side, ("=",)) for side in (gold, answer)]
    if len(sides[0]) == len(sides[1]) == 1:
        return arithmetic.same(gold, answer)
    if len(sides[0]) == len(sides[1]) == 2:
        return arithmetic.same_equation(tuple(sides[0]), tuple(sides[1]))
    return None

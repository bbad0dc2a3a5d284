"""Whether two answers are the same, as a mathematician would say. Runs in a worker: it loads the math stack."""

import re
from collections.abc import Callable
from fractions import Fraction

from rewards import choices, formulas, parameters, roles, structure, symbolic, units, wording
from rewards.normalisation import balanced, clean, compact, words
from rewards.numeric import Number, read_number, same_number

MAX_PARTS = 1000  # elements of a list
MAX_PAIRED = 24  # elements of a list that need more than a look at their spelling
MAX_DEPTH = 6
_CONGRUENCE = re.compile(r"(?:([a-zA-Z])\s*\\equiv)?\s*([^()=]+?)\s*\(?\s*\\?b?mod\s*(\w+)\s*\)?")


def warm_up() -> None:
    """Load what the first row would load."""
    for answer in ("\\sqrt{\\frac{1}{4}}+x", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "x < 2", "x^2+y^2=1", "(1,2)"):
        answer_request({"gold": "\\frac{x}{2}+1", "answer": answer})


def answer_request(request: dict) -> dict:
    """Reply to {"gold", "answer"} with {"verdict": bool, "why": str}."""
    gold, answer = request["gold"], request["answer"]
    return {"verdict": same(gold, answer), "why": f"gold read as {describe(gold)}, answer as {describe(answer)}"}


def describe(text: str) -> str:
    """How an answer is read, in a few words."""
    text = clean(text)
    if number := read_number(text):
        return f"the number {number.value}" + (" percent" if number.percent else "")
    if len(parts := structure.parts_of(text)) > 1:
        return f"the list {parts}"[:300]
    return (f"the text {text!r}" if words(text) else f"the formula {symbolic.latex(text)}")[:300]


def same(gold: str, answer: str, depth: int = 0) -> bool:
    """Whether two answers, as extracted, are the same."""
    who = roles.roles(gold)
    if who is not None:
        return roles.roles(answer) == who
    gold, answer = clean(gold), clean(answer)
    choice = choices.gold_choice(gold)
    if choice:
        letter, text = choice
        if letter in (choices.chosen_letter(answer), compact(answer).strip("()")):
            return True
        if text is None:
            return len(gold) == 1 and _same_parts(gold, answer, depth)
        named, value = choices.gold_choice(answer) or (letter, None)
        return named == letter and depth < MAX_DEPTH and same(text, value or answer, depth + 1)
    if _same_parts(gold, answer, depth):
        return True
    value = choices.labelled(answer)
    if value and depth < MAX_DEPTH and same(gold, value, depth + 1):
        return True
    letter = choices.settled(gold)
    return letter is not None and letter == choices.chosen_letter(answer)


def _same_parts(gold: str, answer: str, depth: int) -> bool:
    """Compare cleaned answers that may be lists."""
    gold, answer = structure.without_group(gold), structure.without_group(wording.without_lead_in(answer))
    if not answer or depth > MAX_DEPTH:
        return False
    if compact(gold) == compact(answer) and compact(gold):
        return True
    if balanced(gold) and not balanced(answer):
        return False
    numbers = read_number(gold), read_number(answer)
    if all(numbers):
        return same_number(*numbers)
    for step in (wording.same_row, units.same_compound):
        verdict = step(gold, answer)
        if verdict is not None:
            return verdict
    sides = parameters.aligned(*(wording.without_remark(side) for side in (gold, wording.without_reason(answer))))
    if sides is None:
        return False
    if sides != (gold, answer):
        return _same_parts(*sides, depth + 1)
    gold, answer = (structure.without_membership(structure.without_approximation(side)) for side in (gold, answer))
    sides = (gold, answer), (answer, gold)
    gold, answer = (structure.spread(side) if other.count("=") > 1 else side for side, other in sides)
    named = structure.assignment(answer)
    if named and numbers[0] and read_number(named[1]):  # "x = 58,500" is one number
        return same_number(numbers[0], read_number(named[1]))
    names, gold_parts = structure.grouped(structure.elements(gold))
    _, answer_parts = structure.grouped(structure.elements(answer), names)
    unions = structure.union_of(gold_parts), structure.union_of(answer_parts)
    if any(unions) and 1 in (len(gold_parts), len(answer_parts)):
        return _same_one(unions[0] or gold, unions[1] or answer, depth + 1)
    if len(gold_parts) == 1 and len(answer_parts) == 1:
        return _same_one(gold_parts[0], answer_parts[0], depth)
    return _same_lists(gold, answer, gold_parts, answer_parts, depth)


def _same_lists(gold: str, answer: str, gold_parts: list[str], answer_parts: list[str], depth: int) -> bool:
    """Compare where at least one side has several parts."""
    if len(gold_parts) == 1 and "\\cup" in gold:  # "(1,2) or [3,4)" is a union too
        return _same_one(gold, " \\cup ".join(answer_parts), depth)
    if re.fullmatch(r"[A-J]{2,}", gold) and all(re.fullmatch(r"\(?[A-J]\)?", part) for part in answer_parts):
        return sorted(gold) == sorted(part.strip("()") for part in answer_parts)  # several choices
    if len(gold_parts) > MAX_PARTS or len(answer_parts) > MAX_PARTS:
        return False
    if _decimal_comma(gold, answer) or _decimal_comma(answer, gold):
        return True
    brackets = ("{}", "()", "[]") if len(gold_parts) > 2 else ("{}", "()")  # "[1, 2]" is an interval
    if len(answer_parts) == 1 and (inside := _listed_in(answer, brackets)):
        return _same_list(gold_parts, *inside, depth)
    if len(gold_parts) == 1 and (inside := _listed_in(gold, ("{}", "()"))):
        return _same_list(inside[0], answer_parts, inside[1], depth)
    if len(answer_parts) == 1 and len(words(gold)) > 3:
        return False
    return _same_list(gold_parts, answer_parts, False, depth)


def _listed_in(text: str, pairs: tuple[str, ...]) -> tuple[list[str], bool] | None:
    """The elements between brackets of one of these kinds, and whether they have an order."""
    bracket = structure.bracketed(text)
    if not bracket or bracket[0] + bracket[2] not in pairs:
        return None
    return structure.elements(bracket[1]), bracket[0] != "{"


def _decimal_comma(text: str, other: str) -> bool:
    """Whether `text` is a decimal with a comma, as in "1,22", that equals the decimal `other`."""
    if "." not in other or not re.fullmatch(r"[+-]?\d+,\d+(?:\s*%)?", text):
        return False
    numbers = read_number(text.replace(",", ".")), read_number(other)
    return all(numbers) and same_number(*numbers)


def _same_list(gold_parts: list[str], answer_parts: list[str], ordered: bool, depth: int) -> bool:
    """Compare several answers: by their names if all have one, in order or in any order."""
    named = [[structure.assignment(part) for part in side] for side in (gold_parts, answer_parts)]
    names = [{pair[0] for pair in side if pair} for side in named]
    if all(map(all, named)) and len(names[0]) == len(gold_parts) > 1 and names[0] == names[1]:
        left, right = map(dict, named)
        return all(_same_one(left[name], right[name], depth + 1) for name in left)
    left, right = (
        [pair[1] if pair else part for pair, part in zip(pairs, parts, strict=True)]
        if len(mine) <= 1 or not theirs or not all(pairs)
        else parts
        for pairs, parts, mine, theirs in zip(named, (gold_parts, answer_parts), names, names[::-1], strict=True)
    )
    if ordered or (len(names[0]) > 1) != (len(names[1]) > 1):
        return _same_in_order(left, right, depth)
    return _same_multiset(left, right, depth)


def _same_in_order(gold: list[str], answer: list[str], depth: int) -> bool:
    return len(gold) == len(answer) and all(_same_one(g, a, depth + 1) for g, a in zip(gold, answer, strict=True))


def _same_multiset(gold: list[str], answer: list[str], depth: int) -> bool:
    """Whether each element has its like on the other side. An element named twice counts once."""
    left, right = _distinct(gold), _distinct(answer)
    if len(left) != len(right):
        return False
    rest, others = (
        [part for key, part in side.items() if key not in other] for side, other in ((left, right), (right, left))
    )
    if len(rest) > MAX_PAIRED:
        return False
    for element in rest:
        match = next((other for other in others if _same_one(element, other, depth + 1)), None)
        if match is None:
            return False
        others.remove(match)
    return True


def _distinct(parts: list[str]) -> dict:
    return {(read_number(part) or compact(part)): part for part in parts}


def _same_one(gold: str, answer: str, depth: int) -> bool:
    """Compare two single answers."""
    if depth > MAX_DEPTH:
        return False
    if compact(gold) == compact(answer):
        return True
    numbers = read_number(gold), read_number(answer)
    if all(numbers):
        return same_number(*numbers)
    for step in _STEPS:
        verdict = step(gold, answer, depth)
        if verdict is not None:
            return verdict
    return formulas.same(gold, answer, numbers)


def _same_named_text(gold: str, answer: str, depth: int) -> bool | None:
    """Take "x =" away before words and numbers in another base, which have no equations."""
    named = structure.assignment(answer)
    if named and not structure.is_equation(gold) and (words(gold) or wording.BASED.fullmatch(gold)):
        return _same_one(gold, named[1], depth + 1)
    return None


def _same_with_names(gold: str, answer: str, depth: int) -> bool | None:
    """Take "x =", "x \\in" and the name of a point away where that loses nothing."""
    point = re.fullmatch(r"[A-Z]\s*(\([^()]+,[^()]+\))", answer)
    if point and structure.bracketed(gold):
        return _same_one(gold, point[1], depth + 1)
    left, right = structure.without_membership(gold), structure.without_membership(answer)
    if (left, right) != (gold, answer):
        return _same_parts(left, right, depth + 1)
    left, right = structure.assignment(gold), structure.assignment(answer)
    equations = structure.is_equation(gold), structure.is_equation(answer)
    if left and right:
        value = parameters.with_arguments_of(left[0], right[0], right[1])
        if value is not None:
            return _same_parts(left[1], value, depth + 1)
        alike = left[0] == right[0] or all(re.fullmatch(r"y|[a-zA-Z]\([a-z]\)", name) for name in (left[0], right[0]))
        if alike or ("(" in left[0] and "(" in right[0]) or not all(equations):
            return _same_parts(left[1], right[1], depth + 1)
        return None
    if right and not equations[0] and not structure.is_relation(gold):
        return _same_parts(gold, right[1], depth + 1)
    if left and not equations[1] and not structure.is_relation(answer):
        return _same_parts(left[1], answer, depth + 1)
    if equations == (False, True) and not structure.is_relation(answer):
        return formulas.stated(answer) is not None and _same_parts(gold, formulas.stated(answer), depth + 1)
    if equations[0] != equations[1] and not structure.is_relation(gold):
        chain = structure.split_top(gold, ("=",))
        return len(chain) > 2 and _same_parts(chain[-1], answer, depth + 1)
    return None


def _same_congruence(gold: str, answer: str, depth: int) -> bool | None:
    """ "x \\equiv 3 (mod 7)" by residue; the letter counts where both name one."""
    if "mod" not in gold or not (left := _CONGRUENCE.fullmatch(gold)):
        return None
    right = _CONGRUENCE.fullmatch(answer)
    if not right or left[3] != right[3] or (left[1] and right[1] and left[1] != right[1]):
        return False
    values = [read_number(match[2]) for match in (left, right)]
    if all(values) and left[3].isdigit() and int(left[3]):
        return (values[0].value - values[1].value) % int(left[3]) == 0
    return _same_one(left[2], right[2], depth + 1)


def _same_ratio(gold: str, answer: str, depth: int) -> bool | None:
    if ":" not in gold or structure.is_relation(gold):
        return None
    left, right = ([piece.strip() for piece in side.split(":")] for side in (gold, answer.replace(" to ", ":")))
    if len(left) != len(right):
        return _same_one(gold.replace(":", "/"), answer, depth + 1) if len(left) == 2 else False
    values = [[read_number(piece) for piece in side] for side in (left, right)]
    if all(map(all, values)):
        (first, *rest), (other, *others) = ([number.value for number in side] for side in values)
        return all(first * b == other * a for a, b in zip(rest, others, strict=True)) and (first != 0) == (other != 0)
    return _same_in_order(left, right, depth)


def _same_matrix(gold: str, answer: str, depth: int) -> bool | None:
    """Matrices by rows, entry by entry; a column or row against a tuple too, and "2i + 3j" against either."""
    rows = [structure.matrix_rows(side) for side in (gold, answer)]
    axes = [structure.components(side) for side in (gold, answer)]
    if not any((*rows, *axes)) or "\\{" in (gold[:2], answer[:2]):
        return None
    if all(rows) and [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return False
    sides = [
        structure.as_tuple(matrix or [axis]) if matrix or axis else side
        for matrix, axis, side in zip(rows, axes, (gold, answer), strict=True)
    ]
    return _same_bracketed(*sides, depth + 1) if all(map(structure.bracketed, sides)) else None


def _interval(text: str) -> tuple[str, str, str, str] | None:
    if interval := structure.inequality_interval(text):
        return interval
    bracket = structure.bracketed(text)
    if not bracket or bracket[0] not in "([]" or bracket[2] not in ")][":
        return None
    parts = structure.parts_of(bracket[1])
    return (bracket[0], parts[0], parts[1], bracket[2]) if len(parts) == 2 else None


def _same_range(gold: str, answer: str, depth: int) -> bool | None:
    """Intervals, their unions, and inequalities that stand for them."""
    if len(structure.ascending(gold)) > 2 and structure.ascending(gold) == structure.ascending(answer):
        return True
    unions = [re.split(r"\\cup(?![a-zA-Z])|(?<![a-zA-Z\\])[uU](?=\s*[\[(])", side) for side in (gold, answer)]
    pieces = [[_interval(piece.strip()) for piece in side] for side in unions]
    if len(unions[0]) == len(unions[1]) == 1:
        left, right = pieces[0][0], pieces[1][0]
        if not left or not right or (structure.is_relation(gold) and structure.is_relation(answer)):
            return None
        return left[::3] == right[::3] and _same_in_order(left[1:3], right[1:3], depth)
    if len(unions[0]) == len(unions[1]) <= 16 and _same_multiset(*unions, depth):
        return True
    return None


def _same_bracketed(gold: str, answer: str, depth: int) -> bool | None:
    """Tuples in order, sets in any order."""
    left, right = structure.bracketed(gold), structure.bracketed(answer)
    if not left or not right:
        if (left or right or ("", ""))[1] == "\\emptyset":
            return False  # the set of the empty set
        if (left and left[0] == "{") or (right and right[0] == "{"):
            return _same_parts(
                *(b[1] if b and b[0] == "{" else side for b, side in ((left, gold), (right, answer))), depth + 1
            )
        return None
    parts = [structure.parts_of(side[1]) for side in (left, right)]
    sets = (left[0], right[0]).count("{")
    if len(parts[0]) == len(parts[1]) == 1:
        return _same_parts(left[1], right[1], depth + 1) if sets else None
    if sets == 2:
        return _same_multiset(structure.elements(left[1]), structure.elements(right[1]), depth)
    if sets or len(parts[0]) != len(parts[1]) or len(parts[0]) > MAX_PARTS:
        return False
    kinds = [(side[0], side[2]) for side in (left, right)]
    if len(parts[0]) == 2 and kinds[0] != kinds[1] and not {"l", "<"} & {left[0][0], right[0][0]}:
        return False
    return _same_in_order(*parts, depth)


def _same_with_unit(gold: str, answer: str, depth: int) -> bool | None:
    """Take units away, converting where both sides name one of the same dimension."""
    (left, unit), (right, other) = units.split_unit(gold), units.split_unit(answer)
    if not unit and not other:
        return None
    factors = units.conversions(unit, other)
    if factors is None:
        return _same_one(left, right, depth + 1)
    return any(_same_scaled(left, factor, right, depth) for factor in factors)


def _same_scaled(gold: str, factor: Fraction, answer: str, depth: int) -> bool:
    """Whether the gold value times `factor` is the answer."""
    if factor == 1:
        return _same_one(gold, answer, depth + 1)
    left, right = read_number(gold), read_number(answer)
    if left and right:
        return same_number(Number(left.value * factor), right) or same_number(left, Number(right.value / factor))
    return _same_one(f"\\frac{{{factor.numerator}}}{{{factor.denominator}}} \\cdot ({gold})", answer, depth + 1)


def _as_written(compare) -> Callable:
    return lambda gold, answer, depth: compare(gold, answer)


_STEPS = (  # each gives a verdict, or None to leave it to the next
    _same_named_text,
    *map(_as_written, (wording.same_words, wording.same_time, wording.same_digits)),
    *(_same_congruence, _same_with_names, _same_ratio, _same_matrix, _same_range, _same_bracketed, _same_with_unit),
)

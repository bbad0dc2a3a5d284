"""The shape of a cleaned answer: lists, intervals, sets, matrices, equations, choices. Strings in, strings out."""

import re

from rewards.layout import DEPTH
from rewards.normalisation import words
from rewards.numeric import read_number

_STEP = re.compile(
    r"\\[{}|]|\\begin\{[a-z]*\*?\}|\\end\{[a-z]*\*?\}|\\[lr]angle|\\[lr](?:floor|ceil|vert)|\\[a-zA-Z]+|\\\\|.",
    re.DOTALL,
)
_AND = re.compile(
    r"\s*,?\s*(?<![a-zA-Z\\])(?:and|or|und|oder|или|和|或)(?![a-zA-Z])\s*,?\s*|(?<=[\d)}])(?:or|and)(?=[a-zA-Z]\s*[=(_])|\s*\\(?:lor|vee|land|wedge)(?![a-zA-Z])\s*|\s*&\s*(?=[\d\\(-])"
)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?:%|\s*[^\W\d_][^\d,;]*)?")
_ENUMERATION = re.compile(r"(^|[,;]\s*)\((?:[a-e]|i{1,3}|iv|v|\d)\)\s*(?=[^\s,;])")
_PLAIN = re.compile(r"\\\\|\\[{}]|[(){}]")
TRANSPOSE = r"\^\s*\{?\s*(?:T|t|\\top|\\intercal|\\prime)\s*\}?"
_MATRIX = re.compile(
    r"(?:[\[(|]\s*)?\\begin\{(?:[pbvBV]?matrix|smallmatrix|array)\}(?:\s*\{[lcr|\s]*\})?(.*?)\\end\{(?:[pbvBV]?matrix|smallmatrix|array)\}"
    rf"\s*[\])|]?(?P<turned>\s*{TRANSPOSE})?",
    re.DOTALL,
)
_AXIS = r"(?:\\(?:hat|vec|overline|bar)\s*\{?\s*)?\\?([ijk])(?:math)?\s*\}?"
_COMPONENT = re.compile(
    rf"\s*([+-]?)\s*(?:((?:[^+\-(){{}}]|\([^()]*\)|\{{[^{{}}]*\}})*?)\s*(?:\\cdot\s*)?){_AXIS}\s*(?=[+-]|$)"
)
_NAME = (
    r"(?:\\(?:vec|bar|hat|overline|overrightarrow|mathbf)\s*\{[^{}]{1,9}\}|\\?[a-zA-Z]+(?:\s*_\s*(?:\{[^{}]*\}|\w))?'*(?:\s*\(\s*\\?[a-zA-Z](?:\s*,\s*\\?[a-zA-Z])*\s*\))?"
    r"|\([a-zA-Z, ]+\)|\|?[A-Z]{1,3}\|?|\\angle\s*[A-Z ]+(?:_\{?\d\}?)?)"
)
_RATIO_NAME = rf"{_NAME}\s*[:/]\s*{_NAME}|\\frac\s*\{{\s*{_NAME}\s*\}}\s*\{{\s*{_NAME}\s*\}}"
_ASSIGNMENT = re.compile(
    rf"(?:\(\s*[ivx\d]\s*\)\s*)?({_RATIO_NAME}|{_NAME}|[a-zA-Z][a-zA-Z ]{{0,40}})\s*(?::=|=|:(?=\s*-?[\d\\(]))\s*(.+)",
    re.DOTALL,
)
_CODE = re.compile(r"\s*(?:lambda|print|return|def|exec|eval|import|while|for|if|else|try)\b[\s\w,]*:")
_FUNCTION = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc|log|ln|lg|exp|arc\w+)(?![a-zA-Z])")
_RELATION = re.compile(r"\\(?:le|ge|ne|in|notin|subset|subseteq)(?![a-zA-Z])|[<>]|\\not\s*=")
_ARGUMENTS = re.compile(r"(?<=[a-zA-Z}])\([^()]*\)")
_MEMBER = re.compile(
    rf"(?:{_NAME}|[a-zA-Z])\s*(?:\\in(?![a-zA-Z])|(?<![a-zA-Z])in(?![a-zA-Z])|:)\s*(?=[\[(\]\\])(.+)", re.DOTALL
)
_STATED = re.compile(
    r"\\(?:sin|cos|tan|cot|sec|csc|log|ln|lg|arc\w+|sum|prod|int|lim|det|gcd|max|min|arg|deg|Pr|mathbb|operatorname|Re|Im|binom)"
    r"|[a-zA-Z]'*\s*[(\[]|\|(?!\s*[xyntkm]\s*\|)[^|]+\||\\\|"
)
_LETTER = re.compile(r"\\[a-zA-Z]+|[^\W\d_](?:_\{?\w+\}?)?|\d")
_NO_LETTERS = re.compile(r"\\(?:frac|sqrt|pi|cdot|times|left|right|binom)|[ei\d]")
_BUILDER = re.compile(
    r"\\\{\s*\\?[a-zA-Z]+(?:\s*\\in\s*\\mathbb\s*\{?\s*R\s*\}?)?\s*(?:\\mid|\\vert|\||:)\s*(.+)\\\}", re.DOTALL
)
_BOUND = r"\s*([^<>\\]*(?:\\(?!le(?![a-zA-Z])|ge(?![a-zA-Z])|ne(?![a-zA-Z]))[^<>\\]*)*)\s*"
_SIGN = r"(<=|>=|<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))"
_CHAIN = re.compile(rf"{_BOUND}{_SIGN}{_BOUND}(?:{_SIGN}{_BOUND})?")
_VARIABLE = re.compile(r"\\?[a-zA-Z]+(?:_\{?\w\}?)?")
_ASCII_SIGNS = {"<=": "\\le", ">=": "\\ge"}
_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_OPENS, _CLOSES = {"<": "(", "\\le": "["}, {"<": ")", "\\le": "]"}


def split_top(text: str, separators: tuple[str, ...]) -> list[str]:
    """`text` cut at the separators that stand outside all brackets. Half-open intervals are brackets too."""
    parts, depth, start = [], 0, 0
    if not any(separator in text for separator in separators):
        return [text.strip()]
    for match in _STEP.finditer(text):
        token = match[0]
        if depth == 0 and token in separators:
            parts.append(text[start : match.start()])
            start = match.end()
        depth = max(0, depth + (DEPTH.get(token) or token.startswith("\\begin") - token.startswith("\\end")))
    return [part.strip() for part in (*parts, text[start:])]


def parts_of(text: str) -> list[str]:
    """The answers of a list "1, 2 and 3", "x = 1 or x = 2", "1; 2"; the text alone if it is one answer."""
    if "matrix" not in text and "array" not in text and "cases" not in text:
        text = _AND.sub(lambda m: ", " if _outside(text, m.start()) else m[0], text)
    if _THOUSANDS.fullmatch(text.strip()):
        return [text.strip()]
    text = _ENUMERATION.sub(r"\1", text) if len(_ENUMERATION.findall(text)) > 1 else text
    for separators in ((";",), (",",)):
        parts = [part for part in split_top(text, separators) if part]
        if len(parts) > 1:
            return [piece for part in parts for piece in parts_of(part)] if separators == (";",) else parts
    return [part for part in [text.strip().strip(",;").strip()] if part]


def _outside(text: str, position: int) -> bool:
    head = text[:position]
    return all(head.count(a) <= head.count(b) for a, b in (("(", ")"), ("[", "]"), ("{", "}")))


def expand_plus_minus(text: str) -> list[str]:
    """ "a \\pm b" as the two answers it stands for."""
    if text.count("\\pm") != 1 or "\\mp" in text or text.startswith("\\{"):
        return [text]
    head, tail = (side.strip() for side in text.split("\\pm"))
    return [f"{head} {'' if head[-1:] in ('', '=') else '+ '}{tail}", f"{head} - {tail}".strip()]


def elements(text: str) -> list[str]:
    """`parts_of`, with "a \\pm b" as two."""
    return [answer for part in parts_of(text) for answer in expand_plus_minus(part)]


def ascending(text: str) -> list[str]:
    """ "c > b \\ge a" and "a \\le b < c" alike as ["a", "\\le", "b", "<", "c"]; [text] if it is no such chain."""
    pieces = [piece.replace(" ", "") for piece in re.split(r"(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))", text)]
    if not {"<", "\\le"} & set(pieces):
        pieces = [_TURNED.get(piece, piece) for piece in reversed(pieces)]
    return pieces if not {">", "\\ge"} & set(pieces) else [text]


def bracketed(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) if one pair of brackets surrounds all of `text`; mixed pairs as in (0, 1] count."""
    text = re.sub(rf"(?<=[)\]])\s*{TRANSPOSE}$", "", text.strip())
    match = re.fullmatch(r"(\\\{|\\langle|[(\[\]<])(.*)(\\\}|\\rangle|[)\]\[>])", text, re.DOTALL)
    if not match or (len(match[1]) > 1) != (len(match[3]) > 1):
        return None
    depth = 0
    for step in _STEP.finditer(match[2]):
        depth += DEPTH.get(step[0], 0)
        if depth < 0:
            return None
    return None if depth else (match[1].removeprefix("\\"), match[2].strip(), match[3].removeprefix("\\"))


def without_group(text: str) -> str:
    """`text` without the plain braces and doubled parentheses around all of it."""
    text = text.strip()
    closing, stack = {}, []
    for match in _PLAIN.finditer(text):
        if match[0] in ("(", "{"):
            stack.append(match)
        elif match[0] in (")", "}"):
            if not stack or stack[-1][0] + match[0] not in ("()", "{}"):
                break
            closing[stack.pop().start()] = match.start()
    start, end = 0, len(text)
    while start < end and closing.get(start) == end - 1:
        if text[start] == "(" and closing.get(start + 1) != end - 2:
            break
        inside = text[start + 1 : end - 1]
        start, end = end - 1 - len(inside.lstrip()), start + 1 + len(inside.rstrip())
    return text[start:end].strip()


def matrix_rows(text: str) -> list[list[str]] | None:
    """Entries of a matrix that is all of `text`, by rows."""
    match = _MATRIX.fullmatch(text.strip())  # with or without brackets of their own
    if not match or "\\begin" in match[1]:
        return None
    rows = [row.strip() for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?", match[1])]
    rows = [[entry.strip() for entry in split_top(row, ("&",))] for row in rows if row.strip()]
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    return [list(column) for column in zip(*rows, strict=True)] if match["turned"] else rows


def as_tuple(rows: list[list[str]]) -> str:
    """A row or a column as a tuple, any other matrix as a tuple of its rows."""
    if min(len(rows), len(rows[0])) > 1:
        rows = [[f"\\langle {', '.join(row)}\\rangle" for row in rows]]
    return f"\\langle {', '.join(entry for row in rows for entry in row)}\\rangle"


def components(text: str) -> list[str] | None:
    """Coefficients of "2i - j + 4k", with or without hats; two of them if k does not occur. None for anything else."""
    if not re.search(r"[jk]", text):
        return None
    text = text.replace("\\imath", "i").replace("\\jmath", "j")
    matches, position = [], 0
    while position < len(text) and (match := _COMPONENT.match(text, position)):
        matches.append(match)
        position = match.end()
    entries = {match[3]: f"{match[1]}{match[2].strip() or '1'}" for match in matches}
    if position < len(text) or len(entries) != len(matches) or not entries.keys() & {"j", "k"}:
        return None
    if len(entries) == 1 and "\\" not in text:  # "2k" is no vector
        return None
    return [entries.get(axis, "0").removeprefix("+") for axis in ("ijk" if "k" in entries else "ij")]


def assignment(text: str) -> tuple[str, str] | None:
    """(name, value) of "x = 3", "f(x) = x + 1", "(x, y) = (1, 2)", "x = 2 + 1 = 3"; None for any other equation."""
    match = _ASSIGNMENT.fullmatch(text.strip())
    if not match or is_relation(text) or _CODE.match(text) or _FUNCTION.match(match[1]):
        return None
    if "=" in match[2] and len(split_top(text, (",", ";"))) > 1:
        return None  # "x = 1, y = 2" is a list
    return re.sub(r"\s", "", match[1]), split_top(match[2], ("=",))[-1]


def states(name: str) -> bool:
    """Whether an equation with `name` on its left says what that is: "a+b", "f(2)", "\\sin x", but not "2x" or "x^2".

    The left side of an equation to be solved has one unknown, and more than its name.
    """
    if is_name(name) or _STATED.match(name.strip()) or any(len(word) > 2 for word in words(name)):
        return True
    return len({letter for letter in _LETTER.findall(name) if not _NO_LETTERS.fullmatch(letter)}) != 1


def is_name(text: str) -> bool:
    """Whether `text` is the name of a quantity: "x", "f(x)", "AB"."""
    return bool(re.fullmatch(_NAME, text.strip()))


def spread(text: str) -> str:
    """ "(x, y) = (2, 3)" as "x = 2, y = 3"; any other text as it is."""
    match = re.fullmatch(r"\(([a-zA-Z](?:\s*,\s*[a-zA-Z])+)\)\s*=\s*(\(.*\))", text.strip(), re.DOTALL)
    inside = bracketed(match[2]) if match else None
    names, values = (match[1].split(","), split_top(inside[1], (",",))) if inside else ((), ())
    if not inside or len(names) != len(values):
        return text
    return ", ".join(f"{name.strip()} = {value}" for name, value in zip(names, values, strict=True))


def grouped(parts: list[str], order: list[str] | None = None) -> tuple[list[str], list[str]]:
    """ "p = 5", "q = 2", "p = 7", "q = 3" as the names p, q and the tuples "(5, 2)", "(7, 3)"; else ([], parts).

    With `order`, the tuples follow those names if they are the same ones.
    """
    named = [assignment(part) for part in parts]
    if not all(named):
        return [], parts
    names = list(dict.fromkeys(name for name, _ in named))
    width = len(names)
    if not 2 <= width < len(parts) or [name for name, _ in named] != names * (len(parts) // width):
        return [], parts
    if order and sorted(order) == sorted(names):
        names = order
    rounds = [dict(named[start : start + width]) for start in range(0, len(parts), width)]
    return names, [f"({', '.join(values[name] for name in names)})" for values in rounds]


def union_of(parts: list[str]) -> str | None:
    """ "x < 1", "x > 3" as one union of intervals; None unless all parts are such inequalities."""
    pieces = [inequality_interval(part) for part in parts]
    if len(parts) < 2 or not all(pieces):
        return None
    (*_, low), (*_, high) = sorted((piece[2] == "\\infty", piece) for piece in pieces[:2])
    ends = read_number(high[1]), read_number(low[2])
    if len(pieces) == 2 and all(ends) and ends[0].value < ends[1].value:  # "x > 1 and x < 3" leaves what lies between
        return f"{high[0]}{high[1]},{low[2]}{low[3]}"
    return " \\cup ".join(f"{opening}{low},{high}{closing}" for opening, low, high, closing in pieces)


def is_equation(text: str) -> bool:
    """Whether `text` has an equals sign outside all brackets."""
    return "=" in text and len(split_top(text, ("=",))) > 1


def is_relation(text: str) -> bool:
    """Whether `text` has a sign of order or membership, but for those in arguments, as in `P(X>1)`."""
    return bool(_RELATION.search(_ARGUMENTS.sub("", text)))


def without_approximation(text: str) -> str:
    """ "2/3 \\approx 0.67" as "2/3", and "x \\approx 11" as "x = 11"."""
    parts = re.split(r"\s*\\(?:approx|simeq|doteq|thickapprox|approxeq)(?![a-zA-Z])\s*|\s*≅\s*", text, maxsplit=1)
    if len(parts) == 1:
        return text
    if re.fullmatch(rf"\s*{_NAME}\s*", parts[0]) or not parts[0].strip():
        return f"{parts[0]} = {parts[1]}" if parts[0].strip() else parts[1]
    return parts[0]


def without_membership(text: str) -> str:
    """ "x \\in [0, 1]" as "[0, 1]", and "\\{x : x > 2\\}" as "x > 2"."""
    if match := _BUILDER.fullmatch(text.strip()):
        interval = inequality_interval(match[1])
        return "{}{}, {}{}".format(*interval) if interval else match[1].strip()
    match = _MEMBER.fullmatch(text.strip())
    return match[1].strip() if match else text


def inequality_interval(text: str) -> tuple[str, str, str, str] | None:
    """(opening, low, high, closing) of "a < x \\le b", "x > a" and the like, in one variable."""
    match = _CHAIN.fullmatch(text.strip())
    if not match:
        return None
    left, sign, middle, second, right = (_ASCII_SIGNS.get(part, part) for part in match.groups())
    left, middle, right = left.strip(), middle.strip(), (right or "").strip()
    if second is None:
        if _VARIABLE.fullmatch(left) and not _VARIABLE.fullmatch(middle):
            left, sign, middle = middle, _TURNED[sign], left
        if not _VARIABLE.fullmatch(middle):
            return None
        if sign in _OPENS:
            return _OPENS[sign], left, "\\infty", ")"
        return "(", "-\\infty", left, _CLOSES[_TURNED[sign]]
    if sign not in _OPENS and second not in _OPENS:
        left, right, sign, second = right, left, _TURNED[second], _TURNED[sign]
    if not _VARIABLE.fullmatch(middle) or sign not in _OPENS or second not in _OPENS:
        return None
    return _OPENS[sign], left, right, _CLOSES[second]

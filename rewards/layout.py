"""Layout that carries meaning: rows of systems, wide spaces, commas within brackets, currency signs, remarks."""

import re

WIDE = "\x02"  # a wide space, until it is known whether it separates two answers
DOLLAR = "\x03"  # a dollar sign that is no delimiter
SYSTEMS = r"(?:cases|[drp]cases|aligned|align|alignedat|gathered|gather|split|array|matrix|smallmatrix)"

_SYSTEM = re.compile(
    rf"(?:\\\{{\s*)?\\begin\{{({SYSTEMS})\*?\}}(?:\s*\[\w\])?(?:\s*\{{[lcr|\s\d]*\}})?(.*?)\\end\{{\1\*?\}}", re.DOTALL
)
_ALIGNMENT = re.compile(r"\s*&\s*(?=[=<>]|\\[lg]e|\\ne)|(?<=[=<>])\s*&\s*")
_ROW_END = re.compile(r"\\\\(?:\s*\[[^\[\]]*\])?")
_EQUATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in|equiv|approx)(?![a-zA-Z])")
_LABEL = re.compile(r"\(?\s*[A-J]\s*[).:]\s*$")
_WIDE = re.compile(
    rf"(?<=[\d)}}\]a-zA-Z!])(?P<before>\s*){WIDE}[\s{WIDE}]*(?=(?P<sign>[-+]?)(?:[\d\[]|\\(?:frac|sqrt|pi|\{{|langle)|[a-zA-Z]\s*(?:[=(_]|\\in)|\([^()]*\)))"
)
_TOKEN = re.compile(r"\\[{}]|\\[lr]angle|\\[a-zA-Z]+|[()\[\]]|(?<=\d),(?=\d)")
DEPTH = dict.fromkeys(("(", "[", "{", "\\{", "\\langle"), 1) | dict.fromkeys((")", "]", "}", "\\}", "\\rangle"), -1)
_SIGNS = {
    DOLLAR: "dollars", "\\textdollar": "dollars", "€": "euros", "\\euro": "euros", "£": "gbp", "\\pounds": "gbp",
    "¥": "yen", "\\yen": "yen", "₹": "rupees", "₽": "rubles", "₩": "won", "₺": "lira", "₫": "dong", "฿": "baht",
    "¢": "cents", "USD": "dollars", "US": "dollars", "EUR": "euros", "GBP": "gbp", "Rs.": "rupees", "Rs": "rupees",
}  # fmt: skip
_SIGN = (
    rf"(?:{DOLLAR}|\\(?:pounds|euro|yen|textdollar)(?![a-zA-Z])|[€£¥₹₽₩₺₫฿¢]"
    r"|\b(?:USD|US|EUR|GBP)(?=\s*\d)|\bRs\.?(?=\s*\d))"
)
_AMOUNT = r"(?:\d+/\d+|\d+(?:,\d{3})*(?:\.\d+)?|\.\d+|\\frac\{\d+\}\{\d+\})(?![\d_]|\.\d)"
_BEFORE = re.compile(rf"({_SIGN})\s*([-+]?)\s*({_AMOUNT})(?!\s*(?:dollar|euro|cent|USD|EUR|buck)|\s*[\d(\\])")
_AFTER = re.compile(rf"(?<=[\d}}])\s*({_SIGN})(?!\s*\d)")
_NUMBERED = r"(?:\{\s*(\w[\w+-]{0,8})\s*\}|(\w))"
_COMBINATIONS = [
    re.compile(rf"(?:\{{\s*\}}\s*|(?<![\w)}}]))[_^]\s*{_NUMBERED}\s*\{{?\s*([CP])\s*\}}?\s*_\s*{_NUMBERED}"),
    re.compile(rf"(?<![a-zA-Z\\])()()(C)\s*_\s*{_NUMBERED}\s*\^\s*{_NUMBERED}"),
    re.compile(rf"(?<![a-zA-Z\\])()()(C)\s*\^\s*{_NUMBERED}\s*_\s*{_NUMBERED}"),
]


def systems_as_lists(text: str) -> str:
    """Equations one below the other as a list: of `aligned`, `cases`, `array` and the like, or parted by `\\\\`."""
    if "\\\\" in text or "\\begin" in text:
        text = _SYSTEM.sub(_as_list, text)
        if "\\begin" not in text:
            text = ", ".join(row.strip() for row in _ROW_END.split(text) if row.strip())
    return text


def _as_list(match: re.Match) -> str:
    name, content = match[1], _ALIGNMENT.sub(" ", match[2]).strip()
    rows = [row.strip().rstrip(",; ").removeprefix("&") for row in _ROW_END.split(content)]
    rows = [row for row in rows if row.strip()]
    equations = all(map(_EQUATION.search, rows))
    if any("&" in row for row in rows) or (not equations and re.search("array|matrix", name)):
        return match[0]
    text = rows[0] if rows else ""
    for row in rows[1:]:
        text += row if row.lstrip().startswith("=") else f", {row}"  # "&= 5" goes on with the row above
    return f" {text} "


def wide_spaces(text: str) -> str:
    """A wide space between two values as a semicolon: they are two answers, no product. Any other as a space."""
    if WIDE not in text:
        return text
    text = _WIDE.sub(lambda m: "; " if _ends_value(text[: m.start()], text[m.end() :]) else " ", text)
    return text.replace(WIDE, " ")


def _ends_value(head: str, tail: str) -> bool:
    word = re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}$", head)
    remark = re.match(r"\([a-zA-Z ]{3,}\)", tail) or (tail[:1] == "(" and _EQUATION.search(tail))  # "y = 2x  (x > 0)"
    return not word and not _LABEL.search(head) and not remark and "\\" not in head[-1:]


def commas_in_brackets(text: str) -> str:
    """`text` with a space after each comma within brackets: there it separates, and groups no digits."""
    if not re.search(r"\d,\d", text) or not re.search(r"[(\[<]|\\\{|\\langle", text):
        return text
    depth = 1 if text[0] in "]<" else 0  # "]0,100[" and "<1,200>"
    parts, position = [], 0
    for match in _TOKEN.finditer(text, depth):
        token = match[0]
        depth = max(0, depth + DEPTH.get(token, 0))
        if token == "," and depth:
            parts.append(text[position : match.end()])
            position = match.end()
    return " ".join([*parts, text[position:]])


def currency_as_unit(text: str) -> str:
    """ "$5" as "5 dollars"; in formulas the signs are dropped."""
    if not re.search(_SIGN, text):
        return text
    if not re.search(r"[+*^<>]|\\(?:times|cdot|le|ge)(?![a-zA-Z])|\d\s*-", text):
        text = _AFTER.sub(lambda m: f" {_SIGNS[m[1]]}", text)
        text = re.sub(rf"\bUS(?={DOLLAR})", "", text)
        text = _BEFORE.sub(lambda m: f"{m[2]}{m[3]} {_SIGNS[m[1]]}", text)
    return re.sub(_SIGN, " ", text)


def combinations_as_binomials(text: str) -> str:
    """`C_{10}^3`, `{}_{10}C_3` as `\\binom{10}{3}`, and `{}_{10}P_3` as a quotient of factorials."""
    if "C" in text or "P" in text:
        for pattern in _COMBINATIONS:
            text = pattern.sub(_binomial, text)
    return text


def _binomial(match: re.Match) -> str:
    symbol, *names = [name for name in (match[3], *match.groups()[:2], *match.groups()[3:]) if name]
    if len(names) != 2:
        return match[0]
    if not match[1] and not match[2] and match[0].replace(" ", "")[1] == "^":
        names.reverse()
    if all(name.isdigit() for name in names) and int(names[0]) < int(names[1]):
        return match[0]
    n, k = names
    return rf"\binom{{{n}}}{{{k}}}" if symbol == "C" else rf"\frac{{({n})!}}{{({n}-{k})!}}"

"""Bring the many ways to write one answer to one spelling, by string work alone."""

import functools
import re
import unicodedata

from rewards import layout
from rewards.magnitudes import worked_out

_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎]+")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()ni0123456789+-=()")
_VULGAR = re.compile(r"(\d?)\s*([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒])")
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "⁄": "/", "∕": "/", "÷": "/", "×": "\\times ",
    "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ", "٫": ".", "٬": ",", "،": ",", "、": ",", "؛": ";", "٪": "%",
    "∞": "\\infty ", "√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]", "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ",
    "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ", "∩": "\\cap ",
    "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "°": "^\\circ ", "º": "^\\circ ", "⟨": "\\langle ", "⟩": "\\rangle ",
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "→": "\\to ", "。": ".", "‘": "'",
    "’": "'", "“": '"', "”": '"', "∈": "\\in ",
}  # fmt: skip
_GREEK = "alpha beta gamma delta epsilon - - theta - - lambda mu nu xi - pi rho - sigma tau - phi chi psi omega"
_SYMBOLS |= {chr(0x3B1 + place): f"\\{name} " for place, name in enumerate(_GREEK.split()) if name != "-"}
_TABLE = str.maketrans(_SYMBOLS)
_FONTS = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|boldsymbol|bm|textbf|textit|textrm|textsf|texttt|textnormal|textup"
    r"|operatorname\*?|mbox|hbox|emph|underline|rm|bf|displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])(?=\s*(?P<braced>\{)?)"
)
_DROPPED = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|strut"
    r"|hfill|newline|noindent|tiny|scriptsize|footnotesize|small|normalsize|[lL]arge|LARGE|[hH]uge|nonumber|notag)(?![a-zA-Z])\.?"
)
_INVISIBLE = re.compile(
    r"\\(?:[hv]?phantom|tag|label|(?:text|page)?color|colorbox)\*?\s*(?:\[[^\[\]{}]*\])?\s*\{[^{}]*\}|\\vspace\*?\s*\{[^{}]*\}"
)
_SPACES = re.compile(r"(?<!\\)\\(?:[,;:!> ]|enspace(?![a-zA-Z])|thinspace(?![a-zA-Z]))|~")
_WIDE = re.compile(r"\\q?quad(?![a-zA-Z])|\\hspace\*?\s*\{[^{}]*\}|\\hskip\s*-?[\d.]+\s*[a-z]{2}")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|\$\$|(?<!\\)\$")
_THOUSANDS = re.compile(r"(?<=\d)\s*(?:\{\s*,\s*\}|\\,|,\\!|\\!|\{\\,\})\s*(?=\d{3}(?!\d))")
_JOIN = re.compile(r"\\text\{\s*,?\s*(and|or)\s*,?\s*\}")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(
    r"\\(frac|binom)\s*(?:(\d)\s*(\d)|(\d)\s*(\{[^{}]*\})|(\{[^{}]*\})\s*(\d)|(\d|\\?[a-zA-Z])\s*(\\?[a-zA-Z]|\d))"
)
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\[[^\[\]]*\])?\s*(\d|[a-zA-Z])")
_FIGURE = re.compile(
    r"\\(?:overline|overleftrightarrow|overrightarrow|widehat)\s*\{\s*([A-Z]{2,3})\s*\}|\\(?:triangle|angle)\s*(?=[A-Z])"
)
_NAMES = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[",
    "rbrack": "]", "<=": "\\le ", ">=": "\\ge ", "==": "=", "colon": ":", "leqslant": "\\le", "geqslant": "\\ge",
    "leq": "\\le ", "geq": "\\ge ", "neq": "\\ne ", "lt": "<", "gt": ">", "varnothing": "\\emptyset ",
    "empty": "\\emptyset ", "degree": "^\\circ ", "textdegree": "^\\circ ", "implies": "\\to ",
    "Longrightarrow": "\\to ", "Rightarrow": "\\to ",
}  # fmt: skip
_RENAMED = re.compile(
    r"\\([dtc]frac|[lr]brac[ek]|colon|[lg]eqslant|(?:[lgn]eq|lt|gt|varnothing|empty|(?:text)?degree|implies|Longrightarrow"
    r"|Rightarrow)(?![a-zA-Z]))|<=|>=|=="
)
_SEPARATING = re.compile(r"(\\[a-zA-Z]+|[\d.]) (?=[a-zA-Z](?<=[a-z] .)|[\d.](?<=[\d.] .))")
_MARKDOWN = re.compile(r"^\s*(\*{1,3}|_{2,3}|`{1,3})(.*?)\1\s*$", re.DOTALL)
_FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        "sin cos tan cot sec csc log ln lg exp sqrt pi frac max min mod gcd lcm arcsin arccos arctan sinh cosh tanh"
        " infty infinity inf oo binom text cdot times le ge lt gt ne det arg begin end pmatrix bmatrix matrix vmatrix"
        " cases array dx dy dt lim sup abs choose",
    )
)
_WORD = re.compile(r"(?<![\\a-zA-Z])[^\W\d_]{2,}")


def plain(text: str) -> str:
    """`text` with ASCII digits and signs, LaTeX commands for mathematical characters, and no control characters."""
    if text.isascii() and text.isprintable():
        return text
    text = _VULGAR.sub(
        lambda m: (m[1] + " " if m[1] else "") + unicodedata.normalize("NFKC", m[2]).replace("⁄", "/"), text
    )
    text = re.sub(r"([√∛∜])\s*(\d+|[a-zA-Z])", r"\1{\2}", text)
    text = _SUPERSCRIPT.sub(lambda m: "^{" + m[0].translate(_RAISED) + "}", text)
    text = _SUBSCRIPT.sub(lambda m: "_{" + m[0].translate(_RAISED) + "}", text)
    out = []
    for char in text.translate(_TABLE):
        if char.isascii():
            out.append(char if char.isprintable() else " " if char.isspace() else "")
        elif (digit := unicodedata.decimal(char, None)) is not None:
            out.append(str(digit))
        elif unicodedata.category(char) not in ("Cf", "Cc", "Cs", "Co", "Cn"):
            out.append(char)
    return unicodedata.normalize("NFKC", "".join(out)).translate(_TABLE)


@functools.lru_cache(maxsize=1024)  # a gold answer meets many answers
def clean(text: str) -> str:
    """`text` without delimiters, fonts, sizes and spacing commands, with whole fractions. Words keep their spaces."""
    text = plain(text).replace('"', " ").strip()
    match = _MARKDOWN.match(text)
    if match:
        text = match[2]
    text = text.replace("**", "") if text.count("**") % 2 == 0 and "\\" not in text and text.startswith("**") else text
    if "\\\\" in text and not re.search(layout.SYSTEMS, text):  # each backslash was escaped
        text = re.sub(r"\\\\(?=[a-zA-Z]{2}|[{}])", r"\\", text)
    text = layout.systems_as_lists(text)
    text = re.sub(r"\.{3,}|…|\\[lc]?dots(?![a-zA-Z])", r"\\dots ", text)
    text = _THOUSANDS.sub("", text).replace("{,}", ",")
    text = text.replace("\\$", layout.DOLLAR)
    if text.count("$") == 1:
        text = re.sub(r"\$(?=\s*[-+]?[\d.])", layout.DOLLAR, text)
    text = _commands(_DELIMITERS.sub(" ", text))
    for _ in range(3):  # nested ones
        text = _TEXT.sub(r" \1 ", _JOIN.sub(", ", text))
    return _signs(text)


def _commands(text: str) -> str:
    """One command for each that has several names; none for layout."""
    text = _INVISIBLE.sub("", _WIDE.sub(layout.WIDE, text))
    text = re.sub(r"\{\s*\{([^{}]*)\}\s*\}", r"{\1}", text) if "{{" in text else text
    text = _RENAMED.sub(lambda m: _NAMES[m[1] or m[0]], text)
    text = re.sub(r"(?<!\d)!=", r"\\ne ", text)  # 3!=6 has a factorial
    text = _SPACES.sub(" ", _DROPPED.sub("", text))
    text = _FONTS.sub(lambda m: "\\text" if m["braced"] else "", text)
    text = _FIGURE.sub(lambda m: f" {m[1] or ''}", text)
    if "mod" in text:
        text = re.sub(r"\(?\s*\\p?mod(?![a-z])\s*\{?\s*(\w+)\s*\}?\s*\)?", r" (mod \1)", text)
    return text


def _signs(text: str) -> str:
    """What is left once text has been unwrapped: words, currency, binomials, fractions, roots, brackets."""
    text = layout.wide_spaces(worked_out(re.sub(r"\s+", " ", text)))
    text = layout.combinations_as_binomials(layout.currency_as_unit(text))
    text = re.sub(r"\{([^{}]{1,60})\\choose(?![a-zA-Z])([^{}]{1,60})\}", r"\\binom{\1}{\2}", text)
    text = re.sub(r"\b(?:negative|minus) (?=[\d\\]|infinity)", "-", text)
    text = re.sub(r"\\\{\s*\\\}", r"\\emptyset ", text)
    text = re.sub(r"\\mathbb\s*\{?R\}?\s*(?:\^\s*\{?\+\}?|_\s*\{?(?:\+|>\s*0)\}?)", r"(0,\\infty)", text)
    text = re.sub(r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt\1{\2}", text)
    text = re.sub(r"(?<![\\_]\{)(?<=\{)\d{1,3}(?:,\d{3})+(?=\})", lambda m: m[0].replace(",", ""), text)
    for _ in range(3):
        text = _SHORT_FRACTION.sub(_whole_fraction, text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "^\\\\circ", text)
    text = re.sub(r"\s+", " ", text.replace("\\%", "%")).rstrip(" .,;:\\").strip()
    return layout.commas_in_brackets(text)


def _whole_fraction(match: re.Match) -> str:
    command, *parts = [part for part in match.groups() if part is not None]
    return f"\\{command}" + "".join(part if part.startswith("{") else "{" + part + "}" for part in parts)


def compact(text: str) -> str:
    """`clean` text without meaningless spaces: the key under which trivially identical answers are equal."""
    return _SEPARATING.sub(r"\1\0", text).replace(" ", "").replace("\0", " ")


def is_function(word: str) -> bool:
    """Whether a word names a function or a command, so is neither language nor a product of letters."""
    return word.lstrip("\\").lower() in _FUNCTIONS


def words(text: str) -> list[str]:
    """The words of `clean` text that are language, not names of functions or commands."""
    return [match[0] for match in language(text)]


def language(text: str) -> list[re.Match]:
    """Where `words` stand in `text`."""
    return [match for match in _WORD.finditer(text) if not is_function(match[0]) and match[0].isalpha()]


def balanced(text: str) -> bool:
    """Whether the braces of `text` close."""
    depth = 0
    for char in re.findall(r"\\\\|\\[{}]|[{}]", text):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth < 0:
            return False
    return depth == 0

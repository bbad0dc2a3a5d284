"""Find the one answer of a completion that is to be graded: string work alone, in time linear in the text.

The rules, in order:
1. Thinking is no answer. Only what follows the last closing thinking tag counts; an unclosed thinking part has none.
2. Quoted text is no answer: blockquote lines, and `<candidate>` or `<solution>` blocks that a refinement copies. A box
   that its own sentence ascribes to another solution ("Candidate 2 got ...") gives way to a box that is not.
3. The last `\\boxed{}` (or `\\fbox{}`) counts. Boxes joined only by "and", "or", a comma or a semicolon make one
   list, right only if the whole list is: naming several guesses never helps. A last box that never closes is none.
4. Without a box, unless `require_box`: the last `<answer>` block, else what follows the last "####", else what follows
   the last "final answer is" or "answer:" in one of several languages, else a short text itself, else its last formula
   or number.
"""

import functools
import re

from rewards.normalisation import language
from rewards.roles import roles

MAX_ANSWER = 4096  # characters of an answer that are ever parsed
MAX_FALLBACK = 16384  # characters at the end of a text that the rules without a box look at
MAX_SHORT = 240  # a text of one line up to this long may be an answer as it stands
MAX_BOXES = 256  # boxes at the end of a text that are looked at
MAX_JOINED = 32  # boxes in one list

_THOUGHT = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|seed:think)"
_THINKING_TAG = re.compile(
    rf"(?P<close></{_THOUGHT}>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>)"
    rf"|(?P<open><{_THOUGHT}>|<\|begin_of_thought\|>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>)",
    re.IGNORECASE,
)
_STOP = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id|end|return|user)\|>|</s>|<end_of_turn>")
_QUOTE_TAG = re.compile(r"<(/?)((?:candidate|solution|response|attempt)s?[ _-]?\d*)\b[^<>\n]{0,40}>", re.IGNORECASE)
_QUOTED_LINE = re.compile(r"^[ \t]*>.*$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*(\{)?")
_BARE = re.compile(r"\\[a-zA-Z]+|[^\s$\\{}]+")
_BRACE = re.compile(r"\\\\|\\[{}]|[{}]")
_SPACING = r"[\s$*]|\\[()\[\],;! ]|\\q?quad|\\ "
_CONNECTOR = re.compile(
    rf"(?:{_SPACING})*(?:[,;]|\band\b|\bor\b|\\(?:text|mathrm)\{{\s*,?\s*(?:and|or)\s*,?\s*\}}|\\(?:lor|vee)\b)"
    rf"(?:{_SPACING}|\band\b|\bor\b|[a-zA-Z](?:_\{{?\w\}}?)?\s*=)*"
)
_UNJOINED = re.compile(r"\b(?:no|not|wrong|incorrect|but|is|was|are|were|has|have|so|thus|then|instead|first)\b")
_IN_SENTENCE = r"(?:[^.!?\n]|\.(?=\d))"
_ATTRIBUTED = re.compile(
    r"(?:\b(?:candidate|solution|response|attempt)s?\s*(?:#\s*)?(?:\d+|[A-D]\b)"
    r"|\b(?:first|second|third|fourth|fifth|last|other|others|most|some|both|all|majority)\b[^.!?\n]{0,20}"
    r"\b(?:candidate|response|attempt)s?\b)"  # "the other solution" is a word of mathematics
    rf"(?:{_IN_SENTENCE}{{0,120}}?\b(?:say|sa(?:ys|id)|g[ai]ves?|got|gets?|find|found|claim\w*|answer\w*|(?<!\\)box\w*"
    rf"|conclu\w*|propos\w*|wrote|has|had|ends?|ended|states?|stated|was)\b{_IN_SENTENCE}{{0,80}}"
    r"|(?:['’]s)?[\s*]*(?:[:=(→-]|->)[\s*$\\(\[]*|['’]s[\s*$\\(\[]*)$"
    r"|\b(?:not|instead of|rather than|unlike)\s[\s*$\\(\[]*$",
    re.IGNORECASE,
)
_ENDORSED = re.compile(r"\b(?:correct\w*|right\w*|agree\w*|indeed|therefore|so|hence|thus)\b", re.IGNORECASE)
_ANSWER_BLOCK = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]+)(\s*\Z)?")
_NOUNS = (
    r"ответ|відповідь|الجواب|الإجابة|答案|答え|解答|答|정답(?:은|는)?|답(?:은|는)?|उत्तर|জবাব|উত্তর|คำตอบ|תשובה"
    r"|lösung|antwort|respuesta|réponse|risposta|resposta|antwoord|odpowiedź|svar|cevap|jawaban|đáp án|απάντηση|jibu"
)
_PHRASE = re.compile(
    r"\banswers?\b[^.:：\n=$]{0,60}?(?:\b(?:is|are|was|would be|be|equals)\b|[:：=])\s*[:：]?"
    r"|\banswer\b(?=\s*(?:\$|\\[(\[]|\d))"
    rf"|(?:(?<!\w)(?:{_NOUNS})|答案|答え|คำตอบ)[^.:：\n=$\d]{{0,30}}?(?:は|是|为|為|هي|هو|है|হল|คือ|\b(?:ist|lautet|es|est|è|é|is|jest|är|adalah|là)\b|[—–:：=]|\s-\s)\s*[:：]?"
    rf"|(?:(?<!\w)(?:{_NOUNS})|答案|答え|คำตอบ)\s*",
    re.IGNORECASE,
)
_IS_ANSWER = re.compile(r"([^\n]{1,200}?)\s+is\s+(?:the|our|my)\s+(?:final\s+|correct\s+)?answer\b", re.IGNORECASE)
_FINAL = re.compile(r"\bfinal\s+answer\b[^.:：\n=$]{0,60}?(?:\b(?:is|are)\b|[:：])\s*[:：]?", re.IGNORECASE)
_CONCLUSION = re.compile(r"\b(?:answer|conclusion|solution)\b[\s*]*(?:is\b|[:：])", re.IGNORECASE)
_MATH = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\\\[(.{1,2000}?)\\\]|(?<!\\)\$((?:\\.|[^$\n]){1,2000}?)\$|\\\((.{1,2000}?)\\\)", re.DOTALL
)
_FIGURE = r"\d+(?:[.,٫٬]\d+)*"
_GROUP = r"\{[^{}\n]{1,60}\}"
_TERM = rf"(?:\\[dt]?frac\s*{_GROUP}\s*{_GROUP}|\d*\\sqrt(?:\[\d\])?{_GROUP}|{_FIGURE}(?:[ ]\d{{3}})*(?:[.,]\d+)?)"
_VALUE = re.compile(
    rf"(?<![A-Za-z0-9_.\\])(?:\d{{1,4}}(?::\d{{1,4}})+(?:\s*[ap]\.?m\b\.?)?|[(\[]\s*[-−+]?{_TERM}(?:\s*,\s*[-−+]?{_TERM})+\s*[)\]]"
    rf"|(?:(?:negative|minus)\s+|[-−+])?(?:[$€£¥₹]\s*)?(?:{_TERM}|\.\d+)(?:\s*(?:/|\\times|\\cdot|×)\s*{_TERM}|\s+\d+/\d+)*(?:\s*\\?%|\s*percent\b|\s*\\pi|\^\{{?-?\d+\}}?)?)"
)
_BEFORE = re.compile(r"(?:\bis\b|\bare\b|\bequals\b|[=:：≈]|\bto be\b|\bgives\b|\bget\b)[\s*]*$", re.IGNORECASE)
_REMARK = re.compile(r"(?<=\w) \(([^()]{1,200})\)$")
_STATED = re.compile(r"\b(?:is|are|equals)\s+([^\s,;:$][^,;:$]{0,80})$")
_SENTENCE = re.compile(r"\.(?=\s|$)|[。؟！।]|\n")
_PERCENT = re.compile(r"(?:\s*(?:\\?%|percent\b|pct\b))?")
_NO_LANGUAGE = re.compile(r"\\(?:text|mathrm|textbf|operatorname|begin|end)\s*\{[^{}]*\}")


def final_part(text: str) -> str | None:
    """The text after the thinking, up to a stop token, or None if the thinking is never closed."""
    start, unclosed = 0, False
    for match in _THINKING_TAG.finditer(text):
        unclosed = match.lastgroup == "open"
        if not unclosed:
            start = match.end()
    if unclosed:
        return None
    for stop in _STOP.finditer(text, start):
        if text[start : stop.start()].strip():  # one at the very beginning opens the turn
            return text[start : stop.start()]
        start = stop.end()
    return text[start:]


def own_part(text: str) -> str:
    """`text` without the lines and blocks that quote somebody else."""
    if "</" in text:
        outside, position, name = [], 0, None
        for match in _QUOTE_TAG.finditer(text):
            if name is None and not match[1]:
                outside.append(text[position : match.start()])
                name, position = match[2].lower(), match.start()
            elif name == match[2].lower() and match[1]:
                name, position = None, match.end()
        text = " ".join([*outside, text[position:]])
    if ">" in text:
        text = _QUOTED_LINE.sub("", text)
    return text.replace("<|begin_of_box|>", "\\boxed{").replace("<|end_of_box|>", "}")


def boxes(text: str) -> list[tuple[int, int, str]]:
    """The last boxes of `text` as (start, end, content), innermost ones, in order; none if the last never closes."""
    starts, limit = [], len(text)
    while len(starts) < MAX_BOXES:
        limit = max(text.rfind(name, 0, limit) for name in ("\\boxed", "\\fbox", "\\framebox"))
        if limit < 0:
            break
        starts.append(limit)
    commands = [match for at in reversed(starts) if (match := _BOX.match(text, at))]
    if not commands:
        return []
    wanted = {match.end(1) - 1 for match in commands if match[1]}
    ends: dict[int, int] = {}
    stack = []
    for brace in _BRACE.finditer(text, commands[0].start()):
        if brace[0] == "{":
            stack.append(brace.start())
        elif brace[0] == "}" and stack:
            opened = stack.pop()
            if opened in wanted:
                ends[opened] = brace.start()
                if len(ends) == len(wanted):
                    break
    spans = []
    for match in commands:
        if match[1]:
            opened = match.end(1) - 1
            if opened in ends:
                spans.append((match.start(), ends[opened] + 1, text[opened + 1 : ends[opened]].strip()))
            elif match is commands[-1]:
                return []
        elif (bare := _BARE.match(text, match.end())) and not _BOX.match(bare[0]):
            spans.append((match.start(), bare.end(), bare[0].rstrip(".,;:!")))
    following = [start for start, _, _ in spans[1:]] + [len(text)]
    return [box for box, start in zip(spans, following, strict=False) if start >= box[1] and box[2]]


def boxed_answer(text: str, *, adjacent: bool = False) -> str | None:
    """The last boxed answer of `text`, or the list that its last boxes make together.

    With `adjacent`, boxes with no word between them are a list too.
    """
    candidates = boxes(text)
    candidates = [box for box in candidates if not _ascribed(text, box[0])] or candidates
    if not candidates:
        return None
    group = [candidates[-1]]
    for box in candidates[-2::-1]:
        between = text[box[1] : group[0][0]]
        if len(group) >= MAX_JOINED or not (_joins(between) or (adjacent and not re.search(r"\w", between))):
            break
        group.insert(0, box)
    return ", ".join(dict.fromkeys(box[2] for box in group))


def _joins(between: str) -> bool:
    """Whether the text between two boxes makes them one list: "and", ", $y =$", "apples and", "for part (a) and"."""
    if len(between) > 60:
        return False
    if _CONNECTOR.fullmatch(between):
        return True
    said = re.sub(r"\\(?:text|mathrm|quad)(?![a-zA-Z])|[\\${}()\[\]]", " ", between).lower().split()
    ends = len(said) <= 5 and said[-1:] in (["and"], ["or"])
    return ends and not re.search(r"[.!?\n]", between) and not _UNJOINED.search(between)


def _ascribed(text: str, position: int) -> bool:
    """Whether the box at `position` is said to be another solution's."""
    line = text[max(0, position - 240) : position].rsplit("\n", 1)[-1]
    match = _ATTRIBUTED.search(line)
    return bool(match) and not _ENDORSED.search(match[0])


def extract_answer(text: str, *, require_box: bool = False) -> str | None:
    """The answer in `text` that is graded, as written there, or None if it has none.

    With `require_box`, only a boxed answer counts.
    """
    return answer_of_kind(text, "formula", require_box=require_box)


def answer_of_kind(text: str, kind: str, *, require_box: bool = False) -> str | None:
    """`extract_answer`, told what kind the gold answer is: "formula", "choice", "words" or "roles".

    The kind matters only where there is no box: a letter or a name stays in its sentence, a number is taken out.
    """
    text = final_part(text) if isinstance(text, str) else None
    if text is None:
        return None
    text = own_part(text)
    answer = boxed_answer(text)
    if answer is not None:
        return answer
    text = text[-MAX_FALLBACK:].strip()
    if require_box or (_BOX.search(text) and not re.search(r"\\boxed\s*\{\s*\}", text)):
        return None
    blocks = _ANSWER_BLOCK.findall(text) or [
        match[1]
        for match in _HASHES.finditer(text)
        if (match[2] is not None or re.search(r"\d", match[1]))
        and not match[1].rstrip(" *").endswith(":")  # a headline
    ]
    if blocks:
        return _picked(blocks[-1].strip(" *\n"), kind, first=True) or None
    if kind == "roles":
        stated = [text[match.end() :] for match in _CONCLUSION.finditer(text)][-3:]
        return next((part for part in reversed(stated) if roles(part)), text) or None
    phrase = _last(_FINAL, text) or _last(_PHRASE, text)
    if phrase and text[phrase.end() :].strip(" *\n.:"):
        if kind == "choice":
            return text[phrase.start() :][:400]
        return _statement(text[phrase.end() :], kind) or None
    stated = _last(_IS_ANSWER, text)
    if stated and kind == "formula":
        return _value_in(stated[1], first=False) or stated[1].strip() or None
    if kind == "words" and (formula := _last(_MATH, text)) and language(_inside(formula)):
        return _inside(formula)
    if kind in ("choice", "words") or (len(text) <= MAX_SHORT and "\n" not in text):
        return _picked(text[-1000:], kind, first=False) or None
    return _value_in(text, first=False)


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    return functools.reduce(lambda _, match: match, pattern.finditer(text), None)


def _statement(text: str, kind: str) -> str:
    """What follows an answer phrase: its first formulas, or else its sentence or the value there."""
    text = text.lstrip(" \t\n*:：")
    if re.match(r"not\b", text):  # "the answer is not 9" gives none
        return ""
    formulas = list(_MATH.finditer(text[:4096]))
    if formulas and formulas[0].start() == 0:
        group = [formulas[0]]
        for formula in formulas[1:]:
            if not _CONNECTOR.fullmatch(text[group[-1].end() : formula.start()]):
                break
            group.append(formula)
        return ", ".join(map(_inside, group)) + _percent(text, group[-1].end())
    end = _SENTENCE.search(text)
    sentence = (text[: end.start()].strip(" *") if end else "") or text.strip(" *.")
    if kind == "formula" and len(language(sentence)) > 2 and not _values(sentence):
        return _value_in(text, first=False) or sentence  # "the answer is the sum of all terms:", and then the formula
    return _picked(sentence, kind, first=True)


def _picked(text: str, kind: str, *, first: bool) -> str:
    """`text` itself, or, where it is prose around a value, the value."""
    text = text.strip().rstrip(".。")
    remark = _REMARK.search(text)
    if remark and language(remark[1]):
        text = text[: remark.start()]
    if kind != "formula" or not _prose(text):
        return text
    stated = _STATED.search(text)  # "the line is y = 2x + 1"
    if stated and not language(stated[1]):
        return stated[1]
    return _value_in(text, first=first) or text


def _value_in(text: str, *, first: bool) -> str | None:
    """The value that `text` states, after its last "is" or "=", else its first or last, and those joined to it."""
    values = _values(text)
    if not values:
        return None
    after = [place for place, value in enumerate(values) if _BEFORE.search(text[max(0, value[0] - 40) : value[0]])]
    place = (after[-1] if after else 0) if first else len(values) - 1
    low = high = place
    while low > 0 and _CONNECTOR.fullmatch(text[values[low - 1][1] : values[low][0]]):
        low -= 1
    while high + 1 < len(values) and _CONNECTOR.fullmatch(text[values[high][1] : values[high + 1][0]]):
        high += 1
    return ", ".join(value[2] for value in values[low : high + 1])  # "either 3 or 4" is a list, not a first guess


def _prose(text: str) -> bool:
    """Whether `text` is language around a value, not a value with its name or unit."""
    said = [
        m for m in language(_MATH.sub(_blank, _NO_LANGUAGE.sub(_blank, text))) if text[m.end() : m.end() + 1] != "^"
    ]
    value = re.search(r"[\d$\\]", text)
    return (
        len(said) >= 4
        or sum(len(match[0]) for match in said if not match[0].isascii()) >= 8  # scripts without spaces
        or bool(said and value and said[0].start() < value.start() and not re.match(r"[A-Za-z]+\s*=[^=]+$", text))
    )


def _blank(match: re.Match) -> str:
    return " " * len(match[0])


def _values(text: str) -> list[tuple[int, int, str]]:
    """(start, end, text) of each formula between dollars or the like, and of each number outside them."""
    spans = []
    for match in _MATH.finditer(text):
        value, percent = _inside(match), _percent(text, match.end())
        prose = "\\text" not in value and len(language(_NO_LANGUAGE.sub(_blank, value))) > 1
        inner = _VALUE.findall(value) if prose else None
        spans.append((match.start(), match.end() + len(percent), inner[-1].strip() if inner else value + percent))
    values, position = list(spans), 0
    for start, end, _ in [*spans, (len(text), len(text), "")]:
        values += [(m.start(), m.end(), m[0].strip()) for m in _VALUE.finditer(text, position, start)]
        position = end
    return sorted(values)


def _percent(text: str, position: int) -> str:
    return _PERCENT.match(text, position)[0]


def _inside(match: re.Match) -> str:
    return next(group for group in match.groups() if group is not None).strip()

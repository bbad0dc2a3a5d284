"""Find the one answer of a completion that is to be graded: pure string work in linear time.

The rules, in order:
1. Thinking is no answer. Only what follows the last closing thinking tag counts; a thinking part that is never closed has no answer.
2. Quoted text is no answer: blockquote lines, and `<candidate>`/`<solution>`/`<response>` blocks that a refinement copies.
3. The last `\\boxed{}` (or `\\fbox{}`) counts. Boxes joined by nothing but "and", "or", a comma or a semicolon make one list, which is right only
   if the whole list is: naming several guesses never helps.
4. Without a box, unless `require_box`: the last `<answer>` block, then what follows the last "#### " or the last "answer is", "Answer:" and the like in several
   languages, then the whole text if it is short, then its last formula, then its last number.
"""

import re

MAX_ANSWER = 4096  # characters of an answer that are ever parsed
MAX_FALLBACK = 16384  # characters at the end of a text that the rules without a box look at
MAX_SHORT = 200  # a text of one line up to this long is an answer as it stands
MAX_JOINED = 64  # boxes in one list

_OPENING = r"<(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|seed:think)>|<\|begin_of_thought\|>|\[THINK\]|◁think▷"
_CLOSING = r"</(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|seed:think)>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷"
_THINKING_TAG = re.compile(f"(?P<close>{_CLOSING})|(?P<open>{_OPENING})", re.IGNORECASE)
_QUOTED_BLOCK = re.compile(
    r"<(candidate|solution|response|attempt)([ _-]?\d*)\b[^<>\n]{0,40}>.*?</\1\2\s*>", re.IGNORECASE | re.DOTALL
)
_QUOTED_LINE = re.compile(r"^[ \t]*>.*$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_CONNECTOR = re.compile(
    r"(?:[\s$.]|\\[()\[\],; ]|\\quad|\\text)*(?:,|;|\{?\b(?:and|or)\b\}?|\\(?:text|mathrm)\{\s*(?:and|or)\s*\})(?:[\s$]|\\[()\[\],; ]|\\quad|\b(?:and|or)\b|[a-zA-Z](?:_\{?\w\}?)?\s*=)*"
)
_ATTRIBUTED = re.compile(
    r"\b(?:candidate|solution|response|attempt|answer)s?\s*(?:#\s*)?(?:\d+|[A-D]\b)[^.!?\n]{0,120}\b(?:sa(?:ys|id)|g[ai]ves?|got|gets|claim\w*|answer\w*|box\w*|conclu\w*|propos\w*|wrote|has|had|ends?|ended|states?|stated|was)\b[^!?\n]{0,80}$",
    re.IGNORECASE,
)
_ENDORSED = re.compile(r"\b(?:correct\w*|right\w*|agree\w*|indeed)\b", re.IGNORECASE)


def final_part(text: str) -> str | None:
    """The text after the thinking, or None if the thinking is never closed."""
    if "<" not in text and "[" not in text and "◁" not in text:
        return text
    start = 0
    unclosed = False
    for match in _THINKING_TAG.finditer(text):
        unclosed = match.lastgroup == "open"
        if not unclosed:
            start = match.end()
    return None if unclosed else text[start:]


def own_part(text: str) -> str:
    """`text` without the lines and blocks that quote somebody else."""
    if "</" in text:
        text = _QUOTED_BLOCK.sub(" ", text)
    if ">" in text:
        text = _QUOTED_LINE.sub("", text)
    return text


def _box_content(text: str, position: int) -> tuple[str, int] | None:
    """Content of a box whose argument starts at `position`, and where it ends; None if it is never closed."""
    if position >= len(text):
        return None
    if text[position] != "{":
        match = re.compile(r"\\[a-zA-Z]+|[^\s$\\{}]+").match(text, position)
        return (match.group().rstrip(".,;:"), match.end()) if match else None
    depth = 0
    for match in _BRACE.finditer(text, position):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            depth -= 1
            if depth == 0:
                return text[position + 1 : match.start()], match.end()
    return None


def boxes(text: str) -> list[tuple[int, int, str]]:
    """The closed boxes at the end of `text` that could matter: (start, end, content), innermost of nested ones, in order."""
    found = []
    limit = len(text)
    while len(found) < 4 * MAX_JOINED:
        at = max(text.rfind("\\boxed", 0, limit), text.rfind("\\fbox", 0, limit), text.rfind("\\framebox", 0, limit))
        if at < 0:
            break
        limit = at
        match = _BOX.match(text, at)
        content = _box_content(text, match.end()) if match else None
        if content is None:
            if match and not found:
                return []  # the last box is cut off: the text has no final answer
            continue
        if found and content[1] > found[-1][0]:
            found.pop() if content[1] >= found[-1][1] and False else None
            continue  # it surrounds a box that was taken already
        found.append((at, content[1], content[0].strip()))
    return found[::-1]


def boxed_answer(text: str) -> str | None:
    """The last boxed answer of `text`, or the list that the last boxes make together."""
    found = boxes(text)
    own = [box for box in found if not _quoted(text, box[0])] or found
    if not own:
        return None
    group = [own[-1]]
    for box in own[-2::-1]:
        between = text[box[1] : group[0][0]]
        if len(group) >= MAX_JOINED or len(between) > 60 or not _CONNECTOR.fullmatch(between):
            break
        group.insert(0, box)
    contents = list(dict.fromkeys(box[2] for box in group))
    return ", ".join(contents)


def _quoted(text: str, position: int) -> bool:
    """Whether the box at `position` is said to be another solution's."""
    line = text[max(0, position - 240) : position].rsplit("\n", 1)[-1]
    match = _ATTRIBUTED.search(line)
    return bool(match) and not _ENDORSED.search(match.group())


_ANSWER_BLOCK = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(
    r"(?:(?:\bfinal|\bthe|\bcorrect)\s+)*\banswers?\b[^.:\n=$]{0,60}?(?:\bis\b|\bare\b|:|=|\bwould be\b)\s*:?"
    r"|\b(?:lösung|antwort|respuesta|réponse|risposta|resposta|antwoord|odpowiedź|svar|cevap|jawaban|đáp án)\b[^.:\n=$]{0,40}?(?:\b(?:ist|lautet|es|est|è|é|is|jest|är|adalah|là)\b|:)\s*:?"
    r"|(?:ответ|відповідь|الجواب|الإجابة|答案|答え|解答|정답|답|उत्तर|উত্তর|คำตอบ|תשובה)[^.:：\n=$]{0,30}?(?:は|是|为|為|هو|هي|है|—|–|-|:|：)\s*[:：]?"
    r"|(?:ответ|відповідь|الجواب|الإجابة|答案|答え|解答|정답|답|उत्तर|উত্তর|คำตอบ|תשובה)",
    re.IGNORECASE,
)
_MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|(?<!\\)\$((?:\\.|[^$\n])+?)\$|\\\((.+?)\\\)", re.DOTALL)
_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|\d)(?:\s*/\s*\d+)?\s*%?")


def extract_answer(text: str, *, require_box: bool = False) -> str | None:
    """The answer in `text` that is graded, as written there, or None if it has none.

    With `require_box`, only a boxed answer counts.
    """
    if not isinstance(text, str):
        return None
    text = final_part(text)
    if text is None:
        return None
    text = own_part(text)
    answer = boxed_answer(text)
    if answer is not None or require_box:
        return answer or None
    if "\\boxed" in text or "\\fbox" in text:
        return None  # a box was begun and never closed
    text = text[-MAX_FALLBACK:].strip()
    block = None
    for block in _ANSWER_BLOCK.finditer(text):
        pass
    if block:
        return block.group(1).strip() or None
    match = None
    for match in _HASHES.finditer(text):
        pass
    if match:
        return match.group(1).strip() or None
    for match in _PHRASE.finditer(text):
        pass
    if match:
        said = _first_statement(text[match.end() :])
        if said:
            return said
    if len(text) <= MAX_SHORT and "\n" not in text:
        return text.rstrip(".") or None
    for match in _MATH.finditer(text):
        pass
    if match and match.re is _MATH:
        return next(group for group in match.groups() if group is not None).strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _first_statement(text: str) -> str:
    """What follows an answer phrase: its formulas if it has any, else the sentence."""
    text = text.lstrip(" \t\n*:：")
    line = text.split("\n\n", 1)[0]
    math = list(_MATH.finditer(line))
    if math and not line[: math[0].start()].strip(" *:\n"):
        group = [math[0]]
        for match in math[1:]:
            if not _CONNECTOR.fullmatch(line[group[-1].end() : match.start()]):
                break
            group.append(match)
        return ", ".join(next(part for part in match.groups() if part is not None).strip() for match in group)
    line = line.split("\n", 1)[0]
    return re.split(r"\.(?:\s|$)|[。؟!]", line, maxsplit=1)[0].strip(" *")

"""Multiple choice: the letter of a gold answer, and the one letter that a text settles on."""

import re

from rewards.normalisation import words

_LETTERS = str.maketrans("АВСЕНأبجدঅবডঢ", "ABCEHABCDABCD")
_LOCAL_LETTER = re.compile(r"(?<!\w)[АВСЕНأبجدঅবডঢ](?!\w)")
_CHOICE_GOLD = re.compile(r"\(?\s*([A-J])\s*\)?[.:]?")
_CHOICE_WITH_TEXT = re.compile(r"(?:\(\s*([A-J])\s*\)|([A-J])\s*[.):])\s*(\S.*)", re.DOTALL)
_LEAD = re.compile(
    r"\(?\s*(?:(?:option|choice|answer|letter|选项|选)\s*:?\s*)?\(?\s*([A-J])(?![a-zA-Z'’])\s*(?:[).:,;\]]|$|[^\x00-\x7f]|=>|(?<=\s)[a-zA-Z(\"'$])",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"(?:\b(?i:answer|option|choice|choose|pick|select\w*|correct|it's|it is|is|be"
    r"|antwort|respuesta|réponse|risposta|resposta|ist|est|es|é|è|adalah|là)\b"
    r"|(?i:ответ|الجواب|الإجابة|答案|选|正确|答え|选择|정답))"
    r"[^A-Za-z\d]{0,12}"
    r"(?:(?i:is|are|est|es|ist|for sure|definitely|clearly|option|choice|letter|是|为|は|هو|هي)[^A-Za-z\d]{0,12}){0,3}"
    r"\(?([A-J])(?![a-zA-Z'’])"
)
_SEVERAL = re.compile(r"\(?[A-J]\)?\s*(?:[,/&;]|\bor\b|\band\b|\s|(?<=\)))\s*\(?[A-J](?![a-zA-Z'’])")
_INITIALS = re.compile(r"[A-J]\.\s?[A-Z]\.")
_RULED_OUT = re.compile(
    r"(?:n['’]t|\bnot|\bcannot|\bnor|\bnon|\bpas|\bnone of|不是)\s+(?:be\s+)?\(?[A-J]\)?(?![a-zA-Z])"
    r"(?:\s*(?:,|or|nor|and)\s*\(?[A-J]\)?(?![a-zA-Z]))*",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"\b(?:because|since|as|so that|while|whereas|weil|porque|parce que|因为)\b[^.\n]*", re.IGNORECASE
)
_ANOTHER = re.compile(
    r"(?:[,;/&\n]|\b(?:or|and|then|maybe|perhaps|possibly|also|but))\s*"
    r"(?:(?:or|and|then|maybe|perhaps|possibly|also|even|else|option|both|could be)\s+)*"
    r"\(?([A-J])\)?(?=\s*(?:$|[.,;:!?)\n\d\\]|\b(?:or|and|maybe|perhaps|(?:also |may |might )?(?:works?|fits?))\b))"
)
_BRACKETED = re.compile(r"(?<![A-Za-z])\(([A-J])\)")
_ALONE = re.compile(r"(?<![A-Za-z\d'’.])([B-HJ]|[AI](?!\s+(?!or\b|and\b|then\b|is\b)[a-z]))(?![A-Za-z\d'’])")
_CONCLUDED = re.compile(r"\b(?:so|therefore|thus|hence)\b[\s,:]*\(?([A-J])\)?[.!\s*]*\Z", re.IGNORECASE)


def labelled(text: str) -> str | None:
    """The value of "(C) 42" or "C. 42"; None if there is no label, or a product may be meant, as in "(C)(x+1)"."""
    match = None if _INITIALS.match(text) else _CHOICE_WITH_TEXT.fullmatch(text.strip())
    return match[3].strip() if match and (match[3][0] not in "([" or "," in match[3]) else None


def gold_choice(text: str) -> tuple[str, str | None] | None:
    """(letter, its text or None) if a gold answer is "C", "(C)", "(C) 42" or "C. 42"."""
    match = _CHOICE_GOLD.fullmatch(text.strip())
    if match:
        return match[1], None
    match = None if _INITIALS.match(text) else _CHOICE_WITH_TEXT.fullmatch(text.strip())
    if match:
        return match[1] or match[2], match[3].strip()
    match = re.fullmatch(r"([A-J]) ([A-Z][a-z]+.*)", text.strip(), re.DOTALL)
    return (match[1], match[2]) if match else None


def chosen_letter(text: str) -> str | None:
    """The letter that a statement settles on: the one it begins with, else the one after "answer is" and the like.

    None if it names another beside it ("A, maybe C"), or no letter in such a place: initials are no choice.
    """
    text = _LOCAL_LETTER.sub(lambda m: m[0].translate(_LETTERS), text).strip().strip("*")
    if _SEVERAL.match(text) or _INITIALS.match(text):
        return None
    text = _REASON.sub(" ", _RULED_OUT.sub(" ", text)).strip()
    match = _LEAD.match(text)
    if match and match[1].isupper() and not re.match(r"(?:A|I)\s+(?!is (?:the )?(?:right|correct|answer))[a-z]", text):
        return _unless_another(text, match)
    match = re.search(r"(?:\A|\b(?i:answer|option|choice)\s*(?:is|:)?\s*)\(?([a-j])\)?[.\s*]*\Z", text)
    if match:
        return match[1].upper()
    if matches := list(_AFTER.finditer(text)):
        if any(_SEVERAL.match(text, match.start(1)) for match in matches):
            return None
        first = re.match(r"(?i:answer|antwort|respuesta|réponse|ответ)", text)
        return _unless_another(text, matches[0 if first else -1])
    match = re.fullmatch(r"[^:：]{1,40}[:：]\s*\(?([A-J])\)?[.\s]*", text) or _CONCLUDED.search(text)
    letters = {match[1]} if match else set(_BRACKETED.findall(text))
    if not letters and len(words(text)) > 1 and not re.search(r"\d(?!.*[A-J][.,!\s]*\Z)", text, re.DOTALL):
        letters = set(_ALONE.findall(text))
    return letters.pop() if len(letters) == 1 else None


def settled(text: str) -> str | None:
    """`chosen_letter` of a statement in words, without figures but in its reasons; None for any other text."""
    return chosen_letter(text) if words(text) and not re.search(r"[\d\\=]", _REASON.sub("", text)) else None


def _unless_another(text: str, match: re.Match) -> str | None:
    others = {other[1] for other in _ANOTHER.finditer(text, match.end(1))}
    return match[1] if others <= {match[1]} else None

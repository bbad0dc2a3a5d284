"""Words after a number that change its value: "3 dozen", "2 thirds", "4 squared", "5 out of 7", "3万"."""

import re
from fractions import Fraction
from unicodedata import normalize

_SCALE_WORDS = {
    12: "dozen dozens dutzend docena docenas douzaine dúzia dúzias dozzina dozzine dozijn tuzin düzine lusin",
    100: "hundred hundreds hundert honderd ratus trăm yüz सौ শত ร้อย מאה مائة مئة",
    1000: "thousand thousands tausend mil mille mila duizend tysiąc tysiące tysięcy тысяча тысячи тысяч тисяча тисячі"
    " тисяч ribu nghìn ngàn elfu हज़ार हजार হাজার พัน אלף ألف آلاف bin",
    10**5: "lakh lakhs lac laki लाख লাখ লক্ষ แสน",
    10**6: "million millions millionen millón millones milhão milhões milione milioni miljoen milion miliony milionów"
    " миллион миллиона миллионов мільйон мільйони мільйонів milyon juta triệu milioni ล้าน מיליון مليون",
    10**7: "crore crores करोड़ কোটি",
    10**9: "billion billions milliard milliards milliarde milliarden miliardo miliardi miljard miliard bilhão bilhões"
    " миллиард миллиарда миллиардов мільярд мільярди мільярдів milyar miliar tỷ tỉ bilioni مليار מיליארד",
    10**12: "trillion trillions",
}
SCALES = {word: value for value, names in _SCALE_WORDS.items() for word in normalize("NFKC", names).split()}
_CHARACTERS = {"百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "兆": 10**12}
_CHARACTERS |= {"백": 100, "천": 1000, "만": 10**4, "억": 10**8, "조": 10**12}
PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "twelfth": 12, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip

_PLAIN = r"\d{1,30}(?:,\d{1,2}(?!\d)|(?:,\d{3})*(?:\.\d{1,30})?)"
_MIXED = r"(?:\d{1,20} )?\d{1,20}/\d{1,20}"
_SCALED = re.compile(
    rf"(?:(?P<number>(?<![\d.,^_{{/])(?:{_MIXED}|{_PLAIN}))|(?<=[\d)}}]))[ -]?\s*"
    rf"(?P<word>{'|'.join(sorted(SCALES, key=len, reverse=True))})"
    r"(?![^\W\d_])(?:\s+of(?= ))?",
    re.IGNORECASE,
)
_WRITTEN = re.compile(rf"(?:{_PLAIN}\s*[{''.join(_CHARACTERS)}]+(?![米克瓦分])\s*)+")
_PIECE = re.compile(rf"({_PLAIN})\s*([{''.join(_CHARACTERS)}]+)")
_PART_WORDS = "|".join(name for name in PARTS if name not in ("half", "quarter"))  # a quarter is a coin too
_PART = re.compile(rf"(?<![\d./])(\d{{1,20}})[ -]({_PART_WORDS}|hal(?:f|ve))s?(?![^\W\d_])", re.IGNORECASE)
_AND_A_PART = re.compile(rf"(?<![\d./])(\d{{1,20}}) and (?:an?|one) ({'|'.join(PARTS)})(?![^\W\d_])", re.I)
_OUT_OF = re.compile(r"(?<![\d./,])(\d{1,20}) (?:out of|divided by|over) (?:every )?(\d{1,20})(?![\d.,/])")
_IN = re.compile(r"\A\s*(\d{1,20}) in (?:every )?(\d{1,20})\s*\Z")
_SQUARED = re.compile(
    r"(?<=[\d)}!a-z]) (?<![a-z]{2} )(squared|cubed|factorial)(?! ?[^\W\d_])|(?<=\\pi) (squared|cubed)"
)
_SIGNS = {
    "squared": "^2", "cubed": "^3", "factorial": "!", "times": "\\cdot", "multiplied by": "\\cdot", "plus": "+",
    "minus": "-",
}  # fmt: skip
_OPERATOR = re.compile(
    r"(?<=[\d)}a-z]) (times|multiplied by|plus|minus) (?=[\d\\(-]|[a-z](?![^\W\d_]))(?!a (?:day|week|month|year))"
)
_CHANGE = re.compile(
    r"(?:squared|cubed|factorial|minus|plus|divided|multiplied|out of|(?:more|less|fewer|greater) than|to the)\b"
    r"|times (?:the|a|an|that|what|its|their)\b(?! (?:day|week|month|year))"
    rf"|(?:{'|'.join(SCALES)})(?![^\W\d_])|.*(?:以上|以下|以内|未[满満]|分之|的|半|余|多)",
    re.IGNORECASE,
)


def worked_out(text: str) -> str:
    """`text` with such words as digits and signs: "36", "2/3", "4^2", "5/7", "30000"."""
    if not re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{2}|[^\x00-\x7f]", text):
        return text
    text = _WRITTEN.sub(_sum, text)
    text = _SCALED.sub(_product, text)
    text = _AND_A_PART.sub(lambda m: f"{m[1]} 1/{PARTS[m[2].lower()]}", text)
    text = _PART.sub(lambda m: f"{m[1]}/{PARTS[m[2].lower().replace('halve', 'half')]}", text)
    text = _OUT_OF.sub(r"\1/\2", text)
    text = _IN.sub(r"\1/\2", text)
    text = _SQUARED.sub(lambda m: _SIGNS[m[1] or m[2]], text)
    return _OPERATOR.sub(lambda m: f" {_SIGNS[m[1]]} ", text)


def changes(words: str) -> bool:
    """Whether the words after a number change its value in a way that `worked_out` does not know."""
    return bool(_CHANGE.match(words))


def _sum(match: re.Match) -> str:
    total = Fraction(0)
    for number, characters in _PIECE.findall(match[0]):
        value = _value(number)
        for character in characters:
            value *= _CHARACTERS[character]
        total += value
    return _decimal(total)


def _product(match: re.Match) -> str:
    scale = SCALES[match["word"].lower()]
    return _decimal(_value(match["number"]) * scale) if match["number"] else f" \\cdot {scale}"


def _value(text: str) -> Fraction:
    if re.search(r",\d{1,2}$", text):
        text = text.replace(",", ".")
    try:
        return sum(map(Fraction, text.replace(",", "").split()), Fraction(0))
    except ZeroDivisionError:
        return Fraction(0)


def _decimal(value: Fraction) -> str:
    """A value as digits, or as a fraction if they do not end."""
    places = next((places for places in range(64) if not value * 10**places % 1), None)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(int(value * 10**places)).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits

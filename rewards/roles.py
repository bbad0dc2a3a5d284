"""Knights and Knaves: who is what, as a mapping from every name to a role."""

import re

_ROLES = {
    "knight": "knight", "truth-teller": "knight", "truthteller": "knight", "truth teller": "knight",
    "knave": "knave", "liar": "knave", "spy": "spy", "normal": "spy",
}  # fmt: skip
_ROLE = r"(knight|knave|truth-?\s?teller|liar|spy|normal)"
_NAME = r"[^\W\d_][\w'-]*"
_NAMES = rf"{_NAME}(?:\s*(?:,\s*and|,|and|&)\s*{_NAME})*"
_IS = re.compile(
    rf"({_NAMES})\s*(?:is|are|=|:|->|→|-)\s*(?:both\s+|all\s+)?(not\s+)?(?:an?\s+|the\s+)?{_ROLE}s?\b", re.IGNORECASE
)
_LISTED = re.compile(rf"\b{_ROLE}s?\s*(?:are|is|:|=)\s*({_NAMES})", re.IGNORECASE)
_FLIP = {"knight": "knave", "knave": "knight"}


def roles(text: str) -> dict[str, str] | None:
    """Role of each name, or None if the text assigns none or contradicts itself."""
    if not re.search(_ROLE, text, re.IGNORECASE):
        return None
    text = re.sub(r"[*_`$]|\\text|[{}]|\\boxed", " ", text)
    roles_of: dict[str, set[str]] = {}
    pairs = [(names, role, negated) for names, negated, role in _IS.findall(text)] or [
        (names, role, "") for role, names in _LISTED.findall(text)
    ]
    for names, role, negated in pairs:
        role = _ROLES[re.sub(r"\s+", " ", role.lower())]
        role = _FLIP.get(role, role) if negated else role
        for name in re.findall(_NAME, names):
            if not name[0].islower() and name.lower() not in ("and", "so", "therefore", "thus", "hence"):
                roles_of.setdefault(name.lower(), set()).add(role)
    if not roles_of or any(len(roles) > 1 for roles in roles_of.values()):
        return None
    return {name: roles.pop() for name, roles in roles_of.items()}

"""Secrets taken out of what is written down: by the name of their key, and by how tokens look."""

import re

MASK = "..."
_NAME = r"[\w.-]*(?:(?<!eos_)(?<!pad_)(?<!bos_)(?<!unk_)token|secret|password|api[_-]?key|authorization)s?(?<!tokens)"
_KEY = re.compile(_NAME, re.IGNORECASE)
_OPTION = re.compile(f"--{_NAME}", re.IGNORECASE)
_PAIR = re.compile(
    rf"""({_NAME}["']?\s*[:=]\s*)("[^"]*"|'[^']*'|(?:(?:Bearer|Basic)\s+)?[^\s,;&}}\]"']+)""", re.IGNORECASE
)
_LOOKS = re.compile(r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,})|(?<=Bearer )\S+|(?<=://)[^/\s@]+(?=@)")


def without_secrets(value: object) -> object:
    """The same at any depth without what stands under a secret's key, numbers apart, and with tokens masked."""
    if isinstance(value, dict):
        shown = {k: v for k, v in value.items() if not _KEY.fullmatch(str(k)) or isinstance(v, int | float | None)}
        return {key: without_secrets(one) for key, one in shown.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(one) for one in value]
    return masked(value) if isinstance(value, str) else value


def masked(text: str) -> str:
    """A text without tokens, and without the values of pairs such as `token: x` or `api_key=x`."""
    return _LOOKS.sub(MASK, _PAIR.sub(rf"\g<1>{MASK}", text))


def masked_command(words: list[str]) -> str:
    """A command line as text, without the words after options that are secrets' keys."""
    shown, hide = [], False
    for word in words:
        shown.append(MASK if hide and not word.startswith("--") else masked(word))
        hide = bool(_OPTION.fullmatch(word))
    return " ".join(shown)

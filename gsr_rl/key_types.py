"""Whether a key's value is of the key's type: the annotation in its dataclass against what YAML read."""

WORDS = {"true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "1", "0"}  # that are read as true or false
EXPECTED = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
IN_LISTS = {"list[float]": "a list of numbers", "list[str]": "a list of texts"}


def mismatch(annotation: str, value: object) -> str | None:
    """What is expected instead of this value, or None if it can be what the annotation says.

    Args:
        annotation: The source text of the field's type, such as `int | None`. Types of other packages pass.
        value: As YAML reads it. Text that reads as the number counts as that number, as in TRL's parser.
    """
    kinds = [kind.strip() for kind in annotation.split("|")]
    names = [kind.split("[")[0] for kind in kinds]
    if not set(names) <= {*EXPECTED, "list", "dict", "None"}:
        return None
    if any(_is(value, name, kind) for name, kind in zip(names, kinds, strict=True)):
        return None
    if "str" in names and isinstance(value, bool):  # an unquoted `no`
        return None
    expected = [
        IN_LISTS.get(kind, EXPECTED.get(name, f"a {name}"))
        for name, kind in zip(names, kinds, strict=True)
        if name != "None"
    ]
    hint = ": put it in quotes" if names[0] == "str" and isinstance(value, int | float) else ""
    return " or ".join(expected) + " is expected" + hint


def _is(value: object, name: str, kind: str) -> bool:
    if name == "None":
        return value is None
    if name == "str":
        return isinstance(value, str)
    if name == "dict":
        return isinstance(value, dict)
    if name == "list":
        if kind == "list[float]":  # text in a list is not read as a number
            return isinstance(value, list) and all(type(one) in (int, float) for one in value)
        if kind == "list[str]" and isinstance(value, list):
            return all(isinstance(one, str) for one in value)
        return isinstance(value, str | list)
    if name == "bool":
        return isinstance(value, bool) or str(value).lower() in WORDS
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return False
    try:
        int(value) if name == "int" and isinstance(value, str) else float(value)
    except ValueError:
        return False
    return name == "float" or isinstance(value, int | str)

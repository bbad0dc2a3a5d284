"""Checks of single configuration values that several rooms share: messages that name key, value and fix."""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml


def key(default: Any, help_text: str):
    """A configuration key: a dataclass field with its default (of a list, a copy) and what `--help` and docs say."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


PACKAGE = Path(__file__).resolve().parent
SHIPPED = ("recipes", "accelerate_configs")  # folders of a clone that are in the package too, under gsr_rl/


def shipped(name: str) -> str:
    """The path of a file or folder of `SHIPPED`, such as recipes/tiny/grpo.yaml; `name` itself where it is none.

    Folders may be left out: tiny/grpo.yaml, zero3.yaml. What the working folder has under that name comes first.
    """
    path = Path(name)
    if path.exists():
        return name
    places = [path] if path.parts[:1] in ((folder,) for folder in SHIPPED) else [Path(at) / path for at in SHIPPED]
    paths = (root / place for root in (PACKAGE, PACKAGE.parent) for place in places)
    return next((str(path) for path in paths if path.exists()), name)


def finite(c) -> list[str]:
    """No key is NaN or infinite, on its own or in a list or mapping: they would pass checks of ranges."""
    return [f"{name}={value}: a finite number is expected" for name, value in vars(c).items() if not _is_finite(value)]


def _is_finite(value: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _refused(c, names: tuple[str, ...], is_wrong: Callable[[float], bool], expected: str) -> list[str]:
    """A message for each of these keys whose value is wrong; one that is left out is right."""
    values = {name: getattr(c, name) for name in names}
    return [f"{name}={value}: {expected}" for name, value in values.items() if value is not None and is_wrong(value)]


def at_least(c, least: float, *names: str) -> list[str]:
    """Each of these keys is left out or at least so much."""
    return _refused(c, names, lambda value: value < least, f"at least {least} is needed")


def positive(c, *names: str) -> list[str]:
    """Each of these keys is left out or above 0."""
    return _refused(c, names, lambda value: value <= 0, "a positive number is expected")


def one_of(c, **choices: tuple) -> list[str]:
    """Each of these keys has one of its values."""
    return [
        f"{name}={getattr(c, name)!r}: use {', '.join(map(str, values[:-1]))} or {values[-1]}"
        for name, values in choices.items()
        if getattr(c, name) not in values
    ]


def check_output(c) -> list[str]:
    """`output_dir` can be a folder."""
    if c.output_dir and Path(c.output_dir).exists() and not Path(c.output_dir).is_dir():
        return [f"output_dir={c.output_dir} is a file: give a folder"]
    return []


def check_shares(c, *names: str) -> list[str]:
    """Each of these keys, such as `top_p`, is left out or a share above 0."""
    return _refused(c, names, lambda value: not 0 < value <= 1, "a share above 0 and at most 1 is expected")


def check_model(c, name: str) -> list[str]:
    """A model is named; what looks like a path exists, but in a dry run what an earlier program would leave there."""
    value = getattr(c, name)
    if not value:
        return [f"{name} is not set: give a path or a Hub name"]
    first = Path(value).parts[0]
    made_here = first in ("runs", "recipes")
    looks_local = str(value).startswith((".", "/", "~")) or len(Path(value).parts) > 2 or Path(first).is_dir()
    if Path(value).is_dir() or not (looks_local or made_here) or (first == "runs" and getattr(c, "dry_run", False)):
        return []
    fix = "give a path that exists or a Hub name"
    if first == "runs":
        fix = "run `make smollm2`" if value == "runs/SmolLM2-135M-Instruct" else "run the program that makes it"
        fix += ", or give another path or a Hub name"
    return [f"{name}={value}: there is no such folder, {fix}"]


def model_context_length(model: str | None) -> int | None:
    """The context length that a local model folder states, stretched as its rotary embedding is; None for others."""
    path = Path(str(model)) / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    length = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return length and int(length * max(1.0, rope.get("factor") or 1.0))


def check_context(c, name: str, model: str | None, refines: bool = True) -> list[str]:
    """Prompts with their completions fit the engine's context length: the key `name`, else the model's own."""
    stated, readable = getattr(c, name), model_context_length(model)
    if stated is not None and stated < 1:
        return [f"{name}={stated}: at least 1 is needed, or leave it out for the model's own context length"]
    if stated and readable and stated > readable:
        return [
            f"{name}={stated} is more than the {readable} tokens that {model} can read: set {name} to at most "
            f"{readable}"
        ]
    length = stated or readable
    if length is None:
        return []
    limit = f"the context length of {model}, {length} tokens"
    limit = f"the engine's context length {name}={stated}" if stated else limit
    or_raise = f" or raise {name}" if stated else ""
    limits = ["max_completion_length", *(["max_refinement_length"] if refines else [])]
    if tight := [key for key in limits if getattr(c, key) is not None and getattr(c, key) >= length]:
        return [
            f"{key}={getattr(c, key)} leaves no room for a prompt in {limit}: set {key} well below {length}{or_raise}"
            for key in tight
        ]
    completion, prompt = c.max_refinement_length or c.max_completion_length, c.max_refinement_prompt_length
    if not refines or prompt + completion <= length:
        return []
    return [
        f"max_refinement_prompt_length={prompt} plus the refinement limit of {completion} tokens is "
        f"{prompt + completion}, more than {limit}: set max_refinement_prompt_length to at most "
        f"{length - completion}{or_raise}"
    ]


def raise_if_any(messages: list[str]) -> None:
    """Raise one `ValueError` with all `messages`, if there are any."""
    if messages:
        raise ValueError("\n".join(messages))


def mapping(name: str, value):
    """A mapping that may be given as text."""
    if not isinstance(value, str):
        return value
    try:
        loaded = yaml.safe_load(value)
    except yaml.YAMLError:
        loaded = None
    if not isinstance(loaded, dict):
        raise ValueError(f"{name}={value!r}: a mapping is expected, such as {{name: value}}")
    return loaded


def check_address(name: str, url: str, form: str = "http://HOST:PORT/v1") -> list[str]:
    """An address of a server, without secrets in it."""
    parts = urlsplit(str(url))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [f"{name}={str(url)[:40]!r} is no address: {form} is expected"]
    if parts.username or parts.password or parts.query:
        return [f"{name}: the address at {parts.hostname} holds a secret or a query: put the key into an environment "
                "variable and name that"]  # fmt: skip
    return []


def check_key_variable(name: str, variable: str | None, must_be_set: bool = True) -> list[str]:
    """The name of an environment variable that holds a key."""
    if variable is None:
        return []
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", str(variable)):
        return [f"{name} must be the name of an environment variable, in capitals; the key itself is not to be "
                "written there (value not shown)"]  # fmt: skip
    if must_be_set and not os.environ.get(variable):
        return [f"{name}={variable}: this environment variable is not set: export it, or leave the key out"]
    return []


TRUE_WORDS = {"true", "yes", "on", "t", "y", "1"}
FALSE_WORDS = {"false", "no", "off", "f", "n", "0"}
EXPECTED = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
EXPECTED |= {"dict": "a mapping such as {name: value}", "list": "a list", "None": "null"}
PLAIN = {"None": type(None), "str": str, "dict": dict}  # types that no other value stands for
EXPECTED |= {
    "list[float]": "a list of numbers",
    "list[str]": "a list of texts",
    "list[int]": "a list of whole numbers",
}
NUMBERS = {"list[float]": (int, float), "list[int]": (int,)}  # text in such a list is not read as a number


def kinds_of(annotation: str) -> list[str]:
    """The parts of a type's source text: `int` and `None` of `int | None`."""
    return [kind.strip() for kind in annotation.split("|")]


def mismatch(annotation: str, value: object) -> str | None:
    """What is expected instead of this value, or None if it can be what the annotation says.

    Args:
        annotation: The source text of the field's type, such as `int | None`. Types of other packages pass.
        value: As YAML reads it. Text that reads as the number counts as that number.
    """
    kinds = kinds_of(annotation)
    names = [kind.split("[")[0] for kind in kinds]
    if not set(names) <= EXPECTED.keys():
        return None
    if any(_is(value, name, kind) for name, kind in zip(names, kinds, strict=True)):
        return None
    if "str" in names and isinstance(value, bool):  # an unquoted `no`
        return None
    expected = [EXPECTED.get(kind, EXPECTED[name]) for name, kind in zip(names, kinds, strict=True) if name != "None"]
    hint = ": put it in quotes" if names[0] == "str" and isinstance(value, int | float) else ""
    return " or ".join(expected) + " is expected" + hint


def _is(value: object, name: str, kind: str) -> bool:
    if name in PLAIN:
        return isinstance(value, PLAIN[name])
    if name == "list":
        if kind in NUMBERS:
            return isinstance(value, list) and all(type(entry) in NUMBERS[kind] for entry in value)
        entries = value if kind == "list[str]" and isinstance(value, list) else ()
        return isinstance(value, str | list) and all(isinstance(entry, str) for entry in entries)
    if name == "bool":
        return isinstance(value, bool) or str(value).lower() in TRUE_WORDS | FALSE_WORDS
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return False
    try:
        int(value) if name == "int" and isinstance(value, str) else float(value)
    except ValueError:
        return False
    return name == "float" or isinstance(value, int | str)

"""Checks of single values, and of lengths against a model's window, that several configurations share."""

import json
import math
from pathlib import Path


def finite(c) -> list[str]:
    """No key is NaN or infinite, on its own or in a list or mapping: they would pass checks of ranges."""
    return [f"{name}={value}: a finite number is expected" for name, value in vars(c).items() if not _is_finite(value)]


def _is_finite(value: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def at_least(c, least: float, *names: str) -> list[str]:
    """Each of these keys is left out or at least so much."""
    return [
        f"{name}={getattr(c, name)}: at least {least} is needed"
        for name in names
        if getattr(c, name) is not None and getattr(c, name) < least
    ]


def positive(c, *names: str) -> list[str]:
    """Each of these keys is left out or above 0."""
    return [
        f"{name}={getattr(c, name)}: a positive number is expected"
        for name in names
        if getattr(c, name) is not None and getattr(c, name) <= 0
    ]


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
    """Each of these keys, such as `top_p`, is a share above 0."""
    return [
        f"{name}={getattr(c, name)}: a share above 0 and at most 1 is expected"
        for name in names
        if not 0 < getattr(c, name) <= 1
    ]


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
    mend = "give a path that exists or a Hub name"
    if first == "runs":
        mend = "run `make smollm2`" if value == "runs/SmolLM2-135M-Instruct" else "run the program that makes it"
        mend += ", or give another path or a Hub name"
    return [f"{name}={value}: there is no such folder, {mend}"]


def model_window(model: str | None) -> int | None:
    """The context length that a local model folder states, stretched as its rotary embedding is; None for others."""
    path = Path(str(model)) / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    length = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return length and int(length * max(1.0, rope.get("factor") or 1.0))


def check_window(c, name: str, model: str | None, refines: bool = True) -> list[str]:
    """Prompts with their completions fit the engine's window: the key `name`, or the model's own without it."""
    stated, own = getattr(c, name), model_window(model)
    if stated is not None and stated < 1:
        return [f"{name}={stated}: at least 1 is needed, or leave it out for the model's own window"]
    if stated and own and stated > own:
        return [f"{name}={stated} is more than the {own} tokens that {model} can read: set {name} to at most {own}"]
    window = stated or own
    if window is None:
        return []
    said = f"the engine's window {name}={stated}" if stated else f"the window of {model}, {own} tokens"
    raising = f" or raise {name}" if stated else ""
    limits = ["max_completion_length", *(["max_refinement_length"] if refines else [])]
    if tight := [limit for limit in limits if getattr(c, limit) is not None and getattr(c, limit) >= window]:
        return [
            f"{limit}={getattr(c, limit)} leaves no room for a prompt in {said}: set {limit} well below {window}"
            + raising
            for limit in tight
        ]
    length, prompt = c.max_refinement_length or c.max_completion_length, c.max_refinement_prompt_length
    if not refines or prompt + length <= window:
        return []
    return [
        f"max_refinement_prompt_length={prompt} plus the refinement limit of {length} tokens is {prompt + length}, "
        f"more than {said}: set max_refinement_prompt_length to at most {window - length}{raising}"
    ]

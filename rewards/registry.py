"""Reward functions by name, for YAML: `reward_funcs: [accuracy, format]`."""

import importlib
import inspect
from collections.abc import Callable

from rewards.accuracy import AccuracyReward
from rewards.format import FormatReward
from rewards.length import LengthReward

REWARDS = {"accuracy": AccuracyReward, "format": FormatReward, "length": LengthReward}


def load_reward_funcs(names: list[str], **options) -> list[Callable]:
    """Reward functions with TRL's signature, one a name, in order.

    Args:
        names: "accuracy", "format", "length", or "module:function" for a function or a class of one's own.
        options: arguments of the rewards that take them: `require_box`, `timeout` (accuracy), `max_length`, `buffer`
            (length). A class of one's own gets those that its `__init__` names.
    """
    if isinstance(names, str):
        names = [names]
    known = {"require_box", "timeout", "max_length", "buffer"}
    targets = [_target(name) for name in names]
    for target in targets:
        if inspect.isclass(target):
            known |= set(inspect.signature(target).parameters)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"no reward takes the option {unknown[0]!r}: use one of {', '.join(sorted(known))}")
    return [_build(target, options) for target in targets]


def _target(name: str):
    if name in REWARDS:
        return REWARDS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"reward {name!r} is not known: use one of {', '.join(REWARDS)}, or 'module:function'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {name!r} cannot be loaded: {error}") from error


def _build(target, options: dict) -> Callable:
    if not inspect.isclass(target):
        return target
    taken = {name: options[name] for name in inspect.signature(target).parameters if name in options}
    try:
        return target(**taken)
    except TypeError as error:
        raise ValueError(f"reward {target.__name__} needs more options: {error}") from error

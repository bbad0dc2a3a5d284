"""Reward functions by name, for YAML: `reward_funcs: [accuracy, refinement/format]`."""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable

from rewards.accuracy import AccuracyReward
from rewards.format import FormatReward
from rewards.length import LengthReward

REWARDS = {"accuracy": AccuracyReward, "format": FormatReward, "length": LengthReward}
STAGES = ("candidate", "refinement")


class StageReward:
    """A reward for the rows of one stage (column `stage`); None, no say, for the others."""

    def __init__(self, stage: str, function: Callable, name: str):
        self.stage, self.function, self.__name__ = stage, function, name

    def __call__(self, prompts=None, completions=None, completion_ids=None, *, stage=None, **columns):
        if stage is None:
            raise ValueError(f"the reward {self.__name__} needs a column `stage` with candidate or refinement")
        rows = [row for row, name in enumerate(stage) if name == self.stage]
        if not rows:
            return [None] * len(stage)
        columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, "stage": stage}
        for name, column in columns.items():
            if isinstance(column, list | tuple) and len(column) == len(stage):
                columns[name] = [column[row] for row in rows]
        scores = dict(zip(rows, self.function(**columns), strict=True))
        return [scores.get(row) for row in range(len(stage))]


def load_reward_funcs(names: list[str] | str, options: dict[str, dict] | str | None = None) -> list[Callable]:
    """Reward functions with TRL's signature, one a name, in order.

    Args:
        names: "accuracy", "format", "length", or "module:function" for a function or a class of one's own. With
            "candidate/" or "refinement/" before it a reward has a say in that stage only.
        options: {name as listed: its arguments}, or the same as JSON: `require_box`, `timeout` (accuracy),
            `max_length`, `buffer` (length), or what a class of one's own takes.

    Raises:
        ValueError: A name, an option or an argument that does not exist, or one that is missing.
    """
    names = [names] if isinstance(names, str) else list(names)
    options = _read(options)
    if not names:
        raise ValueError("reward_funcs is empty: name at least one reward, such as accuracy")
    if strange := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"reward_funcs has {strange[0]!r}: a name is expected, such as accuracy")
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"reward_funcs names {doubled[0]!r} twice: give it a weight instead (reward_weights)")
    for name, values in options.items():
        if name not in names:
            raise ValueError(f"reward_options has {name!r}, which is not in reward_funcs: use one of {names}")
        if not isinstance(values, dict):
            raise ValueError(f"reward_options[{name!r}]={values!r}: a mapping of arguments is expected")
    return [_build(name, options.get(name, {})) for name in names]


def _read(options: dict | str | None) -> dict:
    try:
        options = json.loads(options) if isinstance(options, str) else options or {}
    except json.JSONDecodeError as error:
        raise ValueError(f"reward_options={options!r} is not JSON: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f"reward_options={options!r}: a mapping of rewards to their arguments is expected")
    return options


def _build(name: str, options: dict) -> Callable:
    stage, slash, rest = name.partition("/")
    if slash and stage in STAGES:
        function = _load(rest, options, name)
        if inspect.iscoroutinefunction(function):
            raise ValueError(f"reward {name!r} is asynchronous: only plain functions can be for one stage")
        return StageReward(stage, function, name)
    return _load(name, options, name)


def _load(target_name: str, options: dict, name: str) -> Callable:
    """The function; an instance with these options if it is a class. `name` is what the user wrote."""
    target = _target(target_name)
    if not inspect.isclass(target):
        if options:
            raise ValueError(f"reward {name!r} is a function and takes no options, got {sorted(options)}")
        return target
    parameters = inspect.signature(target).parameters
    if unknown := sorted(set(options) - set(parameters)):
        raise ValueError(f"reward {name!r} takes no option {unknown[0]!r}: use one of {', '.join(parameters) or '-'}")
    required = (key for key, parameter in parameters.items() if parameter.default is parameter.empty)
    missing = [key for key in required if key not in options]
    if missing:
        example = ", ".join(f"{key}: ..." for key in missing)
        raise ValueError(f"reward {name!r} needs {', '.join(missing)}: set reward_options: {{{name}: {{{example}}}}}")
    return target(**options)


def _target(name: str):
    if name in REWARDS:
        return REWARDS[name]
    if ":" not in name:
        raise ValueError(
            f"reward {name!r} is not known: use one of {', '.join(REWARDS)}, or 'module:function', "
            "with candidate/ or refinement/ before it for one stage"
        )
    try:
        return imported(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {name!r} cannot be loaded: {error}") from error


def imported(name: str):
    """What `module:name` stands for. The module is installed, on PYTHONPATH, or a file in the working folder."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return getattr(importlib.import_module(module), attribute)

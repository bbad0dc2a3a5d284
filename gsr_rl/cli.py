"""The recipes' programs: their configurations, their checks before the heavy imports, and TRL's parser at the end.

TRL's parser makes the configurations. But importing TRL takes seconds, so `--help`, unknown keys and values that
contradict each other are dealt with first (gsr_rl/command_line.py).
"""

import argparse
import importlib
import sys
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace

from gsr_rl.command_line import LIBRARIES, Key, asks_for_help, fields_of_all, help_of, of_type, our_classes, read
from gsr_rl.data.config import check_problems_and_held_out, check_training_problems
from gsr_rl.distillation.config import check_distill
from gsr_rl.evaluation.config import check_eval, check_eval_problems
from gsr_rl.keys import TRUE_WORDS, kinds_of, raise_if_any
from gsr_rl.training.checks import check_grpo, check_sft

# What each program is configured by, and its checks on plain values.
PROGRAMS = {
    "distill": (("DistillProblemConfig", "DistillConfig"), (check_training_problems, check_distill)),
    "sft": (("GSRSFTConfig", "ModelConfig"), (check_sft,)),
    "grpo": (("ProblemConfig", "GSRConfig", "ModelConfig"), (check_problems_and_held_out, check_grpo)),
    "eval": (("EvalProblemConfig", "EvalConfig"), (check_eval_problems, check_eval)),
}


@cache
def keys_of(program: str) -> dict[str, Key]:
    """All configuration keys of a program by name, ours and the inherited ones."""
    return fields_of_all(PROGRAMS[program][0])


def print_help(program: str, everything: bool) -> None:
    """Our own keys in full; with `everything`, the inherited ones of TRL and transformers too."""
    print(f"usage: python recipes/{program}_gsr.py [--config FILE.yaml] [--KEY VALUE ...]\n")
    print("Keys come from the YAML file; a --KEY VALUE on the command line overrides it, --KEY null unsets it.")
    ours = [key for key in keys_of(program).values() if key.owner in our_classes()]
    inherited = [key for key in keys_of(program).values() if key.owner not in our_classes()]
    print(help_of(ours + (inherited if everything else [])))
    if inherited and not everything:
        owners = dict.fromkeys(key.owner for key in inherited if not key.owner.startswith("_"))
        print(f"\n{len(inherited)} more keys come from {', '.join(owners)}: `--help all` lists them.")


def read_values(program: str, argv: list[str]) -> dict[str, object]:
    """The values that the user set, by key: `command_line.read`. Raises `ValueError` as that or for a stray word."""
    values, stray = read(argv, keys_of(program), "--help all")
    if stray:
        raise ValueError(f"stray argument {stray[0]!r}: write --key value")
    return values


def check_values(program: str, values: dict[str, object]) -> None:
    """Run the program's checks on plain values, completed by the defaults. Raises `ValueError` with all messages."""
    keys = keys_of(program)
    typed = of_type(values, keys)  # by itself: the checks calculate with the values
    merged = SimpleNamespace(**{name: key.default for name, key in keys.items()} | typed)
    raise_if_any([message for check in PROGRAMS[program][1] for message in check(merged)])


@contextmanager
def clear_errors(program: str, *more: type[Exception]):
    """End the program with exit code 2 and one message, without a traceback, on what the user can fix.

    That is `ValueError`, `OSError` (a model, a data set or a file that is not there) and `more` kinds of errors where
    a step meets the world outside.
    """
    try:
        yield
    except (ValueError, OSError, *more) as error:
        print(f"{program}_gsr.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parse(program: str, argv: list[str] | None = None) -> tuple:
    """Parse the command line of a recipe into its config dataclasses (see `PROGRAMS`).

    Exits with 0 after `--help`, and with 2 and one message on bad input, before TRL or an engine is imported.
    """
    argv = sys.argv[1:] if argv is None else argv
    if asks_for_help(argv):
        print_help(program, everything="all" in argv)
        raise SystemExit(0)
    with clear_errors(program):
        values = read_values(program, argv)
        check_values(program, values)
        from gsr_rl.training.launch import shard_on_cpu

        shard_on_cpu(str(values.get("use_cpu")).lower() in TRUE_WORDS)
        return _trl_parser(program).parse_args_and_config(argv)


def _trl_parser(program: str):
    """TRL's parser, with `null` for every key that may be unset, and one or more words for `str | list[str]`."""
    from trl import TrlParser

    keys = keys_of(program)

    class Parser(TrlParser):
        def add_argument(self, *names, **options):
            key = keys.get(names[0].removeprefix("--"))
            kinds = kinds_of(key.type) if key and options.get("type") else []
            if "None" in kinds:
                options["type"] = _or_null(options["type"])
                if options.get("nargs"):
                    options["action"] = _UnsetByNull
            if {"str", "list[str]"} <= set(kinds):  # TRL's takes one word of these
                options |= {"nargs": "+", "action": _OneOrMore}
            return super().add_argument(*names, **options)

    return Parser([_import_class(name) for name in PROGRAMS[program][0]])


def _import_class(class_name: str) -> type:
    """The class itself; this imports what its module imports, TRL and torch for the trainers' ones."""
    if path := our_classes().get(class_name):
        module = ".".join(path.relative_to(Path(__file__).parent.parent).with_suffix("").parts)
    else:
        module = LIBRARIES[class_name][0]
    return getattr(importlib.import_module(module), class_name)


class _UnsetByNull(argparse.Action):
    """Stores the words of a list; the one word `null` unsets it."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, None if values == [None] else values)


class _OneOrMore(argparse.Action):
    """Stores one word as text, several as a list."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def _or_null(convert):
    """`convert` for values of the command line, where `null` unsets what the YAML file sets."""

    @wraps(convert, updated=())
    def convert_or_null(text: str):
        return None if text == "null" else convert(text)

    return convert_or_null

"""The command line of the recipes: `--config file.yaml --key value`, help, and checks before the heavy imports.

TRL's parser does the parsing. But importing TRL takes seconds, so `--help`, unknown keys and values that contradict
each other are dealt with first, from the dataclasses' source text.
"""

import argparse
import ast
import difflib
import importlib
import importlib.util
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace

import yaml

from gsr_rl.data.config import check_problems_and_held_out, check_training_problems
from gsr_rl.distillation.config import check_distill
from gsr_rl.evaluation.config import check_eval, check_eval_problems
from gsr_rl.keys import mismatch, raise_if_any
from gsr_rl.training.checks import check_grpo, check_sft

# Where TRL and transformers define the classes that ours inherit from: package, file inside it.
LIBRARIES = {
    "GRPOConfig": ("trl", "trainer/grpo_config.py"),
    "SFTConfig": ("trl", "trainer/sft_config.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
    "ModelConfig": ("trl", "trainer/model_config.py"),
}
# Names that are used elsewhere for a key.
ALIASES = {
    "k": "num_candidates", "g": "num_generations", "n": "num_generations", "m": "num_candidate_sets",
    "lr": "learning_rate", "batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs",
    "steps": "max_steps", "model": "model_name_or_path", "dataset": "dataset_name", "split": "dataset_split",
    "kl_coef": "beta",
}  # fmt: skip
# What each program is configured by, and its checks on plain values.
PROGRAMS = {
    "distill": (("DistillProblemConfig", "DistillConfig"), (check_training_problems, check_distill)),
    "sft": (("GSRSFTConfig", "ModelConfig"), (check_sft,)),
    "grpo": (("ProblemConfig", "GSRConfig", "ModelConfig"), (check_problems_and_held_out, check_grpo)),
    "eval": (("EvalProblemConfig", "EvalConfig"), (check_eval_problems, check_eval)),
}


CONFIG_MODULES = ("config", "settings", "configs", "data_configs", "eval_configs", "answer_config", "hub_configs")


@dataclass(frozen=True)
class Key:
    """One configuration key, read from source: its owner class, type text, default and help."""

    owner: str
    name: str
    type: str
    default: object
    help: str


@cache
def our_classes() -> dict[str, Path]:
    """The file of each of our configuration classes: those of every room's `config.py` and `settings.py`."""
    package = Path(__file__).parent
    paths = [path for path in sorted(package.rglob("*.py")) if path.stem in CONFIG_MODULES]
    return {node.name: path for path in paths for node in _parsed(path).body if isinstance(node, ast.ClassDef)}


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _class_node(class_name: str) -> ast.ClassDef:
    """The definition of a class, ours or a library's, which is not imported."""
    path = our_classes().get(class_name)
    if path is None and class_name in LIBRARIES:
        package, file = LIBRARIES[class_name]
        path = Path(importlib.util.find_spec(package).origin).parent / file
    classes = (node for node in (_parsed(path).body if path else ()) if isinstance(node, ast.ClassDef))
    node = next((node for node in classes if node.name == class_name), None)
    if node is None:
        raise LookupError(f"class {class_name} is in no config.py of gsr_rl and not where cli.LIBRARIES says")
    return node


def _import_class(class_name: str) -> type:
    """The class itself; this imports what its module imports, TRL and torch for the trainers' ones."""
    if path := our_classes().get(class_name):
        module = ".".join(path.relative_to(Path(__file__).parent.parent).with_suffix("").parts)
    else:
        module = LIBRARIES[class_name][0]
    return getattr(importlib.import_module(module), class_name)


def _literal(node: ast.expr | None) -> object:
    """The value of a literal default; a default factory's literal; otherwise its source text."""
    if node is None:
        return None
    if isinstance(node, ast.Lambda):
        node = node.body
    try:
        return ast.literal_eval(node)
    except ValueError:
        return {"list": [], "dict": {}}.get(ast.unparse(node), ast.unparse(node))


def fields_of(class_name: str) -> dict[str, Key]:
    """The fields of a dataclass and its bases, without importing it. The nearest definition wins."""
    node = _class_node(class_name)
    keys: dict[str, Key] = {}
    for base in reversed(node.bases):
        keys |= fields_of(ast.unparse(base))
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name, value = statement.target.id, statement.value
        if "ClassVar" in ast.unparse(statement.annotation):
            continue
        default, text = value, ""
        if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
            arguments = {keyword.arg: keyword.value for keyword in value.keywords}
            if ast.unparse(arguments.get("init", ast.Constant(True))) == "False":
                continue
            default = arguments.get("default", arguments.get("default_factory"))
            metadata = arguments.get("metadata")
            if isinstance(metadata, ast.Dict):
                text = next(
                    (
                        str(_literal(v))
                        for k, v in zip(metadata.keys, metadata.values, strict=True)
                        if _literal(k) == "help"
                    ),
                    "",
                )
        keys[name] = Key(class_name, name, ast.unparse(statement.annotation), _literal(default), text)
    return keys


def keys_of(program: str) -> dict[str, Key]:
    """All configuration keys of a program by name, ours and the inherited ones."""
    keys: dict[str, Key] = {}
    for class_name in PROGRAMS[program][0]:
        keys |= {name: key for name, key in fields_of(class_name).items() if name not in keys}
    return keys


def print_help(program: str, everything: bool) -> None:
    """Our own keys in full; with `everything`, the inherited ones of TRL and transformers too."""
    recipe = f"recipes/{program}_gsr.py"
    lines = [
        f"usage: python {recipe} [--config FILE.yaml] [--KEY VALUE ...]",
        "",
        "Keys come from the YAML file; a --KEY VALUE on the command line overrides it, --KEY null unsets it.",
    ]
    ours, inherited = {}, {}
    for key in keys_of(program).values():
        side = ours if key.owner in our_classes() else inherited
        side.setdefault(key.owner, []).append(key)
    shown = ours | (inherited if everything else {})
    for owner, keys in shown.items():
        lines += ["", f"{owner}:"]
        for key in keys:
            lines.append(f"  --{key.name} {key.type}, default {key.default!r}")
            help_text = key.help.replace("%%", "%")
            lines += textwrap.wrap(help_text, 100, initial_indent="      ", subsequent_indent="      ")
    if inherited and not everything:
        count = sum(map(len, inherited.values()))
        owners = ", ".join(owner for owner in inherited if not owner.startswith("_"))
        lines += ["", f"{count} more keys come from {owners}: `--help all` lists them."]
    print("\n".join(lines))


def read_values(program: str, argv: list[str]) -> dict[str, object]:
    """The values that the user set, by key: the YAML file's, overridden by the command line's.

    Raises:
        ValueError: A file that is missing or no mapping, keys that do not exist (each with the nearest one), or a
            stray word.
    """
    keys = keys_of(program)
    values: dict[str, object] = {}
    arguments = _split(argv)
    if "config" in arguments:
        values |= _read_file(arguments.pop("config"))
    values |= {name: _typed(keys[name].type if name in keys else "", words) for name, words in arguments.items()}
    if unknown := [name for name in values if name not in keys]:
        hints = [f"unknown key {name}: did you mean {_nearest(name, keys)}?" for name in unknown]
        raise ValueError("\n".join([*hints, f"`--help all` lists all keys of {program}_gsr.py"]))
    return values


def _read_file(words: list[str]) -> dict[str, object]:
    """The keys of the YAML file that `--config` names."""
    if len(words) != 1:
        raise ValueError(f"{' '.join(['--config', *words])}: one YAML file is expected")
    path = Path(words[0])
    if not path.is_file():
        raise ValueError(f"--config {path}: there is no such file")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"--config {path}: a YAML mapping of keys to values is expected")
    loaded.pop("env", None)
    return loaded


def _nearest(name: str, keys: dict[str, Key]) -> str:
    """The key that was meant: by its short name, or the one spelt most alike."""
    if ALIASES.get(name.lower()) in keys:
        return ALIASES[name.lower()]
    return difflib.get_close_matches(name, keys, n=1, cutoff=0.0)[0]


def _split(argv: list[str]) -> dict[str, list[str]]:
    """`--key value`, `--key=value`, `--flag` and `--key a b c` as the words of each key."""
    found: dict[str, list[str]] = {}
    name = None
    for word in argv:
        if word.startswith("--"):
            name, separator, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = [value] if separator else []
        elif name is None:
            raise ValueError(f"stray argument {word!r}: write --key value")
        else:
            found[name].append(word)
    return found


def _typed(annotation: str, words: list[str]) -> object:
    """Words of the command line as YAML scalars; text stays text where the key is one, a list's words are a list."""
    text_only = annotation and set(annotation.split(" | ")) <= {"str", "list[str]", "None"}

    def scalar(text: str) -> object:
        if text_only and text != "null":
            return text
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            return text
        if isinstance(value, str):  # YAML reads 1e-6 as a string
            try:
                return float(value)
            except ValueError:
                return text
        return value

    values = [scalar(word) for word in words]
    if annotation.startswith("list[float]") and values != [None]:
        return values
    return True if not values else values[0] if len(values) == 1 else values


def check_values(program: str, values: dict[str, object]) -> None:
    """Run the program's checks on plain values, completed by the defaults. Raises `ValueError` with every finding."""
    keys = keys_of(program)
    merged = SimpleNamespace(**{name: key.default for name, key in keys.items()} | values)
    wrong = []
    for name, value in values.items():
        key = keys[name]
        expected = None if value is None and key.default is None else mismatch(key.type, value)
        if expected:
            wrong.append(f"{name}={'null' if value is None else repr(value)}: {expected}")
        elif isinstance(value, str) and key.type.split(" | ")[0] in ("int", "float"):
            setattr(merged, name, (int if key.type.startswith("int") else float)(value))
    raise_if_any(wrong)  # by themselves: the other checks reckon with the values
    raise_if_any([message for check in PROGRAMS[program][1] for message in check(merged)])


@contextmanager
def clear_errors(program: str, *more: type[Exception]):
    """End the program with exit code 2 and one message, without a traceback, on what the user can mend.

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
    if any(word in ("--help", "-h") for word in argv):
        print_help(program, everything="all" in argv)
        raise SystemExit(0)
    with clear_errors(program):
        check_values(program, read_values(program, argv))
        from trl import TrlParser

        from gsr_rl.training.sharding import shard_on_cpu

        shard_on_cpu()
        classes = [_import_class(name) for name in PROGRAMS[program][0]]
        parser, keys = TrlParser(classes), keys_of(program)
        for action in parser._actions:
            kinds = keys[action.dest].type.split(" | ") if action.type else []
            if "None" in kinds:
                action.type = _or_null(action.type)
                if action.nargs:
                    action.__class__ = _UnsetByNull
            if {"str", "list[str]"} <= set(kinds):  # the parser takes one word of these
                action.nargs, action.__class__ = "+", _OneOrMore
        return parser.parse_args_and_config(argv)


class _UnsetByNull(argparse.Action):
    """Stores the words of a list; the one word `null` unsets it."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, None if values == [None] else values)


class _OneOrMore(argparse.Action):
    """Stores one word as text, several as a list."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def _or_null(read):
    """`read` for values of the command line, where `null` unsets what the YAML file sets."""

    @wraps(read, updated=())
    def read_or_null(text: str):
        return None if text == "null" else read(text)

    return read_or_null

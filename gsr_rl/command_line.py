"""The command line of every program: `--config file.yaml --key value`, and help, without importing a configuration.

TRL's classes alone take seconds to import, so keys, their types, defaults and help are read from the classes' source
text. Start at `fields_of` (what can be set) and `read` (what the user set).
"""

import ast
import difflib
import importlib.util
import os
import re
import textwrap
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from gsr_rl.keys import SHIPPED, TRUE_WORDS, kinds_of, mismatch, raise_if_any, shipped

CONFIG_MODULES = ("config", "settings")  # of each room: where our configuration classes stand
# Where TRL and transformers define the classes that ours inherit from: package, file inside it.
LIBRARIES = {
    "GRPOConfig": ("trl", "trainer/grpo_config.py"),
    "SFTConfig": ("trl", "trainer/sft_config.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
    "ModelConfig": ("trl", "trainer/model_config.py"),
    "AcceleratorConfig": ("transformers", "trainer_pt_utils.py"),
}
# Names that are used elsewhere for a key: what an unknown key may have meant.
ALIASES = {
    "k": "num_candidates", "g": "num_generations", "n": "num_generations", "m": "num_candidate_sets",
    "lr": "learning_rate", "batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs",
    "steps": "max_steps", "model": "model_name_or_path", "dataset": "dataset_name", "split": "dataset_split",
    "kl_coef": "beta",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One configuration key, read from source: its owner class, type text, default, help, and values it may have."""

    owner: str
    name: str
    type: str
    default: object
    help: str
    choices: object = None  # None: any


@cache
def our_classes() -> dict[str, Path]:
    """The file of each of our configuration classes: those of every room's `config.py` and `settings.py`."""
    paths = [path for path in sorted(Path(__file__).parent.rglob("*.py")) if path.stem in CONFIG_MODULES]
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
        raise LookupError(f"class {class_name} is in no config.py of gsr_rl and not where LIBRARIES says")
    return node


def fields_of(class_name: str) -> dict[str, Key]:
    """The fields of a dataclass and its bases, without importing it. The nearest definition wins."""
    node = _class_node(class_name)
    keys: dict[str, Key] = {}
    for base in reversed(node.bases):
        keys |= fields_of(ast.unparse(base))
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and (key := _key(class_name, statement)):
            keys[key.name] = key
    return keys


def attributes_read(class_name: str) -> set[str]:
    """What a class's `__post_init__`, its bases' and what these call of `self` read of an instance: its attributes.

    So a key that is not among them is neither checked nor changed there. Nothing is imported.
    """
    functions: dict[str, list[ast.FunctionDef]] = {}
    classes = [_class_node(class_name)]
    while classes:
        node = classes.pop()
        classes += [_class_node(ast.unparse(base)) for base in node.bases]
        for function in (statement for statement in node.body if isinstance(statement, ast.FunctionDef)):
            functions.setdefault(function.name, []).append(function)
    names, calls = set(), ["__post_init__"]
    while calls:
        read = {
            node.attr
            for function in functions.pop(calls.pop(), [])
            for node in ast.walk(function)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
        }
        names |= read
        calls += sorted(read & functions.keys())
    return names


def fields_of_all(class_names: Iterable[str]) -> dict[str, Key]:
    """The fields of several dataclasses. Where two have a field of one name, the first one's counts."""
    keys: dict[str, Key] = {}
    for class_name in class_names:
        keys |= {name: key for name, key in fields_of(class_name).items() if name not in keys}
    return keys


def _key(owner: str, statement: ast.AnnAssign) -> Key | None:
    """The key that `name: type = default`, `= key(...)` or `= field(...)` defines, or None if it can not be set."""
    annotation, default = ast.unparse(statement.annotation), statement.value
    if "ClassVar" in annotation or not isinstance(statement.target, ast.Name):
        return None
    help_text, choices = "", None
    if isinstance(default, ast.Call) and ast.unparse(default.func) == "key":  # ours: gsr_rl.keys.key
        default, help_text = default.args[0], str(_literal(default.args[1]))
    elif isinstance(default, ast.Call) and ast.unparse(default.func).endswith("field"):
        arguments = {keyword.arg: keyword.value for keyword in default.keywords}
        if "init" in arguments and _literal(arguments["init"]) is False:
            return None
        default = arguments.get("default", arguments.get("default_factory"))
        metadata = arguments.get("metadata")
        entries = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
        told = {_literal(name): _literal(value) for name, value in entries}
        help_text, choices = str(told.get("help", "")), told.get("choices")
    return Key(owner, statement.target.id, annotation, _literal(default), help_text, choices)


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


def help_of(keys: Iterable[Key]) -> str:
    """Keys with types, defaults and help, under the names of the classes that own them."""
    by_owner: dict[str, list[str]] = {}
    for key in keys:
        lines = by_owner.setdefault(key.owner, ["", f"{key.owner}:"])
        lines.append(f"  --{key.name} {key.type}, default {key.default!r}")
        indent = {"initial_indent": "      ", "subsequent_indent": "      "}
        lines += textwrap.wrap(key.help.replace("%%", "%"), 100, **indent)
    return "\n".join(line for lines in by_owner.values() for line in lines)


def asks_for_help(argv: list[str]) -> bool:
    """Whether `--help` or `-h` is among the options."""
    return any(word in ("--help", "-h") for word in argv[: argv.index("--") if "--" in argv else None])


def read(
    argv: list[str],
    keys: dict[str, Key],
    listing: str,
    *,
    short: dict[str, str] | None = None,
    positional: bool = False,
) -> tuple[dict[str, object], list[str]]:
    """The values that the user set, by key: the file's that `--config` names, overridden by the command line's.

    Args:
        keys: What can be set. `--some-key` is `--some_key`.
        listing: What lists all keys, such as `--help`: the last words about one that does not exist.
        short: Short names that stand for a key's, such as k.
        positional: Whether words that belong to no option have a meaning. Then each option takes one word (true or
            false may be left out), and a list's is given several times. Otherwise an option takes all words up to the
            next one: a list's are `--key a b`.

    Returns:
        The values as YAML reads them, and the words that belong to no option, with all that stand behind `--`.

    Raises:
        ValueError: A file that is missing or no mapping, keys that do not exist (each with the nearest one), one
            without its value, or a word such as -k.
    """
    words, rest = _split(argv, keys, short or {}, positional)
    values = _read_file(words.pop("config")) if "config" in words else {}
    for name, of_key in words.items():
        values[name] = _typed(name, keys[name].type if name in keys else "", of_key)
    if unknown := [name for name in values if name not in keys]:
        hints = [f"unknown key {name}: did you mean {_nearest(name, keys)}?" for name in unknown]
        raise ValueError("\n".join([*hints, f"`{listing}` lists all keys"]))
    return {name: _here_or_shipped(value) for name, value in values.items()}, rest


def _here_or_shipped(value: object) -> object:
    """A value; of one that names what `keys.SHIPPED` holds, and is not there in the working folder, its path."""
    return shipped(value) if isinstance(value, str) and value.startswith(SHIPPED) else value


def _split(argv, keys, short, positional) -> tuple[dict[str, list[str]], list[str]]:
    """`--key value`, `--key=value`, `--flag` and `--key a b c` as the words of each key, and the other words."""
    words: dict[str, list[str]] = {}
    rest: list[str] = []
    left = deque(argv)
    while left:
        word = left.popleft()
        if word == "--":
            return words, rest + list(left)
        if not word.startswith("--"):
            if re.fullmatch(r"-[A-Za-z][\w-]*", word):
                raise ValueError(f"{word} is no option: write --KEY VALUE")
            rest.append(word)
            continue
        name, separator, value = word[2:].partition("=")
        name = name.replace("-", "_")
        name = short.get(name, name)
        kinds = kinds_of(keys[name].type) if name in keys else []
        given = [value] if separator else _take(left, kinds, positional)
        many = positional and any(kind.startswith("list") for kind in kinds)
        words[name] = words.get(name, []) + given if many else given
    return words, rest


def _take(left: deque[str], kinds: list[str], positional: bool) -> list[str]:
    """The words of an option of these kinds, taken from what is `left`."""
    taken = []
    while left and not left[0].startswith("--"):
        if positional and (taken or ("bool" in kinds and not _is_value(left[0], kinds))):
            break
        taken.append(left.popleft())
    return taken


def _is_value(word: str, kinds: list[str]) -> bool:
    """Whether a word is the value of an option of these kinds, which may stand without any."""
    number = "float" in kinds and not isinstance(_scalar(word, as_text=False), str)
    return number or word.lower() in ("true", "false")


def _read_file(words: list[str]) -> dict[str, object]:
    """The keys of the YAML file that `--config` names. The environment variables under `env` are set."""
    if len(words) != 1:
        raise ValueError(f"{' '.join(['--config', *words])}: one YAML file is expected")
    path = Path(shipped(words[0]))
    if not path.is_file():
        raise ValueError(f"--config {path}: there is no such file (`gsr-config` lists those of the package)")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"--config {path}: a YAML mapping of keys to values is expected")
    os.environ.update({name: str(value) for name, value in (loaded.pop("env", None) or {}).items()})
    return loaded


def _nearest(name: str, keys: dict[str, Key]) -> str:
    """The key that was meant: by its short name, or the one spelt most alike."""
    if ALIASES.get(name.lower()) in keys:
        return ALIASES[name.lower()]
    return difflib.get_close_matches(name, keys, n=1, cutoff=0.0)[0]


def _typed(name: str, annotation: str, words: list[str]) -> object:
    """Words of the command line as YAML reads them, but as the key's type has it:

    | type             | words | value            |
    |------------------|-------|------------------|
    | str              | 5     | "5"              |
    | str, list[str]   | a 3   | ["a", "3"]       |
    | float            | 1e-6  | 1e-6 (YAML: text)|
    | list[float]      | -1    | [-1]             |
    | list[int]        | 8 16  | [8, 16]          |
    | bool             |       | True             |
    | of any type      | null  | None             |
    """
    kinds = kinds_of(annotation)
    if not words and annotation and "bool" not in kinds:
        raise ValueError(f"--{name}: a value is expected")
    values = [_scalar(word, as_text=bool(kinds) and {*kinds} <= {"str", "list[str]", "None"}) for word in words]
    if {"list[float]", "list[int]"} & set(kinds) and values != [None]:
        return values
    return True if not values else values[0] if len(values) == 1 else values


def _scalar(text: str, as_text: bool) -> object:
    if as_text and text != "null":
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


def of_type(values: dict[str, object], keys: dict[str, Key]) -> dict[str, object]:
    """The values as their keys' types have them: text that is a number as that number, 1 and yes as true.

    Raises `ValueError` for values of another type, each with what is expected.
    """
    messages = []
    for name, value in values.items():
        unset = value is None and keys[name].default is None
        if expected := None if unset else mismatch(keys[name].type, value):
            messages.append(f"{name}={'null' if value is None else repr(value)}: {expected}")
        elif isinstance(choices := keys[name].choices, list) and not unset and value not in choices:
            messages.append(f"{name}={value!r}: use {', '.join(choices[:-1])} or {choices[-1]}")
    raise_if_any(messages)
    return {name: _converted(value, kinds_of(keys[name].type)) for name, value in values.items()}


def _converted(value: object, kinds: list[str]) -> object:
    if isinstance(value, str) and kinds[0] in ("int", "float"):
        return int(value) if kinds[0] == "int" else float(value)
    if kinds[0] == "bool" and isinstance(value, str | int):
        return str(value).lower() in TRUE_WORDS
    if kinds[0].startswith("list") and "str" not in kinds and isinstance(value, str):
        return [value]
    return value

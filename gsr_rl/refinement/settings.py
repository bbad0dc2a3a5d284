"""How candidates must be shown to a model: the keys of `RefinementConfig`, and `gsr_config.json` beside a model.

The file says what the model was trained on, and how long completions were then.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from gsr_rl.keys import key, raise_if_any
from gsr_rl.refinement.prompts import get_template
from gsr_rl.run_folder import atomic_write

SETTINGS_FILE = "gsr_config.json"
NO_CHAT_TEMPLATE = (
    "{model} has no chat template, so it cannot be prompted: set {key} to a file with one, such as the "
    "chat_template.jinja of an instruction-tuned model of its family"
)
COMPLETION_LENGTHS = ("max_completion_length", "max_refinement_length")  # of programs that sample


@dataclass
class ChatTemplateConfig:
    """The key of every program that prompts a model."""

    chat_template: str | None = key(None, "A file with a chat template (Jinja), in place of the model's own.")


@dataclass
class RefinementConfig:
    """How candidates are shown to the model that refines them: the same from distillation to serving."""

    num_candidates: int = key(4, "K: candidates shown in a refinement prompt.")
    prompt_template: str = key("gsr", "Wording of the prompts: gsr, tiny, or module:name of a PromptTemplate.")
    max_refinement_prompt_length: int = key(8192, "Tokens of a refinement prompt; longer candidates lose their front.")
    unfinished_candidates: str = key(
        "drop", "A candidate that ran into its length limit is not shown (`drop`), or shown as it is (`cut`)."
    )

    def __post_init__(self):
        raise_if_any(check_refinement(self))


def check_refinement(c) -> list[str]:
    """The keys of `RefinementConfig`."""
    messages = []
    if c.num_candidates < 1:
        messages.append(f"num_candidates={c.num_candidates}: a refinement needs at least one candidate, set it to 4")
    try:
        get_template(c.prompt_template)
    except ValueError as error:
        messages.append(str(error))
    if c.unfinished_candidates not in ("drop", "cut"):
        messages.append(f"unfinished_candidates={c.unfinished_candidates!r}: use drop or cut")
    return messages


def check_chat_template(c, model: str, role: str = "") -> list[str]:
    """The file that `chat_template` names exists; without one, a local model, of the key `model`, has its own."""
    key_name, tokenizer = f"{role}chat_template", f"{role}endpoint_tokenizer"
    model = tokenizer if getattr(c, tokenizer, None) else model
    file, folder = getattr(c, key_name, None), Path(str(getattr(c, model, None)))
    if file:
        return [] if Path(file).is_file() else [f"{key_name}={file}: there is no such file, give one in Jinja"]
    tokenizer = folder / "tokenizer_config.json"
    if not tokenizer.is_file() or any((folder / name).is_file() for name in ("chat_template.jinja", "tekken.json")):
        return []
    has_one = json.loads(tokenizer.read_text(encoding="utf-8")).get("chat_template")
    return [] if has_one else [NO_CHAT_TEMPLATE.format(model=f"{model}={folder}", key=key_name)]


def with_chat_template(tokenizer, file: str | None, model: str):
    """The tokenizer with the chat template of `file`, where that is set. `ValueError` where it then has none."""
    if file:
        tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
    if not getattr(tokenizer, "chat_template", "of its own kind"):
        raise ValueError(NO_CHAT_TEMPLATE.format(model=model, key="chat_template (or teacher_chat_template)"))
    return tokenizer


def check_trained_for(c, name: str) -> list[str]:
    """A local model is shown candidates as it was trained to read them: its gsr_config.json names the wording."""
    folder = Path(str(getattr(c, name, None) or ""))
    try:
        settings = read_refinement_settings(folder)
    except ValueError as error:
        return [f"{name}: {error}"]
    template = settings.get("prompt_template", c.prompt_template)
    if template != c.prompt_template:
        return [
            f"prompt_template={c.prompt_template}, but {name}={folder} was trained on {template} (its "
            f"gsr_config.json): set prompt_template to {template}; if another wording is meant, take that file away"
        ]
    return []


def write_refinement_settings(folder: str | Path, config: object) -> None:
    """Write `gsr_config.json` beside a model: how candidates must be shown to it.

    It holds the fields of `RefinementConfig`, `prompt_template_version`, `min_num_candidates` where the number of
    candidates was drawn, and the lengths that completions had in training where the program samples.
    """
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(RefinementConfig)}
    optional = ("min_num_candidates", *COMPLETION_LENGTHS)
    settings |= {name: getattr(config, name) for name in optional if getattr(config, name, None)}
    settings["prompt_template_version"] = get_template(settings["prompt_template"]).version
    atomic_write(Path(folder) / SETTINGS_FILE, json.dumps(settings, indent=1) + "\n")


def read_refinement_settings(folder: str | Path) -> dict:
    """The content of a model's `gsr_config.json`; empty if the model has none.

    Raises:
        ValueError: It is no JSON object, or its prompt template has another wording in this version of gsr-rl.
    """
    path = Path(folder) / SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        name, version = str(settings.get("prompt_template", "gsr")), settings.get("prompt_template_version", 1)
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no JSON object ({error}): restore it, or train or download the model anew"
        ) from None
    try:
        known = get_template(name).version
    except ValueError as error:
        raise ValueError(f"{path}: the model was trained on a wording that is not here: {error}") from None
    if version != known:
        raise ValueError(
            f"{path}: the model was trained on prompt_template {name}, version {version}; this gsr-rl has version "
            f"{known}: use the gsr-rl that versions.json names, or train anew"
        )
    return settings


def refinement_settings(model: str) -> dict[str, object]:
    """The fields of `RefinementConfig` and the lengths of completions that `gsr_config.json` beside a model holds.

    {} where there is no such file. Older files, and those of a warm start, lack some of them.

    Args:
        model: A folder, or a Hub name, whose file is read from the cache or fetched.

    Raises:
        ValueError: The file is no JSON object, one of its values is not of the field's type, or the model was trained
            on another wording of its prompt template than this version of gsr-rl has.
    """
    folder = Path(model) if Path(model).is_dir() else _from_hub(model)
    stored = read_refinement_settings(folder) if folder else {}
    types = {field.name: field.type for field in dataclasses.fields(RefinementConfig)}
    types |= dict.fromkeys(COMPLETION_LENGTHS, int)
    settings = {name: stored[name] for name in types if name in stored}
    for name, value in settings.items():
        if type(value) is not types[name]:
            expected = f"a value of type {types[name].__name__} is expected"
        elif name in COMPLETION_LENGTHS and value < 1:
            expected = "at least 1 is needed"
        else:
            continue
        raise ValueError(f"{folder}/{SETTINGS_FILE}: {name}={value!r}: {expected}")
    return settings


def _from_hub(model: str) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(model, SETTINGS_FILE)).parent
    except (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.HFValidationError):
        return None

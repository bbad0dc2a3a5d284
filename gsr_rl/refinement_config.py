"""How candidates are shown to the model that refines them, and the file beside a model that says so."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from gsr_rl.checks import check_refinement, raise_if_any

SETTINGS_FILE = "gsr_config.json"


@dataclass
class RefinementConfig:
    """How candidates are shown to the model that refines them: the same from distillation to serving."""

    num_candidates: int = field(default=4, metadata={"help": "K: candidates shown in a refinement prompt."})
    prompt_template: str = field(
        default="gsr", metadata={"help": "Wording of the two prompts: a name from gsr_rl/prompts.py (gsr, tiny)."}
    )
    max_refinement_prompt_length: int = field(
        default=8192,
        metadata={"help": "Budget of a refinement prompt in tokens. Longer candidates lose their front to fit."},
    )
    unfinished_candidates: str = field(
        default="drop",
        metadata={
            "help": "A candidate that ran into its length limit is not shown (`drop`), or shown as it is (`cut`)."
        },
    )

    def __post_init__(self):
        raise_if_any(check_refinement(self))


def read_refinement_settings(model: str) -> dict[str, object]:
    """The fields of `RefinementConfig` that `gsr_config.json` beside a model holds; {} where there is no such file.

    Args:
        model: A folder, or a Hub name, whose file is read from the cache or fetched.

    Raises:
        ValueError: The file is no JSON object, or one of its values is not of the field's type.
    """
    path = Path(model) / SETTINGS_FILE
    if not Path(model).is_dir():
        path = _from_hub(model)
    if path is None or not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}): write it anew or remove it") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: an object is expected, got {type(stored).__name__}: write it anew or remove it")
    found = {}
    for one in dataclasses.fields(RefinementConfig):
        if one.name in stored:
            found[one.name] = value = stored[one.name]
            if type(value) is not type(one.default):
                raise ValueError(f"{path}: {one.name}={value!r}: a value of type {one.type.__name__} is expected")
    return found


def _from_hub(model: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(model, SETTINGS_FILE))
    except (EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None

"""What a model's own `gsr_config.json` says of how candidates must be shown to it."""

import dataclasses
import json
from pathlib import Path

from gsr_rl.data_configs import RefinementConfig
from gsr_rl.prompts import TEMPLATES

SETTINGS_FILE = "gsr_config.json"


def read_refinement_settings(model: str) -> dict[str, object]:
    """The fields of `RefinementConfig` that `gsr_config.json` beside a model holds; {} where there is no such file.

    Args:
        model: A folder, or a Hub name, whose file is read from the cache or fetched.

    Raises:
        ValueError: The file is no JSON object, one of its values is not of the field's type, or the model was trained
            on another wording of its prompt template than this version of gsr-rl has.
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
    _check_template(path, stored)
    found = {}
    for one in dataclasses.fields(RefinementConfig):
        if one.name in stored:
            found[one.name] = value = stored[one.name]
            if type(value) is not type(one.default):
                raise ValueError(f"{path}: {one.name}={value!r}: a value of type {one.type.__name__} is expected")
    return found


def _check_template(path: Path, stored: dict) -> None:
    name, version = stored.get("prompt_template"), stored.get("prompt_template_version")
    if name in TEMPLATES and version not in (None, TEMPLATES[name].version):
        raise ValueError(
            f"{path}: the model was trained on version {version!r} of prompt_template {name}, and this gsr-rl has "
            f"version {TEMPLATES[name].version}: use the gsr-rl that it was trained with"
        )


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

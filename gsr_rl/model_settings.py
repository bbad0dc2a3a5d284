"""What a model's own `gsr_config.json` says of how candidates must be shown to it."""

import dataclasses
from pathlib import Path

from gsr_rl.data_configs import RefinementConfig
from gsr_rl.run_folder import read_refinement_settings

SETTINGS_FILE = "gsr_config.json"


def refinement_settings(model: str) -> dict[str, object]:
    """The fields of `RefinementConfig` that `gsr_config.json` beside a model holds; {} where there is no such file.

    Args:
        model: A folder, or a Hub name, whose file is read from the cache or fetched.

    Raises:
        ValueError: The file is no JSON object, one of its values is not of the field's type, or the model was trained
            on another wording of its prompt template than this version of gsr-rl has.
    """
    folder = Path(model) if Path(model).is_dir() else _from_hub(model)
    stored = read_refinement_settings(folder) if folder else {}
    found = {}
    for one in dataclasses.fields(RefinementConfig):
        if one.name in stored:
            found[one.name] = value = stored[one.name]
            if type(value) is not type(one.default):
                raise ValueError(
                    f"{folder}/{SETTINGS_FILE}: {one.name}={value!r}: a value of type {one.type.__name__} is expected"
                )
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
        return Path(hf_hub_download(model, SETTINGS_FILE)).parent
    except (EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None

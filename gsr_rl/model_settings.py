"""What a model's own `gsr_config.json` says of how candidates must be shown to it, and how long completions were."""

import dataclasses
from pathlib import Path

from gsr_rl.data_configs import COMPLETION_LENGTHS, RefinementConfig
from gsr_rl.run_folder import read_refinement_settings

SETTINGS_FILE = "gsr_config.json"


def refinement_settings(model: str) -> dict[str, object]:
    """The fields of `RefinementConfig` and the lengths of completions that `gsr_config.json` beside a model holds.

    {} where there is no such file, and without what an older one or one of a warm start lacks.

    Args:
        model: A folder, or a Hub name, whose file is read from the cache or fetched.

    Raises:
        ValueError: The file is no JSON object, one of its values is not of the field's type, or the model was trained
            on another wording of its prompt template than this version of gsr-rl has.
    """
    folder = Path(model) if Path(model).is_dir() else _from_hub(model)
    stored = read_refinement_settings(folder) if folder else {}
    kinds = {one.name: one.type for one in dataclasses.fields(RefinementConfig)} | dict.fromkeys(
        COMPLETION_LENGTHS, int
    )
    found = {name: stored[name] for name in kinds if name in stored}
    for name, value in found.items():
        if type(value) is not kinds[name]:
            expected = f"a value of type {kinds[name].__name__} is expected"
        elif name in COMPLETION_LENGTHS and value < 1:
            expected = "at least 1 is needed"
        else:
            continue
        raise ValueError(f"{folder}/{SETTINGS_FILE}: {name}={value!r}: {expected}")
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

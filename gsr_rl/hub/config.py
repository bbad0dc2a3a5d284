"""Configuration of what goes to the Hugging Face Hub, by the names of TRL's own keys, for programs without a trainer.

The token is no key: it comes from `HF_TOKEN` or `hf auth login`. Checks: `check_hub`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from gsr_rl.keys import key

TOKEN_KEYS = ("hub_token", "push_to_hub_token")


@dataclass
class HubConfig:
    """Whether and how to push; the same keys as in TRL's training arguments."""

    push_to_hub: bool = key(False, "Push to the Hub at the end. Token: HF_TOKEN.")
    hub_private_repo: bool | None = key(None, "Whether a made repository is private; true refuses a public one.")
    hub_revision: str | None = key(None, "Branch to push to; made if it is not there.")


@dataclass
class DataSetHubConfig(HubConfig):
    """Where a distilled set goes. A set is private unless it is asked to be public."""

    hub_private_repo: bool | None = key(True, "Whether a made repository is private; true refuses a public one.")
    hub_dataset_id: str | None = key(None, "Name of the data set on the Hub, USER/NAME, for push_to_hub.")


@dataclass
class ResultsHubConfig(HubConfig):
    """Where an evaluation's results go."""

    update_model_card: bool = key(False, "Write the results into README.md of the evaluated model's folder.")
    hub_model_id: str | None = key(None, "Model on the Hub whose card gets the results. Default: `model`.")


def check_hub(c) -> list[str]:
    """Messages on the keys of `HubConfig` and TRL's of the same names, before anything is loaded or sampled."""
    messages = [
        f"{name} is set: a token does not belong on a command line or in a file, where others read it. Leave the key "
        "out and export HF_TOKEN, or use `hf auth login` (value not shown)"
        for name in TOKEN_KEYS
        if getattr(c, name, None)
    ]
    names = {name: getattr(c, name, None) for name in ("hub_model_id", "hub_dataset_id")}
    for name, value in names.items():
        if value and not is_repo_name(str(value)):
            messages.append(f"{name}={value!r} is no name on the Hub: give USER/NAME in letters, digits, -, _ and .")
    if not c.push_to_hub:
        return messages
    if hasattr(c, "hub_dataset_id") and not names["hub_dataset_id"]:
        messages.append("push_to_hub=true needs hub_dataset_id: give the data set's name on the Hub, USER/NAME")
    if hasattr(c, "update_model_card") and not names["hub_model_id"] and Path(str(c.model)).is_dir():
        messages.append(f"push_to_hub=true needs hub_model_id, because model={c.model} is a folder: give USER/NAME")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        messages.append(
            "push_to_hub=true with HF_HUB_OFFLINE set: unset it, or leave push_to_hub out and push later by "
            "`python -m gsr_rl.hub push`"
        )
    elif not token():
        messages.append("push_to_hub=true but there is no token: export HF_TOKEN or use `hf auth login`")
    return messages


def check_update_model_card(c) -> list[str]:
    """A card can be written only where the model is a folder."""
    if c.update_model_card and not Path(str(c.model)).is_dir():
        return [f"update_model_card=true needs a folder, model={c.model} is none: use push_to_hub for the Hub's card"]
    return []


def is_repo_name(name: str) -> bool:
    """Whether the Hub could have a repository of this name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def token() -> str | None:
    """The Hub's token: of `HF_TOKEN`, or of `hf auth login`."""
    from huggingface_hub import get_token

    return get_token()

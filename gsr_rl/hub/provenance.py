"""Where a model comes from. It is written down when training starts, so that a card made later and elsewhere says the
same: a folder's name, seen from another place, looks like a name on the Hub."""

import json
from pathlib import Path

from gsr_rl.data.sources import GENERATED, LOCAL_SUFFIXES
from gsr_rl.hub.config import is_repo_name
from gsr_rl.run_folder import atomic_write

PROVENANCE = "provenance.json"
INHERITED = ("base_model", "datasets", "license", "language")


def write_provenance(folder: str | Path, start: str, dataset: str | None) -> None:
    """Write `provenance.json`: whether the start is a folder here or a model of the Hub, and what a card says of it.

    Args:
        folder: Of the run.
        start: `model_name_or_path` of the training.
        dataset: `dataset_name` of the training.
    """
    origin = _origin(start, dataset, start_on_hub=not Path(start).is_dir())
    atomic_write(Path(folder) / PROVENANCE, json.dumps(origin, indent=1) + "\n")


def read_provenance(folder: Path, start: str, dataset: str | None) -> dict:
    """`provenance.json` of a run: `start`, `on_hub`, and `card` (base_model, datasets, license, language).

    A run of before it was written has none: nothing then says that its start is on the Hub.
    """
    path = folder / PROVENANCE
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return _origin(start, dataset, start_on_hub=False)


def _origin(start: str, dataset: str | None, start_on_hub: bool) -> dict:
    card = {"base_model": start} if start_on_hub and is_repo_name(start) else _inherited(Path(start) / "README.md")
    if on_hub(dataset) and is_repo_name(dataset) and not Path(dataset).exists():
        card["datasets"] = list(dict.fromkeys([*card.get("datasets", []), dataset]))
    return {"start": start, "on_hub": start_on_hub, "card": card}


def _inherited(card: Path) -> dict:
    """What a local model's card says that holds for one trained from it; names that the Hub cannot have left out."""
    if not card.is_file():
        return {}
    from huggingface_hub import ModelCard

    data = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    found = {key: getattr(data, key, None) for key in INHERITED}
    for key in ("base_model", "datasets"):
        names = [found[key]] if isinstance(found[key], str) else found[key] or []
        names = [name for name in names if is_repo_name(str(name))]
        found[key] = names[0] if key == "base_model" and len(names) == 1 else names
    return {key: value for key, value in found.items() if value}


def shown_start(origin: dict) -> str:
    """The start as others may read it: of a folder its last part."""
    return origin["start"] if origin["on_hub"] else Path(origin["start"]).name


def on_hub(dataset: str | None) -> bool:
    """Whether a dataset_name is one of the Hub: no local file, and not generated."""
    return bool(dataset) and not dataset.startswith(GENERATED) and Path(dataset).suffix not in LOCAL_SUFFIXES

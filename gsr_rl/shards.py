"""A job's results as shards of units: whole or not there, each unit once, tied to the settings that made them."""

import json
from pathlib import Path

from gsr_rl.run_folder import atomic_write


class ShardStore:
    """Results of a resumable job, in one folder.

    A unit is a JSON object with a unique `unit` id. A shard is a file of units that appears in one step, so a job
    that is killed loses at most the shard at work, and never half of one.
    """

    def __init__(self, folder: str | Path, settings: dict):
        """Open the folder, or make it.

        Args:
            settings: What the results depend on.

        Raises:
            ValueError: The folder holds the results of other settings. Names each key that differs.
        """
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings, default=str))
        self._check_settings()

    def _check_settings(self) -> None:
        path = self.folder / "settings.json"
        if not path.is_file():
            atomic_write(path, json.dumps(self.settings, indent=1, sort_keys=True) + "\n")
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        keys = sorted(set(before) | set(self.settings))
        changed = [key for key in keys if before.get(key) != self.settings.get(key)]
        if changed:
            said = "; ".join(f"{key} was {before.get(key)!r}, is {self.settings.get(key)!r}" for key in changed)
            raise ValueError(
                f"{self.folder} holds results of another configuration ({said}): set it back, or give a new output_dir"
            )

    def load(self, kind: str) -> dict[str, dict]:
        """All finished units of a kind, by id, in the order in which they were written."""
        units: dict[str, dict] = {}
        for path in sorted(self.folder.glob(f"{kind}-*.jsonl")):
            with open(path, encoding="utf-8") as file:
                for line in file:
                    unit = json.loads(line)
                    units[unit["unit"]] = unit
        return units

    def append(self, kind: str, units: list[dict]) -> None:
        """Add a shard of units, in one step, synced to disk."""
        number = len(list(self.folder.glob(f"{kind}-*.jsonl")))
        text = "".join(json.dumps(unit, ensure_ascii=False) + "\n" for unit in units)
        atomic_write(self.folder / f"{kind}-{number:06d}.jsonl", text)

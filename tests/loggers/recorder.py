"""What a stand-in logger is given, one JSON line each, in the folder that the environment variable LOGGED names."""

import json
import os


def write(logger: str, **content) -> None:
    with open(os.path.join(os.environ["LOGGED"], f"{logger}.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(content, allow_nan=False) + "\n")


class Config(dict):
    """A run's configuration: only what JSON can hold."""

    def update(self, values, allow_val_change):
        super().update(json.loads(json.dumps(values, default=str)))

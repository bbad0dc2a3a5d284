"""Figures of the tiny world's arms, read from results/paper: each arm on the seeds that a table's arms all have."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from paper_steps import BASE

from gsr_rl.refinement.metrics import Ratio, share
from gsr_rl.report.intervals import estimate_over_seeds
from gsr_rl.report.problem_values import metric_name

# K is an arm's number of candidates per set.
COLUMNS = ["pass@1", "maj@K", "selfref@K", "pass@K", "refinement_gap", "selfref_frozen", "selfref_foreign"]
COLUMNS += ["selfref_none", "maj@K+1", "maj@tokens", "verdict@K"]
SHOWN = [*COLUMNS[:8], "verdict@K"]


@dataclass
class Arm:
    """Of each seed: figures by problem, all in the order of the first seed's problems, and settings and costs."""

    name: str
    seeds: list[int]
    frames: list[pd.DataFrame]
    settings: list[dict]

    @property
    def k(self) -> int:
        return self.settings[0]["k"]

    def shares(self, column: str, part: str | None = None) -> list:
        """A column as a ratio for each seed, over one part of the problems or over all."""
        rows = [frame if part is None else frame[frame["part"] == part] for frame in self.frames]
        return [share(frame.get(column, [float("nan")] * len(frame))) for frame in rows]  # older files lack some

    def estimate(self, column: str, part: str | None = None) -> dict:
        """A column over all seeds, `{"value", "low", "high", "seeds"}`."""
        return estimate_over_seeds(self.shares(column, part), signed=column == "refinement_gap")

    def mean(self, *keys: str) -> float:
        """The mean over seeds of a number in the settings."""
        total = 0
        for value in self.settings:
            for key in keys:
                value = value[key]
            total += value
        return total / len(self.settings)


def load(config: dict, results: Path) -> dict[str, Arm]:
    """The arms of a table that have been run, on its seeds that all of those have; {} if a claim could not be told."""
    seeds = [seed for seed in seeds_of(results) if is_for(config, seed)]
    files = {name: [results / f"seed{seed}" / f"{name}.json" for seed in seeds] for name in config["arms"]}
    started = {name: paths for name, paths in files.items() if any(path.is_file() for path in paths)}
    run = [place for place in range(len(seeds)) if all(paths[place].is_file() for paths in started.values())]
    arms = {}
    for name, paths in started.items() if run else ():
        frames = [pd.read_parquet(paths[place].with_suffix(".parquet")).set_index("problem_id") for place in run]
        settings = [json.loads(paths[place].read_text(encoding="utf-8")) for place in run]
        for frame, of_seed in zip(frames, settings, strict=True):  # by its number too, as other sizes of the set are
            frame[f"selfref@{of_seed['k']}"] = frame["selfref@K"]
        arms[name] = Arm(name, [seeds[place] for place in run], [f.loc[frames[0].index] for f in frames], settings)
    told = [claim for claim in config["claims"] if {claim["new"][0], claim["old"][0]} <= set(arms)]
    return arms if told else {}


def differences(new: Arm, high: str, old: Arm, low: str, part: str | None = None) -> list[Ratio]:
    """Column `high` of an arm less `low` of another, paired by problem, as a ratio for each seed.

    Over one part of the problems or all; [] without such a part.
    """
    ratios = []
    for a, b in zip(new.frames, old.frames, strict=True):
        rows = a if part is None else a[a["part"] == part]
        ratios.append(share(rows[high] - b.loc[rows.index][low]))
    return ratios if len(rows) else []


def is_for(config: dict, seed: int) -> bool:
    """Whether a table has this seed: one of its `seeds`, or else any that starts from the shipped base."""
    return seed in config["seeds"] if "seeds" in config else seed < BASE


def seeds_of(results: Path) -> list[int]:
    """The seeds that have figures."""
    return sorted(int(folder.name.removeprefix("seed")) for folder in results.glob("seed[0-9]*"))


def titles(columns: list[str], arms: dict[str, Arm]) -> list[str]:
    """Columns as they are shown: with the number itself where all arms have the same K."""
    numbers = {arm.k for arm in arms.values()}
    return [metric_name(column, *numbers) for column in columns] if len(numbers) == 1 else columns

"""What an evaluation asks of the model about a problem's candidates: for each method, which candidates are shown.

A *kind* is what is sampled and stored together: `candidates`, each method that asks the model once a set, and each
round of `rounds`.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

from gsr_rl.evaluation.config import SCORED
from gsr_rl.refinement.candidates import candidate_sets, choice_seed
from gsr_rl.refinement.prompts import shown_candidates

SINGLE = ("selfref", "selfref_none", "selfref_foreign", "select", "orders")


@dataclass(frozen=True)
class Task:
    """One prompt about a problem, to be sampled from `n` times.

    Attributes:
        method: As in samples.parquet.
        index: Number of the candidate set.
        candidates: Indices of the set, in the order in which they are shown.
        candidates_of: Id of the problem that they belong to; None without candidates.
        shown: Index and text of those that are shown.
    """

    method: str
    index: int
    candidates: list[int]
    candidates_of: str | None
    shown: list[tuple[int, str]]
    n: int = 1
    round: int | None = None
    order: int | None = None


def kinds_of(config) -> list[str]:
    """Everything that the configured methods need, in the order in which it is made."""
    kinds = ["candidates"]
    for method in config.methods:
        if method in SINGLE:
            kinds.append(method)
        elif method == "rounds":
            kinds += [f"rounds_{number}" for number in range(1, config.refinement_rounds + 1)]
    if config.candidates_from and config.own_candidates:
        kinds.append("selfref_frozen")
    if set(config.methods) & set(SCORED):
        kinds.append("scores")
    return kinds


def unit_id(row: dict) -> str:
    """Of the problem, in a run over several benchmarks."""
    return f"{row['benchmark']}/{row['id']}"


def foreign_problems(groups: list[str], seed: int) -> list[int | None]:
    """For each problem another one, each used once: of the same group where that has two; None if alone."""
    members_of = defaultdict(list)
    for problem, group in enumerate(groups):
        members_of[group].append(problem)
    found: list[int | None] = [None] * len(groups)
    for group, members in members_of.items():
        pool = members if len(members) > 1 else [p for p in range(len(groups)) if p != members[0]]
        order = random.Random(choice_seed(seed, group)).sample(pool, len(pool))
        if len(members) == 1:
            found[members[0]] = order[0] if order else None
            continue
        for place, problem in enumerate(order):
            found[problem] = order[place - 1]
    return found


class Planner:
    """The tasks of each kind for a problem, from the units that are stored.

    Args:
        rows: The problems.
        config: An `EvalConfig`.
        units: By kind, what is stored (`shards.Units`).
        frozen: With `candidates_from`: candidates and sets of the other run, by unit (`frozen_sets`).
        seed: Of the choice of sets; the other run's where its candidates are taken.
    """

    def __init__(self, rows: list[dict], config, units: dict, frozen: dict | None = None, seed: int | None = None):
        self.rows, self.config, self.units, self.frozen = rows, config, units, frozen or {}
        self.seed = config.seed if seed is None else seed
        groups = [f"{row['benchmark']}\x1f{row.get('family', '')}" for row in rows]
        others = self._foreign(groups)
        self._other = {unit_id(row): other for row, other in zip(rows, others, strict=True)}

    def _foreign(self, groups: list[str]) -> list[dict | None]:
        """Another problem of the same benchmark, and of the same `family` if the rows have that key and it has two."""
        found: list[dict | None] = [None] * len(self.rows)
        by_benchmark = defaultdict(list)
        for place, row in enumerate(self.rows):
            by_benchmark[row["benchmark"]].append(place)
        for places in by_benchmark.values():
            others = foreign_problems([groups[place] for place in places], self.config.seed)
            for place, other in zip(places, others, strict=True):
                found[place] = None if other is None else self.rows[places[other]]
        return found

    def candidates(self, row: dict) -> list[dict]:
        """The problem's stored candidates."""
        return self.units["candidates"][unit_id(row)]["samples"]

    def sets(self, row: dict) -> list[list[int]]:
        """The problem's candidate sets."""
        c = self.config
        number = len(self.candidates(row))
        return candidate_sets(row["id"], number, c.num_candidates, c.num_candidate_sets, self.seed)

    def _shown(self, samples: list[dict], chosen: list[int]) -> list[tuple[int, str]]:
        texts, finished = [one["text"] for one in samples], [one["finished"] for one in samples]
        return shown_candidates(texts, finished, chosen, self.config.unfinished_candidates)

    def tasks(self, kind: str, row: dict) -> list[Task]:
        """What is asked about a problem for a kind of `kinds_of`, without `candidates` and `scores`."""
        name, _, number = kind.rpartition("_")
        return self._round(row, int(number)) if name == "rounds" else getattr(self, f"_{kind}")(row)

    def _selfref(self, row: dict, method: str = "selfref") -> list[Task]:
        samples = self.candidates(row)
        sets = enumerate(self.sets(row))
        return [Task(method, index, chosen, row["id"], self._shown(samples, chosen)) for index, chosen in sets]

    def _select(self, row: dict) -> list[Task]:
        return self._selfref(row, "select")

    def _selfref_none(self, row: dict) -> list[Task]:
        return [Task("selfref_none", index, [], None, []) for index in range(len(self.sets(row)))]

    def _selfref_foreign(self, row: dict) -> list[Task]:
        other = self._other[unit_id(row)]
        if other is None:
            return []
        samples = self.candidates(other)
        sets = enumerate(self.sets(other))
        shown = [(index, chosen, self._shown(samples, chosen)) for index, chosen in sets]
        return [Task("selfref_foreign", index, chosen, other["id"], texts) for index, chosen, texts in shown]

    def _selfref_frozen(self, row: dict) -> list[Task]:
        samples, sets = self.frozen[unit_id(row)]
        return [
            Task("selfref_frozen", index, chosen, row["id"], self._shown(samples, chosen))
            for index, chosen in sorted(sets.items())
        ]

    def _orders(self, row: dict) -> list[Task]:
        """Each set again in its own order (order 0), and in others; no set that can be shown in one order only."""
        samples, tasks, repeats = self.candidates(row), [], self.config.order_repeats
        for index, chosen in enumerate(self.sets(row)):
            own = self._shown(samples, chosen)
            if len({text for _, text in own}) < 2:
                continue
            tasks.append(Task("orders", index, chosen, row["id"], own, n=repeats, order=0))
            rng = random.Random(choice_seed(self.seed, row["id"], "orders", index))
            for order in range(1, repeats + 1):
                shown = own
                while [text for _, text in shown] == [text for _, text in own]:
                    other = rng.sample(chosen, len(chosen))
                    shown = self._shown(samples, other)
                tasks.append(Task("orders", index, other, row["id"], shown, order=order))
        return tasks

    def _round(self, row: dict, number: int) -> list[Task]:
        """K refinements of each set in the first round, then K over the K of the round before."""
        k, tasks = self.config.num_candidates, []
        for index, chosen in enumerate(self.sets(row)):
            samples = self.candidates(row)
            if number > 1:
                before = self.units[f"rounds_{number - 1}"][unit_id(row)]["samples"]
                samples = [one for one in before if one["index"] == index]
                chosen = list(range(len(samples)))
            shown = self._shown(samples, chosen)
            tasks.append(Task("rounds", index, chosen, row["id"], shown, n=k, round=number))
        return tasks

"""What an evaluation asks of the model about a problem's candidates: for each method, which candidates are shown.

A *kind* is what is sampled and stored together: `candidates`, each method that asks the model once per set, each
round of `rounds`, each size of `flat` and `refine_and_vote`, each level of `tree`.
"""

import random
from collections import defaultdict
from dataclasses import dataclass, field

from gsr_rl.evaluation.config import SCORED
from gsr_rl.refinement.candidates import candidate_sets, choice_seed, pool_sets, tree_sets
from gsr_rl.refinement.stages import Candidate, Stages

SINGLE = ("selfref", "selfref_none", "selfref_foreign", "select", "orders")
STAGES = {"direct": "candidate", "select": "selection"}  # of methods; the others' is `refinement`


@dataclass(frozen=True)
class Task:
    """One prompt about a problem, to be sampled from `n` times.

    Attributes:
        method: As in samples.parquet; `direct` asks for the candidates themselves.
        index: Number of the candidate set.
        candidates: Indices of the set, in the order in which they are shown.
        candidates_of: Id of the problem that they belong to; None without candidates.
        shown: Index and text of those that are shown.
        n: Samples.
        round: Of `rounds`, and the level of `tree`, from 1; in the first one candidates are shown, then the
            refinements of the one before.
        order: Of `orders`: 0 for the set's own order, then the number of another one.
        pool: Of `refine_and_vote` and `tree`: N, out of how many candidates sets are made; of `flat`: the set's size.
    """

    method: str
    index: int = 0
    candidates: list[int] = field(default_factory=list)
    candidates_of: str | None = None
    shown: list[tuple[int, str]] = field(default_factory=list)
    n: int = 1
    round: int | None = None
    order: int | None = None
    pool: int | None = None

    @property
    def stage(self) -> str:
        """`candidate`, `refinement` or `selection`."""
        return STAGES.get(self.method, "refinement")

    @property
    def texts(self) -> list[str]:
        """The texts that are shown."""
        return [text for _, text in self.shown]


def kinds_of(config) -> list[str]:
    """The kinds that the configured methods need, in the order in which they are sampled."""
    kinds = ["candidates"]
    for method in config.methods:
        if method in SINGLE:
            kinds.append(method)
        elif method == "rounds":
            kinds += [f"rounds_{number}" for number in range(1, config.refinement_rounds + 1)]
        elif method == "flat":
            kinds += [f"flat_{size}" for size in config.flat_sizes]
        elif method == "refine_and_vote":
            kinds += [f"refine_and_vote_{size}" for size in config.pools]
        elif method == "tree":
            kinds += [f"tree_{level}" for level in range(1, len(tree_levels(config)) + 1)]
    if config.candidates_from and config.own_candidates:
        kinds.append("selfref_frozen")
    if set(config.methods) & set(SCORED):
        kinds.append("scores")
    return kinds


def tree_levels(config) -> list[list[list[int]]]:
    """The sets of each level of a tree over the largest pool: the last level is one set. [] without that method."""
    levels, number = [], max(config.pool_sizes) if "tree" in config.methods else 0
    while number and (not levels or number > 1):
        levels.append(tree_sets(number, config.num_candidates))
        number = len(levels[-1])
    return levels


def unit_id(row: dict) -> str:
    """The problem's id, unique in a run over several benchmarks."""
    return f"{row['benchmark']}/{row['id']}"


def requests_of(number: int | None, config, frozen: dict | None = None) -> dict[str, object]:
    """How much is sampled for `number` problems (None: only the Hub knows how many), as a dry run shows it.

    Args:
        frozen: The other run's sets, if they are refined too (`from_other_run`).
    """
    if number is None:
        return {"problems": "? (a dry run does not ask the Hub)"}
    sets, refinements = number * config.num_candidate_sets, 0
    per_set = {"orders": 2 * config.order_repeats}
    per_set |= {kind: config.num_candidates for kind in kinds_of(config) if kind.startswith("rounds")}
    per_problem = {f"refine_and_vote_{size}": drawn for size, drawn in config.pools.items()}
    per_problem |= {f"tree_{level}": len(of_level) for level, of_level in enumerate(tree_levels(config), 1)}
    figures: dict[str, object] = {"problems": number, "candidates": 0, "candidate sets": sets}
    for kind in kinds_of(config):
        if kind == "candidates":
            figures["candidates"] = number * config.num_generations if config.own_candidates else 0
        elif kind == "selfref_frozen" and frozen:
            refinements += sum(len(other_sets) for _, other_sets in frozen.values())
        elif kind == "scores":
            figures["candidates scored by the reward model"] = number * config.num_generations
        else:
            refinements += number * per_problem[kind] if kind in per_problem else sets * per_set.get(kind, 1)
    figures["refinements, controls included"] = refinements
    longest = figures["candidates"] * config.max_completion_length + refinements * config.max_refinement_length
    return figures | {"completion tokens at most": longest}


def foreign_problems(groups: list[str], seed: int) -> list[int | None]:
    """For each problem another one's index, each used once: of its group if that has two; None if there is none."""
    members_of = defaultdict(list)
    for problem, group in enumerate(groups):
        members_of[group].append(problem)
    others: list[int | None] = [None] * len(groups)
    for group, members in members_of.items():
        pool = members if len(members) > 1 else [p for p in range(len(groups)) if p != members[0]]
        order = random.Random(choice_seed(seed, group)).sample(pool, len(pool))
        if len(members) == 1:
            others[members[0]] = order[0] if order else None
            continue
        for place, problem in enumerate(order):
            others[problem] = order[place - 1]
    return others


def _foreign_rows(rows: list[dict], seed: int) -> dict[str, dict | None]:
    """By unit, another problem of the benchmark, and of the same `family` if the rows have that key and it has two."""
    by_benchmark = defaultdict(list)
    for row in rows:
        by_benchmark[row["benchmark"]].append(row)
    foreign = {}
    for members in by_benchmark.values():
        others = foreign_problems([f"{row['benchmark']}\x1f{row.get('family', '')}" for row in members], seed)
        for row, other in zip(members, others, strict=True):
            foreign[unit_id(row)] = None if other is None else members[other]
    return foreign


class StoredRun:
    """An evaluation's problems and what has been stored for them.

    Args:
        rows: The problems.
        config: An `EvalConfig`.
        units: What is stored, by kind (`engines.jobs.Units`).
        frozen: With `candidates_from`: candidates and sets of the other run, by unit (`frozen_sets`).
        seed: For the choice of sets; the other run's if its candidates are used.
    """

    def __init__(self, rows: list[dict], config, units: dict, frozen: dict | None, seed: int):
        self.rows, self.config, self.units, self.frozen, self.seed = rows, config, units, frozen or {}, seed
        self.foreign = _foreign_rows(rows, config.seed)

    def missing(self, kind: str) -> list[dict]:
        """The problems without a stored unit of this kind."""
        return [row for row in self.rows if unit_id(row) not in self.units[kind]]

    def candidates(self, row: dict) -> list[dict]:
        """The problem's stored candidates."""
        return self.units["candidates"][unit_id(row)]["samples"]

    def sets(self, row: dict, size: int | None = None) -> list[list[int]]:
        """The problem's candidate sets, of `num_candidates` or another size."""
        c, number = self.config, len(self.candidates(row))
        return candidate_sets(row["id"], number, size or c.num_candidates, c.num_candidate_sets, self.seed)


class Planner:
    """The tasks of each kind for a problem, from what is stored."""

    def __init__(self, run: StoredRun, stages: Stages):
        self.run, self.stages = run, stages

    def tasks(self, kind: str, row: dict) -> list[Task]:
        """The tasks of one kind (`kinds_of`) for a problem; `scores` has none, the reward model makes them."""
        method, _, number = kind.rpartition("_")
        return getattr(self, f"_{method}")(row, int(number)) if number.isdigit() else getattr(self, f"_{kind}")(row)

    def _shown(self, samples: list[dict], chosen: list[int]) -> list[tuple[int, str]]:
        return self.stages.shown([Candidate(sample["text"], sample["finished"]) for sample in samples], chosen)

    def _candidates(self, row: dict) -> list[Task]:
        return [Task("direct", n=self.run.config.num_generations)]

    def _selfref(self, row: dict, method: str = "selfref") -> list[Task]:
        samples = self.run.candidates(row)
        sets = enumerate(self.run.sets(row))
        return [Task(method, index, chosen, row["id"], self._shown(samples, chosen)) for index, chosen in sets]

    def _select(self, row: dict) -> list[Task]:
        return self._selfref(row, "select")

    def _selfref_none(self, row: dict) -> list[Task]:
        return [Task("selfref_none", index) for index in range(len(self.run.sets(row)))]

    def _selfref_foreign(self, row: dict) -> list[Task]:
        other = self.run.foreign[unit_id(row)]
        return [] if other is None else self._selfref(other, "selfref_foreign")

    def _selfref_frozen(self, row: dict) -> list[Task]:
        samples, sets = self.run.frozen[unit_id(row)]
        return [
            Task("selfref_frozen", index, chosen, row["id"], self._shown(samples, chosen))
            for index, chosen in sorted(sets.items())
        ]

    def _orders(self, row: dict) -> list[Task]:
        """Each set in its own order (order 0) and in others; sets that have only one order are skipped."""
        samples, tasks, repeats = self.run.candidates(row), [], self.run.config.order_repeats
        for index, chosen in enumerate(self.run.sets(row)):
            first = Task("orders", index, chosen, row["id"], self._shown(samples, chosen), n=repeats, order=0)
            if len(set(first.texts)) < 2:
                continue
            tasks.append(first)
            rng = random.Random(choice_seed(self.run.seed, row["id"], "orders", index))
            for order in range(1, repeats + 1):
                other = first
                while other.texts == first.texts:
                    shuffled = rng.sample(chosen, len(chosen))
                    shown = self._shown(samples, shuffled)
                    other = Task("orders", index, shuffled, row["id"], shown, order=order)
                tasks.append(other)
        return tasks

    def _flat(self, row: dict, size: int) -> list[Task]:
        samples = self.run.candidates(row)
        sets = enumerate(self.run.sets(row, size))
        return [Task("flat", i, chosen, row["id"], self._shown(samples, chosen), pool=size) for i, chosen in sets]

    def _refine_and_vote(self, row: dict, size: int) -> list[Task]:
        """One refinement of each of R sets of K, drawn from those of the first `size` candidates that can be shown."""
        c, samples = self.run.config, self.run.candidates(row)[:size]
        usable = [self.stages.can_show(Candidate(sample["text"], sample["finished"])) for sample in samples]
        seed = choice_seed(self.run.seed, row["id"], "pool", size)
        return [
            Task("refine_and_vote", index, chosen, row["id"], self._shown(samples, chosen), pool=size)
            for index, chosen in enumerate(pool_sets(usable, c.num_candidates, c.pools[size], seed))
        ]

    def _tree(self, row: dict, level: int) -> list[Task]:
        """One refinement per set of a level: sets of K candidates, then of the refinements of the level before."""
        size, samples = max(self.run.config.pool_sizes), self.run.candidates(row)
        if level > 1:
            before = self.run.units[f"tree_{level - 1}"][unit_id(row)]["samples"]
            samples = sorted(before, key=lambda sample: sample["index"])
        sets = enumerate(tree_levels(self.run.config)[level - 1])
        return [
            Task("tree", index, chosen, row["id"], self._shown(samples, chosen), round=level, pool=size)
            for index, chosen in sets
        ]

    def _rounds(self, row: dict, number: int) -> list[Task]:
        """K refinements per set: of its candidates in the first round, then of the round before's refinements."""
        k, tasks = self.run.config.num_candidates, []
        for index, chosen in enumerate(self.run.sets(row)):
            samples = self.run.candidates(row)
            if number > 1:
                before = self.run.units[f"rounds_{number - 1}"][unit_id(row)]["samples"]
                samples = [sample for sample in before if sample["index"] == index]
                chosen = list(range(len(samples)))
            shown = self._shown(samples, chosen)
            tasks.append(Task("rounds", index, chosen, row["id"], shown, n=k, round=number))
        return tasks

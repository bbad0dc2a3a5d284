"""samples.parquet: every sample of an evaluation, one a row, with the run's settings in the file's metadata.

`Problem` is what the rows of one problem are under one grading: candidates, and candidate sets with what is over them.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from gsr_rl.refinement import metrics
from gsr_rl.refinement.candidates import candidate_sets
from gsr_rl.refinement.metrics import is_scored
from gsr_rl.refinement.prompts import get_template
from gsr_rl.run_folder import atomic_path, hardware, versions

GRADINGS = ("lenient", "strict")
TEXTS = ("benchmark", "part", "problem_id", "problem", "gold", "stage", "method", "candidates_of", "text")
NUMBERS = ("index", "round", "order", "pool", "repeat", "chosen", "tokens", "prompt_tokens")
FLAGS = ("finished", "skipped", "copied", "verdict")
METHODS_WITH_SETS = ("selfref", "select", "rounds")  # their samples say which candidate sets there are
FIELDS = ("index", "tokens", "prompt_tokens", "candidates", "round", "order", "pool", "chosen", "copied", "skipped",
          "score", "verdict")  # fmt: skip
COLUMNS = ["benchmark", "part", "problem_id", "problem", "gold", "method", "repeat", "finished"]
COLUMNS += [*FIELDS, *(f"{kind}_{grading}" for grading in GRADINGS for kind in ("correct", "class"))]
# settings that older files lack
OLD_SETTINGS = {
    "grouping": "resampled",
    "methods": ["selfref", "selfref_none", "selfref_foreign"],
    "candidates_from": None,
}


def samples_path(path: str | Path) -> Path:
    """A samples.parquet, named itself or by the run folder that holds it."""
    return Path(path) / "samples.parquet" if Path(path).is_dir() else Path(path)


def schema(header: dict):
    """The file's pyarrow schema.

    Columns beside the plain ones: `index` of the candidate or of the candidate set; `candidates`, what was shown, as
    indices into the problem's candidates (with `round` above 1, into the refinements of the round before);
    `candidates_of`, the problem that they belong to; `order` 0 for the set's own order; `repeat` among samples of one
    prompt; `pool`, of how many candidates sets of K are made, or the set's size where that is not K; `chosen` by a
    selection; `class_*` groups equal answers of a problem, candidates' classes first; `score` of a reward model, as a
    logit; `copied`, word by word from a candidate; `verdict`, whether a candidate says that its check held.
    """
    import pyarrow as pa

    kinds = {name: pa.string() for name in TEXTS} | {name: pa.int64() for name in NUMBERS}
    kinds |= {name: pa.bool_() for name in FLAGS} | {"candidates": pa.list_(pa.int64()), "score": pa.float64()}
    for grading in GRADINGS:
        kinds |= {f"answer_{grading}": pa.string(), f"correct_{grading}": pa.float64(), f"class_{grading}": pa.int64()}
    return pa.schema(list(kinds.items()), metadata={"gsr": json.dumps(header)})


def write_samples(path: str | Path, samples: list[dict], header: dict) -> None:
    """Write samples and the run's settings to a parquet file, atomically. A column that is absent is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(samples, schema=schema(header)), temporary)


def read_samples(path: str | Path, columns: list[str] | None = None) -> tuple[dict, list[dict]]:
    """The settings and the rows of a samples.parquet; a column that the file lacks is None in every row.

    A setting that an older file lacks has the value of then (`OLD_SETTINGS`).

    Raises:
        ValueError: Another kind of file.
    """
    import pyarrow
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path}: not a samples.parquet of eval_gsr.py ({error})") from None
    with opened as file:
        metadata, known = file.schema_arrow.metadata or {}, set(file.schema_arrow.names)
        if b"gsr" not in metadata:
            raise ValueError(f"{path}: not a samples.parquet of eval_gsr.py (it lacks the run's settings)")
        wanted = columns if columns is not None else file.schema_arrow.names
        rows = file.read(columns=[name for name in wanted if name in known]).to_pylist()
    missing = dict.fromkeys(name for name in wanted if name not in known)
    return OLD_SETTINGS | json.loads(metadata[b"gsr"]), [missing | row for row in rows] if missing else rows


def skipped_of(samples: list[dict]) -> dict[str, dict[str, int]]:
    """By method, of those that have any: how many samples were `skipped`, and how many there are (`samples`)."""
    counts: dict[str, dict[str, int]] = {}
    for sample in samples:
        of_method = counts.setdefault(sample["method"], {"skipped": 0, "samples": 0})
        of_method["skipped"] += sample["skipped"]
        of_method["samples"] += 1
    return {method: of_method for method, of_method in counts.items() if of_method["skipped"]}


def counts_of(samples: list[dict]) -> dict[str, float]:
    """Amounts beside the figures: tokens and finished shares by stage, unscored samples."""
    counts: dict[str, float] = {}
    for stage, method in (("candidate", "direct"), ("refinement", "selfref")):
        rows = [sample for sample in samples if sample["method"] == method]
        if rows:
            counts[f"{stage}_tokens_mean"] = round(sum(row["tokens"] for row in rows) / len(rows), 3)
            counts[f"{stage}_finished"] = round(sum(row["finished"] for row in rows) / len(rows), 6)
    counts["tokens"] = sum(sample["tokens"] for sample in samples)
    # a prompt of which several samples were drawn counts once
    first = [s for s in samples if (s["index"] if s["method"] == "direct" else s["repeat"]) in (0, None)]
    counts["prompt_tokens"] = sum(sample["prompt_tokens"] or 0 for sample in first)
    counts["unscored_samples"] = sum(sample["correct_lenient"] is None for sample in samples)
    return counts


def check_same_problems(here: dict, there: dict, keys: Iterable[tuple[str, str]], where: str = "") -> None:
    """Raises `ValueError` where a (benchmark, id) of both stands for another problem or gold answer."""
    for name, identity in keys:
        pairs = zip(("problem", "answer"), here[name, identity], there[name, identity], strict=True)
        for what, first, second in pairs:
            if first != second and None not in (first, second):
                raise ValueError(
                    f"{where}{identity} of {name} is not the same {what} in both runs ({first[:60]!r} and "
                    f"{second[:60]!r}): evaluate the same file, or give its rows ids of their own"
                )


def header_of(config, rows: list[dict], other: dict | None = None) -> dict:
    """The settings that belong to the figures: model, K, sampling of each stage, seed, versions, hardware.

    Of an `EvalConfig`, the problems, and the settings of the run whose candidates are taken (evaluation/stores.py).
    """
    return {
        "model": config.model,
        "candidates_model": other["candidates_model"] if other else config.model,
        "k": config.num_candidates,
        "num_problems": len(rows),
        "num_samples": config.num_generations,
        "num_candidate_sets": config.num_candidate_sets,
        "grouping": config.grouping,
        "methods": list(config.methods),
        "pools": {str(size): drawn for size, drawn in config.pools.items()} or None,
        "seed": config.seed,
        "sampling": _sampling(config, other),
        "engine": config.engine,
        "reward_model": config.reward_model,
        "candidates_from": config.candidates_from,
        "own_candidates": config.own_candidates,
        "versions": versions(),
        "hardware": hardware(),
    }


def _sampling(config, other: dict | None) -> dict:
    candidate = {"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_completion_length}
    return {
        "candidate": other["sampling"]["candidate"] if other else candidate,
        "refinement": {
            "temperature": config.refinement_temperature,
            "top_p": config.refinement_top_p,
            "max_tokens": config.max_refinement_length,
        },
        "prompt_template": config.prompt_template,
        "prompt_template_version": get_template(config.prompt_template).version,
        "max_refinement_prompt_length": config.max_refinement_prompt_length,
        "unfinished_candidates": config.unfinished_candidates,
    }


@dataclass(slots=True)
class Sample:
    """A stored sample under one grading; what the fields mean: gsr_rl/report/samples.py."""

    index: int
    tokens: int
    prompt_tokens: int | None
    candidates: list[int] | None
    round: int | None
    order: int | None
    pool: int | None
    chosen: int | None
    copied: bool | None
    skipped: bool
    score: float | None
    verdict: bool | None
    correct: float  # NaN if unscored
    answer: int | None  # its class of equal answers


@dataclass
class CandidateSet:
    """Candidates that are shown together, and by method the samples over them. NaN stands for unscored.

    Attributes:
        num_correct: Right candidates; None if one is unscored.
        maj, selfref: Correctness of the vote and of the refinement.
        tokens: Completion tokens of the candidates.
        copied: 1 if the refinement is a candidate word by word, else 0; NaN if it was not asked for, or not looked at.
        novel: 1 if its answer is no candidate's, else 0; NaN without an answer, and where `copied` is NaN.
        verdict: Correctness of the vote among candidates with a `verdict`, of all where none has one.
        unseen: The share of right ones among the problem's candidates that are not in the set; NaN without any.
    """

    candidates: list[Sample]
    samples: dict[str, list[Sample]]
    unseen: float = math.nan

    def __post_init__(self):
        correct = [candidate.correct for candidate in self.candidates]
        self.num_correct = sum(value == 1.0 for value in correct) if all(map(is_scored, correct)) else None
        self.maj = vote(self.candidates)
        self.verdict = vote([candidate for candidate in self.candidates if candidate.verdict] or self.candidates)
        self.tokens = sum(candidate.tokens for candidate in self.candidates)
        self.refinement = refinement = next(iter(self.samples["selfref"]), None)
        self.selfref = refinement.correct if refinement else math.nan
        self.copied = self.novel = math.nan
        if refinement and not refinement.skipped and refinement.copied is not None:
            self.copied = float(refinement.copied)
            if refinement.answer is not None:
                self.novel = float(refinement.answer not in {candidate.answer for candidate in self.candidates})

    @property
    def is_scored(self) -> bool:
        """Whether both the vote and the refinement are."""
        return is_scored(self.maj) and is_scored(self.selfref)

    @property
    def refined_tokens(self) -> int:
        """Completion tokens of the candidates and the refinement."""
        return self.tokens + self.refinement.tokens

    def round(self, number: int) -> list[Sample]:
        """The refinements of one round, from 1 on."""
        return [sample for sample in self.samples["rounds"] if sample.round == number]

    def tokens_through(self, last: int) -> int:
        """Completion tokens of the candidates and of all rounds up to `last`."""
        return self.tokens + sum(sample.tokens for sample in self.samples["rounds"] if sample.round <= last)

    def disagreement(self, reordered: bool) -> float:
        """How often two refinements disagree: one in the set's order and one in another, or both in its order."""
        in_order = [sample.correct for sample in self.samples["orders"] if sample.order == 0]
        others = [sample.correct for sample in self.samples["orders"] if sample.order]
        return metrics.disagreement(in_order, others if reordered else None)

    def best(self) -> float:
        """Correctness of the candidate with the highest score."""
        return metrics.best_of([c.score for c in self.candidates], [c.correct for c in self.candidates])

    def weighted_maj(self) -> float:
        """The vote in which a candidate counts the sigmoid of its score."""
        scores = [candidate.score for candidate in self.candidates]
        return vote(self.candidates, [1 / (1 + math.exp(-max(-700.0, s))) if is_scored(s) else None for s in scores])


class Problem:
    """One problem's samples under one grading.

    Attributes:
        samples: By method.
        rounds: Numbers of the rounds of refinement.
        kinds: What there is: methods, `scores` of a reward model, and `verdicts` of the candidates.
        candidates: All of them, by index; and of each `correct`, `answers` and `tokens`.
        sets: The candidate sets. With a `selfref` sample, every set has one.
        pools: Of `refine_and_vote`, by N, the refinements in the order of their sets.
        flat: By size of the set, the refinements over other numbers of candidates than K, by set.
        tree: By level from 1 on, the refinements in the order of their sets.

    Raises:
        ValueError: Candidates are missing or twice.
    """

    def __init__(self, identity: str, rows: list[dict], header: dict, grading: str):
        self.identity, self.k, self.grading = identity, header["k"], grading
        self.samples: dict[str, list[Sample]] = defaultdict(list)
        over: dict[int, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))  # by set and method
        for row in rows:
            correct = row[f"correct_{grading}"]
            fields = [row[name] for name in FIELDS]
            sample = Sample(*fields, math.nan if correct is None else correct, row[f"class_{grading}"])
            self.samples[row["method"]].append(sample)
            if row["method"] != "direct" and sample.pool is None:
                over[sample.index][row["method"]].append(sample)
        self.candidates = sorted(self.samples["direct"], key=lambda sample: sample.index)
        self.correct = [candidate.correct for candidate in self.candidates]
        self.answers = [candidate.answer for candidate in self.candidates]
        self.tokens = [candidate.tokens for candidate in self.candidates]
        self.num_scored = sum(map(is_scored, self.correct))
        chosen = self._chosen(header)
        self.sets = [self._set(chosen[index], over[index]) for index in sorted(chosen)]
        self.rounds = sorted({sample.round for sample in self.samples["rounds"]})
        self.pools = self._by("refine_and_vote", "pool")
        self.flat, self.tree = self._by("flat", "pool"), self._by("tree", "round")
        self.kinds = {method for method, samples in self.samples.items() if samples}
        self.kinds |= {"scores"} if any(c.score is not None for c in self.candidates) else set()
        self.kinds |= {"verdicts"} if any(c.verdict is not None for c in self.candidates) else set()

    def _chosen(self, header: dict) -> dict[int, list[int]]:
        """The candidates of each set: as a method was shown them, or as they would have been chosen."""
        known, seed = [candidate.index for candidate in self.candidates], header.get("sets_seed", header["seed"])
        for method in METHODS_WITH_SETS:
            shown = [s for s in self.samples[method] if not s.order and (s.round or 1) == 1]
            if shown:
                chosen = {sample.index: sample.candidates for sample in shown}
                break
        else:
            number = header["num_candidate_sets"]
            chosen = dict(enumerate(candidate_sets(self.identity, len(known), self.k, number, seed)))
        held = set(chain.from_iterable(chosen.values()))
        if known != list(range(len(known))) or not held <= set(known):
            raise ValueError(
                f"samples of problem {self.identity}: candidates are missing or twice: there are {known}, and its "
                f"sets hold {sorted(held)}: take the file as the evaluation wrote it"
            )
        return chosen

    def _set(self, chosen: list[int], over: dict[str, list[Sample]]) -> CandidateSet:
        unseen = mean(c.correct for c in self.candidates if c.index not in chosen)
        return CandidateSet([self.candidates[index] for index in chosen], over, unseen)

    def _by(self, method: str, key: str) -> dict[int, list[Sample]]:
        groups: dict[int, list[Sample]] = defaultdict(list)
        for sample in sorted(self.samples[method], key=lambda sample: sample.index):
            groups[getattr(sample, key)].append(sample)
        return dict(sorted(groups.items()))

    def accuracy(self, method: str) -> float:
        """The share of a method's samples that is right."""
        return mean(sample.correct for sample in self.samples[method])

    def pass_at(self, k: int) -> float:
        """pass@k; NaN with fewer scored candidates."""
        right = sum(value == 1.0 for value in self.correct)
        return metrics.pass_at_k(self.num_scored, right, k) if self.num_scored >= k else math.nan

    def maj_at(self, k: int) -> float:
        """maj@k: the mean vote over all groups of k candidates; NaN with fewer scored ones."""
        return metrics.maj_at_k(self.answers, self.correct, k)

    def maj_at_tokens(self, tokens: int) -> float:
        """The vote over as many candidates as take so many tokens."""
        each = mean(self.tokens)
        return metrics.maj_at_count(self.answers, self.correct, tokens / each if each else float(self.k))

    def is_capped(self, tokens: int) -> float:
        """1 if as many tokens are more than all scored candidates take, else 0; NaN without any."""
        return float(tokens * len(self.tokens) > self.num_scored * sum(self.tokens)) if self.num_scored else math.nan


def mean(values: Iterable[float]) -> float:
    """The mean of the scored values; NaN without any."""
    scored = [value for value in values if is_scored(value)]
    return sum(scored) / len(scored) if scored else math.nan


def vote(samples: list[Sample], weights: list[float | None] | None = None) -> float:
    """Expected correctness of a vote over samples; NaN if none is scored."""
    return metrics.maj_correct([s.answer for s in samples], [s.correct for s in samples], weights)

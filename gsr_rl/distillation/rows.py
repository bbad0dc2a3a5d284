"""From the samples of a distillation to SFT rows: balance, mixing, duplicates, and what became of every sample."""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gsr_rl.refinement.candidates import choice_seed
from gsr_rl.refinement.metrics import maj_correct
from gsr_rl.refinement.prompts import candidate_text, get_template, solve_prompt


class Pick(NamedTuple):
    """A sample that becomes a row: its stage, the number of its problem, and its number in the problem's unit."""

    stage: str
    problem: int
    sample: int


def balanced(right: list[int], num_sampled: int, max_if_all_right: int, rng: random.Random) -> list[int]:
    """The paper's rule for one problem: of `right` refinements all are kept, unless all `num_sampled` are right."""
    if len(right) < num_sampled or len(right) <= max_if_all_right:
        return right
    return sorted(rng.sample(right, max_if_all_right))


def with_shares(picks: dict[int, list], shares: dict[int, float], rng: random.Random) -> list:
    """As many of the `picks` (by number of right candidates) as there can be in these `shares`, in their order.

    A number that has a share and no picks is left out, and the other shares grow in proportion.
    """
    shares = {int(key): float(share) for key, share in shares.items() if share > 0 and picks.get(int(key))}
    if not shares:
        return []
    total = sum(shares.values())
    size = min(len(picks[key]) * total / share for key, share in shares.items())
    drawn = set()
    for key, share in shares.items():
        drawn.update(rng.sample(picks[key], min(len(picks[key]), round(size * share / total))))
    return [pick for group in picks.values() for pick in group if pick in drawn]


def training_text(text: str, keep_thinking: bool) -> str:
    """The completion that is trained on. A closing tag gets the opening one that the prompt had taken away."""
    if not keep_thinking:
        return candidate_text(text)
    if "</think>" in text and "<think>" not in text:
        return "<think>\n" + text
    return text


class Rows(Sequence):
    """SFT rows (keys: docs/distillation.md), each built from its unit when it is asked for: a large set is never in
    memory.
    """

    def __init__(self, picks: list[Pick], problems: list[dict], candidates, refinements, config):
        self._picks, self._problems, self._config = picks, problems, config
        self._candidates, self._refinements = candidates, refinements

    def __len__(self) -> int:
        return len(self._picks)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pick, config = self._picks[index], self._config
        problem = self._problems[pick.problem]
        if pick.stage == "refinement":
            unit = self._refinements[problem["id"]]
            sample = unit["samples"][pick.sample]
            shown = unit["sets"][sample["set"]]
            row = _row(problem, pick.stage, shown["prompt"], sample["text"], config.teacher_model, config)
            return row | {key: shown[key] for key in ("candidates", "num_correct")}
        source = {"teacher": config.teacher_model, "gold": "gold"}.get(config.direct_source, config.student_model)
        texts = _direct_texts(problem, self._candidates, self._refinements, config.direct_source)
        prompt = solve_prompt(problem["problem"], get_template(config.prompt_template))
        return _row(problem, pick.stage, prompt, _distinct(texts, config)[pick.sample], source, config)


def _row(problem: dict, stage: str, prompt: list[dict], text: str, source: str, config) -> dict:
    return {
        "prompt": prompt,
        "completion": [{"role": "assistant", "content": training_text(text, config.keep_thinking)}],
        "stage": stage,
        "problem_id": problem["id"],
        "answer": problem["answer"],
        "candidates": None,
        "num_correct": None,
        "source": source,
    }


def make_rows(problems: list[dict], candidates: Mapping, refinements: Mapping, config) -> tuple[Rows, dict]:
    """SFT rows from all units, which come by problem id, shuffled by the seed, and the counts of the funnel."""
    rng = random.Random(choice_seed(config.seed, "rows"))
    counts = _Counts(len(problems))
    picks: dict[int, list[Pick]] = defaultdict(list)  # by number of right candidates
    seen: set[bytes] = set()
    for number, problem in enumerate(problems):
        unit = refinements[problem["id"]]
        counts.add(candidates[problem["id"]], unit)
        for place in _balanced_refinements(unit, config, rng, counts.funnel):
            if _is_new(unit, place, config, seen, counts.funnel):
                picks[_set_of(unit, place)["num_correct"]].append(Pick("refinement", number, place))
    refined = [pick for group in picks.values() for pick in group]
    if config.num_correct_shares:
        refined = with_shares(picks, config.num_correct_shares, rng)
        left_out = sum(map(len, picks.values())) - len(refined)
        counts.funnel["refinements left out by num_correct_shares"] = left_out
    for number in picks:
        counts.by_num_correct[number]["kept"] = 0
    for pick in refined:
        for counter in counts.tables(_set_of(refinements[problems[pick.problem]["id"]], pick.sample)):
            counter["kept"] += 1
    counts.funnel["refinement rows"] = len(refined)
    direct = _direct_picks(problems, candidates, refinements, config, refined, rng, counts.funnel)
    counts.funnel["direct rows"] = len(direct)
    rows = sorted(refined) + direct
    rng.shuffle(rows)
    counts.funnel["rows"] = len(rows)
    return Rows(rows, problems, candidates, refinements, config), counts.as_dict()


def _set_of(unit: dict, place: int) -> dict:
    """The candidate set that a refinement of the unit was shown."""
    return unit["sets"][unit["samples"][place]["set"]]


def _balanced_refinements(unit: dict, config, rng: random.Random, funnel: Counter) -> list[int]:
    """Places of a problem's right, finished refinements in its unit, as many as the balance keeps."""
    places = [place for place, sample in enumerate(unit["samples"]) if sample["stage"] == "refinement"]
    samples = unit["samples"]
    right = [place for place in places if samples[place]["correct"] == 1.0 and samples[place]["finished"]]
    chosen = balanced(right, len(places), config.max_if_all_right, rng)
    funnel["refinements right"] += len(right)
    funnel["refinements after balance"] += len(chosen)
    return chosen


def _is_new(unit: dict, place: int, config, seen: set[bytes], funnel: Counter) -> bool:
    """Whether a refinement has a text to train on that no other of its prompt has."""
    text = training_text(unit["samples"][place]["text"], config.keep_thinking)
    if not text.strip():
        funnel["refinements without a text to train on"] += 1
        return False
    prompt = _set_of(unit, place)["prompt"]
    key = hashlib.blake2b(f"{prompt}\x1f{text}".encode(), digest_size=16).digest()
    if key in seen:
        funnel["duplicate refinements"] += 1
        return False
    seen.add(key)
    return True


class _Counts:
    """What became of everything that was sampled."""

    def __init__(self, problems: int):
        self.funnel: Counter = Counter(problems=problems)
        self.by_num_correct: dict[int, Counter] = defaultdict(Counter)
        self.by_num_candidates: dict[int, Counter] = defaultdict(Counter)  # that are shown
        self.policies: Counter = Counter()
        self.tokens: dict[str, Counter] = {"student": Counter(), "teacher": Counter()}
        self.lengths: dict[str, list[int]] = {
            "candidates": [], "refinement prompts": [], "refinements": [], "direct solutions": []
        }  # fmt: skip

    def add(self, candidates: dict, refinements: dict) -> None:
        """Count a problem's two units."""
        samples, sets = candidates["samples"], refinements["sets"]
        self.funnel["candidates sampled"] += len(samples)
        self.funnel["candidates right"] += sum(sample["correct"] == 1.0 for sample in samples)
        self.funnel["candidates finished"] += sum(sample["finished"] for sample in samples)
        self.funnel["problems with a candidate set"] += bool(sets)
        self.funnel["candidate sets"] += len(sets)
        self.funnel["candidate sets over the prompt's budget"] += refinements["dropped"]
        self.funnel["candidates cut to fit"] += sum(shown["cut"] for shown in sets)
        self.policies.update(shown["policy"] for shown in sets)
        self.lengths["candidates"] += [sample["tokens"] for sample in samples]
        self.lengths["refinement prompts"] += [shown["prompt_tokens"] for shown in sets]
        for who, unit in (("student", candidates), ("teacher", refinements)):
            self.tokens[who]["requests"] += unit["requests"]
            self.tokens[who]["prompt tokens"] += unit["prompt_tokens"]
            self.tokens[who]["completion tokens"] += sum(sample["tokens"] for sample in unit["samples"])
        votes = [_vote(samples, shown["chosen"]) for shown in sets]
        for sample in refinements["samples"]:
            if sample["stage"] == "refinement":
                self._add_refinement(sample, sets[sample["set"]], votes[sample["set"]])
                continue
            self.funnel["direct solutions sampled"] += 1
            self.funnel["direct solutions right"] += sample["correct"] == 1.0
            self.lengths["direct solutions"].append(sample["tokens"])

    def _add_refinement(self, sample: dict, shown: dict, vote: float) -> None:
        """A refinement beside the vote over the candidates that it was shown, in [0, 1]."""
        self.funnel["refinements sampled"] += 1
        self.lengths["refinements"].append(sample["tokens"])
        right = sample["correct"] == 1.0
        for counter in self.tables(shown):
            counter.update(sampled=1, right=int(right), majority=vote)
            counter.update(fixed=(1 - vote) * right, broken=vote * (not right))

    def tables(self, shown: dict) -> tuple[Counter, Counter]:
        return self.by_num_correct[shown["num_correct"]], self.by_num_candidates[len(shown["chosen"])]

    def as_dict(self) -> dict:
        """All counts as plain values. Of lengths: mean, quantiles and a histogram."""
        import numpy as np

        lengths = {}
        for name, values in self.lengths.items():
            if values:
                numbers, edges = np.histogram(values, bins=20)
                quantiles = zip((10, 50, 90, 100), np.percentile(values, (10, 50, 90, 100)), strict=True)
                lengths[name] = {"mean": round(float(np.mean(values)), 1)} | {f"p{q}": float(v) for q, v in quantiles}
                lengths[name]["histogram"] = [numbers.tolist(), [round(float(edge), 1) for edge in edges]]
        return {
            "funnel": dict(self.funnel),
            "by_num_correct": _by_number(self.by_num_correct),
            "by_num_candidates": _by_number(self.by_num_candidates),
            "policies": dict(self.policies),
            "tokens": {who: dict(counts) for who, counts in self.tokens.items()},
            "lengths": lengths,
        }


def _by_number(table: dict[int, Counter]) -> dict[str, dict]:
    return {str(number): dict(table[number]) for number in sorted(table)}


def _vote(samples: list[dict], chosen: list[int]) -> float:
    """Expected correctness of the vote over the chosen candidates."""
    shown = [samples[index] for index in chosen]
    return maj_correct([sample["class"] for sample in shown], [sample["correct"] for sample in shown])


def _direct_texts(row: dict, candidates: Mapping, refinements: Mapping, source: str) -> list[str]:
    """The direct solutions of a problem that may become rows."""
    if source == "gold":
        return [str(row["solution"])] if row.get("solution") else []
    unit = refinements[row["id"]] if source == "teacher" else candidates[row["id"]]
    samples = [s for s in unit["samples"] if s.get("stage") != "refinement" and s["finished"]]
    if source == "student":  # its distribution, repetitions and failures included
        return [s["text"] for s in samples]
    return [s["text"] for s in samples if s["correct"] == 1.0]


def _keeps_distribution(config) -> bool:
    """Whether direct rows are the student's own distribution: its repetitions, and all problems alike."""
    return config.direct_source == "student" and config.keep_duplicate_solutions


def _distinct(texts: list[str], config) -> list[str]:
    """The texts that become different rows; a student's that shall keep its distribution with their repetitions."""
    pairs = [(training_text(text, config.keep_thinking), text) for text in texts]
    pairs = [(trained, text) for trained, text in pairs if trained.strip()]
    if _keeps_distribution(config):
        return [text for _, text in pairs]
    first: dict[str, str] = {}
    for trained, text in pairs:
        first.setdefault(trained, text)
    return list(first.values())


def _direct_picks(
    problems, candidates, refinements, config, refined: list[Pick], rng: random.Random, funnel: Counter
) -> list[Pick]:
    """Direct solutions in random order: one of every problem with a refinement row, then a second of each, and so on.

    After them the other problems come in the same way. A student that shall keep its distribution solves all alike.
    There are up to `direct_ratio` times as many as refinement rows (`refined`).
    """
    wanted = round(config.direct_ratio * len(refined))
    if config.direct_source == "none" or not wanted:
        return []
    pools = []  # number of a problem, and the numbers of its solutions in random order
    for number, problem in enumerate(problems):
        texts = _direct_texts(problem, candidates, refinements, config.direct_source)
        size = len(_distinct(texts, config))
        if size < len(texts):
            funnel["direct solutions without a text or like another"] += len(texts) - size
        if size:
            pools.append((number, rng.sample(range(size), size)))
    rng.shuffle(pools)
    groups = [pools]
    if not _keeps_distribution(config):
        with_row = {pick.problem for pick in refined}
        groups = [[pool for pool in pools if (pool[0] in with_row) is first] for first in (True, False)]
    return [pick for group in groups for pick in _in_turn(group)][:wanted]


def _in_turn(pools: list[tuple[int, list[int]]]) -> Iterator[Pick]:
    """The first of each pool, then the second of each, and so on."""
    for depth in range(max((len(pool) for _, pool in pools), default=0)):
        yield from (Pick("candidate", number, pool[depth]) for number, pool in pools if depth < len(pool))

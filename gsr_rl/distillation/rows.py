"""From the samples of a distillation to SFT rows: balance, mixing, duplicates; and SFT rows read back."""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from gsr_rl.refinement.candidates import choice_seed
from gsr_rl.refinement.metrics import maj_correct
from gsr_rl.refinement.prompts import candidate_text, get_template, solve_prompt


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
    whole = sum(shares.values())
    size = min(len(picks[key]) * whole / share for key, share in shares.items())
    kept = set()
    for key, share in shares.items():
        kept.update(rng.sample(picks[key], min(len(picks[key]), round(size * share / whole))))
    return [pick for group in picks.values() for pick in group if pick in kept]


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

    Args:
        picks: (stage, number of the problem, number of the sample in its unit) of each row.
    """

    def __init__(self, picks: list[tuple[str, int, int]], problems: list[dict], candidates, refinements, config):
        self._picks, self._problems, self._config = picks, problems, config
        self._candidates, self._refinements = candidates, refinements

    def __len__(self) -> int:
        return len(self._picks)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        stage, number, place = self._picks[index]
        row, config = self._problems[number], self._config
        if stage == "refinement":
            unit = self._refinements[row["id"]]
            sample = unit["samples"][place]
            one = unit["sets"][sample["set"]]
            return _row(row, stage, one["prompt"], sample["text"], config.teacher_model, config, one)
        source = {"teacher": config.teacher_model, "gold": "gold"}.get(config.direct_source, config.student_model)
        text = _distinct(_direct_texts(row, self._candidates, self._refinements, config.direct_source), config)[place]
        prompt = solve_prompt(row["problem"], get_template(config.prompt_template))
        return _row(row, stage, prompt, text, source, config)


def _row(row: dict, stage: str, prompt: list[dict], text: str, source: str, config, one: dict | None = None) -> dict:
    return {
        "prompt": prompt,
        "completion": [{"role": "assistant", "content": training_text(text, config.keep_thinking)}],
        "stage": stage,
        "problem_id": row["id"],
        "answer": row["answer"],
        "candidates": one["candidates"] if one else None,
        "num_correct": one["num_correct"] if one else None,
        "source": source,
    }


def make_rows(problems: list[dict], candidates: Mapping, refinements: Mapping, config) -> tuple[Rows, dict]:
    """SFT rows from all units, shuffled by the seed, and the counts of the funnel.

    Args:
        candidates, refinements: The units of each problem, by problem id.
    """
    rng = random.Random(choice_seed(config.seed, "rows"))
    counts = _Counts(config, len(problems))
    picks: dict[int, list] = defaultdict(list)  # by number of right candidates
    seen: set[bytes] = set()
    for number, row in enumerate(problems):
        unit, group = refinements[row["id"]], candidates[row["id"]]
        counts.add(group, unit)
        sampled = [(i, s) for i, s in enumerate(unit["samples"]) if s["stage"] == "refinement"]
        right = [place for place, (_, s) in enumerate(sampled) if s["correct"] == 1.0 and s["finished"]]
        kept = balanced(right, len(sampled), config.max_if_all_right, rng)
        counts.funnel["refinements right"] += len(right)
        counts.funnel["refinements after balance"] += len(kept)
        for index, sample in (sampled[place] for place in kept):
            one, text = unit["sets"][sample["set"]], training_text(sample["text"], config.keep_thinking)
            if not text.strip():
                counts.funnel["refinements without a text to train on"] += 1
                continue
            key = hashlib.blake2b(f"{one['prompt']}\x1f{text}".encode(), digest_size=16).digest()
            if key in seen:
                counts.funnel["duplicate refinements"] += 1
                continue
            seen.add(key)
            picks[one["num_correct"]].append(("refinement", number, index))
    found = [pick for group in picks.values() for pick in group]
    if config.num_correct_shares:
        found = with_shares(picks, config.num_correct_shares, rng)
        counts.funnel["refinements left out by num_correct_shares"] = sum(map(len, picks.values())) - len(found)
    for nc, group in picks.items():
        counts.by_nc[nc]["kept"] = len(set(group) & set(found))
    for _, number, index in found:
        unit = refinements[problems[number]["id"]]
        counts.by_k[len(unit["sets"][unit["samples"][index]["set"]]["chosen"])]["kept"] += 1
    counts.funnel["refinement rows"] = len(found)
    wanted = round(config.direct_ratio * len(found))
    refined = {number for _, number, _ in found}
    direct = _direct_picks(problems, candidates, refinements, config, refined, rng, counts.funnel) if wanted else []
    direct = direct[:wanted]
    counts.funnel["direct rows"] = len(direct)
    result = sorted(found) + direct
    rng.shuffle(result)
    counts.funnel["rows"] = len(result)
    return Rows(result, problems, candidates, refinements, config), counts.as_dict()


class _Counts:
    """What became of everything that was sampled."""

    def __init__(self, config, problems: int):
        self.funnel: Counter = Counter(problems=problems)
        self.by_nc: dict[int, Counter] = defaultdict(Counter)
        self.by_k: dict[int, Counter] = defaultdict(Counter)  # number of candidates shown
        self.policies: Counter = Counter()
        self.tokens: dict[str, Counter] = {"student": Counter(), "teacher": Counter()}
        self.lengths: dict[str, list[int]] = {
            "candidates": [], "refinement prompts": [], "refinements": [], "direct solutions": []
        }  # fmt: skip

    def add(self, group: dict, unit: dict) -> None:
        """Count a problem's two units."""
        funnel, samples = self.funnel, group["samples"]
        funnel["candidates sampled"] += len(samples)
        funnel["candidates right"] += sum(s["correct"] == 1.0 for s in samples)
        funnel["candidates finished"] += sum(s["finished"] for s in samples)
        funnel["problems with a candidate set"] += bool(unit["sets"])
        funnel["candidate sets"] += len(unit["sets"])
        funnel["candidate sets over the prompt's budget"] += unit["dropped"]
        funnel["candidates cut to fit"] += sum(one["cut"] for one in unit["sets"])
        self.policies.update(one["policy"] for one in unit["sets"])
        self.lengths["candidates"] += [s["tokens"] for s in samples]
        self.lengths["refinement prompts"] += [one["prompt_tokens"] for one in unit["sets"]]
        for who, one in (("student", group), ("teacher", unit)):
            self.tokens[who]["requests"] += one["requests"]
            self.tokens[who]["prompt tokens"] += one["prompt_tokens"]
            self.tokens[who]["completion tokens"] += sum(s["tokens"] for s in one["samples"])
        votes = [
            maj_correct([samples[i]["class"] for i in one["chosen"]], [samples[i]["correct"] for i in one["chosen"]])
            for one in unit["sets"]
        ]
        for sample in unit["samples"]:
            if sample["stage"] == "candidate":
                funnel["direct solutions sampled"] += 1
                funnel["direct solutions right"] += sample["correct"] == 1.0
                self.lengths["direct solutions"].append(sample["tokens"])
                continue
            funnel["refinements sampled"] += 1
            self.lengths["refinements"].append(sample["tokens"])
            vote, right = votes[sample["set"]], sample["correct"] == 1.0
            shown = unit["sets"][sample["set"]]
            for counter in (self.by_nc[shown["num_correct"]], self.by_k[len(shown["chosen"])]):
                counter.update(sampled=1, right=int(right), majority=vote)
                counter.update(fixed=(1 - vote) * right, broken=vote * (not right))

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
            "by_num_correct": {str(key): dict(self.by_nc[key]) for key in sorted(self.by_nc)},
            "by_num_candidates": {str(key): dict(self.by_k[key]) for key in sorted(self.by_k)},
            "policies": dict(self.policies),
            "tokens": {who: dict(one) for who, one in self.tokens.items()},
            "lengths": lengths,
        }


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
    found = [(training_text(text, config.keep_thinking), text) for text in texts]
    found = [(trained, text) for trained, text in found if trained.strip()]
    if _keeps_distribution(config):
        return [text for _, text in found]
    first: dict[str, str] = {}
    for trained, text in found:
        first.setdefault(trained, text)
    return list(first.values())


def _direct_picks(problems, candidates, refinements, config, refined: set[int], rng: random.Random, funnel) -> list:
    """Direct solutions in random order: one of every problem with a refinement row, then a second of each, and so on.

    After them the other problems come in the same way. A student that shall keep its distribution solves all alike.

    Args:
        refined: Numbers of the problems that have a refinement row.
    """
    if config.direct_source == "none":
        return []
    pools = []
    for number, row in enumerate(problems):
        texts = _direct_texts(row, candidates, refinements, config.direct_source)
        size = len(_distinct(texts, config))
        if size < len(texts):
            funnel["direct solutions without a text or like another"] += len(texts) - size
        if size:
            pools.append((number, rng.sample(range(size), size)))
    rng.shuffle(pools)
    if _keeps_distribution(config):
        groups = [pools]
    else:
        groups = [[one for one in pools if (one[0] in refined) is first] for first in (True, False)]
    return [
        ("candidate", number, pool[depth])
        for group in groups
        for depth in range(max((len(pool) for _, pool in group), default=0))
        for number, pool in group
        if depth < len(pool)
    ]

"""Which K of a problem's candidates a refinement sees. Pure: correctness, flags and a seed in, indices out.

The choice never looks at a candidate's length or at the order in which candidates finished.
"""

import hashlib
import random
from dataclasses import dataclass

POLICIES = ("uniform", "balanced", "hard", "paper")


@dataclass(frozen=True, kw_only=True)
class SetChoice:
    """How the candidate sets of a problem are chosen.

    Attributes:
        num_candidates: K, the size of a set, 1 <= K; with `min_num_candidates` the largest one.
        min_num_candidates: The smallest K: each set's is drawn, every number alike. None: K for all.
        same_size: Whether one K is drawn for all sets of a problem.
        num_sets: M, the number of sets per problem.
        policy: `uniform`; `balanced`, as many right ones as wrong ones (of an odd K the one more is drawn); `hard`,
            right ones are fewer than half; `paper`, all right ones, filled up with wrong ones. Where a kind runs
            short the other fills the set.
        uniform_share: Share of sets in [0, 1] that are chosen uniformly whatever the policy (`set_policies`).
    """

    num_candidates: int
    min_num_candidates: int | None = None
    same_size: bool = False
    num_sets: int = 1
    policy: str = "uniform"
    uniform_share: float = 0.0


@dataclass(frozen=True)
class ChosenSet:
    """One candidate set: indices into a problem's candidates in the order in which they are shown.

    Attributes:
        size: K as wanted; `indices` has fewer where fewer candidates are usable.
    """

    indices: list[int]
    policy: str
    size: int

    @property
    def complete(self) -> bool:
        """Whether there were as many usable candidates as wanted."""
        return len(self.indices) == self.size


def choice_seed(seed: int, *parts: object) -> int:
    """A seed that depends on the run's seed and on `parts` (problem id, step, ...) and on nothing else.

    The same on any number of ranks and in any process (unlike `hash`, which Python salts).
    """
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def set_policies(policy: str, num_sets: int, uniform_share: float, seed: int) -> list[str]:
    """The policy of each of a problem's `num_sets` sets: `policy`, or `uniform` for a share of them in [0, 1].

    Other policies change what a refiner believes about majorities. The whole part of num_sets * uniform_share is
    certain, the rest a probability. Raises `ValueError` unless `policy` is one of `POLICIES`.
    """
    if policy not in POLICIES:
        raise ValueError(f"candidate_choice={policy!r} is not known: use one of {', '.join(POLICIES)}")
    if policy == "uniform":
        return ["uniform"] * num_sets
    rng = random.Random(seed)
    wanted = num_sets * uniform_share
    number = int(wanted) + (rng.random() < wanted - int(wanted))
    return rng.sample(["uniform"] * number + [policy] * (num_sets - number), num_sets)


def set_sizes(num_candidates: int, num_sets: int, min_num_candidates: int | None, seed: int) -> list[int]:
    """How many candidates each of a problem's `num_sets` sets shows: as `SetChoice` says of these numbers."""
    if min_num_candidates is None:
        return [num_candidates] * num_sets
    rng = random.Random(choice_seed(seed, "K"))
    return [rng.randint(min_num_candidates, num_candidates) for _ in range(num_sets)]


def range_text(smallest: int | None, largest: int) -> str:
    """A number of candidates in words: `4`, or `1 to 8`."""
    return str(largest) if smallest in (None, largest) else f"{smallest} to {largest}"


def choose_candidate_sets(
    usable: list[bool], choice: SetChoice, seed: int, correct: list[float | None] | None = None
) -> list[ChosenSet]:
    """The candidate sets of a problem, shuffled.

    Args:
        usable: One flag per candidate, length G: scored, and finished or cut by rule.
        seed: From `choice_seed`.
        correct: Correctness of each candidate, length G; looked at by every policy but `uniform`. A candidate is
            right if it is above one half.

    Returns:
        M sets of distinct candidates. Uniform sets are drawn first and share no candidate while enough usable ones
        are left (M * K <= number usable), and otherwise reuse as few as possible; the other policies take their
        kinds from what is then left first. With fewer than K usable candidates a set holds all of them.
    """
    policies = set_policies(choice.policy, choice.num_sets, choice.uniform_share, seed)
    drawn = 1 if choice.same_size else choice.num_sets
    sizes = set_sizes(choice.num_candidates, drawn, choice.min_num_candidates, seed) * (choice.num_sets // drawn)
    rng = random.Random(choice_seed(seed, "sets") if choice.policy != "uniform" else seed)
    pool = [index for index, ok in enumerate(usable) if ok]
    indices: list[list[int]] = [[]] * choice.num_sets
    deck: list[int] = []  # what no set has shown since the last deal
    # the uniform ones first: what another policy has left of a deck is no uniform draw
    for number in sorted(range(choice.num_sets), key=lambda number: policies[number] != "uniform"):
        size = min(sizes[number], len(pool))
        if len(deck) < size:  # used up: deal again behind what is left
            deck = deck + [index for index in rng.sample(pool, len(pool)) if index not in deck]
        policy = policies[number]
        chosen = deck[:size] if policy == "uniform" else _pick(deck, size, correct, policy, rng)
        deck = [index for index in deck if index not in chosen]
        indices[number] = rng.sample(chosen, len(chosen))
    return [ChosenSet(*chosen) for chosen in zip(indices, policies, sizes, strict=True)]


def _pick(deck: list[int], size: int, correct: list[float | None], policy: str, rng: random.Random) -> list[int]:
    """`size` of the deck's indices, with as many right ones as the policy wants and the deck allows."""
    right = [index for index in deck if (correct[index] or 0.0) > 0.5]
    wrong = [index for index in deck if index not in right]
    if policy == "paper":
        wanted = size
    elif policy == "balanced":
        wanted = size // 2 + rng.randint(0, size % 2)
    else:
        wanted = rng.randint(0, max(0, (size - 1) // 2))
    wanted = max(min(wanted, len(right)), size - len(wrong))
    return right[:wanted] + wrong[: size - wanted]


def candidate_sets(problem_id: str, number: int, k: int, num_sets: int, seed: int) -> list[list[int]]:
    """The sets of a problem with `number` candidates: K of all, as in use, where nobody knows which will finish."""
    choice = SetChoice(num_candidates=k, num_sets=num_sets)
    sets = choose_candidate_sets([True] * number, choice, choice_seed(seed, problem_id, "sets"))
    return [candidate_set.indices for candidate_set in sets]


def pool_sets(usable: list[bool], k: int, number: int, seed: int) -> list[list[int]]:
    """The candidate sets of refine and vote: each is refined once, and the refinements vote.

    So more candidates are of use than K, which a model reads best as in training.

    Args:
        usable: One flag per candidate of the pool, length N: whether it can be shown.
        k: K, the size of a set.
        number: R, how many sets.
        seed: From `choice_seed`, with the problem's id and N.

    Returns:
        R sets of K different indices in the order in which they are shown; of all usable ones where these are fewer,
        so empty ones without any. Each set is drawn for itself, by the seed and its number: any R' of them are a draw
        of R' sets, and fewer sets are the first of more.
    """
    pool = [index for index, ok in enumerate(usable) if ok]
    return [random.Random(choice_seed(seed, place)).sample(pool, min(k, len(pool))) for place in range(number)]


def least_shown(usable: list[bool], shown: list[int], k: int, seed: int) -> list[int]:
    """One more set of refine and vote, while candidates may still come: those that sets have shown least often first.

    So the first sets have no candidate in common, and their refinements agree for no other reason than being right.

    Args:
        usable: One flag per candidate so far: whether it can be shown.
        shown: How many sets have shown each.
        seed: From `choice_seed`, with the problem's id and the number of the set.

    Returns:
        K different indices, at random among those shown alike; of all usable ones where these are fewer.
    """
    rng = random.Random(seed)
    pool = [index for index, ok in enumerate(usable) if ok]
    chosen = sorted(pool, key=lambda index: (shown[index], rng.random()))[:k]
    return rng.sample(chosen, len(chosen))


def tree_sets(number: int, k: int) -> list[list[int]]:
    """A level of a tree: `number` texts, K after K in their order, the last set with what is left.

    The refinements of its sets are the texts of the next level, until one is left. A tree over the first K**n
    candidates is a part of that over more.
    """
    return [list(range(start, min(start + k, number))) for start in range(0, number, k)]


def check_candidate_choice(c) -> list[str]:
    """Size and policy of the candidate sets, in distillation and in training."""
    messages = check_random_number(c)
    if c.candidate_choice not in POLICIES:
        messages.append(f"candidate_choice={c.candidate_choice!r} is not known: use one of {', '.join(POLICIES)}")
    if not 0 <= c.uniform_share <= 1:
        messages.append(f"uniform_share={c.uniform_share}: a share from 0 to 1 is expected")
    return messages


def check_random_number(c) -> list[str]:
    """The range that the number of candidates is drawn from."""
    if c.min_num_candidates is None or 1 <= c.min_num_candidates <= c.num_candidates:
        return []
    return [f"min_num_candidates={c.min_num_candidates}: from 1 to num_candidates={c.num_candidates} is expected"]

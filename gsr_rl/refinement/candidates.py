"""Which K of a problem's candidates a refinement sees. Pure: correctness, flags and a seed in, indices out.

The choice never looks at a candidate's length or at the order in which candidates finished.
"""

import hashlib
import random

POLICIES = ("uniform", "balanced", "hard", "paper")


def choice_seed(seed: int, *parts: object) -> int:
    """A seed that depends on the run's seed and on `parts` (problem id, step, ...) and on nothing else.

    The same on any number of ranks and in any process (unlike `hash`, which Python salts).
    """
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def set_policies(policy: str, num_sets: int, uniform_share: float, seed: int) -> list[str]:
    """The policy of each of a problem's `num_sets` sets: `policy`, or `uniform` for a share of them.

    Args:
        policy: One of `POLICIES`.
        uniform_share: Share of sets in [0, 1] that are chosen uniformly whatever the policy, because the others change
            what a refiner believes about majorities. The whole part of num_sets * uniform_share is certain, the rest
            a probability.
        seed: From `choice_seed`.
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
    """How many candidates each of a problem's `num_sets` sets shows.

    Args:
        num_candidates: K, or with `min_num_candidates` the largest K.
        min_num_candidates: The smallest K: each set's is drawn, every number alike. None: K for all.
        seed: From `choice_seed`.
    """
    if min_num_candidates is None:
        return [num_candidates] * num_sets
    rng = random.Random(choice_seed(seed, "K"))
    return [rng.randint(min_num_candidates, num_candidates) for _ in range(num_sets)]


def range_text(least: int | None, most: int) -> str:
    """A number of candidates in words: `4`, or `1 to 8`."""
    return str(most) if least in (None, most) else f"{least} to {most}"


def choose_candidate_sets(
    usable: list[bool],
    num_candidates: int | list[int],
    num_sets: int,
    seed: int,
    *,
    correct: list[float | None] | None = None,
    policy: str = "uniform",
    uniform_share: float = 0.0,
) -> list[list[int]]:
    """Candidate sets, shuffled: K of a problem's usable candidates a set, M sets.

    Args:
        usable: One flag a candidate, length G: scored, and finished or cut by rule.
        num_candidates: K, the size of a set, 1 <= K <= G; a list has each set's own.
        num_sets: M, the number of sets.
        seed: From `choice_seed`.
        correct: Correctness of each candidate, length G; looked at by every policy but `uniform`. A candidate is
            right if it is above one half.
        policy: `uniform`; `balanced`, as many right ones as wrong ones (of an odd K the one more is drawn); `hard`,
            right ones are fewer than half; `paper`, all right ones, filled up with wrong ones. Where a kind runs
            short the other fills the set.
        uniform_share: See `set_policies`, which tells with the same arguments which sets are uniform.

    Returns:
        M lists of distinct indices into the candidates. Uniform sets are drawn first and share no candidate while
        enough usable ones are left (M * K <= number usable), and otherwise reuse as few as possible; the other
        policies take their kinds from what is then left first. With fewer than K usable candidates a set holds all of
        them; with none, every set is empty.
    """
    policies = set_policies(policy, num_sets, uniform_share, seed)
    sizes = [num_candidates] * num_sets if isinstance(num_candidates, int) else num_candidates
    rng = random.Random(choice_seed(seed, "sets") if policy != "uniform" else seed)
    pool = [index for index, ok in enumerate(usable) if ok]
    sets: list[list[int]] = [[]] * num_sets
    deck: list[int] = []  # what no set has shown since the last deal
    # the uniform ones first: what another policy has left of a deck is no uniform draw
    for place in sorted(range(num_sets), key=lambda place: policies[place] != "uniform"):
        kind = policies[place]
        size = min(sizes[place], len(pool))
        if len(deck) < size:  # used up: deal again behind what is left
            deck = deck + [index for index in rng.sample(pool, len(pool)) if index not in deck]
        chosen = deck[:size] if kind == "uniform" else _pick(deck, size, correct, kind, rng)
        deck = [index for index in deck if index not in chosen]
        sets[place] = rng.sample(chosen, len(chosen))
    return sets


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
    return choose_candidate_sets([True] * number, k, num_sets, choice_seed(seed, problem_id, "sets"))


def check_candidate_choice(c) -> list[str]:
    """Size and policy of the candidate sets, in distillation and in training."""
    found = check_random_number(c)
    if c.candidate_choice not in POLICIES:
        found.append(f"candidate_choice={c.candidate_choice!r} is not known: use one of {', '.join(POLICIES)}")
    if not 0 <= c.uniform_share <= 1:
        found.append(f"uniform_share={c.uniform_share}: a share from 0 to 1 is expected")
    return found


def check_random_number(c) -> list[str]:
    """The range that the number of candidates is drawn from."""
    if c.min_num_candidates is None or 1 <= c.min_num_candidates <= c.num_candidates:
        return []
    return [f"min_num_candidates={c.min_num_candidates}: from 1 to num_candidates={c.num_candidates} is expected"]

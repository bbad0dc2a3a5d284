"""Which K of a problem's candidates a refinement sees. Pure: correctness, flags and a seed in, indices out.

The choice never looks at a candidate's length or at the order in which candidates finished.
"""

import hashlib
import random


def choice_seed(seed: int, *parts: object) -> int:
    """A seed that depends on the run's seed and on `parts` (problem id, step, ...) and on nothing else.

    The same on any number of ranks and in any process (unlike `hash`, which Python salts).
    """
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def choose_candidate_sets(usable: list[bool], num_candidates: int, num_sets: int, seed: int) -> list[list[int]]:
    """Uniformly chosen, shuffled candidate sets (OBJECTIVES.md, "Candidate sets").

    Args:
        usable: One flag a candidate, length G: scored, and finished or cut by rule.
        num_candidates: K, the size of a set, 1 <= K <= G.
        num_sets: M, the number of sets.
        seed: From `choice_seed`.

    Returns:
        M lists of distinct indices into the candidates. Sets share no candidate while enough usable ones are left
        (M * K <= number usable), and otherwise reuse as few as possible. With fewer than K usable candidates a set
        holds all of them; with none, every set is empty.
    """
    rng = random.Random(seed)
    pool = [index for index, ok in enumerate(usable) if ok]
    sets: list[list[int]] = []
    fresh: list[int] = []
    for _ in range(num_sets):
        size = min(num_candidates, len(pool))
        chosen = fresh[:size]
        fresh = fresh[size:]
        if len(chosen) < size:  # the deck is used up: deal again, without doubling inside this set
            deck = rng.sample(pool, len(pool))
            extra = [index for index in deck if index not in chosen][: size - len(chosen)]
            chosen += extra
            fresh = [index for index in deck if index not in chosen]
        sets.append(rng.sample(chosen, len(chosen)))
    return sets

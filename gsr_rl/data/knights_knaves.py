"""Knights and Knaves: rows of the published sets and generated ones in one wording, and both as multiple choice."""

import itertools
import random
import re

import numpy as np

from gsr_rl.refinement.candidates import choice_seed

_WORDS = re.compile(r"inhabited only by (\w+)s and (\w+)s\.")
_FORMAT = re.compile(r"\s*\(Format your answer like: .*?\)", re.DOTALL)
_PERSON = re.compile(r"([^\W\d_][\w'-]*) is a (knight|knave)")
LETTERS = "ABCD"
MOST_PEOPLE = 51  # as many names as reasoning-gym has


def answer_text(is_knight: dict[str, bool]) -> str:
    """`Zoe is a knight, Max is a knave`: what the verifier reads as roles."""
    return ", ".join(f"{name} is a {'knight' if knight else 'knave'}" for name, knight in is_knight.items())


def people(row: dict) -> dict[str, bool]:
    """Who is a knight, by name: of a row's `names` and truth values, or of its `answer`, in the order of the text."""
    return _truth_of(row) or read_roles(row["answer"])


def with_roles(row: dict) -> dict:
    """The row with an `answer` that says who is what where it gives names and truth values, whatever it was."""
    truth = _truth_of(row)
    if not truth or read_roles(row["answer"]) == truth:
        return row
    return row | {"answer": answer_text(truth)}


def read_roles(answer: str) -> dict[str, bool]:
    return {name: role == "knight" for name, role in _PERSON.findall(answer)}


def _truth_of(row: dict) -> dict[str, bool]:
    """Who is a knight, by name, where the row gives `names` and one truth value a name; {} where it does not."""
    names = row.get("names")
    truth = row.get("is_knight") if row.get("is_knight") is not None else row.get("solution")
    if not isinstance(names, list) or not isinstance(truth, list) or len(names) != len(truth):
        return {}
    return dict(zip(names, truth, strict=True)) if all(isinstance(one, bool) for one in truth) else {}


def with_answer(row: dict) -> dict:
    """A row of a published set with `problem` and `answer`; any other row as it is.

    The sets give `names` and one truth value a name, as `is_knight` or `solution`; one calls its text `quiz`.
    """
    truth = _truth_of(row)
    if row.get("answer") or not truth:
        return row
    return {**row, "problem": row.get("problem") or row.get("quiz"), "answer": answer_text(truth)}


def in_one_wording(text: str, island: str) -> str:
    """`text` with an island's own names of its two kinds (heroes and villains, say) made knights and knaves.

    Args:
        text: The problem or its answer.
        island: The problem, which says what the kinds are called.
    """
    found = _WORDS.search(island)
    if not found:
        return text
    for word, kind in zip(found.groups(), ("knight", "knave"), strict=True):

        def renamed(match: re.Match, kind: str = kind) -> str:
            name = kind.capitalize() if match["word"][0].isupper() else kind
            return ("a " if match["article"] else "") + name + (match["plural"] or "")

        pattern = rf"\b(?P<article>an? )?(?P<word>{re.escape(word)})(?P<plural>s)?\b"
        text = re.sub(pattern, renamed, text, flags=re.IGNORECASE)
    return text


def find_solutions(statements: tuple) -> list[tuple[bool, ...]]:
    """All assignments of roles under which each person's statement is true if and only if that person is a knight.

    The same as reasoning-gym's `KnightsKnavesDataset.find_solution`, in the same order. That tries 2^n assignments;
    here a person comes in when a statement names them, and each statement leaves about half of the cases at once.

    Args:
        statements: One nested tuple a person, in reasoning-gym's language.
    """
    roles: dict[int, np.ndarray] = {}  # person -> whether a knight, in each case that is left

    def holds(statement: tuple) -> np.ndarray:
        kind, *parts = statement
        if kind in ("telling-truth", "lying"):
            return roles[parts[0]] == (kind == "telling-truth")
        values = [holds(part) for part in parts]
        if kind == "not":
            return ~values[0]
        if kind == "->":
            return ~values[0] | values[1]
        if kind == "<=>":
            return values[0] == values[1]
        return {"and": np.logical_and, "or": np.logical_or}[kind].reduce(values)

    left = {person: _named(statement) | {person} for person, statement in enumerate(statements)}
    while left:
        person = min(left, key=lambda one: len(left[one] - roles.keys()))
        for new in left.pop(person) - roles.keys():
            size = len(next(iter(roles.values()), [None]))
            roles = {known: np.repeat(values, 2) for known, values in roles.items()}
            roles[new] = np.tile([True, False], size)
        keep = holds(statements[person]) == roles[person]
        roles = {known: values[keep] for known, values in roles.items()}
    cases = zip(*(roles[person].tolist() for person in range(len(statements))), strict=True)
    return sorted(cases, reverse=True)


def _named(statement: tuple) -> set[int]:
    """The persons that a statement names."""
    kind, *parts = statement
    return {parts[0]} if kind in ("telling-truth", "lying") else set().union(*map(_named, parts))


def as_choice(row: dict) -> dict:
    """The row as multiple choice: up to four assignments of roles, one of them right; the answer is its letter.

    The wrong options and their order are drawn by the row's id, so they are the same in every run.
    """
    roles = people(row)
    right = tuple(roles.values())
    rng = random.Random(choice_seed(0, row["id"], "options"))
    others = [one for one in itertools.product((True, False), repeat=min(len(right), 12)) if one != right[:12]]
    wrong = [one + right[12:] for one in rng.sample(others, min(len(LETTERS) - 1, len(others)))]
    options = rng.sample([right, *wrong], len(wrong) + 1)
    texts = [answer_text(dict(zip(roles, one, strict=True))) for one in options]
    shown = [f"({letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    text = (
        _FORMAT.sub("", row["problem"]) + "\n\n" + "\n".join(shown) + "\n\nAnswer with the letter of the right option."
    )
    return row | {"problem": text, "answer": LETTERS[options.index(right)]}

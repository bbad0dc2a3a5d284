"""Problems by reasoning-gym: its tasks, and Knights and Knaves as benchmarks have it.

Of a task, splits share no text, and only such answers come out as rewards can grade. Knights and Knaves: rows of the
published sets and generated ones in one wording, and both as multiple choice.
"""

import difflib
import itertools
import random
import re
from collections.abc import Iterable, Iterator
from types import ModuleType

from gsr_rl.data.sources import problem_id
from gsr_rl.refinement.candidates import choice_seed
from rewards.golds import read_gold

# A problem of these has several right answers, or one in any order: only the task's own scorer could tell.
SEVERAL_RIGHT = {
    "boxnet", "codeio", "composite", "countdown", "cryptarithm", "graph_color", "group_anagrams",
    "intermediate_integration", "jugs", "kakurasu", "knight_swap", "n_queens", "palindrome_generation",
    "palindrome_partitioning", "propositional_logic", "puzzle24", "quantum_lock", "rubiks_cube", "rush_hour",
    "shortest_path", "simple_integration", "sokoban", "survo", "tower_of_hanoi", "word_ladder",
}  # fmt: skip

# A problem of these asks for a form: factors, lowest terms, an expanded product, three digits. Rewards compare values,
# so that the problem's own text would be right, or what it asks for wrong.
ASKS_FOR_A_FORM = {"fraction_simplification", "polynomial_multiplication", "power_function", "prime_factorization"}

# Generated rows belong to the split of their text's hash, in shares of 100 buckets: no two splits share a text,
# whatever the task, its difficulty and the seed. `train` is `sft`, `grpo` and `base` together; `base` is for making a
# base or a teacher.
GYM_SPLITS = {"train": (0, 60), "sft": (0, 25), "grpo": (25, 50), "base": (50, 60)}
GYM_SPLITS |= {"validation": (60, 80), "test": (80, 100)}
_SEEDS_PER_SPLIT = 1_000_000_000
_SEEDS_PER_RUN = 1_000_000

_WORDS = re.compile(r"inhabited only by (\w+)s and (\w+)s\.")
_FORMAT = re.compile(r"\s*\(Format your answer like: .*?\)", re.DOTALL)
_PERSON = re.compile(r"([^\W\d_][\w'-]*) is a (knight|knave)")
LETTERS = "ABCD"
MAX_PEOPLE = 51  # as many names as reasoning-gym has


def installed(name: str) -> ModuleType:
    """reasoning-gym, which `name` needs. Raises `ValueError` where it is not installed."""
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError(f"{name} needs reasoning-gym: pip install reasoning-gym==0.1.25") from None
    return reasoning_gym


def generate(task: str, split: str, number: int, seed: int, options: dict) -> list[dict]:
    """`number` different problems of a reasoning-gym task, the same ones for the same arguments.

    Args:
        split: A key of `GYM_SPLITS`.
        seed: `problem_seed`, from 0 on: another one draws other problems of the same split.
        options: The task's own arguments, such as its difficulty.

    Returns:
        Rows `{"id", "problem", "answer", "task"}`.

    Raises:
        ValueError: No such task, split, seed or options, too few problems, or answers that the verifier cannot grade.
    """
    gym = installed(f"reasoning_gym/{task}")
    _check_task(task, gym)
    seeds = _seeds(split, number, seed)
    try:
        entries = gym.create_dataset(task, seed=seeds.start, size=len(seeds), **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"dataset_kwargs={options}: reasoning_gym/{task} does not take them: {error}") from None
    return _distinct_rows(entries, task, split, number, len(seeds))


def _check_task(task: str, gym: ModuleType) -> None:
    if task not in (known := gym.factory.DATASETS):
        near = difflib.get_close_matches(task, known, n=1)
        hint = f", did you mean reasoning_gym/{near[0]}" if near else ""
        raise ValueError(f"reasoning_gym/{task}: reasoning-gym has no such task{hint}")
    refused = {
        "have several right answers, and rewards know one of them": SEVERAL_RIGHT,
        "ask for a form of a value, and rewards compare values": ASKS_FOR_A_FORM,
    }
    if why := next((why for why, tasks in refused.items() if task in tasks), None):
        raise ValueError(
            f"reasoning_gym/{task}: its problems {why}: take another task, or write its rows into a file and grade "
            "them by a reward function of your own"
        )


def _seeds(split: str, number: int, seed: int) -> range:
    """The seeds of a split's entries, one each.

    reasoning-gym seeds entry i with seed + i, and small tasks repeat texts at any distance of seeds. So a split has a
    far range of seeds to itself, and keeps only the texts that its hash buckets hold.
    """
    if split not in GYM_SPLITS:
        raise ValueError(f"dataset_split={split!r}: use one of {sorted(GYM_SPLITS)}")
    if not 0 <= seed < _SEEDS_PER_SPLIT // _SEEDS_PER_RUN:
        raise ValueError(f"problem_seed={seed}: 0 to {_SEEDS_PER_SPLIT // _SEEDS_PER_RUN - 1} is expected")
    start = {"validation": 1, "test": 2}.get(split, 0) * _SEEDS_PER_SPLIT + seed * _SEEDS_PER_RUN
    low, high = GYM_SPLITS[split]
    return range(start, start + min(_SEEDS_PER_RUN, 20 * number * 100 // (high - low) + 1000))


def _distinct_rows(entries: Iterable[dict], task: str, split: str, number: int, size: int) -> list[dict]:
    """The first `number` rows of different texts that belong to the split, of `size` entries."""
    low, high = GYM_SPLITS[split]
    rows: dict[str, dict] = {}
    unreadable: dict[str, str] = {}
    for entry in entries:
        text = entry["question"]
        key = problem_id(text)
        if entry["answer"] is None or key in rows or not low <= int(key, 16) % 100 < high:
            continue
        if read_gold(str(entry["answer"])) is None:
            unreadable[key] = str(entry["answer"])
            continue
        rows[key] = {"id": f"{task}-{key}", "problem": text, "answer": str(entry["answer"]), "task": task}
        if len(rows) == number:
            return list(rows.values())
    if unreadable:
        raise ValueError(
            f"reasoning_gym/{task}: rewards cannot read {len(unreadable)} of {len(unreadable) + len(rows)} answers, "
            f"such as {next(iter(unreadable.values()))[:60]!r}: take another task"
        )
    raise ValueError(
        f"max_problems={number}: reasoning_gym/{task} has only {len(rows)} different problems in {size} rows of its "
        f"{split} split: lower max_problems or make the task harder by dataset_kwargs"
    )


def generate_knights_knaves(num_people: int, split: str, number: int, seed: int) -> list[dict]:
    """`number` problems with `num_people` inhabitants and one solution each: reasoning-gym's, in one wording.

    Returns:
        Rows `{"id", "problem", "answer", "task", "names", "is_knight"}`.

    Raises:
        ValueError: As `generate`.
    """
    installed("knights_knaves")
    seeds = _seeds(split, number, seed)
    rows = _distinct_rows(_knights_knaves(num_people, seeds), "knights_knaves", split, number, len(seeds))
    for row in rows:
        roles = read_roles(in_one_wording(row["answer"], row["problem"]))
        row["problem"], row["answer"] = in_one_wording(row["problem"], row["problem"]), answer_text(roles)
        row |= {"names": list(roles), "is_knight": list(roles.values())}
    return rows


def _knights_knaves(num_people: int, seeds: range) -> Iterator[dict]:
    """The entries of reasoning-gym's `KnightsKnavesDataset`, solved by `find_solutions`: that tries all roles."""
    from reasoning_gym.logic.knights_knaves import KKProblemFormatter, KKProblemSampler

    for seed in seeds:
        rng = random.Random(seed)
        sampler = KKProblemSampler(rng.randint(0, 2**32), num_people)
        solutions = []
        while len(solutions) != 1:
            statements = sampler.sample()
            solutions = find_solutions(statements)
        puzzle = {"statements": statements, "solution": solutions[0]}
        shown = KKProblemFormatter(rng.randint(0, 2**32), puzzle).format_problem()
        yield {"question": shown["quiz"], "answer": shown["solution_text"]}


def answer_text(is_knight: dict[str, bool]) -> str:
    """`Zoe is a knight, Max is a knave`: what the verifier reads as roles."""
    return ", ".join(f"{name} is a {'knight' if knight else 'knave'}" for name, knight in is_knight.items())


def people(row: dict) -> dict[str, bool]:
    """Who is a knight, by name: of a row's `names` and truth values, or of its `answer`, in the order of the text."""
    return _truth_of(row) or read_roles(row["answer"])


def with_roles(row: dict) -> dict:
    """The row with an `answer` that says who is what where it gives names and truth values, whatever it was."""
    truth = _truth_of(row)
    return row if not truth or read_roles(row["answer"]) == truth else row | {"answer": answer_text(truth)}


def read_roles(answer: str) -> dict[str, bool]:
    """Who is a knight, by name, of an answer's text: `Zoe is a knight, Max is a knave`."""
    return {name: role == "knight" for name, role in _PERSON.findall(answer)}


def _truth_of(row: dict) -> dict[str, bool]:
    """Who is a knight, by name, where the row gives `names` and one truth value per name; {} where it does not."""
    names = row.get("names")
    truth = row.get("is_knight") if row.get("is_knight") is not None else row.get("solution")
    if not isinstance(names, list) or not isinstance(truth, list) or len(names) != len(truth):
        return {}
    return dict(zip(names, truth, strict=True)) if all(isinstance(value, bool) for value in truth) else {}


def with_answer(row: dict) -> dict:
    """A row of a published set with `problem` and `answer`; any other row as it is.

    The sets give `names` and one truth value per name, as `is_knight` or `solution`; one calls its text `quiz`.
    """
    truth = _truth_of(row)
    if row.get("answer") or not truth:
        return row
    return {**row, "problem": row.get("problem") or row.get("quiz"), "answer": answer_text(truth)}


def in_one_wording(text: str, island: str) -> str:
    """`text`, a problem or its answer, with the two kinds' names (heroes and villains, say) made knights and knaves.

    `island` is the problem, which says what the kinds are called.
    """
    match = _WORDS.search(island)
    if not match:
        return text
    for word, kind in zip(match.groups(), ("knight", "knave"), strict=True):

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
    `statements` has one nested tuple per person, in reasoning-gym's language.
    """
    import numpy as np  # not at the top: problems.py and so the checks of configurations import this module

    roles: dict[int, np.ndarray] = {}  # person -> whether a knight, in each case that is left: (cases,)

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
        person = min(left, key=lambda person: len(left[person] - roles.keys()))
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
    is_knight = people(row)
    right = tuple(is_knight.values())
    rng = random.Random(choice_seed(0, row["id"], "options"))
    first = right[:12]  # 2^12 wrong options are enough
    others = [roles for roles in itertools.product((True, False), repeat=len(first)) if roles != first]
    wrong = [roles + right[12:] for roles in rng.sample(others, min(len(LETTERS) - 1, len(others)))]
    options = rng.sample([right, *wrong], len(wrong) + 1)
    texts = [answer_text(dict(zip(is_knight, roles, strict=True))) for roles in options]
    shown = [f"({letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    parts = [_FORMAT.sub("", row["problem"]), "\n".join(shown), "Answer with the letter of the right option."]
    return row | {"problem": "\n\n".join(parts), "answer": LETTERS[options.index(right)]}

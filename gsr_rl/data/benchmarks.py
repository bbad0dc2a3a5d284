"""Benchmarks by name: their problems from the Hub, from a local file or generated, checked against the manifest.

    aime24, amc23, math500, ...      a set of gsr_rl/data/hub_sets.py, or one of its aliases
    knights_knaves/4[/choice]        generated, with 4 inhabitants; as multiple choice
    reasoning_gym/TASK, tiny/mix     generated
    path/to/rows.jsonl, USER/NAME    a local file, a data set on the Hub; path/to/aime24.jsonl is checked as aime24

A generated set, or one of the Hub, may say its split: `tiny/mix@validation`. Without it, it is `test`. Names are the
same in capitals, and with other or no dashes: `AMC-2023`, `Knights-Knaves/4`.
"""

import difflib
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from gsr_rl.data import hub_sets, knights_knaves
from gsr_rl.data.gym_tasks import installed
from gsr_rl.data.hub_sets import BENCHMARKS, FORMS, Benchmark
from gsr_rl.data.problems import ANSWER_COLUMNS, PROBLEM_COLUMNS, plain_config, read_problems
from gsr_rl.data.sources import GENERATED, LOCAL_SUFFIXES

DEFAULT_PEOPLE = 4
DEFAULT_KNIGHTS = 100  # problems of one size, as in the published sets
USABLE = 0.95  # of the rows of a set of the manifest, at least; all where it knows the answers
_KNIGHTS = re.compile(r"knights_?(?:and_?)?knaves(?:/(\d+))?(/choice)?(?:@(\w+))?")


def _plain(name: str) -> str:
    """A name without what spellings of it differ in."""
    return re.sub(r"[-_ ]", "", name.lower())


_ALIASES = {_plain(alias): name for name, one in BENCHMARKS.items() for alias in (name, *one.aliases)}


@dataclass(frozen=True)
class Source:
    """What a name means: its canonical name, its entry of the manifest, a file that stands in for it."""

    name: str
    known: Benchmark | None = None
    file: str | None = None
    people: int | None = None  # Knights and Knaves: so many inhabitants; 0: any number
    choice: bool = False
    split: str = "test"  # of generated ones

    @property
    def is_local(self) -> bool:
        """Whether its rows can be had without the Hub."""
        return bool(self.file) or self.people is not None or self.name.startswith(GENERATED)

    @property
    def reads(self) -> tuple[str, ...]:
        """Which keys of `ProblemConfig` about one set's rows have a say in this one."""
        if self.name.startswith(GENERATED):
            return ("dataset_kwargs",)
        columns = ("problem_column", "answer_column")
        if self.known or self.people is not None:
            return columns if self.file else ()
        return (*columns, "row_filters") + (() if self.file else ("dataset_config", "dataset_kwargs"))


def resolve(name: str, files: dict[str, str] | None = None) -> Source:
    """What `name` means.

    Args:
        name: As in the module's list.
        files: Local files that stand in for sets, by name or alias.

    Raises:
        ValueError: There is no such benchmark. Names the nearest ones.
    """
    named = {_canonical(str(key)): str(path) for key, path in (files or {}).items()}
    if match := _knights_of(name):
        return _knights_source(name, match, named)
    if Path(name).suffix in LOCAL_SUFFIXES:
        stem = Path(name).stem
        return resolve(stem, {stem: name}) if is_name(stem) else Source(stem, file=name)
    if prefix := next((one for one in GENERATED if name.lower().replace("-", "_").startswith(one)), None):
        return Source(prefix + name[len(prefix) :].lower().replace("-", "_"))
    if known := _ALIASES.get(_plain(name)):
        return Source(known, BENCHMARKS[known], named.get(known))
    if _plain(name).startswith(("knightsknaves", "knightsandknaves")):
        raise ValueError(
            f"benchmarks: {name}: knights_knaves, knights_knaves/N or knights_knaves/N/choice is expected"
        )
    if "/" in name:
        return Source(name, file=named.get(name))
    names = [*BENCHMARKS, "knights_knaves", "reasoning_gym/TASK", "tiny/mix"]
    near = difflib.get_close_matches(_plain(name), [*_ALIASES, "knightsknaves"], n=1, cutoff=0.5)
    hint = f"did you mean {_ALIASES.get(near[0], 'knights_knaves')}? " if near else ""
    raise ValueError(
        f"benchmarks: {name!r} is not known: {hint}Use {', '.join(names)}, a local file or a name on the Hub"
    )


def is_name(name: str) -> bool:
    """Whether a benchmark that is checked goes by this name: one of the manifest, an alias, Knights and Knaves."""
    return _plain(name) in _ALIASES or bool(_knights_of(name))


def _canonical(name: str) -> str:
    """The one spelling of a benchmark's name; what is none stays as it is."""
    match = _knights_of(name)
    return _knights_name(match) if match else _ALIASES.get(_plain(name), name)


def _knights_of(name: str) -> re.Match | None:
    return _KNIGHTS.fullmatch(re.sub("[- ]", "_", name.lower()))


def _knights_name(match: re.Match, people: int = 0) -> str:
    people = int(match[1]) if match[1] else people
    return f"knights_knaves{f'/{people}' if people else ''}{match[2] or ''}{f'@{match[3]}' if match[3] else ''}"


def _knights_source(name: str, match: re.Match, named: dict[str, str]) -> Source:
    file, people = None, int(match[1] or DEFAULT_PEOPLE)
    # a file under the bare name has any number of inhabitants, and choices are made of the same puzzles
    for number in (0, DEFAULT_PEOPLE):
        spelled = _knights_name(match, number)
        known = named.get(spelled) or named.get(spelled.removesuffix("/choice"))
        if known and not file:
            file, people = known, int(match[1] or number)
    if match[1] and people < 2:
        raise ValueError(f"benchmarks: {name}: at least 2 inhabitants are needed")
    if not file and people > knights_knaves.MOST_PEOPLE:
        raise ValueError(
            f"benchmarks: {name}: puzzles of at most {knights_knaves.MOST_PEOPLE} inhabitants are generated, "
            f"larger ones can come from a file: --benchmark_files '{{{name}: FILE.jsonl}}'"
        )
    if file and match[3]:
        raise ValueError(f"benchmarks: {name}: {file} has no splits: leave out @{match[3]}")
    return Source(_knights_name(match, people), None, file, people, bool(match[2]), match[3] or "test")


def load(name: str, problem_config, files: dict[str, str] | None = None) -> list[dict]:
    """The problems of a benchmark, checked against the manifest, the first `max_problems` of them.

    Args:
        name: As in the module's list.
        problem_config: A `ProblemConfig`, for `max_problems`, `problem_seed`, `dataset_kwargs`, and for the columns
            and the unusable rows of local files.
        files: Local files that stand in for sets.

    Returns:
        Rows `{"benchmark", "id", "problem", "answer", ...}`.

    Raises:
        ValueError: No such benchmark, another number of problems or other kinds of answers than it has, or it cannot
            be read.
    """
    source = resolve(name, files)
    if source.people is not None:
        rows = _knights(source, problem_config)
    elif source.known:
        rows = _known(source, problem_config)
    else:
        rows = _other(source, problem_config)
    limit = problem_config.max_problems
    return [row | {"benchmark": source.name} for row in (rows[:limit] if limit else rows)]


def _read(source: Source, name: str, **values):
    """The problems under `name`. Raises `ValueError` for whatever stands in the way."""
    try:
        problems = read_problems(plain_config(name, **values))
    except ValueError:
        raise
    except Exception as error:  # the Hub's libraries raise what they like
        raise ValueError(
            f"benchmarks: {source.name} cannot be read from {name} ({type(error).__name__}: {error}): give a local "
            f"file by --benchmark_files '{{{source.name}: FILE.jsonl}}'"
        ) from None
    for reason, count in problems.counts.items():
        if count and reason not in ("rows read", "problems"):
            print(f"{source.name}: left out {count} rows {reason}", file=sys.stderr)
    return problems


def _known(source: Source, problem_config) -> list[dict]:
    known = source.known
    if source.file:
        columns = {
            "problem_column": list(dict.fromkeys([known.problem, *PROBLEM_COLUMNS])),
            "answer_column": list(dict.fromkeys([known.answer, *ANSWER_COLUMNS])),
        }
        problems = _read(source, source.file, **columns | _keys_of_a_file(problem_config))
    else:
        columns = {"problem_column": known.problem, "answer_column": known.answer}
        how = {"dataset_split": known.split, "dataset_config": known.config, "unusable_rows": "drop"}
        problems = _read(source, known.hub, **columns, **how)
    for message in check_rows(source, problems.counts["rows read"], problems.rows):
        raise ValueError(message)
    return problems.rows


def _keys_of_a_file(problem_config) -> dict:
    """What the configuration says of a local file's rows."""
    keys = ("problem_column", "answer_column", "unusable_rows")
    return {key: value for key in keys if (value := getattr(problem_config, key))}


def check_rows(source: Source, number: int, rows: list[dict]) -> list[str]:
    """What is wrong with the rows of a set of the manifest.

    Of the answers only integers are known here, by their fingerprint.

    Args:
        source: With `known`.
        number: Rows that were read, also those that were not usable.
        rows: The usable ones.
    """
    known, where = source.known, source.file or source.known.hub
    if number not in known.rows:
        wanted = " or ".join(map(str, known.rows))
        other = [name for name, one in BENCHMARKS.items() if number in one.rows and name != source.name]
        mend = f"that is the number of {', '.join(other)}" if other else "no benchmark here has that many"
        return [
            f"benchmarks: {source.name} has {wanted} problems ({known.about}), {where} has {number}: {mend}. Give the "
            f"right file, or evaluate this one under another name (rename the file, and give it in benchmarks)"
        ]
    if len(rows) < (number if known.answers else USABLE * number):
        return [
            f"benchmarks: {source.name} has {number} rows in {where}, of which only {len(rows)} are usable and "
            "different: another column holds the answers, or problems repeat"
        ]
    pattern, words = FORMS[known.form]
    for place, row in enumerate(rows, 1):
        if pattern and not re.fullmatch(pattern, row["answer"].strip()):
            return [
                f"benchmarks: an answer of {source.name} is {words}, but that of problem {place} of {where} "
                f"({row['id']}) is {row['answer'][:60]!r}: it is another set, or another column holds the answers"
            ]
    answers = [row["answer"] for row in rows]
    if not all(re.fullmatch(FORMS["integer"][0], answer.strip()) for answer in answers):
        return []
    found = answers_fingerprint(answers)
    if found == known.answers:
        return []
    for name, one in BENCHMARKS.items():
        if found == one.answers:
            return [f"benchmarks: {where} holds the answers of {name}, not of {source.name}: name it {name}"]
    if not known.answers and pattern:
        return []
    has = "other answers than" if pattern else "integers alone as answers, unlike"
    own = "rename the file, and give that" if source.file else f"--benchmarks {where}@{known.split}"
    return [
        f"benchmarks: {where} has {has} {source.name} ({known.about}): give the right file, or evaluate this one "
        f"under another name ({own})"
    ]


def answers_fingerprint(answers: list[str]) -> str:
    """A hash of integer answers that does not depend on their order or spelling (`073`, `73.0`)."""
    numbers = sorted(int(float(answer.replace(",", ""))) for answer in answers)
    return hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=6).hexdigest()


def _knights(source: Source, problem_config) -> list[dict]:
    if source.file:
        rows = _read(source, source.file, **_keys_of_a_file(problem_config)).rows
        rows = [knights_knaves.with_roles(row) for row in rows]
        for place, row in enumerate(rows, 1):
            count = len(knights_knaves.people(row))
            if not count or (source.people and count != source.people):
                wanted = f"{source.people} inhabitants" if source.people else "who is a knight and who is a knave"
                raise ValueError(
                    f"benchmarks: {source.name} asks for {wanted}, problem {place} of {source.file} ({row['id']}) has "
                    f"the answer {row['answer'][:60]!r}: give another file, or name it knights_knaves"
                    f"{f'/{count}' if count else ''}"
                )
    else:
        number = problem_config.max_problems or DEFAULT_KNIGHTS
        rows = generate_knights_knaves(source.people, number, source.split, problem_config.problem_seed)
    return [knights_knaves.as_choice(row) for row in rows] if source.choice else rows


def generate_knights_knaves(num_people: int, number: int, split: str, seed: int) -> list[dict]:
    """`number` problems with `num_people` inhabitants and one solution each, by reasoning-gym's task.

    Returns:
        Rows `{"id", "problem", "answer", "names", "is_knight"}`.

    Raises:
        ValueError: As `problems.read_problems` for a generated set.
    """

    installed("knights_knaves")
    from reasoning_gym.logic.knights_knaves import KnightsKnavesDataset

    config = plain_config("reasoning_gym/knights_knaves", dataset_split=split, max_problems=number,
                          problem_seed=seed, dataset_kwargs={"n_people": num_people})  # fmt: skip
    with mock.patch.object(KnightsKnavesDataset, "find_solution", staticmethod(knights_knaves.find_solutions)):
        problems = read_problems(config)
    rows = []
    for row in problems.rows:
        roles = knights_knaves.read_roles(knights_knaves.in_one_wording(row["answer"], row["problem"]))
        more = {"names": list(roles), "is_knight": list(roles.values()), "answer": knights_knaves.answer_text(roles)}
        rows.append(row | {"problem": knights_knaves.in_one_wording(row["problem"], row["problem"])} | more)
    return rows


def _other(source: Source, problem_config) -> list[dict]:
    """A generated set, a local file, or a set of the Hub that the manifest does not hold."""
    base, _, split = (source.file, "", "") if source.file else source.name.partition("@")
    known = hub_sets.HUB_SETS.get(base)
    split = split or (known.splits[-1] if known else "test")
    keys = ("dataset_config", "problem_column", "answer_column", "max_problems", "problem_seed", "dataset_kwargs")
    values = {key: getattr(problem_config, key) for key in (*keys, "row_filters", "unusable_rows")}
    return _read(source, base, dataset_split=split, **values).rows


def describe(name: str, files: dict[str, str] | None, problem_config) -> tuple[str, list[dict] | int | None]:
    """For a dry run: where a benchmark comes from, and its problems; of a Hub set how many, None if unknown."""
    source = resolve(name, files)
    if source.is_local:
        return source.file or "generated", load(name, problem_config, files)
    if source.known:
        limit = problem_config.max_problems
        return f"{source.known.hub} on the Hub", min(max(source.known.rows), limit or max(source.known.rows))
    return f"{name} on the Hub", None

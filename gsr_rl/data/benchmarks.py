"""Benchmarks by name: their problems from the Hub, from a local file or generated, checked against the manifest.

    aime24, amc23, math500, ...      a set of the manifest `BENCHMARKS`, or one of its aliases
    knights_knaves/4[/choice]        generated, with 4 inhabitants; as multiple choice
    reasoning_gym/TASK, tiny/mix     generated
    path/to/rows.jsonl, USER/NAME    a local file, a data set on the Hub; path/to/aime24.jsonl is checked as aime24

A generated set, or one of the Hub, may say its split: `tiny/mix@validation`. Without it, it is `test`. Names are the
same in capitals, and with other or no dashes: `AMC-2023`, `Knights-Knaves/4`.
"""

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from gsr_rl.data import gym_tasks
from gsr_rl.data.problems import plain_config, print_left_out, read_problems
from gsr_rl.data.sources import ANSWER_COLUMNS, GENERATED, HUB_SETS, PROBLEM_COLUMNS, HubSet, file_kind, source_of
from gsr_rl.keys import raise_if_any

DEFAULT_PEOPLE = 4
DEFAULT_KNIGHTS = 100  # problems of one size, as in the published sets
USABLE = 0.95  # of the rows of a set of the manifest, at least; all where it knows the answers
_KNIGHTS = re.compile(r"knights_?(?:and_?)?knaves(?:/(?P<people>\d+))?(?P<choice>/choice)?(?:@(?P<split>\w+))?")


@dataclass(frozen=True)
class Benchmark:
    """An entry of the manifest.

    Attributes:
        hub: Data set on the Hub; what it holds is in its last split.
        rows: Accepted numbers of problems.
        form: Of its answers, a key of `FORMS`.
        about: What it is, in words.
        layout: Of a set that is not in `HUB_SETS`.
        answers: Fingerprint of its sorted answers, for sets of integers whose answers are known here.
        aliases: Other names that are understood; capitals, dashes and underscores make no difference.
    """

    hub: str
    rows: tuple[int, ...]
    form: str
    about: str
    layout: HubSet | None = None
    answers: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def columns(self) -> HubSet:
        """Splits, configurations and columns on the Hub."""
        return self.layout or HUB_SETS[self.hub]

    @property
    def split(self) -> str:
        return self.columns.splits[-1]


FORMS = {  # name -> (pattern of the answer, or None for any that the verifier reads; in words)
    "integer from 0 to 999": (r"0*\d{1,3}(\.0+)?", "an integer from 0 to 999"),
    "integer": (r"-?\d[\d,]*(\.0+)?", "an integer"),
    "latex": (None, "an answer that the verifier can read"),
}

BENCHMARKS = {
    "aime24": Benchmark(
        "HuggingFaceH4/aime_2024", (30,), "integer from 0 to 999", "AIME I and II of 2024",
        answers="a4c126aaa6c9", aliases=("aime2024",),
    ),
    "aime25": Benchmark(
        "math-ai/aime25", (30,), "integer from 0 to 999", "AIME I and II of 2025",
        answers="50cbd2487eb2", aliases=("aime2025",),
    ),
    "amc23": Benchmark(
        "math-ai/amc23", (40,), "integer", "AMC 12 of 2023, the problems with integer answers",
        answers="401a4e1e1c97", aliases=("amc2023",),
    ),
    "amc22-23": Benchmark(
        "AI-MO/aimo-validation-amc", (83,), "integer", "AMC 12 of 2022 and 2023", HubSet(("train",)),
        aliases=("amc", "amc2022-23", "amc2022-2023", "aimo-validation-amc"),
    ),
    "math500": Benchmark("HuggingFaceH4/MATH-500", (500,), "latex", "500 problems of MATH's test split"),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench", (674, 675), "latex",
        "OlympiadBench, open-ended, maths, English, text only (OE_TO_maths_en_COMP)",
        aliases=("olympiad", "OE_TO_maths_en_COMP"),
    ),
    "gsm8k": Benchmark(
        "openai/gsm8k", (1319,), "integer", "GSM8K's test split", answers="991b0202b079", aliases=("gsm8k_test",),
    ),
    "minerva": Benchmark(
        "math-ai/minervamath", (272,), "latex", "the science and engineering problems of Minerva's paper",
        HubSet(("test",), problem="question"), aliases=("minervamath",),
    ),
    "hmmt": Benchmark(
        "MathArena/hmmt_feb_2025", (30,), "latex", "Harvard-MIT Mathematics Tournament, February 2025",
        HubSet(("train",)), aliases=("hmmt25", "hmmt2025", "hmmt_feb_2025", "hmmt_feb25"),
    ),
}  # fmt: skip


def _plain(name: str) -> str:
    """A name without what spellings of it differ in."""
    return re.sub(r"[-_ ]", "", name.lower())


_NAMES = {_plain(name): key for key, entry in BENCHMARKS.items() for name in (key, *entry.aliases)}


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
    def place(self) -> str:
        """Where the rows of a set of the manifest come from."""
        return self.file or self.known.hub

    @property
    def reads(self) -> tuple[str, ...]:
        """Which keys of `ProblemConfig` about one set's rows are read for this one; the others are ignored."""
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
    if file_kind(name):
        stem = Path(name).stem
        return resolve(stem, {stem: name}) if is_name(stem) else Source(stem, file=name)
    if (generated := name.lower().replace("-", "_")).startswith(GENERATED):
        return Source(generated)
    if known := _NAMES.get(_plain(name)):
        return Source(known, BENCHMARKS[known], file=named.get(known))
    if _plain(name).startswith(("knightsknaves", "knightsandknaves")):
        raise ValueError(
            f"benchmarks: {name}: knights_knaves, knights_knaves/N or knights_knaves/N/choice is expected"
        )
    if "/" in name:
        return Source(name, file=named.get(name))
    names = [*BENCHMARKS, "knights_knaves", "reasoning_gym/TASK", "tiny/mix"]
    near = difflib.get_close_matches(_plain(name), [*_NAMES, "knightsknaves"], n=1, cutoff=0.5)
    hint = f"did you mean {_NAMES.get(near[0], 'knights_knaves')}? " if near else ""
    raise ValueError(
        f"benchmarks: {name!r} is not known: {hint}Use {', '.join(names)}, a local file or a name on the Hub"
    )


def is_name(name: str) -> bool:
    """Whether a benchmark that is checked goes by this name: one of the manifest, an alias, Knights and Knaves."""
    return _plain(name) in _NAMES or bool(_knights_of(name))


def _canonical(name: str) -> str:
    """The one spelling of a benchmark's name; what is none stays as it is."""
    return _knights_name(match) if (match := _knights_of(name)) else _NAMES.get(_plain(name), name)


def _knights_of(name: str) -> re.Match | None:
    return _KNIGHTS.fullmatch(re.sub("[- ]", "_", name.lower()))


def _knights_name(match: re.Match, people: int = 0) -> str:
    people, split = int(match["people"] or people), match["split"]
    return f"knights_knaves{f'/{people}' if people else ''}{match['choice'] or ''}{f'@{split}' if split else ''}"


def _knights_source(name: str, match: re.Match, named: dict[str, str]) -> Source:
    file, people = None, int(match["people"] or DEFAULT_PEOPLE)
    # a file under the bare name has any number of inhabitants, and choices are made of the same puzzles
    for number in (0, DEFAULT_PEOPLE):
        spelled = _knights_name(match, number)
        known = named.get(spelled) or named.get(spelled.removesuffix("/choice"))
        if known and not file:
            file, people = known, int(match["people"] or number)
    if match["people"] and people < 2:
        raise ValueError(f"benchmarks: {name}: at least 2 inhabitants are needed")
    if not file and people > gym_tasks.MAX_PEOPLE:
        raise ValueError(
            f"benchmarks: {name}: puzzles of at most {gym_tasks.MAX_PEOPLE} inhabitants are generated, "
            f"larger ones can come from a file: --benchmark_files '{{{name}: FILE.jsonl}}'"
        )
    if file and match["split"]:
        raise ValueError(f"benchmarks: {name}: {file} has no splits: leave out @{match['split']}")
    choice, split = bool(match["choice"]), match["split"] or "test"
    return Source(_knights_name(match, people), file=file, people=people, choice=choice, split=split)


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
    read = _knights if source.people is not None else _known if source.known else _other
    rows = read(source, problem_config)[: problem_config.max_problems or None]
    return [row | {"benchmark": source.name} for row in rows]


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
    print_left_out(source.name, problems.counts)
    return problems


def _known(source: Source, problem_config) -> list[dict]:
    """A set of the manifest, which `check_rows` finds to be that one."""
    layout = source.known.columns
    if source.file:
        columns = {
            "problem_column": list(dict.fromkeys([layout.problem, *PROBLEM_COLUMNS])),
            "answer_column": list(dict.fromkeys([layout.answer, *ANSWER_COLUMNS])),
        }
        problems = _read(source, source.file, **columns | _keys_of_a_file(problem_config))
    else:
        columns = {"problem_column": layout.problem, "answer_column": layout.answer}
        part = {"dataset_split": layout.splits[-1], "dataset_config": next(iter(layout.configs), None)}
        problems = _read(source, source.known.hub, **columns, **part, unusable_rows="drop")
    raise_if_any(check_rows(source, problems.counts["rows read"], problems.rows))
    return problems.rows


def _keys_of_a_file(problem_config) -> dict:
    """What the configuration says of a local file's rows."""
    keys = ("problem_column", "answer_column", "unusable_rows")
    return {key: value for key in keys if (value := getattr(problem_config, key))}


def check_rows(source: Source, number: int, rows: list[dict]) -> list[str]:
    """The first thing that is wrong with the rows of a set of the manifest, as one message; none if nothing is.

    Of the answers only integers are known here, by their fingerprint. Of the `number` rows that were read, `rows` are
    the usable ones.
    """
    return _check_number(source, number, rows) or _check_form(source, rows) or _check_answers(source, rows)


def _check_number(source: Source, number: int, rows: list[dict]) -> list[str]:
    known, where = source.known, source.place
    if number not in known.rows:
        wanted = " or ".join(map(str, known.rows))
        others = [name for name, entry in BENCHMARKS.items() if number in entry.rows and name != source.name]
        fix = f"that is the number of {', '.join(others)}" if others else "no benchmark here has that many"
        return [
            f"benchmarks: {source.name} has {wanted} problems ({known.about}), {where} has {number}: {fix}. Give the "
            f"right file, or evaluate this one under another name (rename the file, and give it in benchmarks)"
        ]
    if len(rows) < (number if known.answers else USABLE * number):
        return [
            f"benchmarks: {source.name} has {number} rows in {where}, of which only {len(rows)} are usable and "
            "different: another column holds the answers, or problems repeat"
        ]
    return []


def _check_form(source: Source, rows: list[dict]) -> list[str]:
    pattern, words = FORMS[source.known.form]
    return [
        f"benchmarks: an answer of {source.name} is {words}, but that of problem {number} of {source.place} "
        f"({row['id']}) is {row['answer'][:60]!r}: it is another set, or another column holds the answers"
        for number, row in enumerate(rows, 1)
        if pattern and not re.fullmatch(pattern, row["answer"].strip())
    ][:1]


def _check_answers(source: Source, rows: list[dict]) -> list[str]:
    known, where = source.known, source.place
    answers = [row["answer"] for row in rows]
    if not all(re.fullmatch(FORMS["integer"][0], answer.strip()) for answer in answers):
        return []
    if (fingerprint := answers_fingerprint(answers)) == known.answers:
        return []
    for name, entry in BENCHMARKS.items():
        if fingerprint == entry.answers:
            return [f"benchmarks: {where} holds the answers of {name}, not of {source.name}: name it {name}"]
    of_integers = FORMS[known.form][0] is not None
    if not known.answers and of_integers:
        return []
    has = "other answers than" if of_integers else "integers alone as answers, unlike"
    renamed = "rename the file, and give that" if source.file else f"--benchmarks {where}@{known.split}"
    return [
        f"benchmarks: {where} has {has} {source.name} ({known.about}): give the right file, or evaluate this one "
        f"under another name ({renamed})"
    ]


def answers_fingerprint(answers: list[str]) -> str:
    """A hash of integer answers that does not depend on their order or spelling (`073`, `73.0`)."""
    numbers = sorted(int(float(answer.replace(",", ""))) for answer in answers)
    return hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=6).hexdigest()


def _knights(source: Source, problem_config) -> list[dict]:
    """Knights and Knaves, generated or from a file."""
    if source.file:
        rows = _read(source, source.file, **_keys_of_a_file(problem_config)).rows
        rows = [gym_tasks.with_roles(row) for row in rows]
        for place, row in enumerate(rows, 1):
            count = len(gym_tasks.people(row))
            if not count or (source.people and count != source.people):
                wanted = f"{source.people} inhabitants" if source.people else "who is a knight and who is a knave"
                raise ValueError(
                    f"benchmarks: {source.name} asks for {wanted}, problem {place} of {source.file} ({row['id']}) has "
                    f"the answer {row['answer'][:60]!r}: give another file, or name it knights_knaves"
                    f"{f'/{count}' if count else ''}"
                )
    else:
        number = problem_config.max_problems or DEFAULT_KNIGHTS
        rows = gym_tasks.generate_knights_knaves(source.people, source.split, number, problem_config.problem_seed)
    return [gym_tasks.as_choice(row) for row in rows] if source.choice else rows


def _other(source: Source, problem_config) -> list[dict]:
    """A generated set, a local file, or a set of the Hub that the manifest does not hold."""
    name, split = (source.file, "test") if source.file else source_of(source.name)
    keys = ("dataset_config", "problem_column", "answer_column", "max_problems", "problem_seed", "dataset_kwargs")
    values = {key: getattr(problem_config, key) for key in (*keys, "row_filters", "unusable_rows")}
    return _read(source, name, dataset_split=split, **values).rows


def describe(name: str, files: dict[str, str] | None, problem_config) -> tuple[str, list[dict] | int | None]:
    """For a dry run: where a benchmark comes from, and its problems; of a Hub set how many, None if unknown."""
    source = resolve(name, files)
    if source.is_local:
        return source.file or "generated", load(name, problem_config, files)
    if source.known:
        number = max(source.known.rows)
        return f"{source.known.hub} on the Hub", min(number, problem_config.max_problems or number)
    return f"{name} on the Hub", None

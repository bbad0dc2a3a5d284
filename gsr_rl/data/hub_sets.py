"""Problem sets on the Hugging Face Hub whose layout is known, so that their name is enough; others may need columns.

The columns are those that the sets' cards document.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HubSet:
    """The layout of one set.

    Attributes:
        splits: The splits that hold problems with answers.
        problem, answer: Columns.
        configs: Configurations that make up the set, if it has several and none is named.
        row_filters: As `ProblemConfig.row_filters`, used where that is not set.
        columns: Columns to read, and the rows one after the other without a whole download: for sets whose solutions
            are most of their size.
    """

    splits: tuple[str, ...]
    problem: str = "problem"
    answer: str = "answer"
    configs: tuple[str, ...] = ()
    row_filters: dict = field(default_factory=dict)
    columns: tuple[str, ...] = ()


_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
             "precalculus")  # fmt: skip
_OPEN_MATH = ("problem", "expected_answer", "problem_type", "problem_source", "pass_rate_72b_tir")

HUB_SETS = {
    # One row a solution, so problems repeat; pass_rate_72b_tir is text, "n/a" for most of the other problem types.
    "nvidia/OpenMathReasoning": HubSet(
        ("cot", "tir"),
        answer="expected_answer",
        row_filters={"problem_type": "has_answer_extracted", "pass_rate_72b_tir": {"min": 0.25, "max": 0.90}},
        columns=_OPEN_MATH,
    ),
    "openai/gsm8k": HubSet(("train", "test"), problem="question", configs=("main",)),
    "EleutherAI/hendrycks_math": HubSet(("train", "test"), answer="solution", configs=_SUBJECTS),
    "DigitalLearningGmbH/MATH-lighteval": HubSet(("train", "test"), answer="solution"),
    "HuggingFaceH4/MATH-500": HubSet(("test",)),
    "agentica-org/DeepScaleR-Preview-Dataset": HubSet(("train",)),
    "HuggingFaceH4/aime_2024": HubSet(("train",)),
    "math-ai/aime24": HubSet(("test",), answer="solution"),
    "math-ai/aime25": HubSet(("test",)),
    "math-ai/amc23": HubSet(("test",), problem="question"),
    "Hothan/OlympiadBench": HubSet(
        ("train",), problem="question", answer="final_answer", configs=("OE_TO_maths_en_COMP",)
    ),
}


def check_split(name: str, split: str) -> list[str]:
    """A message if a known set has no such split."""
    known = HUB_SETS.get(name)
    if known and split not in known.splits:
        return [f"dataset_split={split}: {name} has its problems in {' and '.join(known.splits)}, set it to that"]
    return []


def read_hub(config, options: dict) -> Iterator[dict]:
    """The rows of a Hub set as they are, read as far as they are asked for."""
    import datasets

    known = HUB_SETS.get(config.dataset_name)
    names = [config.dataset_config] if config.dataset_config or not known else known.configs or [None]
    if known and known.columns:
        options = {"streaming": True, "columns": list(known.columns)} | options
    for name in names:
        yield from datasets.load_dataset(config.dataset_name, name, split=config.dataset_split, **options)


def columns_of(config) -> tuple[list[str] | None, list[str] | None]:
    """The problem and the answer columns: the config's, or the known set's; None where neither says."""
    known = HUB_SETS.get(str(config.dataset_name))
    problem = config.problem_column or (known.problem if known else None)
    answer = config.answer_column or (known.answer if known else None)
    return _names(problem), _names(answer)


def _names(columns: str | list[str] | None) -> list[str] | None:
    return [columns] if isinstance(columns, str) else columns


def filters_of(config) -> dict:
    """The row filters: the config's, an empty mapping included, or the known set's."""
    known = HUB_SETS.get(str(config.dataset_name))
    return config.row_filters if config.row_filters is not None else (known.row_filters if known else {})


def passes(row: dict, filters: dict) -> str | None:
    """The first column whose filter a row does not pass, or None.

    A filter is a value; a list of values; or `{min, max}`, one or both, for a number. A text may hold the number. A
    row without such a number does not pass.
    """
    for column, wanted in filters.items():
        value = row.get(column)
        if isinstance(wanted, dict):
            number = _number(value)
            if not wanted.get("min", number) <= number <= wanted.get("max", number):
                return column
            continue
        wanted = wanted if isinstance(wanted, list) else [wanted]
        if value not in wanted and not (isinstance(value, str) and _number(value) in wanted):
            return column
    return None


def _number(value) -> float:
    """The number in a value, or NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        hub: Data set on the Hub; with `config`, `split` and the columns `problem` and `answer`.
        rows: Accepted numbers of problems.
        form: Of its answers, a key of `FORMS`.
        answers: Fingerprint of its sorted answers, for sets of integers whose answers are known here.
        aliases: Other names that are understood; capitals, dashes and underscores make no difference.
        about: What it is, in words.
    """

    hub: str
    split: str
    rows: tuple[int, ...]
    form: str
    about: str
    config: str | None = None
    problem: str = "problem"
    answer: str = "answer"
    answers: str = ""
    aliases: tuple[str, ...] = ()


FORMS = {  # name -> (pattern of the answer, or None for any that the verifier reads; in words)
    "integer from 0 to 999": (r"0*\d{1,3}(\.0+)?", "an integer from 0 to 999"),
    "integer": (r"-?\d[\d,]*(\.0+)?", "an integer"),
    "latex": (None, "an answer that the verifier can read"),
}

BENCHMARKS = {
    "aime24": Benchmark(
        "HuggingFaceH4/aime_2024", "train", (30,), "integer from 0 to 999", "AIME I and II of 2024",
        answers="a4c126aaa6c9", aliases=("aime2024",),
    ),
    "aime25": Benchmark(
        "math-ai/aime25", "test", (30,), "integer from 0 to 999", "AIME I and II of 2025",
        answers="50cbd2487eb2", aliases=("aime2025",),
    ),
    "amc23": Benchmark(
        "math-ai/amc23", "test", (40,), "integer", "AMC 12 of 2023, the problems with integer answers",
        problem="question", answers="401a4e1e1c97", aliases=("amc2023",),
    ),
    "amc22-23": Benchmark(
        "AI-MO/aimo-validation-amc", "train", (83,), "integer", "AMC 12 of 2022 and 2023",
        aliases=("amc", "amc2022-23", "amc2022-2023", "aimo-validation-amc"),
    ),
    "math500": Benchmark(
        "HuggingFaceH4/MATH-500", "test", (500,), "latex", "500 problems of MATH's test split",
    ),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench", "train", (674, 675), "latex",
        "OlympiadBench, open-ended, maths, English, text only (OE_TO_maths_en_COMP)",
        config="OE_TO_maths_en_COMP", problem="question", answer="final_answer",
        aliases=("olympiad", "OE_TO_maths_en_COMP"),
    ),
    "gsm8k": Benchmark(
        "openai/gsm8k", "test", (1319,), "integer", "GSM8K's test split", config="main", problem="question",
        answers="991b0202b079", aliases=("gsm8k_test",),
    ),
    "minerva": Benchmark(
        "math-ai/minervamath", "test", (272,), "latex", "the science and engineering problems of Minerva's paper",
        problem="question", aliases=("minervamath",),
    ),
    "hmmt": Benchmark(
        "MathArena/hmmt_feb_2025", "train", (30,), "latex", "Harvard-MIT Mathematics Tournament, February 2025",
        aliases=("hmmt25", "hmmt2025", "hmmt_feb_2025", "hmmt_feb25"),
    ),
}  # fmt: skip

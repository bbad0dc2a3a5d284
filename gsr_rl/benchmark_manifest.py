"""What each benchmark is: where it lies on the Hub, how many problems it has, what its answers look like.

Copies of these sets differ. The counts are those of the sets that papers report on; a copy with another count is
another benchmark, whatever its name.
"""

from dataclasses import dataclass


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

"""samples.parquet made by hand, without an engine and without the verifier: for tests of tables and reports."""

import random

from gsr_rl.report.samples import write_samples

HEADER = {
    "model": "made/model",
    "k": 3,
    "num_problems": 0,
    "num_samples": 6,
    "num_candidate_sets": 2,
    "grouping": "disjoint",
    "methods": ["selfref", "selfref_none"],
    "seed": 0,
    "sampling": {
        "candidate": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 40},
        "refinement": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 40},
    },
    "versions": {"gsr-rl": "0"},
    "hardware": {"processor": "AMD EPYC", "cores": 2, "accelerators": []},
}
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=alert(1)> {{ 7*7 }} </pre><h1>big</h1> & \\boxed{1}"
)


def made_samples(number: int, seed: int = 0, text: str = "so \\boxed{%d}", benchmark: str = "made") -> list[dict]:
    """For each of `number` problems six candidates, two disjoint sets, their refinements; `text` takes the answer."""
    rng, samples = random.Random(seed), []
    for problem in range(number):
        skill = rng.random()
        about = {"benchmark": benchmark, "problem_id": f"p{problem}", "problem": f"Problem {problem}?", "gold": "1"}

        def add(about=about, skill=skill, **more):
            answer = 1 if rng.random() < skill else rng.randint(2, 4)
            right = float(answer == 1)
            shown = text % answer if "%d" in text else text
            graded = {f"answer_{g}": str(answer) for g in ("lenient", "strict")}
            graded |= {f"correct_{g}": right for g in ("lenient", "strict")}
            graded |= {f"class_{g}": answer for g in ("lenient", "strict")}
            counts = {"tokens": rng.randint(5, 40), "prompt_tokens": 9, "finished": rng.random() > 0.1}
            samples.append(about | {"text": shown, "skipped": False, "repeat": 0} | counts | graded | more)

        for index in range(6):
            add(stage="candidate", method="direct", index=index)
        for index, chosen in enumerate(([0, 3, 4], [5, 1, 2])):
            add(stage="refinement", method="selfref", index=index, candidates=chosen, copied=False,
                candidates_of=f"p{problem}")  # fmt: skip
            add(stage="refinement", method="selfref_none", index=index, candidates=[])
    return samples


def write_run(folder, number: int = 30, seed: int = 0, text: str = "so \\boxed{%d}", benchmarks=("made",)) -> None:
    """A run folder with nothing but its samples."""
    samples = [one for name in benchmarks for one in made_samples(number, seed, text, name)]
    header = HEADER | {"num_problems": number * len(benchmarks), "seed": seed}
    write_samples(folder / "samples.parquet", samples, header)

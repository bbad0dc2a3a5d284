"""An engine with fixed outputs: the tiny world's own solver, a function of the prompt and the place alone."""

import random
import re
import runpy
import sys
from collections import defaultdict
from pathlib import Path

from gsr_rl.data import tiny_world
from gsr_rl.data.tiny_world import build_tokenizer
from gsr_rl.engines.base import Completion, Engine, Result
from tests.support.paths import ROOT

EVALUATION = {
    "dataset_name": "tiny/mix",
    "dataset_split": "test",
    "max_problems": 60,
    "split_by": "family",
    "prompt_template": "tiny",
    "num_candidates": 3,
    "num_generations": 5,
    "num_candidate_sets": 2,
    "max_completion_length": 40,
}


class FixedEngine(Engine):
    """Solves and refines as the tiny world's procedures do. Some samples are unfinished, some refinements wrong.

    Requests come back in another order than they went in.
    """

    max_model_length = 512
    capacity = 40
    opened = 0

    def __init__(self, *_, **__):
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.prompts = 0
        self._waiting = []
        type(self).opened += 1

    def _submit(self, request):
        self.prompts += 1
        self._waiting.append(request)

    def _step(self):
        request = self._waiting.pop(len(self._waiting) // 2)
        completions = [self.complete(request.token_ids, place) for place in range(request.sampling.n)]
        return [Result(request.key, completions)]

    def complete(self, ids, place):
        prompt = self.tokenizer.decode(ids, skip_special_tokens=True)
        rng = random.Random(f"{prompt} {place}")
        refining = prompt.startswith("refine ")
        problem, *candidates = re.split(r"\n#|\n>", prompt.removeprefix("refine "))
        row = tiny_world.make_row(problem, "test")
        if refining and rng.random() < 0.8:
            text = tiny_world.refine(row, [one for one in candidates if one], rng)
        else:
            text = tiny_world.corpus_solution(row, rng)
        finished = rng.random() > 0.1
        tokens = self.tokenizer.encode(text if finished else text[: len(text) // 2])
        return Completion(self.tokenizer.decode(tokens), tokens, finished)


def run_recipe(monkeypatch, program: str, **keys):
    """Run a recipe's main in this process with these keys on its command line."""
    path = ROOT / "recipes" / f"{program}_gsr.py"
    words = [str(path)]
    for key, value in keys.items():
        words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(path))["main"]()


def evaluate(folder: Path, name: str, **more) -> Path:
    """An evaluation in `folder`/`name` with the fixed engine, with the keys of `EVALUATION` and more."""
    import pytest

    (folder / "model").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gsr_rl.engines.open.open_engine", FixedEngine)
        run_recipe(patch, "eval", **(EVALUATION | {"model": folder / "model", "output_dir": folder / name} | more))
    return folder / name


def by_problem_and_method(folder: Path) -> dict[str, dict[str, list[dict]]]:
    """The samples of a run, by problem and then by method."""
    from gsr_rl.report.samples import read_samples

    problems = defaultdict(lambda: defaultdict(list))
    for sample in read_samples(folder / "samples.parquet")[1]:
        problems[sample["problem_id"]][sample["method"]].append(sample)
    return problems

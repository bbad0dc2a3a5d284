"""Refined answers in Python.

    from gsr_rl import Solver
    if __name__ == "__main__":  # on a GPU vLLM starts processes, which import the script again
        solver = Solver("path/or/hub-name")
        print(solver.solve("What is 12 * 13?").text)

A `Solver` holds one engine (gsr_rl/engines/base.py) and keeps it full with the stages of many problems.
"""

import importlib.util
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import rewards
from gsr_rl.engines.base import Engine, EngineError, Request, Result, is_unicode
from gsr_rl.engines.endpoints import EndpointSettings
from gsr_rl.engines.open import automatic_kind, open_configured, open_engine
from gsr_rl.refinement.prompts import Messages
from gsr_rl.serving.config import SolveConfig
from gsr_rl.serving.steps import Ask, Attempt, SamplingFailed, Solution, Told, Usage, Vote, solving


class Watcher:
    """Is told what happens while a problem is solved. Each method does nothing here."""

    def started(self, stage: str, number: int, count: int) -> None:
        """A stage's first `count` completions are there or being sampled; `number`: 0 for candidates, then the round.

        Called again, with more, where they come in waves.
        """

    def text(self, stage: str, index: int, text: str) -> None:
        """A new piece of the stage's completion `index`. Engines that do not stream never call it."""

    def finished(self, stage: str, number: int, attempts: list[Attempt]) -> None:
        """All of a stage's completions so far are there, with their answers and votes."""


class Solver:
    """Solves problems by candidates and a refinement over them.

    Args:
        model: Path or Hub name. Its `gsr_config.json`, if it has one, says how candidates are shown.
        engine: An open engine to use, which stays open; or `auto`, `vllm`, `transformers`, `endpoint`.
        keys: Any other key of `SolveConfig`.

    Raises:
        ValueError: A key or value is wrong; before the model is loaded.
    """

    def __init__(self, model: str | None = None, engine: str | Engine = "auto", **keys):
        self._given = isinstance(engine, Engine)
        self.config = SolveConfig(model=model, engine="auto" if self._given else engine, **keys)
        settings = self.config.solve_settings()
        self.engine = engine if self._given else _open(self.config)
        try:
            self.settings = settings.resolved(self.engine.max_model_length)
        except ValueError:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Give back the engine, if it was opened here."""
        if not self._given:
            self.engine.close()

    def solve(self, problem: str | Messages, watcher: Watcher | None = None) -> Solution:
        """Solve one problem: a text, or a chat whose last message, the user's, is the problem.

        Raises:
            EngineError: An endpoint gave no candidate.
            ValueError: The problem is empty, too long for the model's window, or refused by its chat template.
        """
        (solution,) = self.solve_many([problem], watcher)
        if solution.error:
            raise (ValueError if solution.refused else EngineError)(solution.error)
        return solution

    def solve_many(self, problems: Iterable[str | Messages], watcher: Watcher | None = None) -> Iterator[Solution]:
        """Solve problems, many at once, each read when the engine has room for it. Solutions come in their order.

        A problem that cannot be solved comes back with `error` set and without answers.
        """
        done: dict[int, Solution] = {}
        first = 0
        for place, solution in self._as_finished(enumerate(problems), watcher):
            done[place] = solution
            while first in done:
                yield done.pop(first)
                first += 1

    def _as_finished(self, problems: Iterator, watcher: Watcher | None) -> Iterator[tuple[int, Solution]]:
        running: dict[int, _Running] = {}
        upcoming = next(problems, None)
        while upcoming is not None or running:
            while upcoming is not None and self.engine.load < self.engine.capacity:
                place, problem = upcoming
                on_its_way = running[place] = _Running(self, place, problem, watcher)
                on_its_way.advance(None)
                if on_its_way.solution:
                    yield place, running.pop(place).solution
                upcoming = next(problems, None)
            for result in self.engine.step() if running else []:
                place = result.key[0]
                on_its_way = running[place]
                on_its_way.take(result)
                if on_its_way.solution:
                    yield place, running.pop(place).solution


class _Running:
    """A problem on its way: its steps, and what they wait for."""

    def __init__(self, solver: Solver, place: int, problem: str | Messages, watcher: Watcher | None):
        self.solution: Solution | None = None
        self._engine, self._place, self._watcher = solver.engine, place, watcher
        self._start = time.monotonic()
        self._chat = [{"role": "user", "content": problem}] if isinstance(problem, str) else problem
        self._steps = solving(self._chat, self._engine.tokenizer, solver.settings, self._engine.max_model_length)

    def take(self, result: Result) -> None:
        """The completions of one prompt; with the last prompt's it goes on. Prompts of voters may fail alone."""
        self._results[result.key[-1]] = result
        if len(self._results) < len(self._ask.prompts):
            return
        results, ask = [self._results[place] for place in sorted(self._results)], self._ask
        completions = [completion for one in results for completion in one.completions]
        error = next((one.error for one in results if one.error), "")
        self.advance(completions, "" if completions and not ask.answers else error)

    def advance(self, reply, error: str = "") -> None:
        """Hand over what was asked for, and go on to the next request to the engine, or to the solution."""
        try:
            if not self._chat or not str(self._chat[-1]["content"]).strip():
                raise ValueError("the problem is empty")
            if not all(is_unicode(str(turn["content"])) for turn in self._chat):
                raise ValueError("the problem holds half a character (a lone surrogate)")
            step = self._steps.throw(SamplingFailed(error)) if error else self._steps.send(reply)
            while not isinstance(step, Ask):
                step = self._steps.send(self._answer(step))
            self._submit(step)
        except StopIteration as stop:
            self.solution = replace(stop.value, seconds=time.monotonic() - self._start)
        except (ValueError, SamplingFailed) as failure:
            problem = str(self._chat[-1]["content"]) if self._chat else ""
            refused = isinstance(failure, ValueError)
            self.solution = Solution(problem, [], [], Usage(), error=str(failure), refused=refused)

    def _answer(self, step: Vote | Told):
        if isinstance(step, Vote):
            return rewards.vote(step.answers)
        if self._watcher:
            self._watcher.finished(step.stage, step.number, step.attempts)
        return None

    def _submit(self, ask: Ask) -> None:
        self._ask, self._results = ask, {}
        if self._watcher:
            self._watcher.started(ask.stage, ask.number, ask.first + ask.count)
        for place, prompt in enumerate(ask.prompts):
            on_text = partial(self._tell, ask.stage, ask.first + place * ask.sampling.n) if self._watcher else None
            key = (self._place, ask.number, place)
            self._engine.submit(Request(key, prompt.token_ids, ask.sampling, prompt.messages, on_text))

    def _tell(self, stage: str, first: int, index: int, text: str) -> None:
        self._watcher.text(stage, first + index, text)


def _open(config: SolveConfig) -> Engine:
    kind = config.engine
    if kind == "auto":
        kind = "endpoint" if config.endpoints else automatic_kind(config.model)
    if kind == "vllm" and not importlib.util.find_spec("vllm"):
        raise ValueError("engine=vllm, but vLLM is not installed: install it, or use engine=transformers")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for answers
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # An `EngineConfig` has these keys too.
    more = {"data_parallel_size": 1, "requests_per_minute": None}
    more |= {"max_requests_in_flight": EndpointSettings.max_requests_in_flight}
    values = SimpleNamespace(**vars(config) | more | {"engine": kind})
    opener = partial(open_engine, enforce_eager=config.enforce_eager)
    return open_configured(values, config.model, config.seed, opener=opener)

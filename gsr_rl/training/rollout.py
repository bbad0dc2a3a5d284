"""The two-stage rollout: candidates, then refinements over some of them, both by the current policy.

What was sampled and decided stands in `Block`s, one per problem, from which rewards, advantages, metrics, the batch
and the rollout table are made. With vLLM the rollout is streamed: a problem's refinements enter the engine as soon as
its own candidates are done and graded, beside other problems' candidates. Otherwise all candidates come first. What is
chosen and shown (gsr_rl/refinement/stages.py) is the same either way.

The flags, and what sets them:

    usable   of a rollout  the model was asked; else the row only keeps the batch's shape     sampling
    fits     of a set      there was something to show, and its prompt keeps its budget       choosing the sets
    scored   of a rollout  usable, and the verifier gave a grade                              follows from `correct`
    dropped  of a rollout  its group has no signal and is left out of the denominator         advantages.py
    counted  of a rollout  the loss counts it: scored, with a reward, not dropped             follows from the others
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from gsr_rl.data.sources import as_list
from gsr_rl.refinement.candidates import SetChoice, choice_seed
from gsr_rl.refinement.prompts import completion_text, opened_thinking
from gsr_rl.refinement.stages import Candidate, Stages, grade

REFUSED = "[prompt over budget]"


@dataclass(frozen=True, kw_only=True)
class Plan(SetChoice):
    """How problems are rolled out. Training's follows the configuration, evaluation's is one uniform set a problem.

    Attributes:
        generations: G, candidates per problem, and refinements if `refine`.
    """

    generations: int
    same_size: bool = True
    refine: bool = True

    @property
    def refinements_per_set(self) -> int:
        return self.generations // self.num_sets


@dataclass
class Rollout:
    """One sampled completion of one stage.

    Attributes:
        logprobs: The engine's, one per completion token; None if it gives none.
        weights_step: Optimizer step whose weights sampled it, the oldest if they changed meanwhile.
        usable: False for a row that only keeps the batch's shape: one token, masked, outside every mean.
        answer: Its boxed answer; None without one.
        correct: In [0, 1]; None where it could not be graded.
        vote_class: Numbers the different answers of a problem, refinements' and candidates' alike.
        reward_values: One per reward function, NaN where a function gives none.
        reward: Their weighted sum; NaN where unscored.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float] | None
    text: str
    finished: bool
    weights_step: int = 0
    usable: bool = True
    answer: str | None = None
    correct: float | None = None
    vote_class: int | None = None
    reward_values: list[float] = field(default_factory=list)
    reward: float = float("nan")
    advantage: float = 0.0
    dropped: bool = False

    @property
    def scored(self) -> bool:
        """Whether it has a grade; a reward it has only later."""
        return self.usable and self.correct is not None

    @property
    def counted(self) -> bool:
        """Whether the loss counts it: it has a grade, its reward is a number, and its group is not dropped."""
        return self.scored and not math.isnan(self.reward) and not self.dropped


@dataclass
class CandidateSet:
    """The candidates that one refinement prompt shows, by index, and the refinements over them."""

    shown: list[int]
    policy: str = "uniform"
    num_cut: int = 0
    fits: bool = True
    refinements: list[Rollout] = field(default_factory=list)


@dataclass
class Block:
    """One problem: its row of the data set, G candidates, and its candidate sets with G refinements in all."""

    row: dict
    index: int = 0  # in the data set
    candidates: list[Rollout] = field(default_factory=list)
    sets: list[CandidateSet] = field(default_factory=list)

    @property
    def problem_id(self) -> str:
        return str(self.row["problem_id"])

    @property
    def answer(self) -> str:
        return str(self.row["answer"])

    @property
    def refinements(self) -> list[Rollout]:
        return [refinement for candidate_set in self.sets for refinement in candidate_set.refinements]

    @property
    def weights_step(self) -> int | None:
        """Optimizer step of the oldest weights that sampled any of its rollouts; None if all are unusable."""
        return min((r.weights_step for r in (*self.candidates, *self.refinements) if r.usable), default=None)

    def of_stage(self, stage: str) -> list[Rollout]:
        """The problem's candidates, or its refinements set by set."""
        return self.candidates if stage == "candidate" else self.refinements

    def rows(self, stages: list[str]) -> list[tuple[Rollout, str]]:
        """The block's rows of the batch, with their stage: those of the trained stages, candidates first."""
        both = [(stage, rollout) for stage in ("candidate", "refinement") for rollout in self.of_stage(stage)]
        return [(rollout, stage) for stage, rollout in both if stage in stages]


class TwoStageRollout:
    """Rolls out problems with a trainer's engine.

    Args:
        trainer: `sample(prompt_ids, n, max_tokens)` reaches the engine for a whole list of prompts (every rank calls
            it equally often with equally many, because an engine may hold collectives); `stream()` is an engine that
            takes requests one by one, or None; and the tokenizer, limits and settings.
        tokenizer: Of a driver in a thread of its own, because they are not safe to share. Default: the trainer's.

    `seconds` is what the last rollout spent its time on: `rollout` (sampling) and `reward` (grading that sampling
    waited for).
    """

    def __init__(self, trainer, tokenizer=None):
        self.trainer, self._tokenizer = trainer, tokenizer
        self.step = 0  # the optimizer step that the last rollout is for
        self.seconds: dict[str, float] = {}

    @property
    def tokenizer(self):
        return self._tokenizer or self.trainer.processing_class

    @property
    def stages(self) -> Stages:
        """How the policy is asked."""
        trainer = self.trainer
        return Stages.of(trainer.args, self.tokenizer, trainer.context_length, trainer.chat_template_kwargs)

    def run(self, rows: list[dict], plan: Plan, indices: list[int] | None = None, step: int | None = None):
        """Roll out these problems, rows with `problem`, `problem_id` and `answer`: their blocks, in order.

        `step` is the optimizer step that they are for. Default: the trainer's next one.
        """
        start, self.seconds = time.perf_counter(), {"reward": 0.0}
        self.step = self.trainer.state.global_step if step is None else step
        blocks = [Block(row, index) for row, index in zip(rows, indices or range(len(rows)), strict=True)]
        engine = self.trainer.stream()
        if engine is None:
            self._in_two_waves(blocks, plan)
        else:
            with engine, ThreadPoolExecutor(1) as grader:
                _Stream(self, engine, grader, plan).run(blocks)
        self.seconds["rollout"] = time.perf_counter() - start - self.seconds["reward"]
        return blocks

    def _in_two_waves(self, blocks: list[Block], plan: Plan) -> None:
        """All candidates in one call, then all refinements in another."""
        args = self.trainer.args
        prompts = [self.solve_prompt(block) for block in blocks]
        groups = self._sample(prompts, plan.generations, args.max_completion_length)
        for block, group in zip(blocks, groups, strict=True):
            block.candidates = group
        with self.waiting_for_grades():
            self.grade(blocks, "candidate")
        if not plan.refine:
            return
        prompts = [prompt for block in blocks for prompt in self.choose_sets(block, plan)]
        groups = self._sample(prompts, plan.refinements_per_set, args.max_refinement_length)
        sets = [candidate_set for block in blocks for candidate_set in block.sets]
        for candidate_set, group in zip(sets, groups, strict=True):
            candidate_set.refinements = group
        with self.waiting_for_grades():
            self.grade(blocks, "refinement")

    def _sample(self, prompts: list[list[int] | None], n: int, max_tokens: int) -> list[list[Rollout]]:
        """n completions of each prompt. A prompt that is None keeps its place with unusable one-token rows."""
        # The engine gets a stand-in for a missing prompt, so that every rank sends equally many.
        stand_in, weights = [self.trainer.eos_token_ids[0]], self.trainer.weights_step
        completions, logprobs = self.trainer.sample([ids or stand_in for ids in prompts], n, max_tokens)
        groups = []
        for number, ids in enumerate(prompts):
            part = slice(number * n, (number + 1) * n)
            if ids is None:
                groups.append(self.unusable(n, with_logprobs=logprobs is not None))
            else:
                groups.append(self.rollouts(ids, completions[part], logprobs and logprobs[part], weights))
        return groups

    def solve_prompt(self, block: Block) -> list[int] | None:
        """Token ids of the solve prompt; None if it leaves no room for a candidate."""
        prompt = self.stages.solve(block.row["problem"])
        return prompt.token_ids if self.stages.room(prompt) >= self.trainer.args.max_completion_length else None

    def choose_sets(self, block: Block, plan: Plan) -> list[list[int] | None]:
        """Choose the problem's candidate sets, by a seed of run, step that they are for, and problem.

        Returns:
            The token ids of each set's refinement prompt; None where there is none.
        """
        seed = choice_seed(self.trainer.args.seed, "candidate set", self.step, block.problem_id)
        candidates = [Candidate(rollout.text, rollout.finished, rollout.correct) for rollout in block.candidates]
        prompts = []
        for chosen in self.stages.refine_sets(block.row["problem"], candidates, plan, seed):
            prompt, candidate_set = chosen.prompt, chosen.candidate_set
            num_cut = prompt.num_cut if prompt else 0
            block.sets.append(CandidateSet(candidate_set.indices, candidate_set.policy, num_cut, prompt is not None))
            prompts.append(prompt.token_ids if prompt else None)
        return prompts

    def rollouts(
        self, prompt: list[int], completions: list[list[int]], logprobs: list | None, weights_step: int
    ) -> list[Rollout]:
        """What was sampled of one prompt."""
        tokenizer, rollouts = self.tokenizer, []
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        opening = opened_thinking(tokenizer, prompt)
        for row, (ids, text) in enumerate(zip(completions, texts, strict=True)):
            finished = self._finished(ids, text)
            text = completion_text(tokenizer, opening, ids, text)
            rollouts.append(Rollout(prompt, ids, logprobs[row] if logprobs else None, text, finished, weights_step))
        return rollouts

    def _finished(self, completion_ids: list[int], text: str) -> bool:
        """Whether a completion ended by an end token or by what `generation_kwargs` stops at, not by its limit."""
        given = self.trainer.args.generation_kwargs or {}
        ends = {*self.trainer.eos_token_ids, *(given.get("stop_token_ids") or [])}
        stops = [stop for name in ("stop", "stop_strings") for stop in as_list(given.get(name))]
        return completion_ids[-1] in ends or any(stop in text for stop in stops)

    def unusable(self, n: int, *, with_logprobs: bool) -> list[Rollout]:
        """Rows in place of the completions of a prompt that there is not."""
        end, logprobs = [self.trainer.eos_token_ids[0]], [0.0] if with_logprobs else None
        return [Rollout(end, end, logprobs, REFUSED, finished=True, usable=False) for _ in range(n)]

    def grade(self, blocks: list[Block], stage: str) -> None:
        """Right or wrong for all rows of a stage in one call, and the classes of same answers inside each block."""
        groups = [block.of_stage(stage) for block in blocks]
        texts = [[rollout.text if rollout.usable else None for rollout in group] for group in groups]
        golds = [block.answer for block in blocks]
        candidates = [block.candidates if stage == "refinement" else [] for block in blocks]
        first = [[rollout.answer for rollout in group] for group in candidates]
        graded = grade(texts, golds, require_box=True, first_answers=first)
        for group, grades in zip(groups, graded, strict=True):
            for rollout, of_rollout in zip(group, grades, strict=True):
                rollout.answer, rollout.correct = of_rollout.answer, of_rollout.correct
                rollout.vote_class = of_rollout.vote_class

    @contextmanager
    def waiting_for_grades(self) -> Iterator[None]:
        """Counts the seconds inside as grading that sampling waits for."""
        start = time.perf_counter()
        yield
        self.seconds["reward"] += time.perf_counter() - start


@dataclass
class _Way:
    """A block on its way through the stream.

    Attributes:
        state: `sampling` its candidates, `grading` them, `refining` over them, `done` (but for the last grades).
        grades: Of the last stage that was sampled.
    """

    block: Block
    state: str = "sampling"
    grades: Future | None = None


@dataclass(frozen=True)
class _Request:
    """What a request to the engine is for: a block's candidates, or the refinements over one of its sets.

    `weights_step` is of the weights that the engine had when it was sent.
    """

    way: _Way
    prompt: list[int]
    weights_step: int
    candidate_set: CandidateSet | None = None


class _Stream:
    """Blocks that each go their own way through one engine; grading runs beside it, in the thread of `grader`."""

    def __init__(self, rollout: TwoStageRollout, engine, grader: ThreadPoolExecutor, plan: Plan):
        self.rollout, self.engine, self.grader, self.plan = rollout, engine, grader, plan
        self.requests: dict[str, _Request] = {}

    def run(self, blocks: list[Block]) -> None:
        ways = [_Way(block) for block in blocks]
        for way in ways:
            self._sample(way)
        while any(way.state != "done" for way in ways):
            for name, completions, logprobs in self.engine.step() if self.requests else []:
                self._take(self.requests.pop(name), completions, logprobs)
            grading = [way for way in ways if way.state == "grading"]
            if grading and not self.requests:  # the engine has nothing to do
                with self.rollout.waiting_for_grades():
                    wait([way.grades for way in grading], return_when=FIRST_COMPLETED)
            for way in grading:
                if way.grades.done():
                    way.grades.result()
                    self._refine(way)
        with self.rollout.waiting_for_grades():
            for way in ways:
                way.grades.result()

    def _sample(self, way: _Way) -> None:
        prompt = self.rollout.solve_prompt(way.block)
        if prompt is None:
            way.block.candidates = self.rollout.unusable(self.plan.generations, with_logprobs=True)
            return self._grade(way, "candidate")
        self._ask(way, prompt, self.plan.generations, self.rollout.trainer.args.max_completion_length)

    def _refine(self, way: _Way) -> None:
        """The candidates are graded: ask for the refinements over each set."""
        if not self.plan.refine:
            way.state = "done"
            return
        way.state, per_set = "refining", self.plan.refinements_per_set
        prompts = self.rollout.choose_sets(way.block, self.plan)
        for candidate_set, prompt in zip(way.block.sets, prompts, strict=True):
            if prompt is None:
                candidate_set.refinements = self.rollout.unusable(per_set, with_logprobs=True)
            else:
                self._ask(way, prompt, per_set, self.rollout.trainer.args.max_refinement_length, candidate_set)
        self._end_if_refined(way)

    def _ask(self, way: _Way, prompt: list[int], n: int, max_tokens: int, candidate_set=None) -> None:
        request = _Request(way, prompt, self.rollout.trainer.weights_step, candidate_set)
        self.requests[self.engine.add(prompt, n, max_tokens)] = request

    def _take(self, request: _Request, completions: list[list[int]], logprobs: list | None) -> None:
        way = request.way
        group = self.rollout.rollouts(request.prompt, completions, logprobs, request.weights_step)
        if request.candidate_set is None:
            way.block.candidates = group
            self._grade(way, "candidate")
        else:
            request.candidate_set.refinements = group
            self._end_if_refined(way)

    def _end_if_refined(self, way: _Way) -> None:
        if all(candidate_set.refinements for candidate_set in way.block.sets):
            self._grade(way, "refinement")

    def _grade(self, way: _Way, stage: str) -> None:
        way.state = "grading" if stage == "candidate" else "done"
        way.grades = self.grader.submit(self.rollout.grade, [way.block], stage)
        way.grades.add_done_callback(lambda _: self.engine.wake())

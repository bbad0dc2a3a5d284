"""The two-stage rollout: candidates, then refinements over some of them, both by the current policy.

What was sampled and decided is kept as `Block`s, from which rewards, advantages, metrics, the batch and the rollout
table are made. Where the engine runs in this process the rollout is streamed: a problem's refinements enter the
engine as soon as its own candidates are done and graded, beside other problems' candidates. Otherwise all candidates
come first. What is chosen and shown is the same either way.
"""

import random
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import rewards
from gsr_rl.refinement.candidates import choice_seed, choose_candidate_sets, set_policies
from gsr_rl.refinement.prompts import (
    candidate_text,
    fit_refinement_prompt,
    get_template,
    prompt_token_ids,
    solve_prompt,
)
from gsr_rl.training.blocks import Block, CandidateSet, Plan, Rollout

REFUSED = "[prompt over budget]"


class TwoStageRollout:
    """Rolls out problems with a trainer's engine.

    Args:
        trainer: `sample(prompt_ids, n, max_tokens)` reaches the engine for a whole list of prompts (every rank calls
            it equally often with equally many, because an engine may hold collectives); `stream()` is an engine in
            this process that takes requests one by one, or None; and the tokenizer, limits and settings.

    `seconds` is what the last rollout spent its time on: `rollout` (sampling) and `reward` (grading that sampling
    waited for).
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.seconds: dict[str, float] = {}

    def run(self, rows: list[dict], plan: Plan, indices: list[int] | None = None) -> list[Block]:
        """Roll out these problems: rows with `problem`, `problem_id` and `answer`, in order."""
        start, self.seconds = time.perf_counter(), {"reward": 0.0}
        blocks = [Block(row, index) for row, index in zip(rows, indices or range(len(rows)), strict=True)]
        engine = self.trainer.stream()
        if engine is None:
            self._in_two_waves(blocks, plan)
        else:
            self._streamed(engine, blocks, plan)
        self.seconds["rollout"] = time.perf_counter() - start - self.seconds["reward"]
        return blocks

    # The two ways ----------------------------------------------------------------------------------------------

    def _in_two_waves(self, blocks: list[Block], plan: Plan) -> None:
        """All candidates in one call, then all refinements in another."""
        prompts = [self._solve_prompt(block) for block in blocks]
        groups = self._sample(prompts, plan.generations, self.trainer.args.max_completion_length)
        for block, group in zip(blocks, groups, strict=True):
            block.candidates = group
        self._timed_grade(blocks, "candidate")
        if not plan.refine:
            return
        wanted = [(one, prompt) for block in blocks for one, prompt in self._choose(block, plan)]
        per_set = plan.generations // plan.num_sets
        groups = self._sample([prompt for _, prompt in wanted], per_set, self.trainer.args.max_refinement_length)
        for (one, _), group in zip(wanted, groups, strict=True):
            one.refinements = group
        self._timed_grade(blocks, "refinement")

    def _streamed(self, engine, blocks: list[Block], plan: Plan) -> None:
        """Each problem goes its own way; grading runs beside the engine."""
        args, per_set = self.trainer.args, plan.generations // plan.num_sets
        sampling: dict[str, tuple[Block, CandidateSet | None, list[int]]] = {}  # request -> what it is for
        grading: dict[Future, Block] = {}  # blocks whose candidates are being graded
        rest: list[Future] = []  # refinements being graded

        def refine(block: Block) -> None:
            for one, prompt in self._choose(block, plan):
                if prompt is None:
                    one.refinements = self._placeholders(per_set, True)
                else:
                    request = engine.add(prompt, per_set, args.max_refinement_length)
                    sampling[request] = (block, one, prompt)

        with engine, ThreadPoolExecutor(1) as grader:
            for block in blocks:
                prompt = self._solve_prompt(block)
                if prompt is None:
                    block.candidates = self._placeholders(plan.generations, True)
                    grading[grader.submit(self._grade, [block], "candidate")] = block
                else:
                    request = engine.add(prompt, plan.generations, args.max_completion_length)
                    sampling[request] = (block, None, prompt)
            while sampling or grading:
                for request, completions, logprobs in engine.step() if sampling else []:
                    block, one, prompt = sampling.pop(request)
                    group = self._rollouts(prompt, completions, logprobs)
                    if one is None:
                        block.candidates = group
                        grading[grader.submit(self._grade, [block], "candidate")] = block
                        continue
                    one.refinements = group
                    if all(other.refinements for other in block.sets):
                        rest.append(grader.submit(self._grade, [block], "refinement"))
                if grading and not sampling:  # the engine has nothing to do
                    start = time.perf_counter()
                    wait(grading, return_when=FIRST_COMPLETED)
                    self.seconds["reward"] += time.perf_counter() - start
                for future in [future for future in grading if future.done()]:
                    future.result()
                    block = grading.pop(future)
                    if plan.refine:
                        refine(block)
            start = time.perf_counter()
            for future in rest:
                future.result()
            self.seconds["reward"] += time.perf_counter() - start

    # One problem -----------------------------------------------------------------------------------------------

    def _solve_prompt(self, block: Block) -> list[int] | None:
        """Token ids of the solve prompt; None if it leaves no room for a candidate."""
        trainer = self.trainer
        messages = solve_prompt(block.row["problem"], get_template(trainer.args.prompt_template))
        ids = prompt_token_ids(trainer.processing_class, messages, trainer.chat_template_kwargs)
        return ids if len(ids) + trainer.args.max_completion_length <= trainer.context_length else None

    def _choose(self, block: Block, plan: Plan) -> list[tuple[CandidateSet, list[int] | None]]:
        """Choose the problem's candidate sets, by a seed of run, step and problem, and fit their prompts."""
        trainer, args = self.trainer, self.trainer.args
        texts = [candidate_text(c.text) for c in block.candidates]
        usable = [
            c.scored and (c.finished or args.unfinished_candidates == "cut") and bool(text)
            for c, text in zip(block.candidates, texts, strict=True)
        ]
        seed = choice_seed(args.seed, "candidate set", trainer.state.global_step, block.problem_id)
        number = plan.num_candidates
        if plan.min_candidates is not None:
            number = random.Random(choice_seed(seed, "K")).randint(plan.min_candidates, plan.num_candidates)
        sets = choose_candidate_sets(
            usable,
            number,
            plan.num_sets,
            seed,
            correct=[c.correct for c in block.candidates],
            policy=plan.policy,
            uniform_share=plan.uniform_share,
        )
        policies = set_policies(plan.policy, plan.num_sets, plan.uniform_share, seed)
        block.sets = [CandidateSet(shown, policy) for shown, policy in zip(sets, policies, strict=True)]
        budget = min(args.max_refinement_prompt_length, trainer.context_length - args.max_refinement_length)
        found = []
        for one in block.sets:
            fitted = None
            if one.shown:
                fitted = fit_refinement_prompt(
                    trainer.processing_class,
                    block.row["problem"],
                    [texts[index] for index in one.shown],
                    get_template(args.prompt_template),
                    budget,
                    trainer.chat_template_kwargs,
                )
            one.fits, one.num_cut = fitted is not None, fitted.num_cut if fitted else 0
            found.append((one, fitted.token_ids if fitted else None))
        return found

    # Sampling and grading --------------------------------------------------------------------------------------

    def _sample(self, prompts: list[list[int] | None], n: int, limit: int) -> list[list[Rollout]]:
        """n completions of each prompt. A prompt that is None keeps its place with unusable one-token rows."""
        end = self.trainer.eos_token_ids[0]
        # The engine gets a stand-in for a missing prompt, so that every rank sends equally many.
        completions, logprobs = self.trainer.sample([ids if ids else [end] for ids in prompts], n, limit)
        groups = []
        for number, ids in enumerate(prompts):
            part = slice(number * n, (number + 1) * n)
            if ids is None:
                groups.append(self._placeholders(n, logprobs is not None))
            else:
                groups.append(self._rollouts(ids, completions[part], logprobs and logprobs[part]))
        return groups

    def _rollouts(self, prompt: list[int], completions: list[list[int]], logprobs: list | None) -> list[Rollout]:
        texts = self.trainer.processing_class.batch_decode(completions, skip_special_tokens=True)
        ends = self.trainer.eos_token_ids
        return [
            Rollout(prompt, ids, logprobs[row] if logprobs else None, texts[row], ids[-1] in ends)
            for row, ids in enumerate(completions)
        ]

    def _placeholders(self, n: int, with_logprobs: bool) -> list[Rollout]:
        end = self.trainer.eos_token_ids[0]
        return [Rollout([end], [end], [0.0] if with_logprobs else None, REFUSED, True, False) for _ in range(n)]

    def _timed_grade(self, blocks: list[Block], stage: str) -> None:
        start = time.perf_counter()
        self._grade(blocks, stage)
        self.seconds["reward"] += time.perf_counter() - start

    def _grade(self, blocks: list[Block], stage: str) -> None:
        """Right or wrong for all rows in one call, and the classes of same answers inside each block."""
        pairs = [(block, rollout) for block in blocks for rollout, _ in block.rows([stage]) if rollout.usable]
        grades = rewards.grade([r.text for _, r in pairs], [block.answer for block, _ in pairs], require_box=True)
        for (_, rollout), grade in zip(pairs, grades, strict=True):
            rollout.correct = grade
        for block in blocks:
            # Candidates come first, so their classes are the same with refinements as without.
            every = [rollout for rollout, _ in block.rows(["candidate", "refinement"])]
            answers = [rewards.extract_answer(r.text, require_box=True) if r.usable else None for r in every]
            for rollout, vote_class in zip(every, rewards.vote(answers), strict=True):
                rollout.vote_class = vote_class

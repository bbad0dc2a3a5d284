"""The two-stage rollout: candidates, then refinements over some of them, both by the current policy.

`TwoStageRollout` is TRL's `rollout_func`: it returns its own prompts, so that one batch holds the solve rows and the
refinement rows. What it saw and decided is kept as `Block`s, from which rewards, advantages, metrics and the rollout
table are made.
"""

import time
from dataclasses import dataclass, field

import rewards
from gsr_rl.candidates import choice_seed, choose_candidate_sets
from gsr_rl.prompts import candidate_text, fit_refinement_prompt, get_template, prompt_token_ids, solve_prompt

REFUSED = "[prompt over budget]"


@dataclass
class Rollout:
    """One sampled completion of one stage.

    `usable` is False for a row that only keeps the batch's shape (its prompt did not fit, or there was no candidate
    to show): one token, masked, outside every mean. `correct` is None where it could not be graded.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float] | None
    text: str
    finished: bool
    usable: bool = True
    correct: float | None = None
    vote_class: int | None = None
    reward: float = float("nan")
    advantage: float = 0.0

    @property
    def scored(self) -> bool:
        return self.usable and self.correct is not None


@dataclass
class CandidateSet:
    """The candidates that one refinement prompt shows, by index, and the refinements over them."""

    shown: list[int]
    num_cut: int = 0
    fits: bool = True
    refinements: list[Rollout] = field(default_factory=list)


@dataclass
class Block:
    """One problem: G candidates, and its candidate sets with G refinements in all."""

    problem_id: str
    problem: str
    answer: str
    candidates: list[Rollout] = field(default_factory=list)
    sets: list[CandidateSet] = field(default_factory=list)

    @property
    def refinements(self) -> list[Rollout]:
        return [refinement for candidate_set in self.sets for refinement in candidate_set.refinements]

    def rows(self, stages: list[str]) -> list[tuple[Rollout, str]]:
        """The block's rows of the batch, with their stage: those of the trained stages, candidates first."""
        both = [(c, "candidate") for c in self.candidates] + [(r, "refinement") for r in self.refinements]
        return [(rollout, stage) for rollout, stage in both if stage in stages]


class TwoStageRollout:
    """`rollout_func` of `GSRTrainer`.

    Called with the prompts of this rank's rows; the rows themselves (gold answers, ids) come from
    `trainer.rollout_rows`. `trainer.sample(prompt_ids, num_generations, max_tokens)` reaches the engine; every rank
    calls it equally often with equally many prompts, because an engine may hold collectives.

    After a call: `blocks`, and `seconds`, a mapping of what the rollout spent its time on.
    """

    def __init__(self):
        self.blocks: list[Block] = []
        self.seconds: dict[str, float] = {}

    def __call__(self, prompts: list, trainer) -> dict[str, list]:
        args = trainer.args
        start, self.seconds = time.perf_counter(), {"reward": 0.0}
        size = args.block_size if trainer.model.training else 2 * trainer.num_generations_eval
        rows = trainer.rollout_rows[::size]
        self.blocks = [Block(str(row["problem_id"]), row["problem"], str(row["answer"])) for row in rows]
        stages = args.stages if trainer.model.training else ["candidate", "refinement"]
        generations = args.num_generations if trainer.model.training else trainer.num_generations_eval
        self._candidates(trainer, generations)
        if "refinement" in stages:
            self._choose(trainer, generations)
            self._refine(trainer, generations)
        self.seconds["rollout"] = time.perf_counter() - start - self.seconds["reward"]
        flat = [row for block in self.blocks for row in block.rows(stages)]
        has_logprobs = all(rollout.logprobs is not None for rollout, _ in flat)
        return {
            "prompt_ids": [rollout.prompt_ids for rollout, _ in flat],
            "completion_ids": [rollout.completion_ids for rollout, _ in flat],
            "logprobs": [rollout.logprobs for rollout, _ in flat] if has_logprobs else None,
            "stage": [stage for _, stage in flat],
        }

    def _candidates(self, trainer, generations: int) -> None:
        """Sample and grade G candidates of each problem."""
        template = get_template(trainer.args.prompt_template)
        limit, window = trainer.args.max_completion_length, trainer.context_length
        prompts = []
        for block in self.blocks:
            messages = solve_prompt(block.problem, template)
            ids = prompt_token_ids(trainer.processing_class, messages, trainer.chat_template_kwargs)
            prompts.append(ids if len(ids) + limit <= window else None)
        for block, group in zip(self.blocks, self._sample(trainer, prompts, generations, limit), strict=True):
            block.candidates = group
        self._grade([(block, block.candidates) for block in self.blocks])

    def _choose(self, trainer, generations: int) -> None:
        """Choose the candidate sets of each problem (uniformly, by a seed of run, step and problem)."""
        args = trainer.args
        num_sets = args.num_candidate_sets if trainer.model.training else 1
        for block in self.blocks:
            usable = [
                c.scored and (c.finished or args.unfinished_candidates == "cut") and bool(candidate_text(c.text))
                for c in block.candidates
            ]
            seed = choice_seed(args.seed, "candidate set", trainer.state.global_step, block.problem_id)
            chosen = choose_candidate_sets(usable, args.num_candidates, num_sets, seed)
            block.sets = [CandidateSet(shown) for shown in chosen]

    def _refine(self, trainer, generations: int) -> None:
        """Sample and grade the refinements of each candidate set."""
        args, template = trainer.args, get_template(trainer.args.prompt_template)
        limit = args.max_refinement_length
        budget = min(args.max_refinement_prompt_length, trainer.context_length - limit)
        sets = [(block, candidate_set) for block in self.blocks for candidate_set in block.sets]
        prompts = []
        for block, chosen in sets:
            fitted = None
            if chosen.shown:
                texts = [candidate_text(block.candidates[index].text) for index in chosen.shown]
                fitted = fit_refinement_prompt(
                    trainer.processing_class, block.problem, texts, template, budget, trainer.chat_template_kwargs
                )
            chosen.fits = fitted is not None
            chosen.num_cut = fitted.num_cut if fitted else 0
            prompts.append(fitted.token_ids if fitted else None)
        per_set = generations // len(self.blocks[0].sets)
        for (_, chosen), group in zip(sets, self._sample(trainer, prompts, per_set, limit), strict=True):
            chosen.refinements = group
        self._grade([(block, block.refinements) for block in self.blocks])

    def _sample(self, trainer, prompts: list[list[int] | None], n: int, limit: int) -> list[list[Rollout]]:
        """n completions of each prompt. A prompt that is None keeps its place with unusable one-token rows."""
        end = trainer.eos_token_ids[0]
        # The engine gets a stand-in for a missing prompt, so that every rank sends equally many.
        completions, logprobs = trainer.sample([ids if ids else [end] for ids in prompts], n, limit)
        texts = trainer.processing_class.batch_decode(completions, skip_special_tokens=True)
        groups: list[list[Rollout]] = []
        for number, ids in enumerate(prompts):
            group = []
            for row in range(number * n, (number + 1) * n):
                if ids is None:
                    group.append(Rollout([end], [end], None if logprobs is None else [0.0], REFUSED, True, False))
                    continue
                finished = completions[row][-1] in trainer.eos_token_ids
                group.append(Rollout(ids, completions[row], logprobs and logprobs[row], texts[row], finished))
            groups.append(group)
        return groups

    def _grade(self, groups: list[tuple[Block, list[Rollout]]]) -> None:
        """Right or wrong, and the class of same answers inside each group, for all rows in one call."""
        start = time.perf_counter()
        pairs = [(block, rollout) for block, rollouts in groups for rollout in rollouts if rollout.usable]
        grades = rewards.grade([r.text for _, r in pairs], [block.answer for block, _ in pairs], require_box=True)
        for (_, rollout), grade in zip(pairs, grades, strict=True):
            rollout.correct = grade
        for _, rollouts in groups:
            answers = [rewards.extract_answer(r.text, require_box=True) if r.usable else None for r in rollouts]
            for rollout, vote_class in zip(rollouts, rewards.vote(answers), strict=True):
                rollout.vote_class = vote_class
        self.seconds["reward"] += time.perf_counter() - start

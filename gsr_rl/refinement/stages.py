"""The steps of one problem, without any engine: what is asked next, and what is made of what came back.

    solve prompt -> candidates -> grades and votes
                 -> sets of K candidates -> their texts -> refinement prompts within the budget
                 -> refinements -> grades and votes

Four programs take these steps, and only schedule an engine's calls themselves: training/rollout.py (one policy, token
ids, streamed or in two waves), distillation/distill.py (two models, units stored between the stages),
evaluation/evaluate.py (many methods over the same stored candidates) and serving/steps.py. The last is a state
machine over these steps, because what solving asks next depends on what failed before; elsewhere each stage is asked
once.
"""

from dataclasses import dataclass
from typing import Any

import rewards
from gsr_rl.refinement.candidates import ChosenSet, SetChoice, choose_candidate_sets
from gsr_rl.refinement.prompts import (
    Messages,
    Prompt,
    PromptTemplate,
    candidate_text,
    fit_refinement_prompt,
    get_template,
    prompt_token_ids,
    solve_prompt,
)


@dataclass(frozen=True)
class Candidate:
    """A completion as the next stage sees it: a candidate, or in a further round a refinement.

    Attributes:
        text: The completion, thinking included.
        finished: Whether it ended by itself.
        correct: In [0, 1]; None where it was not graded.
    """

    text: str
    finished: bool
    correct: float | None = None


@dataclass(frozen=True)
class SetToRefine:
    """A candidate set with the texts that are shown, and their prompt: None without a text, or where none fits."""

    candidate_set: ChosenSet
    texts: list[str]
    prompt: Prompt | None


@dataclass(frozen=True)
class Stages:
    """How one model is asked in both stages, and how candidates are shown to it.

    Attributes:
        context_length: Longest prompt plus completion, in tokens.
        unfinished_candidates: `drop` or `cut`, as in `RefinementConfig`.
        chat_template_kwargs: For the tokenizer's chat template.
    """

    tokenizer: Any
    template: PromptTemplate
    context_length: int
    max_completion_length: int
    max_refinement_length: int
    max_refinement_prompt_length: int
    unfinished_candidates: str
    chat_template_kwargs: dict | None = None

    @classmethod
    def of(cls, config, tokenizer, context_length: int, chat_template_kwargs: dict | None = None) -> "Stages":
        """From the keys of a `RefinementConfig` that also has the lengths of completions."""
        return cls(
            tokenizer,
            get_template(config.prompt_template),
            context_length,
            config.max_completion_length,
            config.max_refinement_length,
            config.max_refinement_prompt_length,
            config.unfinished_candidates,
            chat_template_kwargs,
        )

    def solve(self, problem: str, history: Messages | None = None) -> Prompt:
        """The prompt for a direct solution, after the turns of `history`."""
        messages = solve_prompt(problem, self.template, history)
        return Prompt(messages, prompt_token_ids(self.tokenizer, messages, self.chat_template_kwargs))

    def room(self, prompt: Prompt) -> int:
        """Tokens that the prompt leaves for a completion."""
        return self.context_length - len(prompt.token_ids)

    def shown_text(self, completion: str) -> str:
        """What a refinement sees of a `completion_text`, whichever model's; "" if nothing."""
        return candidate_text(completion)

    def can_show(self, candidate: Candidate) -> bool:
        """Whether it finished, or unfinished ones are shown cut, and it says something after its thinking part."""
        ended = candidate.finished or self.unfinished_candidates == "cut"
        return ended and bool(self.shown_text(candidate.text))

    def shown(self, candidates: list[Candidate], indices: list[int]) -> list[tuple[int, str]]:
        """Index and text of those of a candidate set that can be shown, in the set's order."""
        return [(i, self.shown_text(candidates[i].text)) for i in indices if self.can_show(candidates[i])]

    @property
    def refinement_budget(self) -> int:
        """Tokens that a refinement prompt may have: the configured limit, or what the context leaves."""
        return min(self.max_refinement_prompt_length, self.context_length - self.max_refinement_length)

    def check_refinement_room(self) -> None:
        """Raises `ValueError` where a refinement leaves no room for its prompt."""
        if self.context_length <= self.max_refinement_length:
            raise ValueError(
                f"max_refinement_length={self.max_refinement_length} leaves no room for a prompt in the engine's "
                f"window of {self.context_length} tokens: set it to less than {self.context_length}"
            )

    def refine(
        self,
        problem: str,
        texts: list[str],
        history: Messages | None = None,
        template: PromptTemplate | None = None,
    ) -> Prompt | None:
        """The refinement prompt over these texts, cut to the budget, or None if it cannot fit.

        Without texts it is the control `selfref_none`. `template` is another wording than the model's own.
        """
        return fit_refinement_prompt(
            self.tokenizer,
            problem,
            texts,
            template or self.template,
            self.refinement_budget,
            self.chat_template_kwargs,
            history,
        )

    def refine_sets(
        self, problem: str, candidates: list[Candidate], choice: SetChoice, seed: int
    ) -> list[SetToRefine]:
        """Choose a problem's candidate sets among its graded candidates that can be shown, and fit their prompts."""
        usable = [candidate.correct is not None and self.can_show(candidate) for candidate in candidates]
        correct = [candidate.correct for candidate in candidates]
        sets = []
        for candidate_set in choose_candidate_sets(usable, choice, seed, correct):
            texts = [self.shown_text(candidates[index].text) for index in candidate_set.indices]
            prompt = self.refine(problem, texts) if texts else None
            sets.append(SetToRefine(candidate_set, texts, prompt))
        return sets


@dataclass(frozen=True)
class Grade:
    """Of a completion: its final answer, correctness in [0, 1] or None, and the class of its answer in the vote."""

    answer: str | None = None
    correct: float | None = None
    vote_class: int | None = None


def grade(
    groups: list[list[str | None]],
    golds: list[str],
    *,
    require_box: bool,
    first_answers: list[list[str | None]] | None = None,
    group_answers: bool = True,
) -> list[list[Grade]]:
    """Grade the completions of many problems in one call, and group each problem's answers for a vote.

    Args:
        groups: By problem, its completions; one that is None has no grade.
        golds: The problems' reference answers.
        require_box: Whether only a boxed answer counts.
        first_answers: By problem, answers that are numbered before: with its candidates' a class has one number in
            both stages.
        group_answers: False where no vote needs them: then a grade has `correct` only.
    """
    texts = [text for group in groups for text in group if text is not None]
    repeated = [gold for group, gold in zip(groups, golds, strict=True) for text in group if text is not None]
    correct = iter(rewards.grade(texts, repeated, require_box=require_box))
    graded = []
    for group, first in zip(groups, first_answers or [[]] * len(groups), strict=True):
        answers = classes = [None] * len(group)
        if group_answers:
            answers = [_answer(text, require_box) for text in group]
            classes = rewards.vote([*first, *answers])[len(first) :]
        values = [None if text is None else next(correct) for text in group]
        graded.append([Grade(*fields) for fields in zip(answers, values, classes, strict=True)])
    return graded


def _answer(text: str | None, require_box: bool) -> str | None:
    return None if text is None else rewards.extract_answer(text, require_box=require_box)

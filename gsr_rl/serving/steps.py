"""How one problem is solved, without any engine: which prompts follow which, and what is answered if something fails.

The steps themselves are those of every program (gsr_rl/refinement/stages.py). Here they follow each other round by
round, and a step that fails is answered for. So `solving` is a generator: it yields what it needs (`Ask`: completions;
`Vote`: classes of answers) and what there is to show (`Told`), and returns a `Solution`. `solver.py` answers it from
an engine, `job.py` from a server.

The rule for what fails:
1. A candidate is shown to the refinement if it ended by itself and says something after its thinking part (with
   `unfinished_candidates: cut` also if it did not end). Fewer than K: the refinement sees those (`fewer_candidates`).
   Without a refinement, fewer than K that came at all: those vote, and it is said likewise.
2. None ended: the unfinished ones are shown as they are (`unfinished_candidates`).
3. Nothing can be shown (`no_usable_candidate`), the refinement prompt does not fit its budget (`prompt_too_long`), or
   no refinement came (`refinement_failed`): the answer is a candidate with the majority's answer, the first of them.
4. No candidate came at all: `SamplingFailed`.
"""

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from gsr_rl.engines.base import Completion, Sampling
from gsr_rl.refinement.prompts import Messages, Prompt
from gsr_rl.refinement.stages import Candidate, Stages
from rewards import extract_answer

MODES = ("refine", "vote", "direct")
LONGEST_DEFAULT = 4096  # tokens of a completion where neither settings nor context say less


class SamplingFailed(RuntimeError):
    """No completion came. `status` is an HTTP status: 503 for what is not there, 504 for what is too slow."""

    def __init__(self, message: str, status: int = 503):
        super().__init__(message)
        self.status = status


class PromptTooLong(ValueError):
    """A problem that leaves no room for a solution."""


class ChatRefused(ValueError):
    """Turns that the model's chat template does not take, such as two of the user's in a row."""


@dataclass(frozen=True)
class SolveSettings:
    """How to solve. See `gsr_rl.serving.config.AnswerConfig` for the meaning of each.

    Attributes:
        num_answers: Answers sampled by the last stage.
        count_votes: Whether answers are compared although no vote decides.
        max_completion_length, max_refinement_length: In tokens; None until `resolved` fills them in.
        trained_completion_length, trained_refinement_length: What they were in training, where that is known.
    """

    num_candidates: int = 4
    prompt_template: str = "gsr"
    max_refinement_prompt_length: int = 8192
    unfinished_candidates: str = "drop"
    mode: str = "refine"
    rounds: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    refinement_temperature: float | None = None
    refinement_top_p: float | None = None
    max_completion_length: int | None = None
    max_refinement_length: int | None = None
    num_answers: int = 1
    count_votes: bool = True
    trained_completion_length: int | None = None
    trained_refinement_length: int | None = None

    def resolved(self, context_length: int) -> "SolveSettings":
        """With every default filled in for a model that reads and writes so many tokens.

        A refinement's trained length is kept as far as it leaves its prompt the budget, or is a quarter of them.

        Raises:
            ValueError: The refinement leaves no room for its prompt.
        """
        quarter = max(1, context_length // 4)
        room = max(quarter, context_length - self.max_refinement_prompt_length)
        trained = min(self.trained_completion_length or min(LONGEST_DEFAULT, quarter), context_length)
        longest = self.max_completion_length or trained
        refinement = self.max_refinement_length or self.max_completion_length
        refinement = refinement or min(self.trained_refinement_length or longest, room)
        if refinement >= context_length:
            raise ValueError(
                f"max_refinement_length={refinement} leaves no room for a prompt in the model's window of "
                f"{context_length} tokens: set it to less than {context_length}"
            )
        as_candidates = self.refinement_temperature is None
        return replace(
            self,
            max_completion_length=longest,
            max_refinement_length=refinement,
            max_refinement_prompt_length=min(self.max_refinement_prompt_length, context_length - refinement),
            refinement_temperature=self.temperature if as_candidates else self.refinement_temperature,
            refinement_top_p=self.top_p if self.refinement_top_p is None else self.refinement_top_p,
        )

    def sampling(self, stage: str, *, last: bool, room: int) -> Sampling:
        """Of a stage: `num_answers` completions of the last one, K of another, of at most `room` tokens."""
        n = self.num_answers if last else self.num_candidates
        if stage == "candidate":
            return Sampling(n, self.temperature, self.top_p, min(self.max_completion_length, room))
        return Sampling(n, self.refinement_temperature, self.refinement_top_p, self.max_refinement_length)


@dataclass(frozen=True)
class Ask:
    """`sampling.n` completions are needed. They are answered by at least one, or by `SamplingFailed` thrown in.

    Attributes:
        stage: `candidate` or `refinement`.
        number: 0 for candidates, then the round.
        last: Whether the completions are answers; then all `n` are needed.
    """

    stage: str
    number: int
    messages: Messages
    token_ids: list[int]
    sampling: Sampling
    last: bool


@dataclass(frozen=True)
class Vote:
    """Classes of these answers are needed, as `rewards.vote` gives them."""

    answers: list[str | None]


@dataclass(frozen=True)
class Attempt:
    """One sampled solution: a candidate or a refinement.

    Attributes:
        answer: Its final answer, None if it has none.
        num_tokens: Of the completion.
        shown: Whether the next stage's prompt shows it.
        group: Class of its answer among its round's; None without an answer, or where no vote was counted.
        votes: Size of that class, 0 without one.
    """

    text: str
    answer: str | None
    finished: bool
    num_tokens: int
    shown: bool = False
    group: int | None = None
    votes: int = 0


@dataclass(frozen=True)
class Told:
    """The attempts of a stage have come. `number` as in `Ask`."""

    stage: str
    number: int
    attempts: list[Attempt]


@dataclass
class Usage:
    """Tokens: of prompts, each counted once, and of completions by stage."""

    prompt_tokens: int = 0
    candidate_tokens: int = 0
    refinement_tokens: int = 0

    def count(self, ask: Ask, completions: list[Completion]) -> None:
        self.prompt_tokens += len(ask.token_ids)
        name = f"{ask.stage}_tokens"
        setattr(self, name, getattr(self, name) + sum(len(completion.token_ids) for completion in completions))

    @property
    def completion_tokens(self) -> int:
        return self.candidate_tokens + self.refinement_tokens


@dataclass
class Solution:
    """A solved problem.

    Attributes:
        problem: Its text.
        answers: `num_answers` attempts; the first is the solution.
        rounds: All attempts: the candidates, then the refinements of each round.
        degraded: What went wrong on the way (see the module's docstring); None if nothing did.
        reason: More about it, for a log.
        seconds: From the first prompt to the answer; filled in by who drives.
        error: Why there is no answer; "" if there is one.
        refused: Whether that is the problem's own fault: empty, too long, or nothing for the chat template.
    """

    problem: str
    answers: list[Attempt]
    rounds: list[list[Attempt]]
    usage: Usage
    degraded: str | None = None
    reason: str = ""
    seconds: float = 0.0
    error: str = ""
    refused: bool = False

    @property
    def text(self) -> str:
        return self.answers[0].text if self.answers else ""

    @property
    def answer(self) -> str | None:
        return self.answers[0].answer if self.answers else None

    @property
    def candidates(self) -> list[Attempt]:
        return self.rounds[0] if self.rounds else []

    @property
    def majority_answer(self) -> str | None:
        """The candidates' answer with most votes, the earliest of equals; None if no votes were counted."""
        voters = [candidate for candidate in self.candidates if candidate.votes]
        return by_votes(voters)[0].answer if voters else None


def by_votes(attempts: list[Attempt]) -> list[Attempt]:
    """Attempts, those with most votes first; equals stay in their order, and finished ones go before others."""
    return sorted(attempts, key=lambda attempt: (-attempt.votes, not attempt.finished))


def counted(attempts: list[Attempt], groups: list[int | None]) -> list[Attempt]:
    """The attempts with their votes, from the classes of their answers."""
    sizes = Counter(group for group in groups if group is not None)
    return [
        replace(attempt, group=group, votes=sizes[group] if group is not None else 0)
        for attempt, group in zip(attempts, groups, strict=True)
    ]


def mark_shown(attempts: list[Attempt], stages: Stages) -> tuple[list[Attempt], str | None]:
    """The attempts, those marked that a refinement shows, and what is degraded by it (rules 1 to 3)."""
    candidates = [Candidate(attempt.text, attempt.finished) for attempt in attempts]
    flags, degraded = [stages.can_show(candidate) for candidate in candidates], None
    if not any(flags) and stages.unfinished_candidates != "cut":
        cut = replace(stages, unfinished_candidates="cut")
        flags, degraded = [cut.can_show(candidate) for candidate in candidates], "unfinished_candidates"
    if not any(flags):
        degraded = "no_usable_candidate"
    return [replace(attempt, shown=flag) for attempt, flag in zip(attempts, flags, strict=True)], degraded


@dataclass
class _State:
    """What has come of a problem so far."""

    settings: SolveSettings
    stages: Stages
    usage: Usage = field(default_factory=Usage)
    rounds: list[list[Attempt]] = field(default_factory=list)
    degraded: str | None = None
    reason: str = ""


Steps = Generator[Ask | Vote | Told, list[Completion] | list[int | None] | None, Solution]


def solving(conversation: Messages, tokenizer, settings: SolveSettings, context_length: int) -> Steps:
    """Solve the problem that a chat's last message, the user's, holds; the turns before it stand in every prompt.

    Args:
        conversation: Messages `{"role", "content"}`, contents as text.
        settings: With every default filled in, see `SolveSettings.resolved`.
        context_length: Longest prompt plus completion of the model, in tokens.

    Raises:
        ChatRefused: The model's chat template does not take such turns.
        PromptTooLong: The problem alone fills the context.
        SamplingFailed: No candidate came.
    """
    problem, history = conversation[-1]["content"], conversation[:-1]
    state = _State(settings, Stages.of(settings, tokenizer, context_length))
    prompt = _first_prompt(state.stages, problem, history)
    room = state.stages.room(prompt)
    if room < 1:
        raise PromptTooLong(
            f"the prompt has {len(prompt.token_ids)} tokens, which fill the model's window of {context_length}"
        )
    direct = settings.mode == "direct"
    sampling = settings.sampling("candidate", last=direct, room=room)
    yield from _stage(state, Ask("candidate", 0, prompt.messages, prompt.token_ids, sampling, last=direct))
    if settings.mode == "refine":
        for number in range(1, settings.rounds + 1):
            if not (yield from _refine(state, number, problem, history)):
                break
    answers = yield from _answers(state)
    return Solution(problem, answers, state.rounds, state.usage, state.degraded, state.reason)


def _first_prompt(stages: Stages, problem: str, history: Messages) -> Prompt:
    from jinja2 import TemplateError

    try:
        return stages.solve(problem, history)
    except TemplateError as error:
        roles = ", ".join([*(turn["role"] for turn in history), "user"])
        raise ChatRefused(f"the model's chat template refuses these turns ({roles:.200}): {error}") from None


def _stage(state: _State, ask: Ask) -> Generator:
    """Ask for a stage's completions and take them as the next round."""
    settings = state.settings
    completions = yield ask
    state.usage.count(ask, completions)
    attempts = [Attempt(c.text, extract_answer(c.text), c.finished, len(c.token_ids)) for c in completions]
    if settings.count_votes and not ask.last:
        attempts = counted(attempts, (yield Vote([attempt.answer for attempt in attempts])))
    if settings.mode == "vote" and len(attempts) < settings.num_candidates:
        state.degraded = "fewer_candidates"
    if settings.mode == "refine" and not ask.last:
        attempts, degraded = mark_shown(attempts, state.stages)
        few = sum(attempt.shown for attempt in attempts) < settings.num_candidates
        state.degraded = degraded or ("fewer_candidates" if few else state.degraded)
    state.rounds.append(attempts)
    yield Told(ask.stage, ask.number, attempts)


def _refine(state: _State, number: int, problem: str, history: Messages) -> Generator:
    """One round of refinements over the attempts of the last one. Returns whether it came."""
    stages = state.stages
    texts = [stages.shown_text(attempt.text) for attempt in state.rounds[-1] if attempt.shown]
    if not texts:
        return False
    prompt = stages.refine(problem, texts, history)
    if prompt is None:
        state.degraded = "prompt_too_long"
        return False
    last = number == state.settings.rounds
    sampling = state.settings.sampling("refinement", last=last, room=stages.room(prompt))
    try:
        yield from _stage(state, Ask("refinement", number, prompt.messages, prompt.token_ids, sampling, last))
    except SamplingFailed as failure:
        state.degraded, state.reason = "refinement_failed", str(failure)
        return False
    return True


def _answers(state: _State) -> Generator:
    """The answers: the last round's attempts if they are answers, else the majority's among them."""
    settings, attempts = state.settings, state.rounds[-1]
    if settings.mode == "direct" or (settings.mode == "refine" and len(state.rounds) == settings.rounds + 1):
        return attempts
    if not settings.count_votes:
        attempts = counted(attempts, (yield Vote([attempt.answer for attempt in attempts])))
        state.rounds[-1] = attempts
    best = by_votes(attempts)
    return [best[place % len(best)] for place in range(settings.num_answers)]

"""How one problem is solved, without any engine: which prompts follow which, and what is answered if something fails.

The steps themselves are those of every program (gsr_rl/refinement/stages.py). Here they follow each other round by
round, and a step that fails is answered for. So `solving` is a generator: it yields what it needs (`Ask`: completions;
`Vote`: classes of answers) and what there is to show (`Told`), and returns a `Solution`. `solver.py` answers it from
an engine, `job.py` from a server.

A model reads K candidates best where it was trained on K. So of N candidates, N > K, each of R refinements reads a set
of K (`least_shown`), and the refinements vote. With `stop_when_agreed` voters are asked for in waves, and candidates
as they are read, until the vote is decided (`SolveSettings.wave`).

The rule for what fails:
1. A candidate is shown to a refinement if it ended by itself and says something after its thinking part (with
   `unfinished_candidates: cut` also if it did not end). Fewer than asked for: the refinements see those
   (`fewer_candidates`). Without a refinement, fewer that came at all: those vote, and it is said likewise.
2. None ended: the unfinished ones are shown, or vote, as they are (`unfinished_candidates`).
3. Some refinements that vote do not come, or do not fit: the others vote (`fewer_refinements`).
4. Nothing can be shown (`no_usable_candidate`), the refinement prompt does not fit its budget (`prompt_too_long`), or
   no refinement came (`refinement_failed`): the answer is a candidate with the majority's answer, the first of them.
5. No candidate came at all: `SamplingFailed`.
"""

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import cached_property

from gsr_rl.engines.base import Completion, Sampling
from gsr_rl.refinement.candidates import choice_seed, least_shown
from gsr_rl.refinement.prompts import Messages, Prompt
from gsr_rl.refinement.stages import Candidate, Stages
from gsr_rl.serving.config import SolveSettings
from rewards import extract_answer


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
class Ask:
    """`sampling.n` completions of each prompt are needed, in the prompts' order; at least one, or `SamplingFailed`.

    Attributes:
        stage: `candidate` or `refinement`.
        number: 0 for candidates, then the round.
        until: The share of the problem's time, in (0, 1], that may then be over.
        first: How many attempts of this stage and number came before.
        last: Whether it is of the last stage, whose completions `stop` ends.
        votes: Whether these are voters: then those that come are enough.
    """

    stage: str
    number: int
    prompts: list[Prompt]
    sampling: Sampling
    until: float = 1.0
    first: int = 0
    last: bool = True
    votes: bool = False

    @property
    def answers(self) -> bool:
        """Whether the completions are the answers; then all of them are needed."""
        return self.last and not self.votes

    @property
    def count(self) -> int:
        return self.sampling.n * len(self.prompts)


def _sampling(settings: SolveSettings, stage: str, n: int, room: int) -> Sampling:
    """Of a stage: `n` completions of a prompt, which leaves `room` tokens."""
    if stage == "candidate":
        return Sampling(n, settings.temperature, settings.top_p, min(settings.max_completion_length, room))
    return Sampling(n, settings.refinement_temperature, settings.refinement_top_p, settings.max_refinement_length)


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
    """All attempts of a stage so far. `number` as in `Ask`."""

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
        self.prompt_tokens += sum(len(prompt.token_ids) for prompt in ask.prompts)
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
    """What has come of a problem so far.

    Attributes:
        asked: By round, how many attempts were asked for, come or not.
        shown: By round and place in the one before, in how many sets an attempt was shown.
    """

    settings: SolveSettings
    stages: Stages
    problem: str
    history: Messages
    usage: Usage = field(default_factory=Usage)
    rounds: list[list[Attempt]] = field(default_factory=list)
    asked: Counter = field(default_factory=Counter)
    shown: Counter = field(default_factory=Counter)
    degraded: str | None = None
    reason: str = ""

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt for a candidate, with room for it."""
        from jinja2 import TemplateError

        try:
            prompt = self.stages.solve(self.problem, self.history)
        except TemplateError as error:
            roles = ", ".join([*(turn["role"] for turn in self.history), "user"])
            raise ChatRefused(f"the model's chat template refuses these turns ({roles:.200}): {error}") from None
        if self.stages.room(prompt) < 1:
            raise PromptTooLong(
                f"the prompt has {len(prompt.token_ids)} tokens, which fill the model's window of "
                f"{self.stages.context_length}"
            )
        return prompt

    def attempts(self, number: int) -> list[Attempt]:
        """What has come of a round."""
        return self.rounds[number] if number < len(self.rounds) else []

    def wave(self, number: int, voters: int) -> int:
        """How many more of a round's voters to ask for; 0: its vote is over."""
        return self.settings.wave(voters, self.asked[number], [one.group for one in self.attempts(number)])

    def next_prompts(self, number: int, count: int) -> list[Prompt]:
        """A round's next prompts, for `count` refinements of the attempts of the round before; those that fit."""
        read = self.rounds[number - 1]
        usable = [attempt.shown for attempt in read]
        sets = [[place for place, shown in enumerate(usable) if shown]]
        if self.settings.composes:
            sets = [self._next_set(usable, number, self.asked[number] + place) for place in range(count)]
        texts = [[self.stages.shown_text(read[place].text) for place in chosen] for chosen in sets if chosen]
        prompts = [self.stages.refine(self.problem, shown, self.history) for shown in texts]
        return [prompt for prompt in prompts if prompt]

    def _next_set(self, usable: list[bool], number: int, place: int) -> list[int]:
        counts = [self.shown[number, index] for index in range(len(usable))]
        seed = choice_seed(self.settings.seed, self.problem, number, place)
        chosen = least_shown(usable, counts, self.settings.set_size, seed)
        self.shown.update((number, index) for index in chosen)
        return chosen


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
    stages = Stages.of(settings, tokenizer, context_length)
    state = _State(settings, stages, conversation[-1]["content"], conversation[:-1])
    if settings.mode == "direct":
        yield from _candidates(state, settings.num_answers)
    elif settings.mode == "vote":
        while count := state.wave(0, settings.num_candidates):
            yield from _candidates(state, state.asked[0] + count)
    else:
        if not settings.grows:
            yield from _candidates(state, settings.num_candidates)
        for number in range(1, settings.rounds + 1):
            if not (yield from _refinements(state, number)):
                break
    answers = yield from _answers(state)
    return Solution(state.problem, answers, state.rounds, state.usage, state.degraded, state.reason)


def _candidates(state: _State, number: int) -> Generator:
    """Ask for candidates until so many have been asked for."""
    settings, missing = state.settings, number - state.asked[0]
    if missing <= 0:
        return
    until = 1 / (settings.rounds + 1) if settings.mode == "refine" and not state.rounds else 1.0
    sampling = _sampling(settings, "candidate", missing, state.stages.room(state.prompt))
    ends = {"last": settings.mode == "direct", "votes": settings.mode == "vote"}
    state.asked[0] = number
    try:
        yield from _stage(state, Ask("candidate", 0, [state.prompt], sampling, until, len(state.attempts(0)), **ends))
    except SamplingFailed as failure:
        if not state.rounds:
            raise
        state.degraded, state.reason = "fewer_candidates", str(failure)


def _stage(state: _State, ask: Ask) -> Generator:
    """Ask for completions of a stage, and put them to those of its round that are there."""
    settings = state.settings
    completions = yield ask
    state.usage.count(ask, completions)
    new = [Attempt(c.text, extract_answer(c.text), c.finished, len(c.token_ids)) for c in completions]
    attempts = [*state.attempts(ask.number), *new]
    if ask.votes or (settings.count_votes and not ask.last):
        attempts = counted(attempts, (yield Vote([attempt.answer for attempt in attempts])))
    if settings.mode == "vote":
        few = len(attempts) < state.asked[0]
        cut = not any(attempt.finished for attempt in attempts)
        state.degraded = "unfinished_candidates" if cut else "fewer_candidates" if few else None
    elif not ask.last:
        attempts, degraded = mark_shown(attempts, state.stages)
        few = sum(attempt.shown for attempt in attempts) < state.asked[ask.number]
        state.degraded = degraded or ("fewer_candidates" if few else state.degraded)
    elif ask.votes and len(attempts) < state.asked[ask.number]:
        state.degraded = "fewer_refinements"
    state.rounds[ask.number : ask.number + 1] = [attempts]
    yield Told(ask.stage, ask.number, attempts)


def _refinements(state: _State, number: int) -> Generator:
    """One round of refinements over the attempts of the last one. Returns whether any came."""
    settings, last, asked = state.settings, number == state.settings.rounds, state.asked
    votes, until = last and settings.composes, (number + 1) / (settings.rounds + 1)
    n = 1 if settings.composes else settings.num_answers if last else settings.num_candidates
    total = settings.refinements if settings.composes else n
    sampling = _sampling(settings, "refinement", n, 0)
    while count := state.wave(number, total) if votes else total - asked[number]:
        if settings.grows:
            yield from _candidates(state, min(settings.num_candidates, settings.set_size * (asked[number] + count)))
        prompts = state.next_prompts(number, count)
        asked[number] += count
        if not prompts:
            continue
        first = len(state.attempts(number))
        try:
            yield from _stage(state, Ask("refinement", number, prompts, sampling, until, first, last, votes))
        except SamplingFailed as failure:
            state.degraded, state.reason = "refinement_failed", str(failure)
            break
    return _came(state, number)


def _came(state: _State, number: int) -> bool:
    """Whether any refinement of a round came; what is degraded if not all did."""
    came = bool(state.attempts(number))
    if came and state.degraded == "refinement_failed":
        state.degraded = "fewer_refinements"
    elif not came and state.degraded != "refinement_failed" and any(one.shown for one in state.rounds[-1]):
        state.degraded = "prompt_too_long"
    return came


def _answers(state: _State) -> Generator:
    """The answers: the last round's attempts if they are answers, else those with most votes among them."""
    settings, attempts = state.settings, state.rounds[-1]
    done = settings.mode == "refine" and len(state.rounds) == settings.rounds + 1
    if settings.mode == "direct" or (done and not settings.composes):
        return attempts
    if not (done or settings.count_votes):
        attempts = counted(attempts, (yield Vote([attempt.answer for attempt in attempts])))
        state.rounds[-1] = attempts
    best = by_votes(attempts)
    return [best[place % len(best)] for place in range(settings.num_answers)]

"""One request of `gsr-serve` on its way to an answer, and the answer in OpenAI's form, whole or streamed."""

import asyncio
import json
import logging
import time
import uuid
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

import rewards
from gsr_rl.serving.backend import Backend
from gsr_rl.serving.config import SolveSettings
from gsr_rl.serving.limits import Places
from gsr_rl.serving.requests import ApiError, ChatRequest
from gsr_rl.serving.steps import (
    Ask,
    Attempt,
    ChatRefused,
    PromptTooLong,
    SamplingFailed,
    Solution,
    Steps,
    Told,
    Vote,
    solving,
)

logger = logging.getLogger("gsr_rl.serving")

BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """What is counted: requests by status and mode, tokens by stage, seconds, places, the backend."""

    def __init__(self, places, backend):
        self._registry = CollectorRegistry()
        self.requests = Counter("gsr_requests", "Answered requests", ["status"], registry=self._registry)
        self.modes = Counter("gsr_solved", "Solved problems", ["mode"], registry=self._registry)
        self.degraded = Counter("gsr_degraded", "Degraded answers", ["reason"], registry=self._registry)
        self.tokens = Counter("gsr_tokens", "Tokens", ["kind"], registry=self._registry)
        self.seconds = Histogram("gsr_request_seconds", "Of an answer", buckets=BUCKETS, registry=self._registry)
        self.stages = Histogram("gsr_stage_seconds", "Of a stage", ["stage"], buckets=BUCKETS, registry=self._registry)
        for name, about, value in (
            ("gsr_requests_running", "Requests worked on", lambda: places.running),
            ("gsr_requests_waiting", "Requests in the queue", lambda: places.waiting),
            ("gsr_backend_up", "1 if the backend answers", lambda: float(backend.up)),
        ):
            Gauge(name, about, registry=self._registry).set_function(value)

    def solved(self, solution: Solution, mode: str) -> None:
        self.modes.labels(mode).inc()
        self.seconds.observe(solution.seconds)
        if solution.degraded:
            self.degraded.labels(solution.degraded).inc()
        for kind in ("prompt", "candidate", "refinement"):
            self.tokens.labels(kind).inc(getattr(solution.usage, f"{kind}_tokens"))

    def stage(self, ask: Ask, seconds: float) -> None:
        self.stages.labels(ask.stage).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's own format."""
        return generate_latest(self._registry)


GRACE_SECONDS = 2.0  # over a request's time, to answer with what is there


@dataclass
class Shared:
    """What all requests share. `thread` is one thread: a tokenizer is not to be used by two at once."""

    tokenizer: object
    backend: Backend
    places: Places
    metrics: Metrics
    thread: Executor
    request_seconds: float
    forward_seed: bool


class Job:
    """A request being answered.

    Attributes:
        events: What there is to send: (index, new text) of a streamed answer, and at the end the `outcome`.
        speaks: Whether there has been an event.
        outcome: A `Solution` or an `ApiError`, once there is one.
    """

    def __init__(self, shared: Shared, request: ChatRequest, settings: SolveSettings):
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.request, self.settings = request, settings
        self.events: asyncio.Queue = asyncio.Queue()
        self.speaks = asyncio.Event()
        self.outcome: Solution | ApiError | None = None
        self.spoken: set[int] = set()
        self._shared, self._start = shared, time.monotonic()
        self._task = asyncio.create_task(self._run())

    def cancel(self) -> None:
        """Nobody waits any longer: end the work, in the backend too."""
        self._task.cancel()

    async def wait(self) -> None:
        """Until there is an outcome."""
        await asyncio.shield(self._task)

    async def _run(self) -> None:
        seconds = self._shared.request_seconds
        try:
            async with asyncio.timeout(seconds + GRACE_SECONDS), self._shared.places.one():
                solution = await self._solve(self._start + seconds)
            self.outcome = replace(solution, seconds=time.monotonic() - self._start)
            self._shared.metrics.solved(self.outcome, self.settings.mode)
        except ApiError as error:
            self.outcome = error
        except TimeoutError:
            self.outcome = ApiError(504, "timeout", f"no answer within {seconds:g} s")
        except PromptTooLong as error:
            self.outcome = ApiError(400, "context_length_exceeded", str(error), "messages")
        except ChatRefused as error:
            self.outcome = ApiError(422, "invalid_value", str(error), "messages")
        except SamplingFailed as error:
            self.outcome = _failure(error)
        except Exception:
            logger.exception("%s: an error of the server itself", self.id)
            self.outcome = ApiError(500, "internal_error", "an error of the server itself; its log says more")
        self._tell(self.outcome)

    def _tell(self, event) -> None:
        self.events.put_nowait(event)
        self.speaks.set()

    async def _solve(self, deadline: float) -> Solution:
        begin = time.monotonic()
        chat, settings, shared = self.request.chat(), self.settings, self._shared
        steps = solving(chat, shared.tokenizer, settings, shared.backend.context_length)
        reply, failure = None, None
        while True:
            step = await asyncio.get_running_loop().run_in_executor(shared.thread, _advance, steps, reply, failure)
            reply, failure = None, None
            if isinstance(step, Solution):
                return step
            if isinstance(step, Vote):
                reply = await asyncio.to_thread(rewards.vote, step.answers)
                continue
            try:
                reply = await self._sample(step, begin + (deadline - begin) * step.until)
            except SamplingFailed as error:
                if self.spoken:  # a half sent answer cannot be taken back
                    raise
                failure = error

    async def _sample(self, ask: Ask, deadline: float) -> list:
        start, seed = time.monotonic(), None
        stop = self.request.stops() if ask.last else None
        on_text = self._speak if ask.answers and self.request.stream else None
        if self._shared.forward_seed and self.request.seed is not None:
            seed = self.request.seed + 1000 * ask.number
        completions = await self._shared.backend.sample(ask, deadline, on_text, stop, seed)
        self._shared.metrics.stage(ask, time.monotonic() - start)
        return completions

    def _speak(self, index: int, text: str) -> None:
        self.spoken.add(index)
        self._tell((index, text))

    def body(self, solution: Solution) -> dict:
        """A chat completion."""
        choices = [
            _choice(index, "message", {"role": "assistant", "content": answer.text}, _reason(answer))
            for index, answer in enumerate(solution.answers)
        ]
        head = {"id": self.id, "object": "chat.completion", "created": self.created, "model": self.request.model}
        return head | {"choices": choices, "usage": usage(solution), "gsr": self.details(solution)}

    def details(self, solution: Solution) -> dict:
        """Our own field of an answer."""
        options = self.request.gsr
        candidates = solution.candidates
        details = {
            "mode": self.settings.mode,
            "num_candidates": len(candidates) if self.settings.mode != "direct" else 0,
            "num_shown": sum(candidate.shown for candidate in candidates),
            "rounds": len(solution.rounds) - 1,
            "num_refinements": sum(map(len, solution.rounds[1:])),
            "votes": solution.answers[0].votes,
            "degraded": solution.degraded,
            "usage": asdict(solution.usage),
            "seconds": round(solution.seconds, 3),
        }
        if options and options.return_candidates:
            details["candidates"] = [asdict(candidate) for candidate in candidates]
            details["refinements"] = [[asdict(attempt) for attempt in attempts] for attempts in solution.rounds[1:]]
            details["majority_answer"] = solution.majority_answer
            details["answer"] = solution.answer
        return details

    def _chunk(self, index: int, delta: dict, reason: str | None = None, **more) -> bytes:
        return self._event({"choices": [_choice(index, "delta", delta, reason)], **more})

    def _event(self, content: dict) -> bytes:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.request.model}
        return b"data: " + json.dumps(head | content, ensure_ascii=False).encode() + b"\n\n"

    async def chunks(self, keep_alive: float):
        """The answer as server-sent events, with a comment where nothing else is to be said for `keep_alive` s."""
        for index in range(self.settings.num_answers):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        while True:
            try:
                event = await asyncio.wait_for(self.events.get(), keep_alive)
            except TimeoutError:
                yield b": working\n\n"
                continue
            pieces: dict[int, list[str]] = {}
            while isinstance(event, tuple):  # what has gathered goes out together
                pieces.setdefault(event[0], []).append(event[1])
                event = None if self.events.empty() else self.events.get_nowait()
            for index, texts in sorted(pieces.items()):
                yield self._chunk(index, {"content": "".join(texts)})
            if isinstance(event, ApiError):
                yield b"data: " + json.dumps(event.body()).encode() + b"\n\n"
                return
            if isinstance(event, Solution):
                for part in self._ending(event):
                    yield part
                return

    def _ending(self, solution: Solution):
        for index, answer in enumerate(solution.answers):
            if index not in self.spoken and answer.text:
                yield self._chunk(index, {"content": answer.text})
        for index, answer in enumerate(solution.answers):
            last = index == len(solution.answers) - 1
            more = {"gsr": self.details(solution)} if last else {}
            yield self._chunk(index, {}, _reason(answer), **more)
        if self.request.stream_options and self.request.stream_options.include_usage:
            yield self._event({"choices": [], "usage": usage(solution)})
        yield b"data: [DONE]\n\n"


def usage(solution: Solution) -> dict[str, int]:
    """Tokens of all stages: prompts, each counted once, and completions, the candidates' among them."""
    prompt, completion = solution.usage.prompt_tokens, solution.usage.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _reason(answer: Attempt) -> str:
    return "stop" if answer.finished else "length"


def _choice(index: int, key: str, content: dict, reason: str | None) -> dict:
    return {"index": index, key: content, "finish_reason": reason, "logprobs": None}


def _advance(steps: Steps, reply, failure: SamplingFailed | None) -> Ask | Vote | Solution:
    """The next step that needs something, or the solution."""
    try:
        step = steps.throw(failure) if failure else steps.send(reply)
        while isinstance(step, Told):
            step = steps.send(None)
        return step
    except StopIteration as stop:
        return stop.value


def _failure(error: SamplingFailed) -> ApiError:
    logger.warning("no completions: %s", error)
    if error.status == 504:
        return ApiError(504, "backend_timeout", "the model's server is too slow: no completion came in time")
    return ApiError(503, "backend_unavailable", "the model's server does not answer", retry_after=5)

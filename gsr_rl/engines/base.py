"""The one seam to engines for distillation and evaluation: prompts in, completions out. Engines are imported inside.

engine = open_engine("vllm", "path/or/hub-name", seed=0)
completions = engine.generate([[1, 2, 3]], Sampling(n=4, temperature=1.0, top_p=1.0, max_tokens=64))
for result in engine.stream(requests):  # as they finish; `requests` may be endless, it is read as there is room
    ...
engine.close()

The engines themselves: gsr_rl/engines/local.py, copies of these (open.py), endpoints.py (over HTTP).
"""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from gsr_rl.refinement.prompts import completion_text, opened_thinking

KINDS = ("vllm", "transformers", "endpoint")
# Reasons, in the words of vLLM and of other servers, for which a completion ended by itself: an end token or a stop
# string, not its limit.
FINISHED = {"stop", "stop_sequence", "end_turn", "eos", "eos_token"}


def is_finished(reason: str | None) -> bool:
    """Whether a finish reason, in capitals or not, is that a completion ended by itself."""
    return str(reason).lower() in FINISHED


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8. One with half a character (a lone surrogate) cannot, nor tokenized."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class EngineError(RuntimeError):
    """What samples has failed, outside of this program: an endpoint, or a process with a copy of the model."""


@dataclass(frozen=True)
class Sampling:
    """How to sample: `n` completions per prompt, `temperature` (0: greedy), `top_p` in (0, 1], `max_tokens` each."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256


@dataclass(frozen=True)
class Completion:
    """One completion: its text (`completion_text`), its token ids, and whether it ended by itself (`is_finished`)."""

    text: str
    token_ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Request:
    """One prompt to sample from: its token ids, and the chat that they were made of (which a chat endpoint is sent).

    `on_text(index, text)` is called inside `Engine.step` with each new piece of the completion's text at this index,
    by engines whose `streams` is true.
    """

    key: Hashable
    token_ids: list[int]
    sampling: Sampling
    messages: list[dict] | None = None
    on_text: Callable[[int, str], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Result:
    """The `sampling.n` completions of the request with this key; or none, and the `error` that an endpoint gave."""

    key: Hashable
    completions: list[Completion]
    error: str = ""


class Engine:
    """What all engines share. A subclass gives `_submit` and `_step`, and sets the attributes.

    Attributes:
        tokenizer: The model's.
        max_model_length: The context length: longest prompt plus completion, in tokens.
        capacity: The `load` that `stream` keeps in the engine.
        streams: Whether requests' `on_text` is called; it is ignored otherwise.
        counts: `requests`, `prompt_tokens` and `completion_tokens` since the engine was opened; endpoints add
            `retries`.
    """

    tokenizer = None
    max_model_length: int
    capacity: int = 512
    streams: bool = False

    def __init__(self):
        self.counts: Counter = Counter()
        self._in_flight: dict[Hashable, Request] = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Give back what the engine holds, so that another can be opened."""

    def _submit(self, request: Request) -> None:
        """Take a request in, without waiting for it. No two in flight share a key."""
        raise NotImplementedError

    def _step(self) -> list[Result]:
        """Work, or wait, until something may have finished; what has."""
        raise NotImplementedError

    @property
    def load(self) -> int:
        """Sequences that the engine holds, waiting ones included; in an endpoint's engine, requests."""
        return sum(request.sampling.n for request in self._in_flight.values())

    def check(self, token_ids: list[int], sampling: Sampling, name: object) -> None:
        """Raise `ValueError` for a prompt that is empty or leaves no room for `max_tokens` in the context."""
        if not token_ids:
            raise ValueError(f"prompt {name} is empty: a prompt needs at least one token")
        if len(token_ids) + sampling.max_tokens > self.max_model_length:
            raise ValueError(
                f"prompt {name} has {len(token_ids)} tokens, with max_tokens={sampling.max_tokens} more than the "
                f"engine's context of {self.max_model_length} tokens: shorten one or raise max_model_length"
            )

    def submit(self, request: Request) -> None:
        """Take one request in. Raises `ValueError` for a prompt that cannot be sampled from."""
        self.check(request.token_ids, request.sampling, request.key)
        self._in_flight[request.key] = request
        if request.sampling.temperature == 0:  # n copies of one completion
            request = replace(request, sampling=replace(request.sampling, n=1))
        if request.on_text is not None and not self.streams:
            request = replace(request, on_text=None)
        self._submit(request)

    def step(self) -> list[Result]:
        """Let the engine work until something may have finished, and return what has."""
        results = []
        for result in self._step():
            request = self._in_flight.pop(result.key)
            opening = opened_thinking(self.tokenizer, request.token_ids)
            texts = [completion_text(self.tokenizer, opening, c.token_ids, c.text) for c in result.completions]
            completions = [replace(c, text=text) for c, text in zip(result.completions, texts, strict=True)]
            if request.sampling.temperature == 0:
                completions = completions[:1] * request.sampling.n
            self.counts["requests"] += 1
            self.counts["prompt_tokens"] += len(request.token_ids)
            self.counts["completion_tokens"] += sum(len(c.token_ids) for c in result.completions)
            results.append(replace(result, completions=completions))
        return results

    def stream(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Results in the order in which they finish. `requests` is read only as the engine has room."""
        requests = iter(requests)
        request = next(requests, None)
        while request is not None or self._in_flight:
            while request is not None and self.load < self.capacity:
                self.submit(request)
                request = next(requests, None)
            yield from self.step()

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, messages=None) -> list[list[Completion]]:
        """Sample `sampling.n` completions of each prompt, in the order of the prompts.

        Args:
            messages: The chats that the prompts were made of, which a chat endpoint needs.

        Raises:
            ValueError: A prompt is empty, or leaves no room for `max_tokens` in the context.
            EngineError: An endpoint gave no answer to a request.
        """
        for index, ids in enumerate(prompt_token_ids):
            self.check(ids, sampling, index)
        chats = messages or [None] * len(prompt_token_ids)
        pairs = zip(prompt_token_ids, chats, strict=True)
        requests = [Request(index, ids, sampling, chat) for index, (ids, chat) in enumerate(pairs)]
        completions: dict[int, list[Completion]] = {}
        with progress_bar(len(requests), "completions", unit="prompts") as bar:
            for result in self.stream(requests):
                if result.error:
                    raise EngineError(f"prompt {result.key}: {result.error}")
                completions[result.key] = result.completions
                bar.update()
        return [completions[index] for index in range(len(requests))]

    def _completions(self, token_ids: list[list[int]], finished: list[bool]) -> list[Completion]:
        """Decode rows in one call."""
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return [Completion(*row) for row in zip(texts, token_ids, finished, strict=True)]


def progress_bar(total: int, label: str, done: int = 0, unit: str = "problems"):
    """A tqdm bar with what is done and time left: in a terminal a line that is rewritten, as wide as there is room.

    In a log file it is a line each half minute, or TQDM_MININTERVAL seconds.
    """
    from tqdm import tqdm

    form = f"{label}: {{percentage:.0f}} %, {{n_fmt}} of {{total_fmt}} {unit}, {{remaining}} left{{postfix}}"
    interval = 0.5 if sys.stderr.isatty() else float(os.environ.get("TQDM_MININTERVAL", 30))
    return tqdm(total=total, initial=done, bar_format=form, mininterval=interval, delay=0, file=_OneLine())


class _OneLine:
    """Standard error for a bar's states: tqdm itself lets a long one wrap, and writes carriage returns into logs."""

    def write(self, text: str) -> None:
        state = text.strip()
        if not sys.stderr.isatty():
            sys.stderr.write(f"{state}\n" if state else "")
        elif state:
            sys.stderr.write(f"\r\033[K{state[: shutil.get_terminal_size().columns - 1]}")
        else:  # the line break at the end
            sys.stderr.write(text.strip("\r "))

    def flush(self) -> None:
        sys.stderr.flush()

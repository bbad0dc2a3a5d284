"""Sampling over HTTP: one or more OpenAI-compatible endpoints that serve one model, as one engine.

Many requests are in flight; a request that meets an error, a limit, a cut connection or half an answer is tried again,
elsewhere if there is another endpoint, with growing pauses, until its tries are used up. It then comes back as a
result with an error, and costs nothing but its own unit. Keys are read from the environment and go nowhere else.
"""

import asyncio
import logging
import os
import queue
import random
import threading
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from urllib.parse import urlsplit

from gsr_rl.engines.base import Completion, Engine, EngineError, Request, Result, is_finished, is_unicode

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between tries: see `pause`
LONGEST_RETRY_AFTER = 600.0  # seconds that a server may ask for
START_SECONDS = 60.0  # how long an endpoint may take to answer for the first time
FAILED_IN_ROW = 16  # so many requests without an answer, one after the other, end the job
RETRIED = {408, 409, 425, 429}  # and 500 and above
BROKEN = {"abort", "error"}  # finish reasons of a completion that the server gave up
HOPELESS = {401, 403, 404}  # the next request would meet the same; 403 after an answer is about one prompt


class Malformed(Exception):
    """An answer that is no completion, or breaks off."""


def is_refused(error: Exception) -> bool:
    """Whether a server has answered that it does not take the request: another try would meet the same."""
    status = getattr(error, "status_code", None)
    return status is not None and status < 500 and status not in RETRIED


def pause(failures: int, first: float, longest: float) -> float:
    """Seconds before the next try, after 1, 2, ... failures: doubled each time, and shaken, so that clients spread."""
    return min(longest, first * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)


def retry_after(error: Exception) -> float:
    """Seconds that the server asked for by Retry-After, which may be a date; 0 if it did not."""
    value = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "0")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(LONGEST_RETRY_AFTER, max(0.0, seconds))


def one_line(text: str, key: str) -> str:
    """An error's text in one line, without the key."""
    return " ".join((text.replace(key, "***") if key else text).split())[:400]


def texts_of(message) -> tuple[str, str]:
    """Content and reasoning of a message, of a piece of a streamed one, or of a choice of the completions API.

    The content may be a list of parts, of text or of thinking.
    """
    content = getattr(message, "content", None) or getattr(message, "text", None) or ""
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""
    if isinstance(content, list):
        thoughts = [
            part for part in content if isinstance(part, dict) and part.get("type") in ("thinking", "reasoning")
        ]
        reasoning += "".join(map(_part_text, thoughts))
        content = "".join(_part_text(part) for part in content if part not in thoughts)
    return content, reasoning


def _part_text(part) -> str:
    """The text of a part of a content, which may have parts itself."""
    if isinstance(part, dict):
        part = next((part[name] for name in ("text", "thinking", "reasoning", "content") if part.get(name)), "")
    return "".join(map(_part_text, part)) if isinstance(part, list) else str(part)


def without_v1(url: str) -> str:
    """A hint where an address has no path, which is nearly always /v1."""
    return "" if urlsplit(url).path.strip("/") else f" The address has no path: most servers need {url.rstrip('/')}/v1"


@dataclass(frozen=True)
class EndpointSettings:
    """Where and how to ask; the keys of `EngineConfig` of like names."""

    urls: tuple[str, ...]
    api: str = "chat"
    tokenizer: str | None = None
    api_key_env: str | None = None
    options: dict = field(default_factory=dict)
    max_requests_in_flight: int = 256
    requests_per_minute: float | None = None
    timeout: float = 1800.0
    retries: int = 10

    @classmethod
    def from_config(cls, config, value) -> "EndpointSettings":
        """From an `EngineConfig`; `value(name)` gives a key that student and teacher may have each of their own."""
        urls = value("endpoints")
        return cls(
            urls=tuple([urls] if isinstance(urls, str) else urls),
            api=value("endpoint_api"),
            tokenizer=value("endpoint_tokenizer"),
            api_key_env=value("api_key_env"),
            options=dict(value("endpoint_options") or {}),
            max_requests_in_flight=config.max_requests_in_flight,
            requests_per_minute=config.requests_per_minute,
            timeout=config.request_timeout,
            retries=config.request_retries,
        )


@dataclass
class _Server:
    """One endpoint: its client, its requests in flight, and until when it has asked to be left alone."""

    url: str
    client: object
    in_flight: int = 0
    paused_until: float = 0.0


class _Refused(Result):
    """The result of a request that the endpoint answered, and refused."""


@dataclass
class _Text:
    """A new piece of a streamed completion, on its way to the thread that steps."""

    on_text: object
    index: int
    text: str


class EndpointEngine(Engine):
    """The endpoints of one model.

    Raises:
        EngineError: An endpoint does not answer at the start, refuses the key or does not know the model; or
            `FAILED_IN_ROW` requests in a row got no answer.
        ValueError: The model's context length is not known.
    """

    streams = True

    def __init__(self, model: str, settings: EndpointSettings, max_model_length: int | None = None):
        super().__init__()
        from transformers import AutoTokenizer

        self._model, self._settings = model, settings
        self._key = os.environ.get(settings.api_key_env, "").strip() if settings.api_key_env else ""
        self.tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer or model)
        self.capacity = settings.max_requests_in_flight
        self._arrived: queue.SimpleQueue = queue.SimpleQueue()  # `Result`s, `_Text`s and errors, for `_step`
        self._failed_in_row, self._next_slot, self._answered = 0, 0.0, False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="endpoints")
        self._thread.start()
        try:
            stated = self._call(self._connect())
        except BaseException:
            self.close()
            raise
        self.max_model_length = max_model_length or stated
        if not self.max_model_length:
            self.close()
            url = settings.urls[0]
            unknown = f"max_model_length is not set, and {url} does not tell it: set it in tokens"
            raise ValueError(f"{unknown}.{without_v1(url)}")

    @property
    def load(self) -> int:
        return len(self._in_flight)

    def close(self) -> None:
        """Drop what is in flight and end the thread."""
        if self._loop.is_closed():
            return

        async def stop():
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for server in getattr(self, "_servers", []):
                await server.client.close()

        self._call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _submit(self, request: Request) -> None:
        asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)

    def _step(self) -> list[Result]:
        arrived = [self._arrived.get()]  # each request has a deadline, so something comes
        while not self._arrived.empty():
            arrived.append(self._arrived.get())
        for piece in arrived:
            if isinstance(piece, _Text):
                piece.on_text(piece.index, piece.text)
        results = [result for result in arrived if not isinstance(result, _Text)]
        for result in results:
            if isinstance(result, Exception):
                raise result
            if isinstance(result, _Refused):  # its prompt's fault, not the endpoint's
                continue
            self._failed_in_row = self._failed_in_row + 1 if result.error else 0
            if self._failed_in_row >= FAILED_IN_ROW:
                number = self._failed_in_row
                raise EngineError(f"{number} requests in a row got no answer, the last one: {result.error}")
        return results

    # In the event loop from here on ------------------------------------------------------------------------

    async def _connect(self) -> int | None:
        """Ask every endpoint for its models. Returns the shortest context that they state, if any does."""
        from openai import AsyncOpenAI

        key = self._key or "none"  # the client wants one, servers without keys take any
        self._servers = [
            _Server(url, AsyncOpenAI(api_key=key, base_url=url, max_retries=0, timeout=self._settings.timeout))
            for url in self._settings.urls
        ]
        contexts = [await self._first_answer(server) for server in self._servers]
        return min((context for context in contexts if context), default=None)

    async def _first_answer(self, server: _Server) -> int | None:
        """Wait until an endpoint answers. Returns the context that it states (a field of vLLM's), if it does."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                models = (await asyncio.wait_for(server.client.models.list(timeout=10.0), 15.0)).data
                known = {model.id: model for model in models or []}
                break
            except (AttributeError, TypeError, ValueError):
                return None  # it answers, in a form of its own
            except Exception as error:
                if getattr(error, "status_code", None) in (401, 403):
                    raise EngineError(one_line(f"{server.url}: {error}", self._key)) from None
                if is_refused(error):
                    return None  # it has no list of models
                if time.monotonic() > deadline:
                    why = one_line(f"{type(error).__name__}: {error}", self._key)
                    message = f"{server.url} has not answered for {START_SECONDS:.0f} s ({why}): is it running?"
                    raise EngineError(message) from None
                await asyncio.sleep(1.0)
        ours = known.get(self._model)
        if ours is None and any(getattr(model, "owned_by", "") == "vllm" for model in known.values()):
            raise EngineError(f"{server.url} does not serve {self._model}, only {', '.join(sorted(known))}")
        return getattr(ours, "max_model_len", None)

    async def _answer(self, request: Request) -> None:
        """Ask until all completions are there or the tries are used up."""
        completions: list[Completion] = []
        shown: list[str] = []  # what `on_text` was given of the try at work
        failures = 0
        try:
            while len(completions) < request.sampling.n:
                server = await self._free_server()
                try:
                    completions += await self._ask(server, request, len(completions), shown)
                    failures, self._answered = 0, True
                    shown.clear()
                except Exception as error:
                    failures += 1
                    why = one_line(f"{server.url}: {type(error).__name__}: {error}", self._key)
                    status = getattr(error, "status_code", None)
                    if status in HOPELESS and not (status == 403 and self._answered):
                        raise EngineError(why + without_v1(server.url)) from None
                    # What was shown of a stream cannot be taken back, so it is not begun anew.
                    if is_refused(error) or failures > self._settings.retries or shown:
                        kind = _Refused if is_refused(error) else Result
                        self._arrived.put(kind(request.key, [], f"{why} (after {failures} tries)"))
                        return
                    self.counts["retries"] += 1
                    if seconds := retry_after(error):
                        server.paused_until = max(server.paused_until, time.monotonic() + seconds)
                    await asyncio.sleep(pause(failures, FIRST_PAUSE, LONGEST_PAUSE))
            self._arrived.put(Result(request.key, completions[: request.sampling.n]))
        except Exception as error:
            self._arrived.put(error)

    async def _free_server(self) -> _Server:
        """The least busy endpoint that has not asked to be left alone, when the rate limit allows a request."""
        if self._settings.requests_per_minute:
            now = time.monotonic()
            slot = max(now, self._next_slot)
            self._next_slot = slot + 60.0 / self._settings.requests_per_minute
            await asyncio.sleep(slot - now)
        while True:
            now = time.monotonic()
            free = [server for server in self._servers if server.paused_until <= now]
            if free:
                fewest = min(server.in_flight for server in free)
                return random.choice([server for server in free if server.in_flight == fewest])
            await asyncio.sleep(min(server.paused_until for server in self._servers) - now + 0.001)

    async def _ask(self, server: _Server, request: Request, have: int, shown: list) -> list[Completion]:
        """One HTTP request. A server that gives fewer completions than asked for is asked for the rest later.

        Args:
            have: Completions that are there already.
            shown: Is filled with what `on_text` was given of this request.
        """
        sampling, streamed = request.sampling, request.on_text is not None
        body = {"model": self._model, "n": sampling.n - have, "temperature": sampling.temperature}
        body |= {"top_p": sampling.top_p, "extra_body": dict(self._settings.options)}
        body |= {"stream": True} if streamed else {}
        if not {"max_tokens", "max_completion_tokens"} & set(self._settings.options):
            body["max_tokens"] = sampling.max_tokens
        if self._settings.api == "completions":
            body["extra_body"] = {"return_token_ids": True} | body["extra_body"]
            call = server.client.completions.create(prompt=request.token_ids, **body)
        else:
            call = server.client.chat.completions.create(messages=request.messages, **body)
        if streamed:
            call = self._read_stream(call, request, have, shown)
        server.in_flight += 1
        try:
            # The client's own limit is a limit between two bytes: a server that drips would never meet it.
            answer = await asyncio.wait_for(call, self._settings.timeout)
        finally:
            server.in_flight -= 1
        choices = answer if streamed else getattr(answer, "choices", None)
        if not isinstance(choices, list) or not choices:
            raise Malformed(f"an answer without choices: {str(answer)[:80]!r}")
        return [self._completion(choice) for choice in choices[: sampling.n - have]]

    async def _read_stream(self, call, request: Request, have: int, shown: list) -> list[SimpleNamespace]:
        """The choices of a streamed answer, put together; their pieces of text go to `on_text` on the way."""
        wanted = request.sampling.n - have
        choices: dict[int, SimpleNamespace] = {}  # those that the server has begun, in that order
        async with await call as stream:
            async for chunk in stream:
                for new in chunk.choices:
                    if new.index not in choices and len(choices) == wanted:
                        raise Malformed(f"a choice {new.index} more than the {wanted} asked for")
                    blank = SimpleNamespace(finish_reason=None, content="", reasoning="", token_ids=None)
                    choice, delta = choices.setdefault(new.index, blank), getattr(new, "delta", new)
                    text, reasoning = texts_of(delta)
                    choice.content += text
                    choice.reasoning += reasoning
                    choice.finish_reason = new.finish_reason or choice.finish_reason
                    if ids := getattr(new, "token_ids", None):
                        choice.token_ids = (choice.token_ids or []) + ids
                    if text:
                        shown.append(text)
                        place = have + list(choices).index(new.index)
                        self._arrived.put(_Text(request.on_text, place, text))
        return list(choices.values())

    def _completion(self, choice) -> Completion:
        reason, message = getattr(choice, "finish_reason", None), getattr(choice, "message", choice)
        if reason is None:
            raise Malformed("a completion that breaks off (no finish_reason)")
        if str(reason).lower() in BROKEN:
            raise Malformed(f"a completion that breaks off (finish_reason {reason})")
        if message is None:
            raise Malformed("a choice without a message")
        text, reasoning = texts_of(message)
        if reasoning:
            text = f"<think>\n{reasoning}\n</think>\n{text}"
        if not is_unicode(text):
            logger.warning("a completion with half a character (a lone surrogate) counts as empty and unfinished")
            return Completion("", [], finished=False)
        ids = getattr(choice, "token_ids", None)
        if not isinstance(ids, list):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Completion(text, ids, finished=is_finished(reason))

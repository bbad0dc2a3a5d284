"""The vLLM server behind `gsr-serve`: completions for each stage by the official client, with deadlines and retries.

A stage's completions are requests of their own, so that one that fails or hangs takes no other with it.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Callable

from gsr_rl.engines.base import Completion, is_finished, is_unicode
from gsr_rl.engines.endpoints import Malformed, is_refused, one_line, pause, texts_of, without_v1
from gsr_rl.refinement.prompts import completion_text, in_think_tags, opened_thinking, special_marks
from gsr_rl.serving.steps import Ask, SamplingFailed

logger = logging.getLogger("gsr_rl.serving")

TOLD_SECONDS = 5.0  # between two lines about what is waited for at the start
PING_SECONDS = 2.0  # between two looks at whether the backend is there
PING_TIMEOUT = 10.0
CONNECT_SECONDS = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0  # seconds between tries


class Backend:
    """One server and one model of it.

    Args:
        url: Ends in /v1.
        key: For its Authorization header; "" for none.
        model: The name by which it knows the model; None: the only one that it serves.
        api: `completions` (token ids are sent) or `chat` (messages).
        retries: Further tries of a request.
        max_requests: Requests in flight; further ones wait for their turn.

    Attributes:
        up: Whether it answered when it was last asked.
        context_length: Of the model in tokens, once `find` has returned.
    """

    def __init__(self, url: str, key: str = "", model: str | None = None, api: str = "completions", retries: int = 2,
                 context_length: int | None = None, tokenizer=None, max_requests: int = 256):  # fmt: skip
        import httpx
        from openai import AsyncOpenAI

        # The server closes idle connections after five seconds: one that is given up earlier is not met half dead.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=3.0)
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        http = httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False)
        access = {"api_key": key or "none", "base_url": url, "http_client": http}
        self._client = AsyncOpenAI(max_retries=0, timeout=timeout, **access)
        self.url, self.model, self.context_length, self.up = url, model, context_length, False
        self._key, self._api, self._retries, self._tokenizer = key, api, retries, tokenizer
        self._turns = asyncio.Semaphore(max_requests)
        self._ping: asyncio.Task | None = None

    async def find(self, seconds: float) -> None:
        """Wait for the first answer, then learn the model's name and context length and keep an eye on the server.

        Raises:
            ValueError: No answer came in time, or there is no such model, or its context length is not known.
        """
        start = told = time.monotonic()
        while not await self._look():
            now = time.monotonic()
            if now > start + seconds:
                why = f"has not answered for {seconds:.0f} s ({self._why}): is it running?{without_v1(self.url)}"
                raise ValueError(f"backend={self.url} {why}")
            if now > told + TOLD_SECONDS:
                left = f"{now - start:.0f} of backend_start_seconds={seconds:.0f} s"
                logger.info("waiting for the backend at %s: %s (%s)", self.url, self._why, left)
                told = now
            await asyncio.sleep(0.5)
        served = {model.id: model for model in self._models}
        if self.model is None and len(served) > 1:
            raise ValueError(f"backend_model is not set, and {self.url} serves {', '.join(sorted(served))}: name one")
        if self.model is None:
            self.model = next(iter(served), None)
        if self.model not in served:
            raise ValueError(f"backend_model={self.model}: {self.url} serves {', '.join(sorted(served)) or 'none'}")
        self.context_length = self.context_length or getattr(served[self.model], "max_model_len", None)
        if not self.context_length:
            raise ValueError(f"max_model_length is not set, and {self.url} does not tell it: set it in tokens")
        self._ping = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End the look-out and the connections."""
        if self._ping:
            self._ping.cancel()
            await asyncio.gather(self._ping, return_exceptions=True)
        await self._client.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            was = self.up
            self.up = await self._look()
            if was != self.up:
                logger.warning("the backend is %s", "there again" if self.up else f"gone: {self._why}")

    async def _look(self) -> bool:
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                self._models = (await self._client.models.list()).data
            self._why, self.up = "", True
            return True
        except Exception as error:
            self._why = self._clean(error)
            return self.up and _out_of_files(error)

    async def sample(self, ask: Ask, deadline: float, on_text: Callable[[int, str], None] | None = None,
                     stop: list[str] | None = None, seed: int | None = None) -> list[Completion]:  # fmt: skip
        """What is asked for: of answers all, of others those that are there at the deadline.

        Args:
            deadline: On the clock of `time.monotonic`.
            on_text: Is given each new piece of a completion's text, which is then streamed.

        Raises:
            SamplingFailed: With 503 if the backend is gone or refuses, 504 if it is too slow.
        """
        requests = (self._one(ask, deadline, index, on_text, stop, seed) for index in range(ask.count))
        calls = [asyncio.ensure_future(request) for request in requests]
        until = asyncio.FIRST_EXCEPTION if ask.answers else asyncio.ALL_COMPLETED
        try:
            await asyncio.wait(calls, timeout=max(0.0, deadline - time.monotonic()), return_when=until)
        finally:
            for call in calls:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
        completions = [result for result in results if isinstance(result, Completion)]
        if len(completions) == len(calls) or (completions and not ask.answers):
            return completions
        failures = [result for result in results if isinstance(result, SamplingFailed)]
        raise failures[0] if failures else SamplingFailed(f"no {ask.stage} came in time", 504)

    async def _one(self, ask: Ask, deadline: float, index: int, on_text, stop, seed) -> Completion:
        """One completion, tried again where that may help, and never after text of it was handed on."""
        spoken = []

        def speak(text: str) -> None:
            spoken.append(text)
            on_text(index, text)

        for failures in range(self._retries + 1):
            try:
                async with self._turns:
                    return await self._request(ask, index, speak if on_text else None, stop, seed)
            except Exception as error:
                failure = SamplingFailed(self._clean(error), 503)
                if "Connect" in type(error.__cause__).__name__ and not _out_of_files(error):
                    self.up = False  # until the look-out finds it again
                if is_refused(error) or spoken or failures == self._retries:
                    raise failure from None
            seconds = pause(failures + 1, FIRST_PAUSE, LONGEST_PAUSE)
            if time.monotonic() + seconds > deadline:
                raise failure from None
            await asyncio.sleep(seconds)
        raise AssertionError("unreachable")

    async def _request(self, ask: Ask, index: int, speak, stop, seed) -> Completion:
        prompt = ask.prompts[index // ask.sampling.n]
        how = {"model": self.model, "temperature": ask.sampling.temperature, "top_p": ask.sampling.top_p}
        how |= {"max_tokens": ask.sampling.max_tokens, "n": 1}
        if stop:
            how["stop"] = stop
        if seed is not None:
            how["seed"] = (seed + ask.first + index) % 2**63
        if speak:
            how["stream"] = True
        if self._api == "completions":
            extra = {"return_token_ids": True}
            if special_marks(self._tokenizer):
                extra["skip_special_tokens"] = False
            answer = await self._client.completions.create(prompt=prompt.token_ids, extra_body=extra, **how)
        else:
            answer = await self._client.chat.completions.create(messages=prompt.messages, **how)
        opening = opened_thinking(self._tokenizer, prompt.token_ids)
        if speak:
            return await self._read_stream(answer, speak, opening)
        choice = answer.choices[0]
        text, reasoning = texts_of(choice.message) if self._api == "chat" else (choice.text, "")
        text = f"<think>{reasoning}</think>{text}" if reasoning else text
        return self._completion(text, getattr(choice, "token_ids", None), choice.finish_reason, opening)

    async def _read_stream(self, stream, speak, opening: str) -> Completion:
        text, thinks, spoken, ids, reason = "", False, 0, None, None
        async with stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    new, thought = texts_of(choice.delta) if self._api == "chat" else (choice.text, "")
                    if thought:
                        thought, thinks = thought if thinks else f"<think>{thought}", True
                    if new and thinks:
                        thought, thinks = f"{thought}</think>", False
                    new = thought + new
                    if new_ids := getattr(choice, "token_ids", None):
                        ids = (ids or []) + new_ids
                    reason = choice.finish_reason or reason
                    if new:
                        text += _sound(new)
                        if piece := in_think_tags(text, opening)[spoken:]:
                            speak(piece)
                            spoken += len(piece)
        return self._completion(text, ids, reason, opening)

    def _completion(self, text: str, ids: list[int] | None, reason: str | None, opening: str) -> Completion:
        finished = is_finished(reason)
        if not finished and reason != "length":
            raise Malformed(f"a completion that ends with finish_reason={reason!r}: stop or length is expected")
        _sound(text)
        if not isinstance(ids, list):
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return Completion(completion_text(self._tokenizer, opening, ids, text), ids, finished)

    def _clean(self, error: Exception) -> str:
        """An error in one line, without the key."""
        cause = f" ({type(error.__cause__).__name__})" if error.__cause__ else ""
        return one_line(f"{type(error).__name__}: {error}{cause}", self._key)


def _sound(text: str) -> str:
    """The text, if it is one that can be sent on. Raises `Malformed` otherwise."""
    if not isinstance(text, str):
        raise Malformed(f"a completion whose text is a {type(text).__name__}")
    if not is_unicode(text):
        raise Malformed("a completion with half a character (a lone surrogate)")
    return text


def _out_of_files(error: BaseException | None) -> bool:
    """Whether an error comes from this process's own limit of open files, and so says nothing about the backend."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False

"""Requests to vLLM servers, of one rank: `Servers` is its client of them, `ServerStream` the requests of one rollout.

Nothing here is a collective. A push (vllm_server.py) gives the servers' weights a version, the run's id and a number,
which the servers echo. No completion is taken before its server has said, after it, that it has such weights still:
one that was restarted, or that another run pushes to, is lost. A lost server is asked again once it is taken back.
"""

import asyncio
import atexit
import itertools
import math
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import aiohttp

from gsr_rl.engines.endpoints import BROKEN

PAUSES = (0.0, 0.5, 1.5)  # seconds before each look at a server that failed: after the last one it is lost
TRIES = 4  # of a request that servers with the right weights fail to answer
CONNECT_SECONDS = 10.0
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, times: a host that is off


class ServerError(RuntimeError):
    """A server, or all of them, cannot do what the run needs."""


class Failed(Exception):
    """An answer that another try may make good: an error of the server, or half an answer."""


@dataclass
class Server:
    """One server: `in_flight` completions that were asked for, and why it is lost, if it is."""

    url: str
    number: int
    model: str = ""
    in_flight: int = 0
    lost: str | None = None
    attempts: set = field(default_factory=set)  # tasks
    next_look: asyncio.Task | None = None
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Servers:
    """One rank's client of all servers, with a thread of its own.

    A request goes to the server with the fewest completions in flight. A server that fails is looked at, and asked
    again if it holds this run's weights; otherwise it is lost, and its requests go to the others.

    Args:
        urls: As http://HOST:PORT.
        deadline: Seconds that an answer may take; a server that takes longer is lost.
        rank: Ranks begin at different servers.
    """

    def __init__(self, urls: list[str], deadline: float, rank: int = 0):
        self.deadline, self.rank = deadline, rank
        self.run, self.pushed = "", 0  # the versions of this run, and the number of the newest that all servers have
        self.all = [Server(url.rstrip("/"), number) for number, url in enumerate(urls)]
        self._session: aiohttp.ClientSession | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm-servers").start()
        atexit.register(self.close)

    def close(self) -> None:
        """Drop what is in flight and end the thread."""

        async def end():
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            if self._session is not None:
                await self._session.close()

        if self._loop.is_running():
            atexit.unregister(self.close)
            self.start(end()).result(CONNECT_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)

    @property
    def alive(self) -> list[Server]:
        return [server for server in self.all if server.lost is None]

    @property
    def lost(self) -> dict[str, str]:
        """Why each lost server is lost, by its address."""
        return {server.url: server.lost for server in self.all if server.lost is not None}

    def start(self, coroutine) -> Future:
        """Run it in the thread of the servers."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def ask(self, server: Server, method: str, path: str, deadline: float | None = None, **more) -> dict:
        """One answer of a server, awaited here; `more` are arguments of aiohttp's request.

        Raises:
            ServerError: There is none, or none within `deadline` seconds (default: that of all requests).
        """
        deadline = deadline or self.deadline
        try:
            return self.start(self._within(self.json(server, method, path, **more), deadline)).result()
        except (aiohttp.ClientError, OSError, Failed, ServerError) as error:
            raise ServerError(f"{server.url}: {reason(error, deadline)}") from None

    def lose(self, lost: dict[str, str]) -> None:
        """These servers, by address, are lost for the reasons given: other ranks have found it out."""

        async def lose():
            self._lose_all(lost)

        if lost:
            self.start(lose()).result()

    def take_back(self, urls: list[str]) -> None:
        """These servers, by address, have this run's weights again."""

        async def take_back():
            for server in self.all:
                if server.url in urls:
                    server.lost = None

        self.start(take_back()).result()

    def for_each(self, job: Callable, strict: bool, returning: list[Server] = ()) -> list[str]:
        """Await `job(server)` for all servers at once, and for lost ones that are `returning`.

        Returns:
            The addresses of the latter that did not fail. A server that fails is lost.

        Raises:
            ServerError: One has failed and it is `strict`, or none is left.
        """

        async def attempt(server: Server) -> str | None:
            try:
                await self._within(job(server))
            except Exception as error:
                return reason(error, self.deadline)
            return None

        async def attempt_all():
            servers = [*self.alive, *returning]
            failures = await asyncio.gather(*map(attempt, servers))
            failed = {server.url: why for server, why in zip(servers, failures, strict=True) if why}
            if failed and strict:
                raise ServerError("; ".join(f"{url}: {why}" for url, why in failed.items()))
            self._lose_all(failed)
            self._least_busy()  # raises if none is left
            return [server.url for server in returning if server.url not in failed]

        return self.start(attempt_all()).result()

    # In the thread of the servers from here on --------------------------------------------------------------

    async def json(self, server: Server, method: str, path: str, **more) -> dict:
        """An answer, read as JSON; {} where it is empty.

        Raises:
            ServerError: The server refuses the request.
            Failed, aiohttp.ClientError: Another try may be answered.
        """
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, socket_factory=_kept_alive)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        async with self._session.request(method, server.url + path, **more) as response:
            text = await response.text()
            if response.status >= 400:
                temporary = response.status >= 500 or response.status in (408, 429)
                raise (Failed if temporary else ServerError)(
                    f"{path}: {response.status} {' '.join(text.split())[:300]}"
                )
            return await response.json(content_type=None) or {} if text else {}

    async def _within(self, awaitable, deadline: float | None = None):
        async with asyncio.timeout(deadline or self.deadline):
            return await awaitable

    async def connect(self, server: Server, patience: float) -> int | None:
        """Wait until a server answers, at most `patience` seconds. Returns its context length, if it tells one."""
        end = time.monotonic() + patience
        while True:
            try:
                model = (await self.json(server, "GET", "/v1/models"))["data"][0]
                break
            except (aiohttp.ClientError, OSError, Failed) as error:
                if time.monotonic() > end:
                    why = reason(error, self.deadline)
                    raise ServerError(f"{server.url} can't be reached after {patience:g} s: {why}") from None
                await asyncio.sleep(0.5)
        server.model = model["id"]
        return model.get("max_model_len")

    async def answering(self, longest_request: int) -> list[Server]:
        """The lost servers that answer again, take requests of so many tokens, and have no other run's weights."""

        async def answers(server: Server) -> bool:
            length, version = await self.connect(server, 0.0), await self.version(server)
            return (not length or length >= longest_request) and version.rpartition("-")[0] in ("", self.run)

        lost = [server for server in self.all if server.lost is not None]
        looks = [self._within(answers(server), CONNECT_SECONDS) for server in lost]
        results = await asyncio.gather(*looks, return_exceptions=True)
        return [server for server, result in zip(lost, results, strict=True) if result is True]

    async def version(self, server: Server) -> str:
        """The version of a server's weights."""
        return (await self.json(server, "GET", "/weight_info"))["weight_version"]

    async def complete(self, body: dict) -> list[dict]:
        """The n choices of a completions request, from weights of this run.

        Raises:
            ServerError: No server is left, one refuses the request, or `TRIES` answers were none.
        """
        failures = 0
        while True:
            server = self._least_busy()
            attempt = asyncio.ensure_future(self._within(self._attempt(server, body)))
            server.attempts.add(attempt)
            server.in_flight += body["n"]
            try:
                return await attempt
            except asyncio.CancelledError:
                if server.lost is None or asyncio.current_task().cancelling():
                    raise
            except (aiohttp.ClientError, Failed, ValueError, KeyError, TypeError) as error:
                failures += 1
                if failures == TRIES:
                    why = reason(error, self.deadline)
                    raise ServerError(f"{server.url}: {TRIES} tries of a request failed, the last: {why}") from None
                await self._check(server, error)
            except OSError as error:  # a TimeoutError is one
                self._lose(server, reason(error, self.deadline))
            finally:
                server.in_flight -= body["n"]
                server.attempts.discard(attempt)

    async def _attempt(self, server: Server, body: dict) -> list[dict]:
        more = {"model": server.model, "cache_salt": f"{self.run}-{self.pushed}"}  # finds no cache of older weights
        answer = await self.json(server, "POST", "/v1/completions", json=body | more)
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        reasons = [choice["finish_reason"] for choice in choices]
        if len(choices) != body["n"] or {*reasons} & {*BROKEN, None}:
            raise Failed(f"{body['n']} completions were asked for, and those that came ended by {reasons}")
        if server.next_look is None:
            server.next_look = asyncio.ensure_future(self._look(server))
        await asyncio.shield(server.next_look)
        return choices

    async def _look(self, server: Server) -> None:
        """Raise unless a server has weights of this run, not older than the newest push. Answers share looks."""
        async with server.looking:
            server.next_look = None  # an answer that comes from now on needs another look
            newest = self.pushed
            run, _, number = (await self.version(server)).rpartition("-")
            if run != self.run or int(number) < newest:
                self._lose(server, "it has not this run's weights: it was restarted, or another run pushes to it")
                raise Failed(server.lost)

    async def _check(self, server: Server, error: Exception) -> None:
        """Look at a server that has failed until it answers, and after the last look call it lost."""
        async with server.checking:
            for seconds in PAUSES:
                if server.lost is not None:
                    return
                await asyncio.sleep(seconds)
                try:
                    return await asyncio.wait_for(self._look(server), CONNECT_SECONDS)
                except (aiohttp.ClientError, OSError, Failed, ServerError) as newer:
                    error = newer
            self._lose(server, reason(error, CONNECT_SECONDS))

    def _lose(self, server: Server, why: str) -> None:
        if server.lost is None:
            server.lost = why
            for attempt in server.attempts:
                attempt.cancel()

    def _lose_all(self, lost: dict[str, str]) -> None:
        for server in self.all:
            if server.url in lost:
                self._lose(server, lost[server.url])

    def _least_busy(self) -> Server:
        if not (alive := self.alive):
            reasons = "; ".join(f"{url}: {why}" for url, why in self.lost.items())
            raise ServerError(f"no vLLM server is left ({reasons})")
        return min(alive, key=lambda server: (server.in_flight, (server.number - self.rank) % len(self.all)))


def reason(error: Exception, deadline: float) -> str:
    if type(error) is TimeoutError:
        return f"no answer within {deadline:g} s"
    return str(error) if isinstance(error, (Failed, ServerError)) else f"{type(error).__name__}: {error}"


def _kept_alive(address) -> socket.socket:
    """A socket that finds out within half a minute that the other host is off; a busy host is not taken for one."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


class ServerStream:
    """The requests of one rollout to the servers, with the trainer's sampling.

    Inside `with`; requests that are left at its end are taken back. `add` and `step` are one thread's, `wake` any's.
    """

    def __init__(self, servers: Servers, sampling: dict):
        self._servers, self._sampling = servers, sampling
        self._names = map(str, itertools.count())
        self._open: dict[str, Future] = {}
        self._arrived: queue.SimpleQueue = queue.SimpleQueue()  # names, and None from `wake`

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for request in self._open.values():
            request.cancel()

    def add(self, prompt_ids: list[int], n: int, max_tokens: int) -> str:
        """Ask for n completions of a prompt; returns the request's name."""
        name = next(self._names)
        body = self._sampling | {"prompt": prompt_ids, "n": n, "max_tokens": max_tokens}
        self._open[name] = self._servers.start(self._servers.complete(body))
        self._open[name].add_done_callback(lambda _: self._arrived.put(name))
        return name

    def wake(self) -> None:
        """Let `step` return, with nothing if nothing has come."""
        self._arrived.put(None)

    def step(self) -> list[tuple[str, list[list[int]], list[list[float | None]]]]:
        """Wait for an answer: (name, token ids, log-probabilities) of each request that has come since.

        Raises:
            ServerError: See `Servers.complete`.
        """
        arrived = [self._arrived.get()]  # each request has a deadline, so something comes
        while not self._arrived.empty():
            arrived.append(self._arrived.get())
        answers = []
        for name in filter(None, arrived):
            choices = self._open.pop(name).result()
            answers.append((name, [choice["token_ids"] for choice in choices], list(map(_logprobs, choices))))
        return answers


def _logprobs(choice: dict) -> list[float | None]:
    """Of a completion's tokens; None for NaN, as TRL has it."""
    values = choice["logprobs"]["token_logprobs"]
    return [None if value is None or math.isnan(value) else value for value in values]

"""Who may come in, and when: keys, the size of a body, places for requests with a bounded queue, and connections."""

import asyncio
import contextlib
import functools
import hmac
import logging
import resource
import time
from collections.abc import Callable
from contextlib import asynccontextmanager

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from gsr_rl.serving.config import ServeConfig
from gsr_rl.serving.requests import ApiError

logger = logging.getLogger("gsr_rl.serving")

OTHER_FILES = 64  # that are open besides connections


class Keys:
    """The clients' keys. None at all: everyone may come in."""

    def __init__(self, keys: list[str]):
        self._keys = [key.encode() for key in keys]

    def check(self, authorization: str | None) -> None:
        """Raise `ApiError` 401 unless the header holds one of the keys. Every key is compared, in constant time."""
        if not self._keys:
            return
        scheme, _, given = (authorization or "").partition(" ")
        right = False
        for key in self._keys:  # in bytes, as which latin-1 hands a header on
            right |= hmac.compare_digest(given.strip(" \t").encode("latin-1"), key)
        if scheme.lower() != "bearer" or not right:
            raise ApiError(401, "invalid_api_key", "a valid key is needed: Authorization: Bearer KEY")


async def read_body(request, largest: int, seconds: float) -> bytes:
    """A request's body. Raises `ApiError` 413 as soon as it is too large, 408 if it does not come in time."""
    too_large = ApiError(413, "body_too_large", f"the body has more than {largest:,} bytes, which is the limit here")
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and (len(stated) > 18 or int(stated) > largest):
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > largest:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, "body_too_slow", f"the body has not come within {seconds:g} s") from None
    return b"".join(parts)


class Places:
    """`max_running` requests at once, `max_waiting` more in a queue, first come first served; others are turned away.

    Attributes:
        running, waiting: How many there are now.
    """

    def __init__(self, max_running: int, max_waiting: int):
        self._max_running, self._max_waiting = max_running, max_waiting
        self.running = self.waiting = 0
        self._free = asyncio.Semaphore(max_running)
        self._seconds = 1.0  # of a request, a running mean

    @asynccontextmanager
    async def one(self):
        """A place, as soon as there is one. Raises `ApiError` 429 with Retry-After if the queue is full."""
        if self._free.locked() and self.waiting >= self._max_waiting:
            wait = self._seconds * (1 + self.waiting / self._max_running)
            raise ApiError(429, "too_many_requests", "all places are taken and the queue is full: try again later",
                           retry_after=min(60.0, wait))  # fmt: skip
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds += 0.1 * (time.monotonic() - start - self._seconds)
            self.running -= 1
            self._free.release()


class Connection(AutoHTTPProtocol):
    """uvicorn lets a connection be silent for ever. Here it is closed if no whole header has come in time, and at once
    if there are twice as many as may be."""

    def __init__(self, *args, header_seconds: float, **keys):
        super().__init__(*args, **keys)
        self._header_seconds, self._timer = header_seconds, None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > 2 * self.limit_concurrency:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        """A request is there as soon as its header is; until then time runs, however much comes."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._header_seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Listener(uvicorn.Server):
    """uvicorn, which calls `ready` with its port once it listens there."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[int], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self._ready(self.servers[0].sockets[0].getsockname()[1])


def listener(app, config: ServeConfig, ready: Callable[[int], None]) -> Listener:
    """What listens at the configuration's address for the application."""
    connection = functools.partial(Connection, header_seconds=config.header_seconds)
    limits = {"limit_concurrency": config.max_connections}
    limits |= {"timeout_graceful_shutdown": int(config.request_seconds) + 5}
    without = {"ws": "none", "lifespan": "off", "access_log": False, "server_header": False, "log_level": "warning"}
    return Listener(uvicorn.Config(app, config.host, config.port, http=connection, **limits, **without), ready)


def allow_files(config: ServeConfig) -> None:
    """Raise this process's limit of open files to the most that it may have, and say so if that is too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS states a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * config.max_connections + config.max_backend_requests + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        logger.warning(
            "%s files may be open, and max_connections=%s with max_backend_requests=%s may need %s: raise `ulimit -n` "
            "or lower them", soft, config.max_connections, config.max_backend_requests, needed,
        )  # fmt: skip

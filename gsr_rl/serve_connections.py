"""Connections to `gsr-serve`: how many there may be, how long they may be silent, and the files that they need."""

import contextlib
import functools
import logging
import resource
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from gsr_rl.answer_config import ServeConfig

logger = logging.getLogger("gsr_rl.serve")

OTHER_FILES = 64  # that are open besides connections


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
    options = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=functools.partial(Connection, header_seconds=config.header_seconds),
        ws="none",
        access_log=False,
        server_header=False,
        log_level="warning",
        lifespan="off",
        limit_concurrency=config.max_connections,
        timeout_graceful_shutdown=int(config.request_seconds) + 5,
    )
    return Listener(options, ready)


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

"""Connections to the server: silent and slow ones are closed, and too many of them shut out nobody for long."""

import contextlib
import json
import logging
import resource
import socket
import time

import pytest

from gsr_rl.serving.config import ServeConfig
from gsr_rl.serving.limits import allow_files
from tests.support.serving import Serving, ToldBackend, wait_until

pytestmark = pytest.mark.clock

ASK = {"model": "letters", "messages": [{"role": "user", "content": "1+1"}]}
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def line_to(served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), 10)


def seconds_to_the_end(line: socket.socket) -> float:
    start = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        while line.recv(1000):
            pass
    return time.monotonic() - start


@pytest.mark.parametrize("sent", [b"", GET[:-2]])
def test_a_connection_without_a_whole_header_is_closed_in_time(sent):
    with Serving(ToldBackend(), header_seconds=0.4) as served, line_to(served) as line:
        line.sendall(sent)
        assert 0.2 < seconds_to_the_end(line) < 3
        with line_to(served) as other:  # also where a whole request came first
            other.sendall(GET)
            assert other.recv(1000).startswith(b"HTTP/1.1 200")
            other.sendall(sent or b"G")
            assert 0.2 < seconds_to_the_end(other) < 3


def test_a_header_that_drips_is_not_waited_for():
    with Serving(ToldBackend(), header_seconds=0.4) as served, line_to(served) as line:
        start = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - start < 5:
                line.sendall(b"G" if time.monotonic() - start < 0.01 else b"E")
                time.sleep(0.05)
        assert time.monotonic() - start < 3


def test_an_answer_may_take_longer_than_a_header():
    backend = ToldBackend()
    backend.delay = {"candidate": 1.0}
    with Serving(backend, header_seconds=0.3) as served:
        assert served.client().chat.completions.create(**ASK).choices[0].message.content == "so 2"


def test_silent_connections_without_end_shut_nobody_out_for_long():
    with Serving(ToldBackend(), header_seconds=1.0, max_connections=5) as served, contextlib.ExitStack() as lines:
        silent = [lines.enter_context(line_to(served)) for _ in range(30)]
        connections = served.connections
        wait_until(lambda: len(connections) == 10, 3, "the end of those over twice the limit")
        with line_to(served) as line, contextlib.suppress(OSError):
            line.sendall(GET)
            assert line.recv(100) == b""
        wait_until(lambda: not connections, 5, "the end of the silent ones")
        assert len(silent) == 30
        answer = served.client().chat.completions.create(**ASK)
        assert answer.choices[0].message.content == "so 2"
        for _ in range(5):
            lines.enter_context(line_to(served))
        with line_to(served) as line:
            line.sendall(GET)
            assert line.recv(100).startswith(b"HTTP/1.1 503")


def test_the_limit_of_open_files_is_raised_and_too_low_a_one_is_told(caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
        allow_files(ServeConfig(model="m", max_connections=10))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        with caplog.at_level(logging.WARNING):
            allow_files(ServeConfig(model="m", max_connections=10**9))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert hard == resource.RLIM_INFINITY or "raise `ulimit -n`" in caplog.text


def test_a_free_port_is_told_once_it_listens():
    with Serving(ToldBackend(), port=0) as served, line_to(served) as line:
        assert served.port > 0
        body = json.dumps(ASK).encode()
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert line.recv(100).startswith(b"HTTP/1.1 200")

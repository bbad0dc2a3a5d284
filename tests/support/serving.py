"""The server in a thread of this process, over a backend that does as it is told; and real ones as processes."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from gsr_rl.engines.base import Completion
from gsr_rl.serving.config import ServeConfig
from gsr_rl.serving.steps import Ask, SamplingFailed
from tests.support.letters import LetterTokenizer
from tests.support.paths import ROOT

TINY = str(ROOT / "recipes" / "tiny" / "models" / "base")


class ToldBackend:
    """Stands in for `Backend`: every candidate says "2", every refinement "so 2", letter by letter if streamed.

    Attributes:
        asks: Every ask that came.
        delay: Seconds of a stage, by its name.
        fail: Stages that fail with this status.
        cancelled: Stages that were broken off.
        stops: Of each ask, the texts that end its completions.
    """

    up, context_length, url = True, 400, "told"

    def __init__(self):
        self.asks: list[Ask] = []
        self.delay: dict[str, float] = {}
        self.fail: dict[str, int] = {}
        self.break_off = False  # in the middle of a streamed answer
        self.cancelled: list[str] = []
        self.stops: list[list[str] | None] = []
        self.now = self.most = 0

    async def sample(self, ask, deadline, on_text=None, stop=None, seed=None):
        self.asks.append(ask)
        self.stops.append(stop)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._sample(ask, deadline, on_text)
        except asyncio.CancelledError:
            self.cancelled.append(ask.stage)
            raise
        finally:
            self.now -= 1

    async def _sample(self, ask, deadline, on_text):
        delay = self.delay.get(ask.stage, 0)
        if time.monotonic() + delay > deadline:
            await asyncio.sleep(max(0, deadline - time.monotonic()))
            raise SamplingFailed("too slow", 504)
        if ask.stage in self.fail:
            raise SamplingFailed("told to fail", self.fail[ask.stage])
        text = "so 2" if ask.stage == "refinement" else "2"
        for letter in text if on_text else "":
            await asyncio.sleep(delay / len(text))
            for index in range(ask.count):
                on_text(index, letter)
            if self.break_off:
                raise SamplingFailed("told to break off", 503)
        if not on_text:
            await asyncio.sleep(delay)
        return [Completion(text, [ord(letter) for letter in text], True)] * ask.count

    async def close(self):
        pass


class Serving:
    """`with Serving(backend, key=...) as served: served.url`."""

    def __init__(self, backend: ToldBackend, **keys):
        from gsr_rl.serving.limits import listener
        from gsr_rl.serving.server import Server

        keys = {"num_candidates": 3, "port": 0} | keys
        config = ServeConfig(model=TINY, served_model_name="letters", prompt_template="tiny", **keys)
        self.server = Server(config, LetterTokenizer(), backend)
        self.backend, self.port = backend, 0
        self._uvicorn = listener(self.server.app(), config, self._ready)
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)

    def _ready(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}/v1"

    def __enter__(self):
        self._thread.start()
        wait_until(lambda: self.port, 20, "the server's start")
        return self

    def __exit__(self, *_):
        self._uvicorn.should_exit = True
        self._thread.join(20)

    @property
    def connections(self) -> set:
        return self._uvicorn.server_state.connections

    def client(self, key: str = "none", **keys):
        from openai import OpenAI

        return OpenAI(base_url=self.url, api_key=key, **{"max_retries": 0, "timeout": 30} | keys)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def answers(url: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, OSError):
        urllib.request.urlopen(url, timeout=5).close()
        return True
    return False


class Process:
    """A server as a process of its own, ended with the block; its output goes to `log`."""

    def __init__(self, command: list[str], log: Path, ready: str, seconds: float = 300, **environment):
        self.command, self.log, self.ready, self.seconds = [sys.executable, *command], log, ready, seconds
        common = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        common |= {"TORCH_COMPILE_DISABLE": "1", "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "WARNING"}
        self.environment = os.environ | common | environment
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with open(self.log, "a") as file:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self.seconds
        while not answers(self.ready):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.3)

    def kill(self) -> None:
        """At once, with its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()

    def __enter__(self):
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()


def vllm_process(model: str, log: Path, port: int, *more: str) -> Process:
    """A real vLLM server of a model on loopback, by the module: the command `vllm` does not start under vllm-cpu."""
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--enforce-eager", "--served-model-name", "policy", *more]
    return Process(command, log, f"http://127.0.0.1:{port}/v1/models")


def gsr_process(model: str, log: Path, port: int, backend_port: int, *more: str, **environment) -> Process:
    """`gsr-serve` in front of it."""
    command = ["-m", "gsr_rl.serving.server", "--model", model, "--backend", f"http://127.0.0.1:{backend_port}/v1"]
    command += ["--port", str(port), *more]
    return Process(command, log, f"http://127.0.0.1:{port}/health", **environment)

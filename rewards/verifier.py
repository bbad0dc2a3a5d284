"""A pool of worker processes that compare answers, with a hard deadline a row enforced from outside.

One nursery process imports the math stack once and forks the workers (see `rewards._worker`), so a worker that hangs
is killed and replaced in milliseconds. Nothing here imports sympy, and nothing relies on signals, so it works from
any thread, from asyncio, inside DeepSpeed and vLLM processes, and after fork or spawn.
"""

import collections
import json
import logging
import os
import selectors
import socket
import subprocess
import sys
import threading
import time

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # importing the math stack once, on a machine that may be busy
MAX_WORKERS = 16


def default_timeout() -> float:
    """Seconds a row may take: `GSR_REWARDS_TIMEOUT`, or 3."""
    return float(os.environ.get("GSR_REWARDS_TIMEOUT", "3"))


def default_workers() -> int:
    """Workers of this process: `GSR_REWARDS_WORKERS`, or its cores divided by the ranks on this node, at least 1."""
    if os.environ.get("GSR_REWARDS_WORKERS"):
        return max(1, int(os.environ["GSR_REWARDS_WORKERS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    return min(MAX_WORKERS, max(1, cores // ranks))


class PoolError(RuntimeError):
    """The pool itself cannot work: the nursery does not start, or dies again and again."""


class Worker:
    """The parent's end of one worker: a socket and what it is busy with."""

    def __init__(self, sock: socket.socket, pid: int):
        self.sock, self.pid = sock, pid
        self.buffer = b""
        self.row = None  # index of the row in flight
        self.deadline = 0.0

    def send(self, row: int, request: dict, timeout: float) -> None:
        self.row, self.deadline = row, time.monotonic() + timeout
        self.sock.settimeout(timeout)
        self.sock.sendall(json.dumps(request).encode() + b"\n")

    def messages(self) -> list[dict]:
        """What the worker has said since the last look; raises EOFError when it is gone."""
        data = self.sock.recv(1 << 16)
        if not data:
            raise EOFError
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]


class Nursery:
    """The process that has imported the math stack and forks workers on demand."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        try:
            package_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rewards._worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=_worker_environment(package_root),
            )
        except OSError as error:
            ours.close()
            raise PoolError(f"cannot start a verifier process with {sys.executable!r}: {error}") from error
        finally:
            theirs.close()
        self.sock = ours
        self.sock.settimeout(START_SECONDS)
        self.buffer = b""
        ready = self._read()
        if "error" in ready:
            raise PoolError(f"the verifier process cannot import the math stack: {ready['error']}")

    def _read(self) -> dict:
        while b"\n" not in self.buffer:
            try:
                data = self.sock.recv(1 << 16)
            except OSError as error:
                raise PoolError(f"the verifier process does not answer: {error!r}") from error
            if not data:
                raise PoolError("the verifier process ended")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def fork(self) -> Worker:
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self.sock, [b"fork\n"], [theirs.fileno()])
            return Worker(ours, self._read()["pid"])
        except (OSError, PoolError) as error:
            ours.close()
            raise PoolError(str(error)) from error
        finally:
            theirs.close()

    def kill(self, pid: int) -> None:
        """Kill a worker for good. The nursery does it, since it alone knows that the pid is still its child's."""
        try:
            self.sock.sendall(b"kill %d\n" % pid)
            self._read()
        except OSError as error:
            raise PoolError(str(error)) from error

    def close(self, wait: bool = True) -> None:
        self.sock.close()
        if wait:
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _worker_environment(package_root: str) -> dict[str, str]:
    """A bare environment: no CUDA, one thread, no hash randomness, nothing secret."""
    names = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")
    keep = {name: os.environ[name] for name in names if name in os.environ}
    path = [package_root] + [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return keep | {
        "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C.UTF-8",
    }  # fmt: skip


class Verifier:
    """Answers requests in worker processes; safe to share between threads, which lease workers from it."""

    def __init__(self, num_workers: int | None = None):
        self.num_workers = num_workers
        self.counts = collections.Counter()
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Condition()
        self._nursery: Nursery | None = None
        self._idle: list[Worker] = []
        self._alive = 0  # workers idle, leased or being started
        self._waiting = 0
        self._generation = 0

    def abandon(self) -> None:
        """Forget the parent's workers after a fork, without a word to them: they are still the parent's."""
        idle, nursery = self._idle, self._nursery
        self._reset()
        self.counts.clear()
        for worker in idle:
            worker.sock.close()
        if nursery is not None:
            nursery.sock.close()
            nursery.process.returncode = 0  # not our child: keep Popen from waiting for it

    def shutdown(self) -> None:
        """End all workers. A later call starts new ones."""
        with self._lock:
            idle, nursery = self._idle, self._nursery
            self._idle, self._nursery = [], None
            self._alive -= len(idle)
            self._generation += 1
            self._lock.notify_all()
        for worker in idle:
            worker.sock.close()
        if nursery is not None:
            nursery.close()

    def worker_pids(self) -> list[int]:
        """Pids of the nursery and of the idle workers."""
        with self._lock:
            return ([self._nursery.process.pid] if self._nursery else []) + [worker.pid for worker in self._idle]

    def _lease(self, wait: bool) -> Worker | None:
        """An idle worker, or a new one while there are too few; None if all are busy and `wait` is false."""
        with self._lock:
            limit = self.num_workers or default_workers()
            while not self._idle and self._alive >= limit:
                if not wait:
                    return None
                self._waiting += 1
                self._lock.wait()
                self._waiting -= 1
            if self._idle:
                return self._idle.pop()
            for attempt in (1, 2):
                try:
                    if self._nursery is None:
                        self._nursery = Nursery()
                    worker = self._nursery.fork()
                    worker.generation = self._generation
                    self._alive += 1
                    return worker
                except PoolError:
                    self._drop_nursery()
                    if attempt == 2:
                        raise

    def _drop_nursery(self) -> None:
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None
            self.counts["restarts"] += 1

    def _release(self, worker: Worker) -> None:
        with self._lock:
            if worker.generation == self._generation:
                self._idle.append(worker)
            else:
                self._alive -= 1
                worker.sock.close()
            self._lock.notify()

    def _discard(self, worker: Worker) -> None:
        """Kill a hung or dead worker; the next lease forks another in its place."""
        with self._lock:
            self._alive -= 1
            worker.sock.close()
            self.counts["restarts"] += 1
            if self._nursery is not None and worker.generation == self._generation:
                try:
                    self._nursery.kill(worker.pid)
                except PoolError:
                    self._drop_nursery()
            self._lock.notify()

    def run(self, requests: list[dict], timeout: float) -> list[dict]:
        """One reply a request, in order.

        A reply is what the worker sent, or {"timeout": True} past the deadline, {"died": True} if two workers died of
        it, or {"failed": reason} if the pool cannot work.
        """
        replies: list[dict | None] = [None] * len(requests)
        todo = collections.deque(range(len(requests)))
        tries = collections.Counter()
        busy: dict[Worker, None] = {}
        selector = selectors.DefaultSelector()

        def settle(worker: Worker, reply: dict | None) -> None:
            """The worker is lost: settle its row, or put it back in the queue."""
            selector.unregister(worker.sock)
            del busy[worker]
            if reply is None:
                tries[worker.row] += 1
                if tries[worker.row] < 2:
                    todo.appendleft(worker.row)
                else:
                    reply = {"died": True}
                    self.counts["died"] += 1
            if reply is not None:
                replies[worker.row] = reply
            self._discard(worker)

        def feed(worker: Worker) -> None:
            row = todo.popleft()
            try:
                worker.send(row, requests[row], timeout)
            except OSError:
                settle(worker, None)

        try:
            while todo or busy:
                while todo:  # take every worker there is, but wait only for the first
                    worker = self._lease(wait=not busy)
                    if worker is None:
                        break
                    busy[worker] = None
                    selector.register(worker.sock, selectors.EVENT_READ, worker)
                    feed(worker)
                if not busy:
                    continue
                patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
                for key, _ in selector.select(patience):
                    worker = key.data
                    try:
                        messages = worker.messages()
                    except (OSError, EOFError, ValueError):
                        settle(worker, None)
                        continue
                    for message in messages:
                        replies[worker.row] = message
                        if todo and not self._waiting:
                            feed(worker)
                        else:
                            selector.unregister(worker.sock)
                            del busy[worker]
                            self._release(worker)
                now = time.monotonic()
                for worker in [worker for worker in busy if worker.deadline <= now]:
                    self.counts["timeouts"] += 1
                    settle(worker, {"timeout": True})
        except PoolError as error:
            self.counts["pool_failures"] += 1
            logger.error("answers cannot be verified: %s", error)
            return [reply if reply is not None else {"failed": str(error)} for reply in replies]
        finally:
            for worker in list(busy):  # only when something was raised: these workers have an unfinished row
                self._discard(worker)
            selector.close()
        return replies

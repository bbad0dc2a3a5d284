"""The nursery and its workers: `python -m rewards._worker FD PARENT_PID`, started by `rewards.verifier` alone.

The nursery imports the math stack, then forks a worker for each socket that it is handed. Text is parsed here and
never evaluated. The nursery ends when its parent ends, however that happens, and the workers end with the nursery.
"""

import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import traceback

MEMORY_MB = 2048
PR_SET_PDEATHSIG = 1


def limit_resources() -> None:
    """Address space of a worker: `GSR_REWARDS_MEMORY_MB`, or 2 GiB. No core files, and no file can be written."""
    size = int(os.environ.get("GSR_REWARDS_MEMORY_MB", MEMORY_MB)) << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def die_with_parent(parent_pid: int) -> None:
    """Linux kills this process when the nursery, which has one thread, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(0)


def serve(sock: socket.socket) -> None:
    """Answer one JSON request a line until the other end closes."""
    from rewards import equivalence

    stream = sock.makefile("rb")
    for line in stream:
        try:
            reply = equivalence.answer_request(json.loads(line))
        except Exception as error:  # a parser's own bug on odd text is a wrong answer, not a dead worker
            reply = {"verdict": False, "why": f"{type(error).__name__} while comparing"}
            if isinstance(error, MemoryError | RecursionError):
                gc.collect()
        sock.sendall(json.dumps(reply).encode() + b"\n")


class Nursery:
    def __init__(self, control: socket.socket, parent_pid: int):
        self.control, self.parent_pid = control, parent_pid
        self.children: set[int] = set()

    def wait(self) -> bool:
        """Sleep until there is something to read; False when the parent is gone."""
        if not hasattr(os, "pidfd_open"):
            while not select.select([self.control], [], [], 2.0)[0]:
                if os.getppid() != self.parent_pid:
                    return False
            return True
        if self.parent_fd is None:
            return False
        ready, _, _ = select.select([self.control, self.parent_fd], [], [])
        return self.parent_fd not in ready

    def run(self) -> None:
        self.parent_fd = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(ProcessLookupError):
                self.parent_fd = os.pidfd_open(self.parent_pid)
        while self.wait():
            data, fds, _, _ = socket.recv_fds(self.control, 1 << 12, 4)
            if not data:
                break
            for command in data.decode().splitlines():
                self.reap()
                if command == "fork":
                    self.fork(fds.pop(0))
                else:
                    self.kill(int(command.split()[1]))
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)

    def fork(self, fd: int) -> None:
        nursery_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                die_with_parent(nursery_pid)
                self.control.close()
                if self.parent_fd is not None:
                    os.close(self.parent_fd)
                limit_resources()
                serve(socket.socket(fileno=fd))
            finally:
                os._exit(0)
        os.close(fd)
        self.children.add(pid)
        self.control.sendall(json.dumps({"pid": pid}).encode() + b"\n")

    def kill(self, pid: int) -> None:
        if pid in self.children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.children.discard(pid)
        self.control.sendall(b"{}\n")

    def reap(self) -> None:
        for pid in list(self.children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.children.discard(pid)


def main() -> None:
    control, parent_pid = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    logging.disable(logging.CRITICAL)
    try:
        from rewards import equivalence

        equivalence.warm_up()
    except BaseException:
        control.sendall(json.dumps({"error": traceback.format_exc(limit=-3)}).encode() + b"\n")
        raise
    gc.freeze()  # workers share these pages
    control.sendall(b'{"ready": true}\n')
    Nursery(control, parent_pid).run()


if __name__ == "__main__":
    main()

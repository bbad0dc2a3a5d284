"""Programs in processes of their own, forked from one that has imported torch, transformers and TRL already.

An import of these takes longer than most programs of the tests run. A forked program is a process like any other: it
has its own signals, exit code, environment and output, and may be killed.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from unittest import mock

from tests.support.paths import ROOT

# torchrun then forks its ranks from the launcher instead of starting Python anew.
FORKED_RANKS = {"PET_RUN_PATH": "1", "PET_START_METHOD": "fork"}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["deepspeed", "trl", "gsr_rl.training.trainer", "gsr_rl.cli"])


def environment(**more: str) -> dict[str, str]:
    """That of every program of the tests, and more."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | more


def _run(words: list[str], variables: dict[str, str], log: str) -> None:
    """As `python WORDS` in the repository's root would, with its output in a file."""
    os.setsid()
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = variables["PYTHONPATH"].split(":")
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def leave() -> None:
    """End a program whose engines and process groups are left to the operating system. Forked ones end so anyway."""
    if multiprocessing.parent_process() is None:
        os._exit(0)


class Program:
    """A program that runs: what `subprocess.Popen` gives, and its output so far."""

    def __init__(self, *words, **more: str):
        self.folder = tempfile.TemporaryDirectory(prefix="gsr-rl-program-")
        self.log = Path(self.folder.name) / "output"
        variables = environment(**more)
        with mock.patch.dict(os.environ, environment()):  # of the process that is forked, which starts with the first
            self.process = CONTEXT.Process(target=_run, args=([*map(str, words)], variables, str(self.log)))
            self.process.start()

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout: float) -> int:
        """The exit code, negative if a signal ended it. After `timeout` seconds it and its children are killed."""
        self.process.join(timeout)
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
            raise TimeoutError(f"more than {timeout} s\n{self.output()[-6000:]}")
        return self.process.exitcode

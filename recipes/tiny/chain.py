"""The programs of the tiny world as commands, and how they are run so that what has ended is not run again."""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import live

ROOT = Path(__file__).resolve().parents[2]
BASE = "recipes/tiny/models/base"
PLACES = 2  # of steps that run side by side; a training runs as two processes, or beside its server


def _program(name: str, out: Path, seed: int, more: tuple[str, ...]) -> list[str]:
    config = f"recipes/tiny/{name}.yaml"
    return [f"recipes/{name}_gsr.py", "--config", config, "--output_dir", str(out), "--seed", str(seed), *more]


def _two_processes(sharding: str) -> list[str]:
    launcher = ["accelerate", "launch", "--config_file", f"accelerate_configs/{sharding}_cpu.yaml"]
    return [*launcher, "--main_process_port", "0"]  # any free port


def distill(out: Path, seed: int, *more: str) -> list[str]:
    return ["python", *_program("distill", out, seed, ("--problem_seed", str(seed), *more))]


def sft(out: Path, seed: int, model: str, rows: str, *more: str) -> list[str]:
    return [
        *_two_processes("ddp"),
        *_program("sft", out, seed, ("--model_name_or_path", model, "--dataset_name", rows, *more)),
    ]


def grpo(out: Path, seed: int, model: str, *more: str) -> list[str]:
    keys = ("--model_name_or_path", model, "--problem_seed", str(seed), *more)
    return [*_two_processes("zero2"), *_program("grpo", out, seed, keys)]


def served(out: Path, seed: int, model: str, *more: str) -> list[str]:
    """Joint GRPO of one process beside a vLLM server of its model."""
    keys = ("--model_name_or_path", model, "--problem_seed", str(seed), "--vllm_mode", "server", *more)
    return ["python", "recipes/tiny/served.py", *_program("grpo", out, seed, keys)]


def evaluate(out: Path, seed: int, model: str, split: str, num_problems: int, frozen: Path | None, *more) -> list[str]:
    """An evaluation; `frozen` is another one's folder, whose candidate sets are refined too."""
    keys = ("--model", model, "--dataset_split", split, "--max_problems", str(num_problems))
    keys += ("--candidates_from", f"{frozen}/samples.parquet") if frozen else ()
    return ["python", *_program("eval", out, seed, (*keys, *more))]


def seconds_of(name: str, command: list[str], folder: Path) -> float | None:
    """The seconds of a command that has ended; None if it has not.

    A folder may be moved, so its own path in the arguments says nothing. Old marks have no command.
    """
    mark = folder / "done" / f"{name}.json"
    if not mark.is_file():
        return None
    done, asked = json.loads(mark.read_text() or "{}"), _in_folder(command, folder)
    if (before := done.get("command", asked)) != asked:
        raise SystemExit(
            f"[{name}] in {folder} was run with other arguments: {changes(before, asked)}. Give another folder, or "
            f"delete {mark} and what that run and those after it have made"
        )
    return done.get("seconds", 0.0)


def _in_folder(command: list[str], folder: Path) -> str:
    return shlex.join(command).replace(str(folder), "FOLDER")


def changes(before: str, now: str) -> str:
    """The options that differ between two commands: `--seed 0 is now --seed 1`."""
    old, new = (dict(pairwise(shlex.split(one))) for one in (before, now))
    keys = [key for key in old | new if key.startswith("--") and old.get(key) != new.get(key)]
    told = lambda key, options: f"{key} {options[key]}" if key in options else f"no {key}"  # noqa: E731
    return ", ".join(f"{told(key, old)} is now {told(key, new)}" for key in keys) or f"`{before}` is now `{now}`"


@dataclass
class Step:
    """A command: its name, its kind (program, or what the hours of a plan are counted by), the folder of its log."""

    name: str
    kind: str
    command: list[str]
    folder: Path

    @property
    def places(self) -> int:
        return PLACES if self.kind in ("sft", "grpo", "served") else 1

    @property
    def out(self) -> str:
        return self.command[self.command.index("--output_dir") + 1]

    @property
    def seconds(self) -> float | None:
        return seconds_of(self.name, self.command, self.folder)

    def reads(self, other: "Step") -> bool:
        """Whether the other step's output is among this one's arguments."""
        return other.out != self.out and any(f"{word}/".startswith(f"{other.out}/") for word in self.command)


def run_all(steps: list[Step], ended: Callable[[Step], None] = lambda step: None) -> None:
    """Run steps as far as the places go, each after those whose output it reads, and otherwise in their order.

    A program of one process keeps one core busy with a model this small, so two of them run side by side.

    Args:
        ended: Called with each step that has ended, now or before.

    Raises:
        SystemExit: A step failed, was run with other arguments, or runs already; those beside it end before.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // PLACES)
    before = [step for step in steps if step.seconds is not None]  # other arguments are refused before anything is run
    left, running = [step for step in steps if step not in before], {}
    for step in before:
        ended(step)
    with ThreadPoolExecutor(PLACES) as pool:
        while left or running:
            for step in list(left):
                if any(step.reads(other) for other in (*left, *running.values())):
                    continue
                if sum(other.places for other in running.values()) + step.places > PLACES:
                    break
                left.remove(step)
                running[pool.submit(run, step, threads)] = step
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                ended(running.pop(future))


def run(step: Step, threads: int = 1) -> float:
    """Run one command, its output into a log file. Returns its seconds, which are kept with it for a resume.

    Raises:
        SystemExit: It failed, was run with other arguments, or runs already.
    """
    if (seconds := step.seconds) is not None:
        return seconds
    log = step.folder / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(
                f"[{step.name}] in {step.folder} is at work in another process: wait for it, or end it. Its log: {log}"
            ) from None
        return _run(step, threads, log, lock)


def _run(step: Step, threads: int, log: Path, lock) -> float:
    from gsr_rl.run_folder import atomic_write

    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",  # nothing here is on the Hub
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "",  # else every program compiles what it imports anew: 12 s each
        "TQDM_MININTERVAL": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    start = time.monotonic()
    with open(log, "w") as file:
        print(f"$ {shlex.join(step.command)}", file=file, flush=True)
        # The command holds the lock as well, so that it is kept where the command outlives this process.
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "pass_fds": [lock.fileno()]}
        process = live.start(step.command, cwd=ROOT, env=environment, **streams)
        code = live.follow(process, step.name, log)
    seconds = time.monotonic() - start
    if code:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:])
        raise SystemExit(f"{tail}\n[{step.name}] failed with exit code {code}; the whole log is {log}")
    words = live.accuracies(log, ROOT / (step.out if "--output_dir" in step.command else step.folder))
    live.show(step.name, f"{live.bar(1)} {seconds:4.0f} s  {words}", last=True)
    done = {"seconds": round(seconds, 1), "command": _in_folder(step.command, step.folder)}
    atomic_write(step.folder / "done" / f"{step.name}.json", json.dumps(done))
    return seconds

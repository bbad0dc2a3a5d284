"""The programs of the tiny world as commands, and how they are run so that what has ended is not run again."""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "recipes/tiny/models/base"


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


def run(name: str, command: list[str], folder: Path, threads: int) -> float:
    """Run one command, its output into a log file. Returns its seconds, which are kept with it for a resume.

    Raises:
        SystemExit: It failed, was run with other arguments, or runs already.
    """
    if (seconds := seconds_of(name, command, folder)) is not None:
        return seconds
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(
                f"[{name}] in {folder} is at work in another process: wait for it, or end it. Its log: {log}"
            ) from None
        return _run(name, command, folder, threads, log, lock)


def _run(name: str, command: list[str], folder: Path, threads: int, log: Path, lock) -> float:
    from gsr_rl.run_folder import atomic_write

    print(f"\n[{name}] {shlex.join(command)}\n    log: {log}", flush=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",  # nothing here is on the Hub
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
    }
    start = time.monotonic()
    with open(log, "w") as file:
        # The command holds the lock as well, so that it is kept where the command outlives this process.
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "pass_fds": [lock.fileno()]}
        code = subprocess.run(command, cwd=ROOT, env=environment, **streams).returncode
    seconds = time.monotonic() - start
    if code:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:])
        raise SystemExit(f"{tail}\n[{name}] failed with exit code {code}; the whole log is {log}")
    print(f"[{name}] {seconds:.0f} s", flush=True)
    done = {"seconds": round(seconds, 1), "command": _in_folder(command, folder)}
    atomic_write(folder / "done" / f"{name}.json", json.dumps(done))
    return seconds

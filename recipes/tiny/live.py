"""What the tiny world's chains show of commands that run: one line each, by the last words of their logs."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

_lines: dict[str, str] = {}  # of the commands that run now, by their names


def follow(process: subprocess.Popen, name: str, log: Path) -> int:
    """Wait for a command and show how far its log says that it is: in a terminal all the time, else twice a minute."""
    start, interval = time.monotonic(), 0.5 if sys.stdout.isatty() else 30
    try:
        while True:
            try:
                return process.wait(interval)
            except subprocess.TimeoutExpired:
                show(name, f"{time.monotonic() - start:.0f} s  {progress(log)}")
    except BaseException:
        process.terminate()  # a launcher ends its processes, which a kill would leave behind
        raise


def progress(log: Path) -> str:
    """The last line of a log that says how far a program is: a training's `12/110 ...` or `candidates: 31 % ...`."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    lines = [line.strip() for line in lines if re.match(r" *\d+/\d+ |\w[\w -]*: \d+ %, ", line)]
    return lines[-1] if lines else "starting"


def show(name: str, text: str, last: bool = False) -> None:
    """A step's state: in a terminal all running steps share its last line, rewritten in place."""
    if not sys.stdout.isatty():
        return print(f"[{name}] {text}", flush=True)
    _lines[name] = f"[{name}] {text}"
    if last:
        return print(f"\r\033[K{_lines.pop(name)}", flush=True)
    width = shutil.get_terminal_size().columns - 1
    print("\r\033[K" + "   ".join(line[: width // len(_lines) - 3] for line in _lines.values()), end="", flush=True)

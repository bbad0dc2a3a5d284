"""What the tiny world's chains show of commands that run: a line each with a bar, by the last words of their logs."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

BAR = 24  # characters
_PROGRESS = re.compile(r" *(?:(\d+)/(\d+) |\w[\w -]*: (\d+) %, )")
_ACCURACIES = re.compile(r"pass@1 .*?gap [+-][\d.]+")
_lines: dict[str, str] = {}  # of the commands that run now, by their names
_lock = threading.Lock()  # several are followed at a time


def follow(process: subprocess.Popen, name: str, log: Path) -> int:
    """Wait for a command and show how far its log says that it is: in a terminal all the time, else twice a minute."""
    start, interval = time.monotonic(), 0.5 if sys.stdout.isatty() else 30
    try:
        while True:
            seconds = time.monotonic() - start
            if sys.stdout.isatty() or seconds > interval:
                show(name, with_bar(progress(log), seconds))
            try:
                return process.wait(interval)
            except subprocess.TimeoutExpired:
                pass
    except BaseException:
        process.terminate()  # a launcher ends its processes, which a kill would leave behind
        raise


def _tail(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        return file.read().decode(errors="replace")


def progress(log: Path) -> str:
    """The last line of a log that says how far a program is: a training's `12/110 ...` or `candidates: 31 % ...`."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", _tail(log)) if _PROGRESS.match(line)]
    return lines[-1] if lines else "starting"


def with_bar(words: str, seconds: float) -> str:
    """Words of `progress` after a bar of the share that they tell, and the seconds so far."""
    place = _PROGRESS.match(words)
    step, steps, percent = place.groups() if place else (0, 1, None)
    share = int(percent) / 100 if percent else int(step) / int(steps)
    return f"{bar(share)} {seconds:4.0f} s  {words}"


def bar(share: float) -> str:
    """A bar, full at 1, in characters that the terminal has."""
    full, empty = "█░" if "utf" in (sys.stdout.encoding or "").lower() else "#."
    return (full * round(BAR * min(share, 1))).ljust(BAR, empty)


def accuracies(log: Path, folder: Path) -> str:
    """What a program that has ended found: an evaluation's figures, or those of a training's last step; else ""."""
    if not (folder / "eval.json").is_file():
        return (["", *_ACCURACIES.findall(_tail(log))])[-1]
    summary = json.loads((folder / "eval.json").read_text())
    figures = next(iter(summary["benchmarks"].values()))
    names = ("pass@1", f"maj@{summary['k']}", f"selfref@{summary['k']}")
    parts = [f"{name} {100 * figures[name]['value']:.1f}" for name in names if name in figures]
    return " ".join([*parts, f"gap {100 * figures['refinement_gap']['value']:+.1f}"])


def show(name: str, text: str, last: bool = False) -> None:
    """A step's state: in a terminal the steps that run have the last lines, rewritten in place."""
    line = f"{name:<10} {text}".rstrip()
    with _lock:
        if not sys.stdout.isatty():
            return print(line, flush=True)
        up = f"\033[{len(_lines)}A" if _lines else ""
        if last:
            _lines.pop(name, None)
        else:
            _lines[name] = line
        width = shutil.get_terminal_size().columns - 1
        rows = [line[:width] for line in ([line] if last else []) + list(_lines.values())]
        print(f"{up}\033[J" + "".join(f"{row}\n" for row in rows), end="", flush=True)

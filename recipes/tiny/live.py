"""Commands of the tiny world's chains while they run: a line each with a bar, by the last words of their logs.

They end with the chain: `stoppable`.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BAR = 24  # characters
_PROGRESS = re.compile(r" *(?:(\d+)/(\d+) |\w[\w -]*: (\d+) %, )")
_ACCURACIES = re.compile(r"pass@1 .*?gap [+-][\d.]+")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 60  # seconds that a command has to save what it can before it is killed
_lines: dict[str, str] = {}  # of the commands that run now, by their names
_lock = threading.Lock()  # several are followed at a time
_running: set[subprocess.Popen] = set()
_stopped = threading.Event()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal end the commands that run, and then this program with 128 + the signal.

    A training saves its step first. A second signal kills, and so does the end of GRACE seconds.
    """

    def stop(number: int, _) -> None:
        kill_now = _stopped.is_set()
        _stopped.set()
        for process in list(_running):
            _kill(process) if kill_now else process.terminate()
        raise KeyboardInterrupt(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        with contextlib.suppress(OSError):  # of a closed terminal
            print("interrupted: the same command goes on from the steps that have ended", file=sys.stderr)
        sys.exit(128 + next(iter(interrupt.args), signal.SIGINT))
    finally:
        _stopped.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def start(command: list[str], **options) -> subprocess.Popen:
    """A command in a session of its own, so that a terminal's Ctrl-C reaches it through `stoppable` alone."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    _running.add(process)
    if _stopped.is_set():  # meanwhile
        process.terminate()
    return process


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def follow(process: subprocess.Popen, name: str, log: Path) -> int:
    """Wait for a command and show how far its log says that it is: in a terminal all the time, else twice a minute."""
    begin, shown, stopping = time.monotonic(), 0.0, None
    interval = 0.5 if sys.stdout.isatty() else 30
    try:
        while True:
            seconds = time.monotonic() - begin
            if sys.stdout.isatty() or seconds - shown > interval:
                shown = seconds
                show(name, with_bar(progress(log), seconds))
            if _stopped.is_set() and seconds - (stopping := stopping or seconds) > GRACE:
                _kill(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)
    except BaseException:
        process.terminate()  # a launcher ends its processes, which a kill would leave behind
        raise
    finally:
        _running.discard(process)


def _tail(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))  # a report of some pages may stand behind it
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

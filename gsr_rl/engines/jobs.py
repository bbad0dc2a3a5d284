"""The resumable job: units of work go through an engine and are stored as they finish.

A unit is what is made and stored together, such as all candidates of one problem: on disk a JSON object with a unique
id as `unit`, in memory whatever the program makes of it. Units that are made in one way, with one form, are of one
kind, such as `candidates`. `run_units` makes the units of a kind that are not there yet; a `ShardStore` keeps those of
all kinds of a job in one folder, so that the same command after a kill makes only what is missing.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gsr_rl.engines.base import Completion, Engine, Request, Result, progress_bar
from gsr_rl.run_folder import atomic_path, atomic_write, owner_of, plain, sign

SHARD_SECONDS = 60.0  # a shard is written at least so often, if there is anything to write
SHARDS_IN_MEMORY = 4  # that wait to be written, at most
Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Progress:
    """For the progress bar: what is made, of how many units, and how many there were before."""

    label: str
    total: int
    done: int


def run_units(
    engine: Engine,
    planned: Iterator[tuple[Unit, list[Request]]],
    progress: Progress,
    add: Callable[[Unit, Hashable, Completion], None],
    store: Callable[[list[Unit]], list[float]],
    per_shard: int,
) -> dict[str, str]:
    """Send the requests of all units, as the engine has room. Units are graded and stored beside it, in a thread.

    Args:
        planned: Units, each with its requests, whose keys are `(id, place)`. A unit without requests is stored as it
            is.
        add: Called with a unit, a place and a completion, for each completion.
        store: Called with a list of finished units, in the thread. Returns the grades of their samples, 1 if right.
        per_shard: `store` is called when there are so many finished units, and every minute.

    Returns:
        The errors of the units that an endpoint gave no answer for, by their ids.
    """
    with ThreadPoolExecutor(1) as thread, progress_bar(progress.total, progress.label, progress.done) as bar:
        work, writer = _Work(planned, add, bar), _Writer(thread, store)
        before, start = dict(engine.counts), time.monotonic()
        try:
            for result in engine.stream(work.requests()):
                work.take(result)
                rate = speed(engine.counts, before, time.monotonic() - start)
                bar.set_postfix_str(writer.share() + rate, refresh=False)
                if len(work.finished) >= per_shard or time.monotonic() - writer.last > SHARD_SECONDS:
                    writer.write(work.take_finished())
                writer.wait(SHARDS_IN_MEMORY)  # so as not to run ahead of the disk
        finally:
            rate = speed(engine.counts, before, time.monotonic() - start)
            writer.write(work.take_finished())
            writer.wait()
            bar.set_postfix_str(writer.share() + rate, refresh=False)
    return work.failed


class _Work:
    """The units that the engine works on, those that are finished and not stored yet, and the errors of the failed."""

    def __init__(self, planned: Iterator[tuple[Unit, list[Request]]], add: Callable, bar):
        self._planned, self._add, self._bar = planned, add, bar
        self._units: dict[str, Unit] = {}
        self._results_left: Counter[str] = Counter()  # of each of these units
        self.finished: list[Unit] = []
        self.failed: dict[str, str] = {}

    def requests(self) -> Iterator[Request]:
        """The requests of the planned units; read by the engine as it has room."""
        for unit, requests in self._planned:
            if requests:
                identity, _ = requests[0].key
                self._units[identity], self._results_left[identity] = unit, len(requests)
                yield from requests
            else:
                self.finished.append(unit)
                self._bar.update()

    def take(self, result: Result) -> None:
        """Add a result to its unit, which may be finished, or failed, by it."""
        identity, place = result.key
        if result.error:
            self.failed[identity] = result.error
        for completion in result.completions:
            self._add(self._units[identity], place, completion)
        self._results_left[identity] -= 1
        if not self._results_left[identity]:
            unit = self._units.pop(identity)
            if identity not in self.failed:
                self.finished.append(unit)
            self._bar.update()

    def take_finished(self) -> list[Unit]:
        """The finished units, which are not given again."""
        units, self.finished = self.finished, []
        return units


class _Writer:
    """Calls `store` in a thread, one batch of units after the other."""

    def __init__(self, thread: Executor, store: Callable[[list[Unit]], list[float]]):
        self._thread, self._store = thread, store
        self._pending: list[Future] = []
        self._right = self._graded = 0
        self.last = time.monotonic()

    def write(self, units: list[Unit]) -> None:
        self.last = time.monotonic()
        if units:
            self._pending.append(self._thread.submit(self._store, units))

    def share(self) -> str:
        """Of the samples stored so far, how many are right."""
        return f"{100 * self._right / self._graded:.1f} % right, " if self._graded else ""

    def wait(self, pending: int = 0) -> None:
        """Until at most so many batches are `pending`. Raises what `store` has raised so far."""
        while len(self._pending) > pending or (self._pending and self._pending[0].done()):
            grades = self._pending.pop(0).result()
            self._right, self._graded = self._right + sum(grades), self._graded + len(grades)


def speed(counts: dict, before: dict, seconds: float) -> str:
    """What the engine has done since `before`, for the progress bar."""
    made = {key: counts[key] - before.get(key, 0) for key in ("prompt_tokens", "completion_tokens")}
    retries = counts.get("retries", 0) - before.get("retries", 0)
    text = f"{made['completion_tokens'] / max(seconds, 1e-9):,.0f} tokens/s, {made['completion_tokens']:,} tokens, "
    text += f"{made['prompt_tokens']:,} of prompts"
    return text + (f", {retries:,} retries" if retries else "")


class Units(Mapping):
    """The finished units of a kind by id, in the order in which they were written; read from disk one at a time.

    Threads may read at once: sampling and grading do.
    """

    def __init__(self, paths: list[Path]):
        self._places: dict[str, tuple[Path, int, int]] = {}  # file, first byte, number of bytes
        self._files: dict[Path, object] = {}
        for path in paths:
            with open(path, "rb") as file:
                start = 0
                for line in file:
                    self._places.setdefault(_unit_id(line), (path, start, len(line)))
                    start += len(line)

    def __getitem__(self, unit: str) -> dict:
        path, start, size = self._places[unit]
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = open(path, "rb")  # noqa: SIM115, closed with the last reference
        return json.loads(os.pread(file.fileno(), size, start))  # a place of its own, unlike seek and read

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, unit: object) -> bool:
        return unit in self._places


def _locked(file, mode: int) -> bool:
    """Lock a file, unless another process has done so. The lock goes with the file's closing."""
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unit_id(line: bytes) -> str:
    """The id at the front of a unit's line, without parsing the rest of it."""
    head = line[:4096].decode("utf-8", "ignore")
    try:
        return json.JSONDecoder().raw_decode(head, len('{"unit": '))[0]
    except json.JSONDecodeError:  # a longer id
        return json.loads(line)["unit"]


class ShardStore:
    """Results of a resumable job, in one folder.

    A shard is a file of units of one kind, a line each, whose first key is `unit`. It is written atomically, so a job
    that is killed loses at most the shard at work, and never half of one. Several processes may work in one folder,
    each on a part of the units.
    """

    def __init__(self, folder: str | Path, settings: dict, part: str | None = None):
        """Open the folder, or make it.

        Args:
            settings: What the results depend on.
            part: `i/n`, if other processes do the other parts.

        Raises:
            ValueError: The folder holds the results of other settings. Names each key that differs.
        """
        self.folder = Path(folder)
        self.settings = plain(settings)
        self.part = part.replace("/", "of") if part else "all"
        self._settle()

    def _settle(self) -> None:
        """Write the settings. Others that stand there stay if results, or a process at work, depend on them."""
        path = self.folder / "settings.json"
        text = json.dumps(self.settings, indent=1, sort_keys=True) + "\n"
        if not path.is_file():
            return atomic_write(path, text)
        try:
            self._check_settings(self.folder)
        except ValueError as changed:
            with open(self.folder / ".lock", "a") as folder_lock:
                if self._shards(self.folder) or not _locked(folder_lock, fcntl.LOCK_EX):
                    raise changed from None
                atomic_write(path, text)

    @staticmethod
    def _shards(folder: Path) -> list[Path]:
        """The shards; a file with a dot in front was half written when a process was killed."""
        return sorted(folder.glob("[!.]*-*.jsonl"))

    def _check_settings(self, folder: Path) -> None:
        """Raise `ValueError` if a folder's settings are others than these."""
        path = folder / "settings.json"
        if not path.is_file():
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        keys = sorted(set(before) | set(self.settings))
        changed = [key for key in keys if before.get(key) != self.settings.get(key)]
        if changed:
            changes = "; ".join(f"{key} was {before.get(key)!r}, is {self.settings.get(key)!r}" for key in changed)
            raise ValueError(
                f"{folder} holds results of another configuration ({changes}): set it back, or give a new output_dir"
            )

    @contextlib.contextmanager
    def lock(self):
        """Work on this part alone. The lock goes with the process, however it ends.

        Raises:
            ValueError: Another process is at work on the part, or on all parts, or on any part if this is all.
        """
        with (
            open(self.folder / ".lock", "a") as folder_lock,
            open(self.folder / f".lock-{self.part}", "a") as part_lock,
        ):
            mode = fcntl.LOCK_EX if self.part == "all" else fcntl.LOCK_SH
            if not (_locked(folder_lock, mode) and _locked(part_lock, fcntl.LOCK_EX)):
                raise ValueError(
                    f"{self.folder} is in use by {self._owners()}: wait for it or end it, or give another output_dir, "
                    "or each its own part by --shard i/n"
                )
            sign(part_lock)
            self._check_settings(self.folder)  # another process may have come between
            for path in self.folder.glob(f".*-{self.part}-*.jsonl.*"):  # half-written when a process was killed
                path.unlink(missing_ok=True)
            yield

    def _owners(self) -> str:
        """The processes that are at work here."""
        owners = []
        for path in sorted(self.folder.glob(".lock-*")):
            with open(path, "a") as file:
                owners += [] if _locked(file, fcntl.LOCK_EX) else [owner_of(path)]
        return " and ".join(owners) or "another process"

    def load(self, kind: str) -> Units:
        """All finished units of a kind, of every part."""
        return Units(sorted(self.folder.glob(f"{kind}-*.jsonl")))

    def append(self, kind: str, units: list[dict]) -> None:
        """Add a shard of units, atomically, synced to disk."""
        numbers = [int(path.stem.rsplit("-", 1)[1]) for path in self.folder.glob(f"{kind}-{self.part}-*.jsonl")]
        number = max(numbers, default=-1) + 1
        text = "".join(json.dumps({"unit": unit["unit"]} | unit, ensure_ascii=False) + "\n" for unit in units)
        atomic_write(self.folder / f"{kind}-{self.part}-{number:06d}.jsonl", text)

    def take_over(self, folder: str | Path) -> int:
        """Copy the shards of another folder, made with the same settings. Returns how many were new.

        Raises:
            ValueError: The folder has no shards, or those of other settings.
        """
        folder = Path(folder)
        if not (folder / "settings.json").is_file():
            raise ValueError(f"join={folder.parent}: there are no shards in {folder}")
        self._check_settings(folder)
        copied = 0
        for path in self._shards(folder):
            kind = path.name.split("-")[0]
            known, missing = self.load(kind), Units([path])
            units = [missing[unit] for unit in missing if unit not in known]
            if not units:
                continue
            if len(units) == len(missing) and not (self.folder / path.name).exists():
                with atomic_path(self.folder / path.name) as temporary:
                    shutil.copyfile(path, temporary)
            else:
                self.append(kind, units)
            copied += 1
        return copied

"""Units of a resumable job through an engine: requests go in as there is room, units are stored as they finish."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from gsr_rl.engines.base import Request, progress_bar
from gsr_rl.run_folder import atomic_path, atomic_write, plain

SHARD_SECONDS = 60.0  # a shard is written at least so often, if there is anything to write


def run_units(
    engine,
    planned: Iterator[tuple[dict, list[Request]]],
    label: str,
    total: int,
    done: int,
    add: Callable[[dict, object, object], None],
    store: Callable[[list[dict]], None],
    per_shard: int,
) -> dict[str, str]:
    """Send the requests of all units. Units are graded and stored beside the sampling, in a thread.

    Args:
        planned: Units, each with its requests, whose keys are `(id, place)`. A unit without requests is stored as it
            is.
        label, total, done: For the progress bar: what is made, of how many units, and how many there were before.
        add: Called with a unit, a place and a completion, for each completion.
        store: Called with a list of finished units, in the thread.
        per_shard: Units that `store` is given at most once so many are there; it is called every minute too.

    Returns:
        The errors of the units that an endpoint gave no answer for, by their ids.
    """
    open_units: dict[str, tuple[dict, int]] = {}  # unit and the number of answers that it waits for
    finished: list[dict] = []
    failed: dict[str, str] = {}
    empty: list[dict] = []

    def requests() -> Iterable[Request]:
        for unit, wanted in planned:
            if wanted:
                open_units[wanted[0].key[0]] = (unit, len(wanted))
                yield from wanted
            else:
                empty.append(unit)

    with ThreadPoolExecutor(1) as background, progress_bar(total, label, done) as bar:
        pending, last, start, before = [], time.monotonic(), time.monotonic(), dict(engine.counts)

        def store_finished():
            nonlocal finished, last
            last, batch, finished = time.monotonic(), finished, []
            if batch:
                pending.append(background.submit(store, batch))

        try:
            for result in engine.stream(requests()):
                identity, place = result.key
                unit, waiting = open_units[identity]
                if result.error:
                    failed[identity] = result.error
                for completion in result.completions:
                    add(unit, place, completion)
                open_units[identity] = (unit, waiting - 1)
                if waiting == 1:
                    del open_units[identity]
                    if identity not in failed:
                        finished.append(unit)
                    bar.update()
                    bar.set_postfix_str(speed(engine.counts, before, time.monotonic() - start), refresh=False)
                finished += empty
                bar.update(len(empty))
                empty.clear()
                if len(finished) >= per_shard or time.monotonic() - last > SHARD_SECONDS:
                    store_finished()
                    while len(pending) > 4 or (pending and pending[0].done()):  # do not run ahead of the disk
                        pending.pop(0).result()
        finally:
            finished += empty
            bar.update(len(empty))
            store_finished()
            with suppress(Exception):
                print(f"{label}: {speed(engine.counts, before, time.monotonic() - start)}", flush=True)
            for one in pending:
                one.result()
    return failed


def speed(counts: dict, before: dict, seconds: float) -> str:
    """What the engine has done since `before`, for the progress bar."""
    made = {key: counts[key] - before.get(key, 0) for key in ("requests", "prompt_tokens", "completion_tokens")}
    retries = counts.get("retries", 0) - before.get("retries", 0)
    text = f"{made['completion_tokens'] / max(seconds, 1e-9):,.0f} tokens/s, {made['completion_tokens']:,} tokens, "
    text += f"{made['prompt_tokens']:,} of prompts, {made['requests']:,} requests"
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


def _locked(file, how: int) -> bool:
    """Lock a file, unless another process has done so. The lock goes with the file's closing."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unit_id(line: bytes) -> str:
    """The id at the front of a unit's line, without reading the whole of it."""
    head = line[:4096].decode("utf-8", "ignore")
    try:
        return json.JSONDecoder().raw_decode(head, len('{"unit": '))[0]
    except json.JSONDecodeError:  # a longer id
        return json.loads(line)["unit"]


class ShardStore:
    """Results of a resumable job, in one folder.

    A unit is a JSON object whose first key is `unit`, its unique id. A shard is a file of units that appears in one
    step, so a job that is killed loses at most the shard at work, and never half of one. Several processes may work in
    one folder, each on its own part of the units.
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
            with open(self.folder / ".lock", "a") as whole:
                if self._shards(self.folder) or not _locked(whole, fcntl.LOCK_EX):
                    raise changed from None
                atomic_write(path, text)

    @staticmethod
    def _shards(folder: Path) -> list[Path]:
        """The whole shards; a name with a dot in front is half-written, when a process was killed."""
        return sorted(folder.glob("[!.]*-*.jsonl"))

    def _check_settings(self, folder: Path) -> None:
        path = folder / "settings.json"
        if not path.is_file():
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        keys = sorted(set(before) | set(self.settings))
        changed = [key for key in keys if before.get(key) != self.settings.get(key)]
        if changed:
            said = "; ".join(f"{key} was {before.get(key)!r}, is {self.settings.get(key)!r}" for key in changed)
            raise ValueError(
                f"{folder} holds results of another configuration ({said}): set it back, or give a new output_dir"
            )

    @contextlib.contextmanager
    def lock(self):
        """Work on this part alone. The lock goes with the process, however it ends.

        Raises:
            ValueError: Another process is at work on the part, or on the whole, or on any part if this is the whole.
        """
        with open(self.folder / ".lock", "a") as whole, open(self.folder / f".lock-{self.part}", "a") as part:
            how = fcntl.LOCK_EX if self.part == "all" else fcntl.LOCK_SH
            if not (_locked(whole, how) and _locked(part, fcntl.LOCK_EX)):
                raise ValueError(
                    f"{self.folder}: another process is at work here: wait for it or end it, or give each its own "
                    "--shard i/n"
                )
            self._check_settings(self.folder)  # another process may have come between
            for path in self.folder.glob(f".*-{self.part}-*.jsonl.*"):  # half-written when a process was killed
                path.unlink(missing_ok=True)
            yield

    def load(self, kind: str) -> Units:
        """All finished units of a kind, of every part."""
        return Units(sorted(self.folder.glob(f"{kind}-*.jsonl")))

    def append(self, kind: str, units: list[dict]) -> None:
        """Add a shard of units, in one step, synced to disk."""
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

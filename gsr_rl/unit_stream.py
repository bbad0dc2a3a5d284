"""Units of a resumable job through an engine: requests go in as there is room, units are stored as they finish."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from gsr_rl.generation import Request, progress_bar

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
        planned: Units, each with its requests. A unit is a mapping with its id as `unit`; its requests have the keys
            `(id, place)`. A unit without requests is stored as it is.
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
                open_units[unit["unit"]] = (unit, len(wanted))
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

"""The pool of workers: deadlines, deaths, processes and threads."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import rewards
from rewards import grading, verifier

pytestmark = pytest.mark.clock

HANGS = r"\boxed{\prod_{k=1}^{10^9} (k+%s)}"


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    limit = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    return not any(map(alive, pids))


def grade_three(tag: str) -> list[float | None]:
    return rewards.grade([f"\\boxed{{{tag}+{n}}}" for n in range(3)], [f"{tag}+1"] * 3)


@pytest.fixture(autouse=True)
def started():
    assert grade_three("s") == [0.0, 1.0, 0.0]


def test_one_hostile_row_among_256_costs_its_deadline_and_no_more():
    completions = [f"so \\boxed{{{n}+q}}" if n % 2 else f"so \\boxed{{q-{n + 1}}}" for n in range(256)]
    golds = [f"q+{n}" for n in range(256)]
    completions[100], golds[100] = HANGS % "q", "1+q"
    before = rewards.stats()
    began = time.monotonic()
    scores = rewards.grade(completions, golds, timeout=3.0)
    assert time.monotonic() - began < 3.0 + 2.0
    assert [score for row, score in enumerate(scores) if row != 100] == [
        float(row % 2) for row in range(256) if row != 100
    ]
    assert scores[100] == 0.0
    after = rewards.stats()
    assert after["timeouts"] - before["timeouts"] == 1
    assert after["restarts"] - before["restarts"] == 1


def test_a_hung_worker_is_replaced_within_a_second():
    began = time.monotonic()
    assert rewards.grade([HANGS % "r"], ["1+r"], timeout=0.5) == [0.0]
    assert grade_three("r") == [0.0, 1.0, 0.0]
    assert time.monotonic() - began < 0.5 + 1.5


def test_a_worker_killed_from_outside_costs_no_verdict():
    for _ in range(3):
        for pid in grading._verifier.worker_pids()[1:]:
            os.kill(pid, signal.SIGKILL)
        assert grade_three(f"k_{_}") == [0.0, 1.0, 0.0]


def test_a_killed_nursery_is_replaced():
    pids = grading._verifier.worker_pids()
    os.kill(pids[0], signal.SIGKILL)
    assert gone(pids)
    assert grade_three("n") == [0.0, 1.0, 0.0]


def test_memory_and_files_of_a_worker_are_limited():
    for pid in grading._verifier.worker_pids()[1:]:
        with open(f"/proc/{pid}/limits") as limits:
            rows = {line[:25].strip(): line[25:].split()[0] for line in limits}
        assert int(rows["Max address space"]) == 2 << 30
        assert rows["Max file size"] == "0"
        assert rows["Max core file size"] == "0"


def test_shutdown_ends_all_workers_and_the_pool_starts_again():
    pids = grading._verifier.worker_pids()
    assert len(pids) >= 2
    rewards.shutdown()
    assert gone(pids)
    assert grade_three("t") == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_their_parent(how):
    code = (
        "import rewards, time, sys; from rewards import grading;"
        "rewards.grade([r'\\boxed{x+1}'] * 2, ['1+x', '2+x']);"
        "print(*grading._verifier.worker_pids(), flush=True);"
        "rewards.grade([r'\\boxed{\\prod_{k=1}^{10^9} (k+v)}'], ['1+v'], timeout=60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = list(map(int, parent.stdout.readline().split()))
    assert len(pids) >= 2
    assert all(map(alive, pids))
    time.sleep(0.3)  # one worker hangs by now
    parent.send_signal(how)
    parent.wait(10)
    assert gone(pids)


def test_workers_die_though_a_forked_child_of_the_parent_lives_on():
    code = (
        "import os, rewards, time; from rewards import grading;"
        "rewards.grade([r'\\boxed{x+1}'], ['1+x+x']);"
        "child = os.fork();"
        "child or (time.sleep(30), os._exit(0));"
        "print(child, *grading._verifier.worker_pids(), flush=True);"
        "time.sleep(30)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child, *pids = map(int, parent.stdout.readline().split())
    try:
        parent.kill()
        parent.wait(10)
        assert gone(pids)
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def _in_process(queue, tag):
    queue.put((grade_three(tag), grading._verifier.worker_pids()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_grading_works_after_fork_and_spawn(method):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_in_process, args=(queue, "p"), daemon=True)
    process.start()
    scores, pids = queue.get(timeout=60)
    process.join(20)
    assert scores == [0.0, 1.0, 0.0]
    assert pids[0] not in grading._verifier.worker_pids()
    assert gone(pids)
    assert grade_three("p2") == [0.0, 1.0, 0.0]  # the parent's own pool is untouched


def test_many_threads_share_the_pool():
    found = {}
    threads = [threading.Thread(target=lambda n=n: found.__setitem__(n, grade_three(f"h_{n}"))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {n: [0.0, 1.0, 0.0] for n in range(12)}


def test_a_hang_in_one_thread_does_not_hold_up_another(monkeypatch):
    monkeypatch.setenv("GSR_REWARDS_WORKERS", "2")
    slow = threading.Thread(target=lambda: rewards.grade([HANGS % "u"], ["1+u"], timeout=4.0))
    slow.start()
    time.sleep(0.3)
    began = time.monotonic()
    assert grade_three("u") == [0.0, 1.0, 0.0]
    assert time.monotonic() - began < 3.0
    slow.join(30)


def test_grading_works_inside_a_running_event_loop():
    async def both():
        direct = grade_three("a_1")
        return direct, await asyncio.gather(*(asyncio.to_thread(grade_three, f"a_{n}") for n in (2, 3)))

    assert asyncio.run(both()) == ([0.0, 1.0, 0.0], [[0.0, 1.0, 0.0]] * 2)


def test_a_failure_of_the_pool_itself_is_none_and_logged(monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    monkeypatch.setattr(grading, "_verifier", verifier.Verifier())
    assert rewards.grade([r"\boxed{2+j}", r"\boxed{4}"], ["j+2+j", "4"]) == [None, 1.0]
    assert "cannot be verified" in caplog.text
    assert rewards.stats()["pool_failures"] == 1


def test_ranks_on_one_node_share_its_cores(monkeypatch):
    monkeypatch.delenv("GSR_REWARDS_WORKERS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16))
    for ranks, workers in (("1", 16), ("4", 4), ("8", 2), ("64", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert verifier.default_workers() == workers
    monkeypatch.setenv("GSR_REWARDS_WORKERS", "3")
    assert verifier.default_workers() == 3


def test_idle_workers_cost_no_processor_time():
    pids = grading._verifier.worker_pids()

    def ticks() -> int:
        total = 0
        for pid in pids:
            with open(f"/proc/{pid}/stat") as stat:
                total += sum(map(int, stat.read().rsplit(")", 1)[1].split()[11:13]))
        return total

    before = ticks()
    time.sleep(0.5)
    assert ticks() == before


def test_a_hostile_answer_costs_a_vote_two_deadlines_and_is_not_met_twice():
    hostile = HANGS[len(r"\boxed{") : -1] % "v"
    others = ["v+1", "v+2", "v+3", "1+v"]
    for answers, expected in (
        ([*others, hostile], [0, 1, 2, 0, 3]),
        ([hostile, *others], [0, 1, 2, 3, 1]),
    ):
        grading._hung.clear()
        began = time.monotonic()
        assert rewards.vote(answers, timeout=2.0) == expected
        assert 1.5 < time.monotonic() - began < 2 * 2.0 + 1.0
        began = time.monotonic()
        assert rewards.vote(answers, timeout=2.0) == expected
        assert rewards.grade([f"\\boxed{{{hostile}}}"], ["0"], timeout=2.0) == [0.0]
        assert time.monotonic() - began < 1.0


def test_a_pair_that_hung_is_tried_again_after_a_while(monkeypatch):
    grading._hung.clear()
    completion = HANGS % "w"
    assert rewards.grade([completion], ["1+w"], timeout=0.5) == [0.0]
    verified = rewards.stats()["verified"]
    assert rewards.grade([completion], ["1+w"], timeout=0.5) == [0.0]
    assert rewards.stats()["verified"] == verified
    monkeypatch.setattr(grading, "HUNG_SECONDS", 0.0)
    assert rewards.grade([completion], ["1+w"], timeout=0.5) == [0.0]
    assert rewards.stats()["verified"] == verified + 1

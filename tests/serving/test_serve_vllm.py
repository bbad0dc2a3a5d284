"""`gsr-serve` as a process in front of a real vLLM server of the tiny model, both on loopback."""

import json
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest

from gsr_rl.data import tiny_world
from tests.support.serving import TINY, free_port, gsr_process, vllm_process, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
PROBLEMS = [row["problem"] for row in tiny_world.generate("mix", "test", 200, 0)]
KEYS = ["--prompt-template", "tiny", "--max-completion-length", "40", "--served-model-name", "tiny"]
KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    more = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "256"]
    with vllm_process(TINY, tmp_path_factory.mktemp("vllm") / "log", free_port(), *more) as process:
        yield process


def port_of(process) -> int:
    return int(process.command[process.command.index("--port") + 1])


@pytest.fixture
def served(backend, tmp_path):
    process = gsr_process(TINY, tmp_path / "log", free_port(), port_of(backend), *KEYS, "--max-waiting", "300",
                          GSR_API_KEY=KEY)  # fmt: skip
    with process:
        yield process


def client(served, **keys) -> openai.OpenAI:
    url = f"http://127.0.0.1:{port_of(served)}/v1"
    return openai.OpenAI(base_url=url, **{"api_key": KEY, "max_retries": 0, "timeout": 120} | keys)


def ask(problem: str, **more) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": problem}], **more}


def backend_requests(backend) -> float:
    """How many requests the vLLM server has finished."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port_of(backend)}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("vllm:request_success_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_plain_answers_streams_and_errors_by_the_official_client(backend, served):
    ours = client(served)
    assert [model.id for model in ours.models.list().data] == ["tiny"]
    more = {"gsr": {"return_candidates": True}}
    answer = ours.chat.completions.create(**ask(PROBLEMS[0], n=2), extra_body=more)
    candidates = answer.gsr["candidates"]
    assert len(candidates) == 4 and len(answer.choices) == 2
    counted = sum(one["num_tokens"] for one in candidates)
    assert answer.gsr["usage"]["candidate_tokens"] == counted < answer.usage.completion_tokens
    assert all(one["num_tokens"] <= 40 for one in candidates)
    more["gsr"] |= {"num_candidates": 6, "candidates_per_set": 3, "stop_when_agreed": 1}
    answer = ours.chat.completions.create(**ask(PROBLEMS[0]), extra_body=more)
    (voters,) = answer.gsr["refinements"]
    assert len(answer.gsr["candidates"]) == 6 and 4 <= len(voters) == answer.gsr["num_refinements"] <= 6
    assert answer.gsr["votes"] == max(one["votes"] for one in voters)
    assert answer.usage.completion_tokens == sum(one["num_tokens"] for one in [*voters, *answer.gsr["candidates"]])
    stream = ours.chat.completions.create(**ask(PROBLEMS[1], stream=True, stream_options={"include_usage": True}))
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text and chunks[-1].usage.completion_tokens > len(text) / 4
    before = backend_requests(backend)
    for wrong, error in (
        ({"model": "other"}, openai.NotFoundError),
        ({"temperature": 9}, openai.UnprocessableEntityError),
        ({"messages": [{"role": "user", "content": "1+1" * 400}]}, openai.BadRequestError),
    ):
        with pytest.raises(error):
            ours.chat.completions.create(**ask(PROBLEMS[0]) | wrong)
    with pytest.raises(openai.AuthenticationError):
        client(served, api_key="wrong").chat.completions.create(**ask(PROBLEMS[0]))
    assert backend_requests(backend) == before
    assert KEY not in served.log.read_text()


def test_greedy_answers_are_the_same_streamed_and_whole(served):
    ours = client(served)
    direct = ask(PROBLEMS[2], temperature=0, extra_body={"gsr": {"mode": "direct"}})
    whole = ours.chat.completions.create(**direct)
    chunks = ours.chat.completions.create(**direct, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert whole.usage.completion_tokens <= 40 and whole.gsr["num_candidates"] == 0


def test_two_hundred_requests_at_thirty_two_at_once_are_all_answered_and_memory_stays_flat(served):
    ours = client(served)
    memory = psutil.Process(served.process.pid).memory_info

    def one(index: int) -> tuple[str, int]:
        request = ask(PROBLEMS[index % 200], extra_body={"gsr": {"return_candidates": True}})
        if index % 2:
            chunks = list(ours.chat.completions.create(**request, stream=True))
            assert chunks[-1].choices[0].finish_reason
            return "stream", len(chunks[-1].gsr["candidates"])
        answer = ours.chat.completions.create(**request)
        assert answer.choices[0].finish_reason
        return "whole", len(answer.gsr["candidates"])

    sizes = []
    with ThreadPoolExecutor(32) as pool:
        for _ in range(3):  # the first fills caches and pools
            assert Counter(pool.map(one, range(200))) == {("stream", 4): 100, ("whole", 4): 100}
            sizes.append(memory().rss / 2**20)
    assert sizes[2] < sizes[0] + 10, f"MiB after each 200 requests: {sizes}"


def test_with_the_backend_killed_and_restarted_every_request_gets_an_answer_or_a_proper_error(backend, served):
    ours = client(served)
    done: Counter = Counter()
    slowest, lock, stop = 0.0, threading.Lock(), threading.Event()

    def one(index: int) -> None:
        nonlocal slowest
        start = time.monotonic()
        try:
            answer = ours.chat.completions.create(**ask(PROBLEMS[index % 200]))
            kind = "answer" if answer.choices[0].message.content else "empty"
        except openai.APIStatusError as error:
            kind = error.status_code
            time.sleep(0.5)
        except Exception as error:  # neither an answer nor a proper error
            kind = type(error).__name__
        with lock:
            done[kind] += 1
            slowest = max(slowest, time.monotonic() - start)

    def keep_asking(worker: int) -> None:
        index = worker
        while not stop.is_set():
            one(index)
            index += 32

    workers = [threading.Thread(target=keep_asking, args=(i,)) for i in range(32)]
    for worker in workers:
        worker.start()
    wait_until(lambda: done["answer"] > 20, 120, "answers")
    backend.kill()
    wait_until(lambda: done[503] > 20, 120, "errors while the backend is gone")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"http://127.0.0.1:{port_of(served)}/health", timeout=10)
    backend.start()
    backend.wait_ready()
    before = done["answer"]
    wait_until(lambda: done["answer"] > before + 40, 120, "answers again")
    stop.set()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive(), "a request hangs"
    assert set(done) <= {"answer", 503, 504}, done
    assert slowest < 60
    health = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port_of(served)}/health", timeout=10).read())
    assert health == {"status": "ok"}


def test_sigterm_answers_what_is_there_and_ends(served):
    ours, found = client(served), []

    def one(problem: str) -> None:
        found.append(ours.chat.completions.create(**ask(problem, extra_body={"gsr": {"rounds": 3}})))

    workers = [threading.Thread(target=one, args=(problem,)) for problem in PROBLEMS[:16]]
    for worker in workers:
        worker.start()
    url = f"http://127.0.0.1:{port_of(served)}/metrics"

    def running() -> bool:
        text = urllib.request.urlopen(url, timeout=5).read().decode()
        return "gsr_requests_running 16.0" in text or len(found) > 8

    wait_until(running, 60, "the requests")
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    for worker in workers:
        worker.join(10)
    assert len(found) == 16 and all(answer.choices[0].finish_reason for answer in found)


def test_a_backend_that_is_not_there_is_named_at_the_start(tmp_path):
    port = free_port()
    process = gsr_process(TINY, tmp_path / "log", free_port(), port, *KEYS, "--backend-start-seconds", "2")
    process.start()
    assert process.process.wait(90) == 2
    text = process.log.read_text()
    assert f"backend=http://127.0.0.1:{port}/v1 has not answered for 2 s" in text and "is it running?" in text
    assert "Traceback" not in text

"""The server over a backend that does as it is told, driven by the official client and by hand."""

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from gsr_rl.serving.limits import Keys, Places
from gsr_rl.serving.requests import ApiError
from tests.support.serving import Serving, ToldBackend, wait_until

ASK = {"model": "letters", "messages": [{"role": "user", "content": "1+1"}]}


@pytest.fixture
def backend():
    return ToldBackend()


@pytest.fixture
def served(backend):
    with Serving(backend) as served:
        yield served


def post(port: int, body: bytes, path: str = "/v1/chat/completions", **headers) -> tuple[int, dict, dict]:
    """Status, JSON and headers of a POST by hand."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", path, body, {"Content-Type": "application/json"} | headers)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content, {name.lower(): value for name, value in answer.getheaders()}


def counted(served) -> dict[str, float]:
    """Requests by status, as they are told to Prometheus."""
    found = re.findall(r'gsr_requests_total\{status="(\d+)"\} (\S+)', served.server.metrics.text().decode())
    return {status: float(number) for status, number in found}


def test_the_official_client_gets_a_refined_answer_and_all_tokens_are_counted(served, backend):
    answer = served.client().chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "so 2" and answer.choices[0].finish_reason == "stop"
    assert [(ask.stage, ask.sampling.n) for ask in backend.asks] == [("candidate", 3), ("refinement", 1)]
    prompts = sum(len(prompt.token_ids) for ask in backend.asks for prompt in ask.prompts)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompts, 3 * 1 + 4)
    assert answer.usage.total_tokens == prompts + 7
    assert answer.gsr["num_candidates"] == answer.gsr["num_shown"] == 3
    assert answer.gsr["degraded"] is None and "candidates" not in answer.gsr


def test_settings_go_as_extra_fields_and_candidates_come_back(served, backend):
    more = {"gsr": {"num_candidates": 2, "rounds": 2, "return_candidates": True}}
    answer = served.client().chat.completions.create(**ASK, extra_body=more, n=2, max_tokens=5, temperature=0.1)
    assert [(ask.stage, ask.number, ask.sampling.n) for ask in backend.asks] == [
        ("candidate", 0, 2), ("refinement", 1, 2), ("refinement", 2, 2)
    ]  # fmt: skip
    assert {(ask.sampling.max_tokens, ask.sampling.temperature) for ask in backend.asks} == {(5, 0.1)}
    assert len(answer.choices) == 2 and [one.index for one in answer.choices] == [0, 1]
    assert [(one["text"], one["answer"], one["votes"]) for one in answer.gsr["candidates"]] == [("2", "2", 2)] * 2
    assert answer.gsr["majority_answer"] == "2"


def test_a_stream_holds_the_same_answer_its_usage_and_its_end(served):
    stream = served.client().chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}, n=2)
    texts, reasons, used, ours = ["", ""], {}, None, None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        used = chunk.usage or used
        ours = getattr(chunk, "gsr", None) or ours
    assert texts == ["so 2", "so 2"] and reasons == {0: "stop", 1: "stop"}
    assert used.completion_tokens == 3 + 2 * 4 and ours["degraded"] is None


def test_more_candidates_than_a_set_holds_are_refined_in_sets_and_vote(backend):
    with Serving(backend, candidates_per_set=3) as served:
        more = {"gsr": {"num_candidates": 6, "return_candidates": True}}
        answer = served.client().chat.completions.create(**ASK, extra_body=more, n=2, stop="!")
        assert [(ask.stage, ask.count, len(ask.prompts)) for ask in backend.asks] == [
            ("candidate", 6, 1), ("refinement", 6, 6)
        ]  # fmt: skip
        assert backend.stops == [None, ["!"]]
        prompts = sum(len(prompt.token_ids) for ask in backend.asks for prompt in ask.prompts)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompts, 6 + 6 * 4)
        assert [one.message.content for one in answer.choices] == ["so 2", "so 2"]
        assert (answer.gsr["num_refinements"], answer.gsr["votes"], answer.gsr["num_candidates"]) == (6, 6, 6)
        assert [one["votes"] for one in answer.gsr["refinements"][0]] == [6] * 6

        backend.asks.clear()
        more["gsr"]["stop_when_agreed"] = 0.8
        chunks = list(served.client().chat.completions.create(**ASK, extra_body=more, stream=True))
        assert [(ask.stage, ask.count) for ask in backend.asks] == [("candidate", 6), ("refinement", 2)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "so 2", "once the vote is over"

        backend.asks.clear()
        for wrong in ({"num_refinements": 17}, {"stop_when_agreed": 0.5}, {"candidates_per_set": 0}):
            with pytest.raises(openai.UnprocessableEntityError, match=next(iter(wrong))):
                served.client().chat.completions.create(**ASK, extra_body={"gsr": wrong})
        with pytest.raises(openai.UnprocessableEntityError, match="n=5 is more than the refinements that vote"):
            served.client().chat.completions.create(**ASK, extra_body={"gsr": {"num_refinements": 4}}, n=5)
        assert backend.asks == []


@pytest.mark.clock
def test_a_stream_speaks_while_it_is_sampled(served, backend):
    backend.delay = {"refinement": 0.6}
    stream = served.client().chat.completions.create(**ASK, stream=True)
    start, first = time.monotonic(), None
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content and first is None:
            first = time.monotonic() - start
    assert first < time.monotonic() - start - 0.25


def test_models_health_and_metrics(served, backend):
    (model,) = served.client().models.list().data
    assert (model.id, model.max_model_len) == ("letters", 400)
    assert served.client().models.retrieve("letters").id == "letters"
    served.client().chat.completions.create(**ASK)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    for line in ('gsr_requests_total{status="200"} 1.0', 'gsr_tokens_total{kind="candidate"} 3.0',
                 "gsr_backend_up 1.0", "gsr_requests_running 0.0", 'gsr_solved_total{mode="refine"} 1.0'):  # fmt: skip
        assert line in text
    for up, status in ((True, 200), (False, 503)):
        backend.up = up
        connection.request("GET", "/health")
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (status, True)
        connection.request("HEAD", "/health")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (status, b"")


def test_without_the_key_nothing_happens(backend, caplog):
    keys = {"api_key_env": "GSR_TEST_KEY"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSR_TEST_KEY", "sesame")
        served = Serving(backend, **keys)
    with served:
        for key in ("none", "sesam", "sesame ", "sesamé", ""):
            status, content, headers = post(served.port, b"{", Authorization=f"Bearer {key}".encode())
            if key == "sesame ":  # blanks around a key are not part of it: the body is looked at
                assert status == 422
                continue
            assert status == 401 and headers["www-authenticate"] == "Bearer"
            assert content["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            served.client("wrong").chat.completions.create(**ASK)
        with pytest.raises(openai.AuthenticationError):
            served.client("wrong").models.list()
        assert backend.asks == []
        assert served.client("sesame").chat.completions.create(**ASK).choices[0].message.content == "so 2"
        text = served.server.metrics.text().decode()
    assert "sesame" not in text and "sesame" not in caplog.text


def test_keys_are_compared_whole_and_by_scheme():
    keys = Keys(["a", "b"])
    for header in ("Bearer a", "bearer b"):
        keys.check(header)
    for header in (None, "", "a", "Basic a", "Bearer", "Bearer ab", "Bearer a b"):
        with pytest.raises(ApiError):
            keys.check(header)
    Keys([]).check(None)


def test_a_key_beyond_ascii_opens(served):
    served.server.keys = Keys(["schlüssel à"])
    for key, status in (("schlüssel à", 422), ("schlüssel", 401), ("schlussel a", 401)):
        assert post(served.port, b"{", Authorization=f"Bearer {key}".encode())[0] == status


def test_malformed_and_unknown_is_refused_and_nothing_happens(served, backend):
    for body in (b"{", b'{"model": NaN}', b"[" * 50_000, json.dumps(ASK | {"n": "two"}).encode()):
        assert post(served.port, body)[0] == 422
    with pytest.raises(openai.UnprocessableEntityError):
        served.client().chat.completions.create(**ASK, extra_body={"gsr": {"num_candidates": 99}})
    with pytest.raises(openai.NotFoundError):
        served.client().chat.completions.create(**ASK | {"model": "gpt"})
    with pytest.raises(openai.BadRequestError, match="fill the model's window"):
        served.client().chat.completions.create(**ASK | {"messages": [{"role": "user", "content": "x" * 900}]})
    assert post(served.port, b"{}", "/v1/completions")[0] == 404
    assert backend.asks == []


def test_turns_that_the_chat_template_refuses_are_the_clients_error(served, backend):
    twice = ASK | {"messages": [{"role": "assistant", "content": "2"}] * 2 + ASK["messages"]}
    with pytest.raises(
        openai.UnprocessableEntityError, match=r"chat template refuses .*\(assistant, assistant, user\): two"
    ):
        served.client().chat.completions.create(**twice)
    assert backend.asks == []


def test_a_body_over_the_limit_is_refused_with_and_without_a_stated_length(backend):
    with Serving(backend, max_body_bytes=10_000) as served:
        status, content, _ = post(served.port, b" " * 10_001)
        assert status == 413 and "10,000 bytes" in content["error"]["message"]
        sent = 0
        with socket.create_connection(("127.0.0.1", served.port), 10) as line:
            line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            line.settimeout(0.02)
            answer = b""
            while not answer and sent < 10_000_000:  # chunks without end: the answer comes before they are all sent
                try:
                    line.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
                    sent += 1000
                    answer = line.recv(100)
                except TimeoutError:
                    continue
                except OSError:
                    break
        assert answer.startswith(b"HTTP/1.1 413") and sent < 1_000_000
        assert backend.asks == []


def test_a_body_that_does_not_come_is_given_up(backend):
    with (
        Serving(backend, body_seconds=0.3) as served,
        socket.create_connection(("127.0.0.1", served.port), 10) as line,
    ):
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert line.recv(100).startswith(b"HTTP/1.1 408")


def test_too_many_requests_are_turned_away_and_the_others_answered(backend):
    backend.delay = {"candidate": 0.4}
    with Serving(backend, max_running=2, max_waiting=3) as served:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: post(served.port, json.dumps(ASK).encode()), range(12)))
        statuses = sorted(status for status, _, _ in answers)
        assert statuses == [200] * 5 + [429] * 7
        assert backend.most <= 2
        refused = next(headers for status, _, headers in answers if status == 429)
        assert int(refused["retry-after"]) >= 1
        assert served.server.places.running == served.server.places.waiting == 0
        assert post(served.port, json.dumps(ASK).encode())[0] == 200


def test_a_place_is_given_back_whoever_leaves_how():
    async def scenario():
        places, order = Places(1, 2), []

        async def visit(name, seconds=0.05):
            async with places.one():
                order.append(name)
                await asyncio.sleep(seconds)

        first = asyncio.create_task(visit("first", 0.2))
        await asyncio.sleep(0.01)
        second, third = asyncio.create_task(visit("second")), asyncio.create_task(visit("third"))
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError) as full:
            await visit("fourth")
        assert full.value.status == 429 and places.waiting == 2
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await asyncio.gather(first, third)
        assert order == ["first", "third"] and (places.running, places.waiting) == (0, 0)
        waiting = asyncio.create_task(visit("a", 0.1)), asyncio.create_task(visit("b"))
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        await asyncio.sleep(0)  # the place is b's, who has not been told yet
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (places.running, places.waiting) == (0, 0)

    asyncio.run(scenario())


def test_a_refinement_that_fails_is_answered_by_the_majority(served, backend):
    backend.fail = {"refinement": 503}
    answer = served.client().chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "2" and answer.gsr["degraded"] == "refinement_failed"
    chunks = list(served.client().chat.completions.create(**ASK, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "2"
    assert chunks[-1].gsr["degraded"] == "refinement_failed"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "error"), [(503, openai.InternalServerError), (504, openai.InternalServerError)])
def test_without_candidates_there_is_a_proper_error(served, backend, status, error, stream):
    backend.fail = {"candidate": status}
    with pytest.raises(error) as caught:
        served.client().chat.completions.create(**ASK, stream=stream)
    assert caught.value.status_code == status
    assert "told to fail" not in str(caught.value)


def test_a_backend_that_is_known_to_be_gone_is_not_asked(served, backend):
    backend.up = False
    status, content, headers = post(served.port, json.dumps(ASK).encode())
    assert status == 503 and content["error"]["code"] == "backend_unavailable" and "retry-after" in headers
    assert backend.asks == []


def test_a_stream_that_breaks_off_says_so(served, backend):
    backend.break_off = True
    with pytest.raises(openai.APIError, match="does not answer"):
        list(served.client().chat.completions.create(**ASK, stream=True))
    wait_until(lambda: counted(served) == {"503": 1}, 5, "the count")
    backend.break_off = False
    list(served.client().chat.completions.create(**ASK, stream=True))
    wait_until(lambda: counted(served) == {"503": 1, "200": 1}, 5, "the count")


@pytest.mark.clock
def test_the_time_limit_is_kept_and_shared_by_the_stages(backend):
    with Serving(backend, request_seconds=0.6) as served:
        backend.delay = {"candidate": 5}
        start = time.monotonic()
        status, content, _ = post(served.port, json.dumps(ASK).encode())
        assert status == 504 and content["error"]["code"] == "backend_timeout"
        assert 0.2 < time.monotonic() - start < 0.6
        backend.delay = {"refinement": 5}
        start = time.monotonic()
        status, content, _ = post(served.port, json.dumps(ASK).encode())
        assert status == 200 and content["gsr"]["degraded"] == "refinement_failed"
        assert 0.5 < time.monotonic() - start < 1.5


@pytest.mark.clock
def test_waiting_for_a_place_counts_as_time(backend):
    backend.delay = {"candidate": 0.9, "refinement": 0.9}
    with Serving(backend, request_seconds=2, max_running=1) as served:
        first = threading.Thread(target=post, args=(served.port, json.dumps(ASK).encode()))
        first.start()
        wait_until(lambda: backend.now, 5, "the first request")
        start = time.monotonic()
        status, _, _ = post(served.port, json.dumps(ASK).encode())
        assert status == 504 and time.monotonic() - start < 2 + 2 + 1
        first.join()


@pytest.mark.parametrize("stage", ["candidate", "refinement"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_the_work(served, backend, stage, stream):
    backend.delay = {stage: 20}
    body = json.dumps(ASK | {"stream": stream}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=5)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    wait_until(lambda: backend.now and backend.asks[-1].stage == stage, 5, "the stage")
    connection.sock.close()
    wait_until(lambda: backend.cancelled == [stage], 5, "the end of the work")
    wait_until(lambda: served.server.places.running == 0, 5, "the place")
    wait_until(lambda: counted(served) == {"499": 1}, 5, "the count")


def test_a_client_that_goes_in_the_middle_of_a_stream_ends_the_work(served, backend):
    backend.delay = {"refinement": 8}
    stream = served.client().chat.completions.create(**ASK, stream=True)
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    stream.close()
    wait_until(lambda: backend.cancelled == ["refinement"], 5, "the end of the work")
    wait_until(lambda: served.server.places.running == 0, 5, "the place")
    wait_until(lambda: counted(served) == {"499": 1}, 5, "the count")


@pytest.mark.clock
def test_a_slow_stream_is_kept_alive_by_comments(backend):
    backend.delay = {"candidate": 0.8}
    with Serving(backend, keep_alive_seconds=0.2) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        connection.request("POST", "/v1/chat/completions", json.dumps(ASK | {"stream": True}).encode())
        start = time.monotonic()
        answer = connection.getresponse()
        assert answer.status == 200 and time.monotonic() - start < 0.6
        text = answer.read().decode()
    assert text.count(": working\n\n") >= 2 and text.endswith("data: [DONE]\n\n")


def test_many_at_once_with_hostile_ones_among_them_all_get_their_own_answer(served, backend):
    backend.delay = {"candidate": 0.02, "refinement": 0.02}

    def one(index: int) -> bool:
        kind = index % 4
        if kind == 0:
            return post(served.port, b"[" * 1000)[0] == 422
        if kind == 1:
            with socket.create_connection(("127.0.0.1", served.port), 10) as line:
                line.sendall(b"\x00\xff nonsense\r\n\r\n")
                return line.recv(20).startswith(b"HTTP/1.1 400")
        answer = post(served.port, json.dumps(ASK | {"stream": False}).encode())
        return answer[0] == 200 and answer[1]["choices"][0]["message"]["content"] == "so 2"

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(120)))
    assert len(backend.asks) == 2 * 60

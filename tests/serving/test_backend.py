"""The client of the server behind: retries, deadlines and what it says, against a server that fails in every way."""

import asyncio
import copy
import os
import resource
import time
from dataclasses import replace

import pytest

from gsr_rl.engines.base import Sampling
from gsr_rl.refinement.prompts import Prompt
from gsr_rl.serving.backend import Backend
from gsr_rl.serving.steps import Ask, SamplingFailed
from tests.support.faulty_server import FaultyServer
from tests.support.serving import free_port

PROMPT = "38+1"


def ask_for(server, n: int, last: bool = False) -> Ask:
    messages = [{"role": "user", "content": PROMPT}]
    ids = server.engine.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return Ask("refinement" if last else "candidate", 0, [Prompt(messages, ids)], Sampling(n, 1.0, 1.0, 40), last=last)


def sample(server, n=6, last=False, seconds=20.0, on_text=None, **keys):
    """What `Backend.sample` gives, or raises."""

    async def scenario():
        backend = Backend(server.url, **{"context_length": 512, "tokenizer": server.engine.tokenizer} | keys)
        try:
            await backend.find(5)
            return await backend.sample(ask_for(server, n, last), time.monotonic() + seconds, on_text)
        finally:
            await backend.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_each_of_several_prompts_is_asked_for_its_completions_in_order(api):
    with FaultyServer() as server:
        one = ask_for(server, 2)
        other = Prompt([{"role": "user", "content": "38+2"}], one.prompts[0].token_ids[:-1])

        async def scenario():
            backend = Backend(server.url, context_length=512, tokenizer=server.engine.tokenizer, api=api)
            try:
                await backend.find(5)
                ask = replace(one, prompts=[*one.prompts, other], votes=True)
                return await backend.sample(ask, time.monotonic() + 20)
            finally:
                await backend.close()

        assert len(asyncio.run(scenario())) == 4
        key = "prompt" if api == "completions" else "messages"
        sent = [body[key] for body in server.bodies]
        wanted = [p.token_ids if api == "completions" else p.messages for p in (one.prompts[0], other)]
        assert [sent.count(prompt) for prompt in wanted] == [2, 2]


def test_what_is_waited_for_at_the_start_is_told_again_and_again(monkeypatch, caplog):
    monkeypatch.setattr("gsr_rl.serving.backend.TOLD_SECONDS", 0.1)

    async def scenario():
        backend = Backend(f"http://127.0.0.1:{free_port()}/v1")
        try:
            await backend.find(1.2)
        finally:
            await backend.close()

    with caplog.at_level("INFO"), pytest.raises(ValueError, match="has not answered for 1 s"):
        asyncio.run(scenario())
    lines = [one.getMessage() for one in caplog.records if one.getMessage().startswith("waiting for the backend at ")]
    assert len(lines) >= 2 and all(
        "Connection error" in line and "of backend_start_seconds=1 s" in line for line in lines
    )


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_each_completion_is_a_request_of_its_own(api):
    with FaultyServer() as server:
        found = sample(server, api=api)
        assert server.seen["none"] == 6 and len(found) == 6
    assert all(one.text and one.token_ids for one in found)
    assert all(body["max_tokens"] == 40 and body["model"] == "student" for body in server.bodies)


FAULTS = ["500", "503", "429", "cut", "half", "half json", "page", "no choices", "unfinished"]


@pytest.mark.parametrize("fault", [*FAULTS, "abort", "no text", "half a letter"])
def test_what_fails_is_asked_for_again(fault):
    with FaultyServer({"none": 1, fault: 1}, seed=1) as server:
        found = sample(server, retries=12, last=True)
        assert len(found) == 6 and server.seen["none"] == 6 and server.seen[fault] > 0


@pytest.mark.parametrize(("fault", "words"), [("abort", "finish_reason='abort'"), ("half a letter", "half a char")])
def test_a_stream_of_what_is_no_answer_fails(fault, words):
    spoken = []
    with FaultyServer({fault: 1}) as server, pytest.raises(SamplingFailed, match=words):
        sample(server, n=1, last=True, on_text=lambda _, text: spoken.append(text))
    "".join(spoken).encode()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_content_of_parts_is_read(monkeypatch, streamed):
    parts = [{"type": "thinking", "thinking": "2+2"}, {"type": "text", "text": "4"}]
    choice, spoken = {"index": 0, "finish_reason": "STOP", "message": {"role": "assistant", "content": parts}}, []
    with FaultyServer() as server:
        monkeypatch.setattr(server, "choices", lambda *_, **__: [copy.deepcopy(choice)])
        on_text = (lambda _, text: spoken.append(text)) if streamed else None
        (completion,) = sample(server, n=1, last=True, api="chat", on_text=on_text)
    assert completion.text == "<think>2+2</think>4" and completion.finished
    assert "".join(spoken) == completion.text * streamed


def test_an_address_without_v1_is_said():
    backend = Backend(f"http://127.0.0.1:{free_port()}", context_length=512)
    with pytest.raises(ValueError, match=r"has no path: most servers need http://\S+/v1"):
        asyncio.run(backend.find(0.1))


def test_a_refusal_is_not_repeated():
    with FaultyServer({"400": 1}) as server:
        with pytest.raises(SamplingFailed) as caught:
            sample(server, n=1, retries=5)
        assert caught.value.status == 503 and server.seen["400"] == 1


def test_tries_are_used_up():
    with FaultyServer({"500": 1}) as server:
        with pytest.raises(SamplingFailed, match="500"):
            sample(server, n=1, retries=2)
        assert server.seen["500"] == 3


@pytest.mark.clock
def test_candidates_that_are_there_in_time_are_used_and_answers_are_all_needed():
    with FaultyServer({"none": 1, "hang": 1}, hang=30, seed=3) as server:
        start = time.monotonic()
        found = sample(server, n=8, seconds=1.5)
        assert 1 <= len(found) < 8 and time.monotonic() - start < 5
    with FaultyServer({"none": 1, "hang": 1}, hang=30, seed=3) as server:
        with pytest.raises(SamplingFailed) as caught:
            sample(server, n=8, last=True, seconds=1.5)
        assert caught.value.status == 504


def test_a_key_goes_to_the_server_and_into_no_error():
    with FaultyServer({"500": 1}) as server:
        with pytest.raises(SamplingFailed) as caught:
            sample(server, n=1, retries=0, key="open-sesame")
        assert server.headers[0]["authorization"] == "Bearer open-sesame"
        assert "open-sesame" not in str(caught.value) and "***" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model": "other"}, "backend_model=other: .* serves student"),
        ({"context_length": None}, "max_model_length is not set"),
    ],
)
def test_a_server_that_does_not_fit_is_named(keys, words):
    with FaultyServer() as server, pytest.raises(ValueError, match=words):
        sample(server, **keys)


def test_no_more_requests_are_in_flight_than_may_be():
    with FaultyServer({"drip": 1}, hang=0.02) as server:
        sample(server, n=6, last=True, max_requests=2)
        assert server.most == 2


def test_a_lack_of_files_here_does_not_make_the_server_gone():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scenario(server):
        backend = Backend(server.url, context_length=512, tokenizer=server.engine.tokenizer, retries=0)
        try:
            await backend.find(5)
            ask, later = ask_for(server, 3, last=True), time.monotonic() + 20
            await backend.sample(ask_for(server, 1), later)  # one connection is there
            with open(os.devnull) as file:
                resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 1, hard))
                with pytest.raises(SamplingFailed, match="ConnectError"):
                    await backend.sample(ask, later)
                assert backend.up
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert len(await backend.sample(ask, later)) == 3
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await backend.close()

    with FaultyServer() as server:
        asyncio.run(scenario(server))


def test_a_server_that_is_gone_is_noticed_at_once():
    async def scenario():
        backend = Backend(f"http://127.0.0.1:{free_port()}/v1", model="student", context_length=512, retries=1)
        backend.up = True
        ask = Ask("candidate", 0, [Prompt([{"role": "user", "content": PROMPT}], [1, 2, 3])], Sampling(2), last=False)
        with pytest.raises(SamplingFailed) as caught:
            await backend.sample(ask, time.monotonic() + 10)
        assert caught.value.status == 503 and not backend.up
        with pytest.raises(ValueError, match=r"has not answered for 0 s .*is it running"):
            await backend.find(0)
        await backend.close()

    asyncio.run(scenario())

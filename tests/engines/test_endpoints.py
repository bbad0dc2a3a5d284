"""Endpoints: whatever they do, every request ends, once, with all its completions or an error; and no key leaks."""

import copy
import json
import time
from dataclasses import replace
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from gsr_rl.data import tiny_world
from gsr_rl.engines import endpoints
from gsr_rl.engines.base import EngineError, Request, Sampling
from gsr_rl.engines.endpoints import EndpointEngine, EndpointSettings
from gsr_rl.refinement.prompts import get_template, prompt_token_ids, solve_prompt
from tests.support.faulty_server import FaultyServer
from tests.support.fixed_engine import FixedEngine, run_recipe

ALL_FAULTS = ["500", "503", "429", "hang", "cut", "page", "unfinished", "no choices", "half", "half json", "fewer"]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoints, "FIRST_PAUSE", 0.002)
    monkeypatch.setattr(endpoints, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(endpoints, "START_SECONDS", 2.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    FixedEngine().tokenizer.save_pretrained(folder)
    return str(folder)


def engine_of(tokenizer, *urls, **more) -> EndpointEngine:
    settings = {"urls": urls, "tokenizer": tokenizer, "timeout": 20.0, "retries": 30} | more
    return EndpointEngine("student", EndpointSettings(**settings), 512)


def requests_for(number: int, n: int = 4) -> list[Request]:
    engine, template = FixedEngine(), get_template("tiny")
    chats = [solve_prompt(row["problem"], template) for row in tiny_world.generate("mix", "sft", number, 0)]
    return [Request(i, prompt_token_ids(engine.tokenizer, chat), Sampling(n), chat) for i, chat in enumerate(chats)]


def texts_of(results) -> dict:
    found = {}
    for result in results:
        assert result.key not in found and not result.error
        found[result.key] = [completion.text for completion in result.completions]
    return found


@pytest.mark.parametrize("fault", [*ALL_FAULTS, "drip"])
def test_no_fault_loses_or_doubles_a_completion(tokenizer, fault):
    requests = requests_for(6)
    expected = texts_of(FixedEngine().stream(requests))
    timeout = 1.0 if fault in ("hang", "drip") else 20.0  # a machine may be busy, and each of these costs it
    faults = {"none": 0.5, fault: 0.5}
    with FaultyServer(faults, 1, hang=2.0) as server, engine_of(tokenizer, server.url, timeout=timeout) as engine:
        assert texts_of(engine.stream(requests)) == expected
        assert server.seen[fault] and engine.counts["requests"] == 6
        if fault not in ("hang", "drip"):  # there a slow machine may let a good answer time out as well
            assert engine.counts["retries"] == (0 if fault == "fewer" else server.seen[fault])


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_streaming_server_that_gives_fewer_than_asked_is_asked_for_the_rest(tokenizer, api):
    (request,) = requests_for(1)
    shown = [""] * 4

    def on_text(index: int, text: str) -> None:
        shown[index] += text

    streamed = Request(0, request.token_ids, request.sampling, request.messages, on_text)
    with FaultyServer({"fewer": 1.0}) as server, engine_of(tokenizer, server.url, api=api) as engine:
        assert texts_of(engine.stream([streamed])) == texts_of(FixedEngine().stream([request])) == {0: shown}
        assert [body["n"] for body in server.bodies] == [4, 2, 1]


def test_token_ids_of_a_vllm_server_are_sent_and_kept(tokenizer):
    requests = requests_for(3)
    with FaultyServer() as server, engine_of(tokenizer, server.url, api="completions") as engine:
        results = {result.key: result.completions for result in engine.stream(requests)}
        expected = {result.key: result.completions for result in FixedEngine().stream(requests)}
        assert results == expected
        assert sorted(body["prompt"] for body in server.bodies) == sorted(one.token_ids for one in requests)


def test_a_chat_request_says_how_to_sample_and_carries_the_options(tokenizer):
    (request,) = requests_for(1, n=3)
    with FaultyServer() as server, engine_of(tokenizer, server.url, options={"reasoning_effort": "low"}) as engine:
        list(engine.stream([request]))
        body = server.bodies[0]
        assert body["messages"] == request.messages and body["model"] == "student" and body["n"] == 3
        assert body["max_tokens"] == 256 and body["temperature"] == 1.0 and body["reasoning_effort"] == "low"


def test_another_endpoint_answers_where_one_fails(tokenizer):
    requests = requests_for(12)
    with FaultyServer({"500": 1.0}) as broken, FaultyServer() as sound:
        with engine_of(tokenizer, broken.url, sound.url) as engine:
            assert texts_of(engine.stream(requests)) == texts_of(FixedEngine().stream(requests))
        assert broken.seen["500"] and sound.seen["none"] == 12


def test_a_server_that_asks_for_a_pause_gets_it(tokenizer):
    with FaultyServer({"429": 1.0}) as server, engine_of(tokenizer, server.url, retries=3) as engine:
        start = time.monotonic()
        (result,) = engine.stream(requests_for(1))
        assert "429" in result.error and "after 4 tries" in result.error and not result.completions
        assert time.monotonic() - start > 3 * 0.05


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        *(("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("nan", 0)),
        *((formatdate(1060, usegmt=True), 60), (formatdate(0), 0), (formatdate(10**6), 600)),
    ],
)
def test_a_pause_may_be_asked_for_in_seconds_or_until_a_date(monkeypatch, asked, pause):
    monkeypatch.setattr(endpoints.time, "time", lambda: 1000.0)
    error = Exception()
    error.response = SimpleNamespace(headers={"retry-after": asked})
    assert endpoints.retry_after(error) == pause and endpoints.retry_after(Exception()) == 0


def test_a_request_that_is_refused_fails_alone_and_at_once(tokenizer):
    requests = requests_for(5)
    refused = requests[2].messages[0]["content"]
    with FaultyServer(refuse=lambda text: refused in text) as server, engine_of(tokenizer, server.url) as engine:
        results = {result.key: result for result in engine.stream(requests)}
        assert "this prompt is refused" in results[2].error and len(results) == 5
        assert all(len(results[key].completions) == 4 for key in (0, 1, 3, 4)) and len(server.bodies) == 5


def test_any_number_of_refused_prompts_leaves_the_others_to_be_answered(tokenizer):
    requests = requests_for(40)
    answered = requests[-1].messages[0]["content"]
    with FaultyServer(refuse=lambda text: answered not in text) as server, engine_of(tokenizer, server.url) as engine:
        results = list(engine.stream(requests))
    assert len(results) == 40 and sum("refused" in (one.error or "") for one in results) == 39


def test_an_endpoint_that_never_answers_ends_the_job_after_a_few_requests(tokenizer):
    said = pytest.raises(RuntimeError, match=r"16 requests in a row got no answer, the last one: .*status 500")
    with FaultyServer({"500": 1.0}) as server, engine_of(tokenizer, server.url, retries=1) as engine, said:
        list(engine.stream(requests_for(40)))


def test_an_endpoint_that_is_not_there_is_named(tokenizer):
    with FaultyServer() as server:
        url = server.url
    with pytest.raises(RuntimeError, match=rf"{url} has not answered for .* is it running\?"):
        engine_of(tokenizer, url)


def test_a_forbidden_prompt_fails_alone_where_others_are_answered_and_ends_the_job_where_none_is(tokenizer):
    requests = requests_for(3)
    refused = requests[1].messages[0]["content"]
    with FaultyServer(refuse=lambda text: refused in text) as server, engine_of(tokenizer, server.url) as engine:
        server.refusal = 403
        assert len(texts_of(engine.stream(requests[:1]))) == 1
        results = {result.key: result for result in engine.stream(requests[1:])}
        assert "this prompt is refused" in results[1].error and len(results[2].completions) == 4
    with FaultyServer(refuse=lambda text: True) as server, engine_of(tokenizer, server.url) as engine:
        server.refusal = 403
        with pytest.raises(RuntimeError, match="this prompt is refused"):
            list(engine.stream(requests))


@pytest.mark.parametrize("models", [[{"id": "student"}], {"models": []}, {"data": ["student"]}, "busy"])
def test_a_list_of_models_in_another_form_is_as_none(tokenizer, models):
    with FaultyServer() as server:
        server.models = models
        start = time.monotonic()
        with engine_of(tokenizer, server.url) as engine:
            assert (
                time.monotonic() - start < endpoints.START_SECONDS and len(list(engine.stream(requests_for(1)))) == 1
            )


def test_a_wrong_key_ends_the_job_without_showing_it(tokenizer, monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with FaultyServer({"401": 1.0}) as server, engine_of(tokenizer, server.url, api_key_env="MY_KEY") as engine:
        with pytest.raises(RuntimeError) as caught:
            list(engine.stream(requests_for(2)))
        assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
    assert "status 401 for Bearer ***" in str(caught.value) and "secret" not in str(caught.value)
    assert "secret" not in "".join(capfd.readouterr())


def test_the_rate_limit_is_kept(tokenizer):
    with FaultyServer() as server, engine_of(tokenizer, server.url, requests_per_minute=1200) as engine:
        start = time.monotonic()
        assert len(list(engine.stream(requests_for(10)))) == 10
        assert time.monotonic() - start >= 9 * 0.05


def test_requests_in_flight_are_limited(tokenizer):
    asked = 0

    def requests():
        nonlocal asked
        for request in requests_for(12, n=1):
            asked += 1
            yield request

    with FaultyServer({"none": 1.0}) as server, engine_of(tokenizer, server.url, max_requests_in_flight=3) as engine:
        for done, _ in enumerate(engine.stream(requests()), 1):
            assert asked - done <= 3 + 1, "three in flight, one in hand"
        assert asked == server.seen["none"] == 12


def test_thinking_that_a_server_parses_out_is_put_back(tokenizer, monkeypatch):
    with FaultyServer() as server, engine_of(tokenizer, server.url) as engine:
        message = {"role": "assistant", "content": "4", "reasoning_content": "2+2"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        monkeypatch.setattr(server, "choices", lambda *_, **__: [choice])
        (result,) = engine.stream(requests_for(1, n=1))
        assert result.completions[0].text == "<think>\n2+2\n</think>\n4"


PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "2+2"}]}, {"type": "text", "text": "4"}]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_content_of_parts_is_read(tokenizer, monkeypatch, streamed):
    (request,) = requests_for(1, n=1)
    request = replace(request, on_text=(lambda *_: None) if streamed else None)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": PARTS}}
    with FaultyServer() as server, engine_of(tokenizer, server.url) as engine:
        monkeypatch.setattr(server, "choices", lambda *_, **__: [copy.deepcopy(choice)])
        (result,) = engine.stream([request])
        assert result.completions[0].text == "<think>\n2+2\n</think>\n4" and engine.counts["retries"] == 0


def test_half_a_character_costs_its_completion_alone(tokenizer, caplog):
    with FaultyServer({"half a letter": 1.0}) as server, engine_of(tokenizer, server.url) as engine:
        (result,) = engine.stream(requests_for(1))
        assert [bool(completion.text) for completion in result.completions] == [True, True, True, False]
        assert not result.error and not result.completions[3].finished and server.seen["half a letter"] == 1
    assert "half a character" in caplog.text


def test_an_address_without_v1_is_said(tokenizer):
    words = r"404.* has no path: most servers need http://\S+/v1"
    with FaultyServer({"404": 1.0}) as server, pytest.raises(EngineError, match=words):
        list(engine_of(tokenizer, server.url.removesuffix("/v1")).stream(requests_for(1)))


@pytest.mark.parametrize("bad", [{"finish_reason": "abort"}, {"finish_reason": "error"}, {"message": None}])
def test_a_choice_that_is_no_completion_is_asked_for_again(tokenizer, monkeypatch, bad):
    good = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "4"}}
    answers = iter([good | bad, good])
    with FaultyServer() as server, engine_of(tokenizer, server.url) as engine:
        monkeypatch.setattr(server, "choices", lambda *_, **__: [next(answers)])
        (result,) = engine.stream(requests_for(1, n=1))
        assert [one.text for one in result.completions] == ["4"] and engine.counts["retries"] == 1


@pytest.mark.parametrize(
    ("reason", "finished"),
    [
        *((word, True) for word in ("stop", "eos", "stop_sequence", "end_turn", "eos_token", "STOP")),
        *((word, False) for word in ("length", "max_tokens", "content_filter")),
    ],
)
def test_a_completion_is_finished_if_the_model_ended_it_in_whatever_word(tokenizer, monkeypatch, reason, finished):
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": "4"}}
    with FaultyServer() as server, engine_of(tokenizer, server.url) as engine:
        monkeypatch.setattr(server, "choices", lambda *_, **__: [choice])
        (result,) = engine.stream(requests_for(1, n=1))
        assert result.completions[0].finished is finished


def test_greedy_copies_are_asked_for_once(tokenizer):
    (request,) = requests_for(1)
    greedy = Request(0, request.token_ids, Sampling(5, temperature=0.0), request.messages)
    with FaultyServer() as server, engine_of(tokenizer, server.url) as engine:
        (result,) = engine.stream([greedy])
        assert len(result.completions) == 5 and server.bodies[0]["n"] == 1


def test_without_a_window_the_mend_is_said(tokenizer):
    with FaultyServer() as server, pytest.raises(ValueError, match="max_model_length is not set"):
        EndpointEngine("student", EndpointSettings((server.url,), tokenizer=tokenizer))


def findings(**values) -> str:
    from gsr_rl import cli

    base = {"dataset_name": "tiny/mix", "student_model": "m", "output_dir": "o", "engine": "endpoint"}
    with pytest.raises(ValueError) as caught:
        cli.check_values("distill", base | values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "endpoints is not set"),
        ({"endpoints": ["localhost:8000"]}, "is no address"),
        ({"endpoints": ["http://user:secret@host/v1"]}, "holds a secret"),
        ({"endpoints": ["http://host/v1?api_key=secret"]}, "holds a secret"),
        ({"endpoints": ["http://host/v1"], "api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE: this environment"),
        ({"endpoints": ["http://host/v1"], "api_key_env": "sk-secret"}, "must be the name of an environment variable"),
        (
            {"endpoints": ["http://host/v1"], "api_key_env": "gsk_secret"},
            "must be the name of an environment variable",
        ),
        ({"endpoints": ["http://host/v1"], "endpoint_api": "responses"}, "use chat or completions"),
        ({"endpoints": ["http://host/v1"], "request_timeout": 0}, "request_timeout=0: a positive number"),
        (
            {"teacher_engine": "magic", "endpoints": ["http://h/v1"]},
            "teacher_engine='magic': use vllm, transformers or endpoint",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_without_showing_secrets(values, message):
    said = findings(**values)
    assert message in said and "secret" not in said.replace("holds a secret", "")


def test_a_whole_distillation_over_faulty_endpoints_equals_one_without(tokenizer, tmp_path, monkeypatch):
    from gsr_rl.data.config import ProblemConfig
    from gsr_rl.distillation.config import DistillConfig
    from gsr_rl.distillation.distill import distill, open_store

    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    rows, problems = tiny_world.generate("mix", "sft", 20, 0), ProblemConfig(dataset_name="tiny/mix")

    def run(folder, **more):
        keys = {"student_model": "student", "output_dir": str(folder), "prompt_template": "tiny", "num_candidates": 3}
        keys |= {"num_generations": 5, "max_completion_length": 40, "refinements_per_set": 3, "num_candidate_sets": 2}
        config = DistillConfig(engine="endpoint", endpoints=["http://localhost:1/v1"], problems_per_chunk=3, **keys)
        for key, value in more.items():
            setattr(config, key, value)
        opener = {} if "max_model_length" in more else {"open_engine": FixedEngine}
        return config, distill(rows, problems, config, **opener)

    _, (whole, counts) = run(tmp_path / "whole")
    # Not "fewer": the test's servers do not tell each other what they gave.
    faults = {"none": 0.5} | {fault: 0.05 for fault in ALL_FAULTS if fault != "fewer"}
    with FaultyServer(faults, seed=2) as server, FaultyServer(faults, seed=3) as other:
        served = {"endpoints": [server.url, other.url], "endpoint_tokenizer": tokenizer, "api_key_env": "MY_KEY"}
        served |= {"max_model_length": 512, "request_timeout": 20.0, "request_retries": 60}
        config, (found, found_counts) = run(tmp_path / "served", **served)
    assert sum((server.seen + other.seen).values()) > 100 and found_counts["funnel"] == counts["funnel"]
    assert list(found) == list(whole)
    stored = [line for path in (tmp_path / "served/shards").glob("*-*.jsonl") for line in path.open()]
    assert sorted(json.loads(line)["unit"] for line in stored) == sorted([row["id"] for row in rows] * 2)
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "served").rglob("*") if path.is_file())
    open_store(rows, problems, config)


def test_an_evaluation_over_an_endpoint_equals_one_without(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "student").mkdir()
    keys = {"dataset_name": "tiny/mix", "dataset_split": "test", "max_problems": 12, "prompt_template": "tiny"}
    keys |= {"num_candidates": 3, "num_generations": 5, "max_completion_length": 40}
    keys |= {"max_refinement_prompt_length": 200}
    with monkeypatch.context() as patch:
        patch.setattr("gsr_rl.engines.open.open_engine", FixedEngine)
        run_recipe(patch, "eval", **keys, model=tmp_path / "student", output_dir=tmp_path / "whole")
    with FaultyServer({"none": 0.7, "500": 0.3}) as server:
        keys |= {"engine": "endpoint", "endpoints": [server.url], "endpoint_tokenizer": tokenizer}
        run_recipe(monkeypatch, "eval", **keys, model="student", max_model_length=512, output_dir=tmp_path / "served")
    whole, served = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("whole", "served"))
    assert served["benchmarks"] == whole["benchmarks"] and served["engine"] == "endpoint"
    assert server.seen["500"] > 3

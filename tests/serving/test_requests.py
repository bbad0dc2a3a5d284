"""Bodies of requests to the server: what is read, and what is refused with 422 before anything else happens."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsr_rl.serving.config import ServeConfig, SolveSettings
from gsr_rl.serving.requests import ApiError, parse_body, settings_of

GOOD = {"model": "m", "messages": [{"role": "user", "content": "1+1"}]}


def body(**more) -> bytes:
    return json.dumps(GOOD | more).encode()


def refusal(content: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_body(content)
    assert caught.value.status == 422
    json.dumps(caught.value.body())
    assert len(caught.value.body()["error"]["message"]) <= 400
    return caught.value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'"text"', "a JSON object is expected"),
        (b"[]", "a JSON object is expected"),
        (b"null", "a JSON object is expected"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"model": NaN}', "NaN"),
        (b'{"model": -Infinity}', "-Infinity"),
        (b'{"model": "m", "model": "n"}', "'model' stands there twice"),
        (b'{"metadata": {"a": 1, "a": 2}}', "'a' stands there twice"),
        (b"[" * 40_000, "inside each other"),
        (b'{"a":' * 40_000, "inside each other"),
        (b'{"metadata": ' + b"[" * 40 + b"]" * 40 + b"}", "inside each other"),
        (body().replace(b'"1+1"', b'"\\ud800"'), "surrogate"),
        (body().replace(b'"m"', b'"\\uDFFF"'), "surrogate"),
        (body().replace(b"}]}", b'}], "n": ' + b"9" * 5000 + b"}"), "not JSON"),
        (body().replace(b"}]}", b'}], "temperature": 1e999}'), "temperature"),
        (body().replace(b"}]}", b'}], "temperature": ' + b"9" * 400 + b"}"), "temperature"),
    ],
)
def test_hostile_json_is_refused(content, words):
    assert words in str(refusal(content))


@pytest.mark.parametrize(
    "more",
    [
        {"model": 7},
        {"messages": "hello"},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": " \n"}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"temperature": "hot"},
        {"temperature": -0.1},
        {"temperature": True},
        {"top_p": 0},
        {"n": 0},
        {"n": 1.0},
        {"n": True},
        {"max_tokens": 0},
        {"seed": 2**63},
        {"stop": ["a"] * 5},
        {"stop": [""]},
        {"stream": 1},
        {"stream_options": {"include_usage": True}},
        {"gsr": {"num_candidates": 0}},
        {"gsr": {"num_candidate": 4}},
        {"gsr": {"mode": "best"}},
        {"tools": [{"type": "function"}]},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"presence_penalty": 0.5},
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"prediction": {"type": "content", "content": "x"}},
        {"web_search_options": {}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"messages": [{"role": "system", "content": None}, *GOOD["messages"]]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}, *GOOD["messages"]]},
        {"messages": [{"role": "assistant", "content": None, "refusal": "no"}, *GOOD["messages"]]},
        {"messages": [{"role": "assistant", "content": "x", "thoughts": None}, *GOOD["messages"]]},
        {"numbers": 4},
    ],
)
def test_wrong_types_values_and_names_are_refused_by_name(more):
    error = refusal(body(**more))
    assert error.param and error.param.split(".")[0] == next(iter(more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stop": ["a"] * 5}, "stop: at most 4 texts are allowed"),
        ({"stop": 7}, "stop: a text or a list is expected"),
        ({"stop": ["a", 7]}, "stop.1: Input should be a valid string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type: only parts of type text are read, no images, sound or files",
        ),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content: a text or a list is expected"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: Input should be 'system', 'developer'"),
        ({"n": "2"}, "n: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_is_said_in_words(more, message):
    assert str(refusal(body(**more))).startswith(message)


def test_what_client_libraries_send_is_read():
    content = [{"type": "text", "text": "1"}, {"type": "text", "text": "+1"}]
    messages = [{"role": "developer", "content": "brief"}, {"role": "user", "content": content, "name": "x"}]
    request = parse_body(
        body(
            messages=messages,
            temperature=1,
            top_p=1.0,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
            stop="\n\n",
            seed=-5,
            user="u",
            metadata={"a": [1, {"b": None}]},
            presence_penalty=0,
            frequency_penalty=0.0,
            logprobs=False,
            response_format={"type": "text"},
            tool_choice="auto",
            tools=[],
            max_completion_tokens=2**70,
        )
    )
    assert request.chat() == [{"role": "system", "content": "brief"}, {"role": "user", "content": "1+1"}]
    assert request.stops() == ["\n\n"] and request.n == 2
    assert parse_body(body(temperature=None, gsr=None, stream=False)).temperature is None


@pytest.mark.parametrize(
    "content",
    [
        b'{"metadata": {"a": [' + b",".join([b"[]"] * 330_000) + b"]}}",
        b'{"messages": [{"role": "user", "content": [' + b",".join([b"1"] * 500_000) + b"]}]}",
        b"{" + b",".join(b'"%x": 1' % index for index in range(90_000)) + b"}",
        b'{"messages": [{"role": "user", "content": [' + b",".join([b"1"] * 49_000) + b"]}]}",
    ],
)
def test_a_body_of_many_values_is_refused_at_once(content):
    start = time.process_time()
    refusal(content)
    assert time.process_time() - start < 0.2


def test_every_field_that_the_official_client_knows_is_read_where_it_asks_for_nothing():
    from openai.types.chat import ChatCompletionMessage
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as Params

    asked = {"model", "messages", "stream_options"}
    nothing = dict.fromkeys(set(Params.__annotations__) - asked, None)
    assert parse_body(body(**nothing)).temperature is None
    hints = {"reasoning_effort": "low", "verbosity": "high", "prompt_cache_retention": "24h", "store": False}
    hints |= {"service_tier": "auto", "parallel_tool_calls": True, "modalities": ["text"], "functions": []}
    answered = [ChatCompletionMessage(role="assistant", content=text).model_dump() for text in ("2", None)]
    request = parse_body(body(**hints, messages=[*GOOD["messages"], *answered, *GOOD["messages"]]))
    assert [turn["content"] for turn in request.chat()] == ["1+1", "2", "", "1+1"]
    with pytest.raises(ApiError, match=r"^messages\.0\.tool_calls is not supported: leave it out$"):
        parse_body(body(messages=[answered[0] | {"tool_calls": [{"id": "x"}]}, *GOOD["messages"]]))


def test_brackets_inside_a_text_are_not_nesting():
    text = '\\"' + "[{" * 500 + "\\\\"
    assert parse_body(body(messages=[{"role": "user", "content": text}])).chat()[0]["content"] == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "n", "stop", "gsr", "stream", "seed", "metadata"]), json_values))
def test_no_json_object_does_anything_but_pass_or_be_refused(values):
    try:
        request = parse_body(json.dumps(GOOD | values).encode())
    except ApiError as error:
        assert error.status == 422
    else:
        assert request.messages[-1].role == "user"


@given(st.binary(max_size=60))
def test_no_bytes_do_anything_but_be_refused(content):
    refusal(content)


CONFIG = ServeConfig(model="m", max_num_candidates=8, max_rounds=2, max_answers=3)
BASE = SolveSettings().resolved(1024)


def settings(**more) -> SolveSettings:
    return settings_of(parse_body(body(**more)), CONFIG, BASE)


def test_a_request_sets_what_it_names_and_the_server_the_rest():
    assert settings() == SolveSettings(**vars(BASE) | {"count_votes": False})
    found = settings(temperature=1.0, top_p=0.5, n=3, gsr={"num_candidates": 8, "rounds": 2, "mode": "refine"})
    assert (found.temperature, found.refinement_temperature) == (1.0, 1.0)
    assert (found.top_p, found.refinement_top_p) == (0.5, 0.5)
    assert (found.num_answers, found.num_candidates, found.rounds) == (3, 8, 2)


def test_with_temperature_zero_the_candidates_still_differ():
    found = settings(temperature=0)
    assert (found.temperature, found.refinement_temperature) == (BASE.temperature, 0)
    assert settings(temperature=0, gsr={"mode": "direct"}).temperature == 0


def test_max_tokens_is_of_each_completion_and_never_more_than_the_server_allows():
    found = settings(max_tokens=7)
    assert (found.max_completion_length, found.max_refinement_length) == (7, 7)
    assert settings(max_tokens=9, max_completion_tokens=3).max_refinement_length == 3
    assert settings(max_completion_tokens=10**6).max_completion_length == BASE.max_completion_length == 256


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"n": 4}, "n=4: at most 3"),
        ({"gsr": {"num_candidates": 9}}, "gsr.num_candidates=9: at most 8"),
        ({"gsr": {"rounds": 3}}, "gsr.rounds=3: at most 2"),
        ({"n": 3, "gsr": {"mode": "vote", "num_candidates": 2}}, "n=3 is more than the candidates"),
    ],
)
def test_limits(more, words):
    with pytest.raises(ApiError, match=words) as caught:
        settings(**more)
    assert caught.value.status == 422


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"host": "0.0.0.0"}, "host=0.0.0.0 without a key would let anyone in"),
        ({"backend": "localhost:8000"}, "backend='localhost:8000' is no address"),
        ({"backend": "http://user:secret@localhost:8000/v1"}, "holds a secret"),
        ({"api_key_file": "no/such/file"}, "there is no such file"),
        ({"api_key_env": "sk-123"}, "value not shown"),
        ({"num_candidates": 9}, "num_candidates=9 is more than max_num_candidates=8: raise max_num_candidates"),
        ({"mode": "best"}, "mode='best' is not known: use one of refine, vote, direct"),
        ({"request_seconds": 0}, "request_seconds=0: a positive number"),
        ({"request_seconds": math.inf}, "request_seconds=inf: a finite number is expected"),
        ({"body_seconds": math.nan}, "body_seconds=nan: a finite number is expected"),
        ({"temperature": math.nan}, "temperature=nan: a finite number is expected"),
        ({"refinement_temperature": math.inf}, "refinement_temperature=inf: a finite number is expected"),
        ({"port": 70000}, "port=70000"),
        ({"model": "./nowhere"}, "there is no such folder"),
        ({"model": None}, "model is not set"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_loaded(keys, words, monkeypatch):
    monkeypatch.delenv("GSR_API_KEY", raising=False)
    with pytest.raises(ValueError, match=words):
        ServeConfig(**{"model": "m", "max_num_candidates": 8} | keys)


def test_an_open_address_needs_a_key(monkeypatch, tmp_path):
    monkeypatch.setenv("GSR_API_KEY", "k\n")
    assert ServeConfig(model="m", host="0.0.0.0").keys() == ["k"]
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert ServeConfig(model="m", host="0.0.0.0", api_key_file=str(file)).keys() == ["one", "two"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no key"):
        ServeConfig(model="m", host="0.0.0.0", api_key_file=str(file))

"""Requests to `gsr-serve`: read strictly, or refused with an error in OpenAI's form. Imports no engine."""

import json
import re
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gsr_rl.serving.config import ServeConfig, SolveSettings

DEEPEST = 32  # nested lists and objects in a body; a chat request has four
MOST_VALUES = 50_000  # in a body, about; 2,048 messages of several parts have fewer
LONGEST_TEXT = 400  # characters of an error's message


class ApiError(Exception):
    """An answer other than 200, in OpenAI's form.

    Args:
        status: HTTP status.
        code: What a program can tell it by.
        param: The field that it is about.
        retry_after: Seconds after which it may go better.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after: float | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        message = str(self)[:LONGEST_TEXT]
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        return headers


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(_Strict):
    """A piece of a message. Pictures and sound are refused."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A turn of a chat; also an assistant's as client libraries hand it back, with every field that it has."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=2048)] | None = None
    name: str | None = None
    # Taken at their neutral value only.
    refusal: str | None = None
    annotations: list | None = None
    audio: dict | None = None
    function_call: dict | None = None
    tool_calls: list | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates know it: one text, and `system` for a developer's words."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False  # random filling against listeners: nothing is filled


class GSROptions(_Strict):
    """Our own settings of a request; the server's where they are left out."""

    mode: Literal["refine", "vote", "direct"] | None = None
    num_candidates: Annotated[int, Field(ge=1)] | None = None
    candidates_per_set: Annotated[int, Field(ge=1)] | None = None
    num_refinements: Annotated[int, Field(ge=1)] | None = None
    stop_when_agreed: Annotated[float, Field(gt=0.5, le=1)] | None = None
    rounds: Annotated[int, Field(ge=1)] | None = None
    return_candidates: bool = False


class ChatRequest(_Strict):
    """The body of a chat completion. What changes nothing here is ignored; `NEUTRAL` has what is refused."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    gsr: GSROptions | None = None
    # Of OpenAI's fields, those that change nothing here.
    user: str | None = None
    metadata: dict | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    # And those that are taken at their neutral value only.
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict | None = None
    response_format: dict | None = None
    tools: list | None = None
    tool_choice: str | dict | None = None
    functions: list | None = None
    function_call: str | dict | None = None
    modalities: list | None = None
    audio: dict | None = None
    moderation: dict | None = None
    prediction: dict | None = None
    web_search_options: dict | None = None

    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def chat(self) -> list[dict[str, str]]:
        return [message.plain() for message in self.messages]


NEUTRAL = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "prediction": (),
    "web_search_options": (),
}  # and null, everywhere
NEUTRAL_IN_MESSAGE = {"refusal": ("",), "annotations": ([],), "audio": (), "function_call": (), "tool_calls": ([],)}


def parse_body(body: bytes) -> ChatRequest:
    """The request in a body. Raises `ApiError` 422 for anything else: no JSON, NaN, keys twice, deep, wrong types."""
    try:
        _check_shape(body)
        values = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse_constant)
        if b"\\ud" in body.lower():  # half of a pair of surrogates is no text
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ApiError(422, "invalid_json", "the body holds half a character (a lone surrogate)") from None
    except UnicodeDecodeError as error:
        raise ApiError(422, "invalid_json", f"the body is not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(422, "invalid_json", f"the body is not JSON as it is expected: {error}") from None
    if not isinstance(values, dict):
        raise ApiError(422, "invalid_json", f"the body is a {type(values).__name__}: a JSON object is expected")
    try:
        request = ChatRequest.model_validate(values)
    except ValidationError as error:
        where, why = _in_words(error.errors(include_url=False, include_input=False, include_context=False))
        raise ApiError(422, "invalid_value", f"{where}: {why}", where) from None
    return _checked(request)


def _in_words(errors: list[dict]) -> tuple[str, str]:
    """Where a body is wrong, and why. Of what may be a text or a list, pydantic has errors for both."""
    of_lists = [error for error in errors if error["loc"][-1] != "str" and error["type"] != "list_type"]
    error, both = (of_lists or errors)[0], len(errors) > 1 and not of_lists
    where = ".".join(str(part) for part in error["loc"] if part != "str" and not str(part).startswith("list["))[:80]
    if where == "stop" and error["type"] == "too_long":
        return where, "at most 4 texts are allowed"
    if error["loc"][0] == "messages" and error["type"] == "literal_error" and "content" in error["loc"]:
        return where, "only parts of type text are read, no images, sound or files"
    return where, "a text or a list is expected" if both else error["msg"]


def _checked(request: ChatRequest) -> ChatRequest:
    """What no type says: the last turn is a problem, and nothing is asked for that cannot be given."""
    last = request.messages[-1]
    if last.role != "user":
        raise ApiError(422, "invalid_value", f"messages: the last one is the {last.role}'s; the problem, which is the "
                       "last message, must be the user's", "messages")  # fmt: skip
    if not last.plain()["content"].strip():
        raise ApiError(422, "invalid_value", "messages: the last one, the problem, is empty", "messages")
    _check_neutral(request, NEUTRAL)
    for place, message in enumerate(request.messages):
        _check_neutral(message, NEUTRAL_IN_MESSAGE, f"messages.{place}.")
        if message.content is None and message.role != "assistant":
            raise ApiError(422, "invalid_value", f"messages.{place}.content: a text is expected, only an assistant's "
                           "may be null", f"messages.{place}.content")  # fmt: skip
    if any(not stop for stop in request.stops()):
        raise ApiError(422, "invalid_value", "stop: an empty text would stop everything", "stop")
    if request.stream_options is not None and not request.stream:
        raise ApiError(422, "invalid_value", "stream_options is for stream: true", "stream_options")
    return request


def _check_neutral(values: BaseModel, neutral: dict[str, tuple], where: str = "") -> None:
    for name, allowed in neutral.items():
        value = getattr(values, name)
        if value is not None and value not in allowed:
            raise ApiError(422, "unsupported_value", f"{where}{name} is not supported: leave it out", where + name)


def _once(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:40]!r} stands there twice")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_shape(body: bytes) -> None:
    """Refuse deep nesting and endless lists before the parser, which is recursive, meets them. Texts do not count."""
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    if sum(outside.count(mark) for mark in b"[{,") > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values")
    depth = 0
    for bracket in re.finditer(rb"[\[\]{}]", outside):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} lists and objects inside each other")


def settings_of(request: ChatRequest, config: ServeConfig, base: SolveSettings) -> SolveSettings:
    """How to solve a request: its own values over the server's.

    `temperature` and `top_p` are of both stages, but with temperature 0 the candidates, which would be all alike, keep
    the server's. `max_tokens` is the most that each completion may have; a larger one than the server's is cut to it.

    `base` are the server's settings with every default filled in. Raises `ApiError` 422 for a value over its limits.
    """
    ours, answers = request.gsr or GSROptions(), request.n or 1
    values: dict[str, object] = {"num_answers": answers, "mode": ours.mode or base.mode}
    for name, value, limit in (
        ("gsr.num_candidates", ours.num_candidates, config.max_num_candidates),
        ("gsr.num_refinements", ours.num_refinements, config.max_num_candidates),
        ("gsr.rounds", ours.rounds, config.max_rounds),
        ("n", request.n, config.max_answers),
    ):
        if value is not None and value > limit:
            raise ApiError(422, "invalid_value", f"{name}={value}: at most {limit} is allowed here", name)
    names = ("num_candidates", "candidates_per_set", "num_refinements", "stop_when_agreed", "rounds")
    values |= {name: value for name in names if (value := getattr(ours, name)) is not None}
    voting = replace(base, **values)
    if voting.mode == "vote" and answers > voting.num_candidates:
        raise ApiError(422, "invalid_value", f"n={answers} is more than the candidates that vote", "n")
    if voting.composes and answers > voting.refinements:
        raise ApiError(422, "invalid_value", f"n={answers} is more than the refinements that vote", "n")
    if request.temperature is not None:
        values["refinement_temperature"] = request.temperature
        if request.temperature > 0 or values["mode"] == "direct":
            values["temperature"] = request.temperature
    if request.top_p is not None:
        values |= {"top_p": request.top_p, "refinement_top_p": request.top_p}
    longest = min(request.max_tokens or 2**62, request.max_completion_tokens or 2**62)
    values["max_completion_length"] = min(base.max_completion_length, longest)
    values["max_refinement_length"] = min(base.max_refinement_length, longest)
    values["count_votes"] = ours.return_candidates or values["mode"] == "vote"
    return replace(base, **values)

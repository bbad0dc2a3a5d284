"""Configuration of `gsr-solve` and `gsr-serve`, with its checks. Imports neither torch nor TRL."""

import dataclasses
import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from gsr_rl.engines.config import EngineAccess
from gsr_rl.keys import (
    at_least,
    check_address,
    check_key_variable,
    check_model,
    check_shares,
    finite,
    key,
    mapping,
    one_of,
    positive,
    raise_if_any,
)
from gsr_rl.refinement.settings import ChatTemplateConfig, RefinementConfig, check_chat_template, refinement_settings
from gsr_rl.serving.steps import MODES, SolveSettings

ENGINES = ("auto", "vllm", "transformers", "endpoint")
APIS = ("chat", "completions")
SHORT_NAMES = {"k": "num_candidates"}  # on the command line


@dataclass
class AnswerConfig(ChatTemplateConfig):
    """How a problem is answered: how candidates are shown (from the model's own file), and how they are sampled."""

    model: str | None = key(None, "Path or Hub name of the model.")
    num_candidates: int | None = key(None, "K: candidates per problem. Default: the model's gsr_config.json, else 4.")
    prompt_template: str | None = key(None, "Wording of the prompts: gsr or tiny. Default: gsr_config.json, else gsr.")
    max_refinement_prompt_length: int | None = key(
        None, "Budget of a refinement prompt in tokens. Default: gsr_config.json, else 8192."
    )
    unfinished_candidates: str | None = key(None, "Unfinished ones: drop or cut. Default: gsr_config.json, else drop.")
    mode: str = key("refine", "refine, vote (the majority's candidate, no refinement) or direct (one plain sample).")
    rounds: int = key(1, "Refinement rounds. Each but the last makes K refinements, which the next one reads.")
    temperature: float = key(0.6, "Sampling temperature of candidates; 0 is greedy.")
    top_p: float = key(0.95, "Nucleus of candidates.")
    refinement_temperature: float | None = key(None, "Sampling temperature of refinements. Default: temperature.")
    refinement_top_p: float | None = key(None, "Nucleus of refinements. Default: top_p.")
    max_completion_length: int | None = key(
        None,
        "Limit of a candidate in tokens. Default: gsr_config.json (as in training), else a quarter of the model's "
        "context length, at most 4096.",
    )
    max_refinement_length: int | None = key(
        None,
        "Limit of a refinement in tokens. Default: max_completion_length if that is set, else gsr_config.json, else "
        "as for candidates.",
    )

    def __post_init__(self):
        raise_if_any(self.errors())

    def errors(self) -> list[str]:
        """Everything that is wrong with the values, each with its fix."""
        messages = finite(self)
        if self.mode not in MODES:
            messages.append(f"mode={self.mode!r} is not known: use one of {', '.join(MODES)}")
        messages += at_least(self, 1, "num_candidates", "rounds", "max_completion_length", "max_refinement_length")
        messages += at_least(self, 1, "max_refinement_prompt_length")
        messages += at_least(self, 0, "temperature", "refinement_temperature")
        messages += check_chat_template(self, "model")
        return messages + check_shares(self, "top_p", "refinement_top_p")

    def solve_settings(self) -> SolveSettings:
        """What is set here, over what the model's `gsr_config.json` holds, over the defaults.

        Raises:
            ValueError: A value of the file is wrong.
        """
        stored = refinement_settings(getattr(self, "endpoint_tokenizer", None) or self.model)
        trained = {f"trained_{of}_length": stored.pop(f"max_{of}_length", None) for of in ("completion", "refinement")}
        set_here = {name: value for name, value in self._values_of(RefinementConfig).items() if value is not None}
        values = self._values_of(SolveSettings) | dataclasses.asdict(RefinementConfig(**stored | set_here))
        return SolveSettings(**values, **trained)

    def _values_of(self, other: type) -> dict[str, object]:
        """The values here of another dataclass's fields."""
        names = [field.name for field in dataclasses.fields(other) if hasattr(self, field.name)]
        return {name: getattr(self, name) for name in names}


@dataclass
class SolveConfig(EngineAccess, AnswerConfig):
    """`gsr-solve` and `gsr_rl.Solver`: the engine that answers."""

    engine: str = key(
        "auto",
        "vllm, transformers or endpoint. Default (auto): endpoint if endpoints is set, vllm if it is installed, else "
        "transformers.",
    )
    request_retries: int = key(3, "Further tries of a request to an endpoint.")
    enforce_eager: bool | None = key(None, "vLLM without compilation: it starts sooner. Default: on a CPU.")

    def __post_init__(self):
        self.endpoint_options = mapping("endpoint_options", self.endpoint_options)
        self.endpoints = [self.endpoints] if isinstance(self.endpoints, str) else self.endpoints
        super().__post_init__()

    def errors(self) -> list[str]:
        messages = super().errors()
        if not self.model or not (self.endpoints or self.engine == "endpoint"):  # which knows it by a name of its own
            messages += check_model(self, "model")
        if self.engine not in ENGINES:
            messages.append(f"engine={self.engine!r} is not known: use {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")
        if self.engine == "endpoint" and not self.endpoints:
            messages.append("endpoints is not set: engine=endpoint needs one, such as http://localhost:8000/v1")
        if self.endpoints and self.engine not in ("auto", "endpoint"):
            messages.append(f"endpoints is set, but engine={self.engine}: leave one of the two out")
        for url in self.endpoints or []:
            messages += check_address("endpoints", url)
        messages += one_of(self, endpoint_api=APIS) + check_key_variable("api_key_env", self.api_key_env)
        messages += at_least(self, 1, "max_model_length", "max_num_seqs", "tensor_parallel_size")
        return messages + at_least(self, 0, "request_retries") + positive(self, "request_timeout")


@dataclass
class SolveInput:
    """Where the problems of `gsr-solve` come from, and what is printed."""

    file: str | None = key(None, "A file with one problem; .jsonl: one a line, in `problem` or `question`.")
    json: bool = key(False, "Print one JSON object per problem and nothing else.")


@dataclass
class ServeConfig(AnswerConfig):
    """`gsr-serve`: the server behind it, the address in front, and its limits."""

    backend: str = key("http://127.0.0.1:8000/v1", "Address of the vLLM server that samples.")
    backend_model: str | None = key(None, "Its name for the model. Default: the only one that it serves.")
    backend_api: str = key("completions", "completions (token ids, exact; vLLM, SGLang) or chat (messages, any).")
    backend_key_env: str | None = key(None, "Environment variable with the backend's key. Default: no key.")
    backend_retries: int = key(2, "Further tries of a request that the backend refused or dropped.")
    backend_start_seconds: float = key(60.0, "How long to wait for the backend's first answer at the start.")
    max_model_length: int | None = key(None, "The backend's context length in tokens. Default: what it states.")
    host: str = key("127.0.0.1", "Address to listen on. 0.0.0.0: all; needs a key.")
    port: int = key(8080, "Port to listen on; 0 takes a free one.")
    served_model_name: str | None = key(None, "Name in /v1/models. Default: the last part of `model`.")
    api_key_env: str = key("GSR_API_KEY", "Name of the environment variable with the clients' key.")
    api_key_file: str | None = key(None, "File with clients' keys, one a line, in place of the variable.")
    without_key: bool = key(False, "Allow an open server on another address than this machine's own.")
    max_num_candidates: int = key(16, "The most candidates that a request may ask for.")
    max_rounds: int = key(3, "The most rounds that a request may ask for.")
    max_answers: int = key(8, "The largest `n` that a request may ask for.")
    max_body_bytes: int = key(1_048_576, "Largest body of a request.")
    body_seconds: float = key(30.0, "How long a client may take to send its body.")
    header_seconds: float = key(10.0, "How long a connection may take to send a request's header; then it is closed.")
    max_connections: int = key(512, "Connections at once. A request on one more gets 503; twice as many are closed.")
    max_backend_requests: int = key(256, "Completions asked of the backend at once; further ones wait for their turn.")
    max_running: int = key(64, "Requests worked on at once.")
    max_waiting: int = key(128, "Requests that wait for a place; one more gets 429.")
    request_seconds: float = key(600.0, "How long a request may take, waiting included. Its stages share it.")
    keep_alive_seconds: float = key(10.0, "A stream begins at the latest, and then says at least a comment, so often.")
    forward_seed: bool = key(False, "Hand a request's seed to the backend. vLLM's CPU engine dies of it.")

    def errors(self) -> list[str]:
        messages = super().errors() + check_model(self, "model") + check_address("backend", self.backend)
        messages += one_of(self, backend_api=APIS) + check_key_variable("backend_key_env", self.backend_key_env)
        messages += check_key_variable("api_key_env", self.api_key_env, must_be_set=False)
        if self.api_key_file and not Path(self.api_key_file).is_file():
            messages.append(f"api_key_file={self.api_key_file}: there is no such file")
        if not 0 <= self.port <= 65535:
            messages.append(f"port={self.port}: 0 to 65535 is expected")
        counts = ("max_num_candidates", "max_rounds", "max_answers", "max_body_bytes", "max_running")
        counts += ("max_connections", "max_backend_requests")
        messages += at_least(self, 1, *counts) + at_least(self, 0, "max_waiting", "backend_retries")
        seconds = ("header_seconds", "body_seconds", "request_seconds", "keep_alive_seconds", "backend_start_seconds")
        messages += positive(self, *seconds)
        for name, limit in (("num_candidates", "max_num_candidates"), ("rounds", "max_rounds")):
            value = getattr(self, name)
            if value is not None and value > getattr(self, limit):
                messages.append(f"{name}={value} is more than {limit}={getattr(self, limit)}: raise {limit}")
        if not self.without_key and not messages and not self.keys() and not _loopback(self.host):
            messages.append(
                f"host={self.host} without a key would let anyone in: export {self.api_key_env}, give api_key_file, "
                "or say without_key: true"
            )
        return messages

    def keys(self) -> list[str]:
        """The clients' keys; none: the server is open."""
        if self.api_key_file:
            lines = Path(self.api_key_file).read_text(encoding="utf-8").splitlines()
            keys = [line.strip() for line in lines if line.strip()]
            if not keys:
                raise ValueError(f"api_key_file={self.api_key_file} holds no key: write one a line")
            return keys
        return [key for key in [os.environ.get(self.api_key_env, "").strip()] if key]


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

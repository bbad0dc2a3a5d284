"""Configuration of `gsr-solve` and `gsr-serve`, with its checks. Imports neither torch nor TRL."""

import dataclasses
import os
from collections import Counter
from dataclasses import dataclass, replace
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

MODES = ("refine", "vote", "direct")
LONGEST_DEFAULT = 4096  # tokens of a completion where neither settings nor context say less
ENGINES = ("auto", "vllm", "transformers", "endpoint")
APIS = ("chat", "completions")
SHORT_NAMES = {"k": "num_candidates"}  # on the command line


@dataclass(frozen=True)
class SolveSettings:
    """How to solve. See `gsr_rl.serving.config.AnswerConfig` for the meaning of each.

    Attributes:
        candidates_per_set: The most candidates that one refinement reads; None: all of them.
        num_refinements: None: as many as candidates where these are more than a set holds, else 1.
        stop_when_agreed: None: every vote is counted. 1: until the vote cannot change; less: or such a share agrees.
        seed: Of the sets.
        num_answers: Answers sampled by the last stage, or taken from a vote.
        count_votes: Whether answers are compared although no vote decides.
        max_completion_length, max_refinement_length: In tokens; None until `resolved` fills them in.
        trained_completion_length, trained_refinement_length: What they were in training, where that is known.
    """

    num_candidates: int = 4
    candidates_per_set: int | None = None
    num_refinements: int | None = None
    stop_when_agreed: float | None = None
    seed: int = 0
    prompt_template: str = "gsr"
    max_refinement_prompt_length: int = 8192
    unfinished_candidates: str = "drop"
    mode: str = "refine"
    rounds: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    refinement_temperature: float | None = None
    refinement_top_p: float | None = None
    max_completion_length: int | None = None
    max_refinement_length: int | None = None
    num_answers: int = 1
    count_votes: bool = True
    trained_completion_length: int | None = None
    trained_refinement_length: int | None = None

    def resolved(self, context_length: int) -> "SolveSettings":
        """With every default filled in for a model that reads and writes so many tokens.

        A refinement's trained length is kept as far as it leaves its prompt the budget, or is a quarter of them.

        Raises:
            ValueError: The refinement leaves no room for its prompt.
        """
        quarter = max(1, context_length // 4)
        room = max(quarter, context_length - self.max_refinement_prompt_length)
        trained = min(self.trained_completion_length or min(LONGEST_DEFAULT, quarter), context_length)
        longest = self.max_completion_length or trained
        refinement = self.max_refinement_length or self.max_completion_length
        refinement = refinement or min(self.trained_refinement_length or longest, room)
        if refinement >= context_length:
            raise ValueError(
                f"max_refinement_length={refinement} leaves no room for a prompt in the model's window of "
                f"{context_length} tokens: set it to less than {context_length}"
            )
        as_candidates = self.refinement_temperature is None
        return replace(
            self,
            max_completion_length=longest,
            max_refinement_length=refinement,
            max_refinement_prompt_length=min(self.max_refinement_prompt_length, context_length - refinement),
            refinement_temperature=self.temperature if as_candidates else self.refinement_temperature,
            refinement_top_p=self.top_p if self.refinement_top_p is None else self.refinement_top_p,
        )

    @property
    def set_size(self) -> int:
        """K, how many candidates a refinement reads."""
        return min(self.num_candidates, self.candidates_per_set or self.num_candidates)

    @property
    def refinements(self) -> int:
        """R, how many refinements a round makes of sets; 1: of all candidates, without a vote."""
        return self.num_refinements or (self.num_candidates if self.num_candidates > self.set_size else 1)

    @property
    def composes(self) -> bool:
        """Whether refinements over sets vote."""
        return self.mode == "refine" and self.refinements > 1

    @property
    def grows(self) -> bool:
        """Whether candidates, too, come in waves: only so many as the next refinements are drawn from."""
        return self.composes and self.rounds == 1 and self.stop_when_agreed not in (None, 1)

    def wave(self, voters: int, asked: int, groups: list[int | None]) -> int:
        """How many more voters to ask for at once; 0: the vote is over.

        With `stop_when_agreed` 1 as many as it takes at least before the vote is decided, so none is superfluous; with
        a share two, and then each time as many as before.

        Args:
            voters: How many there are at most.
            asked: How many of them have been asked for.
            groups: The classes of the answers that came; None abstains.
        """
        left, stop = voters - asked, self.stop_when_agreed
        if stop is None:
            return left
        sizes = Counter(group for group in groups if group is not None)
        first, second = [*(size for _, size in sizes.most_common(2)), 0, 0][:2]
        if first - second > left or (stop < 1 and groups and first >= stop * len(groups)):
            return 0
        return min(left, max(2, asked) if stop < 1 else (left - (first - second)) // 2 + 1)


@dataclass
class AnswerConfig(ChatTemplateConfig):
    """How a problem is answered: how candidates are shown (from the model's own file), and how they are sampled."""

    model: str | None = key(None, "Path or Hub name of the model.")
    num_candidates: int | None = key(None, "N: candidates per problem. Default: the model's gsr_config.json, else 4.")
    candidates_per_set: int | None = key(
        None,
        "K: the most candidates that one refinement reads. Default: as many as in training (gsr_config.json); without "
        "that file num_candidates: one prompt with all of them.",
    )
    num_refinements: int | None = key(
        None,
        "R: refinements, each over a set of K of the candidates, whose answers vote. Default: num_candidates where "
        "that is more than K, else 1.",
    )
    stop_when_agreed: float | bool | None = key(
        None,
        "Sample in waves what votes, until the vote cannot change (1, or no value) or until so large a share of it "
        "agrees, such as 0.8; then candidates, too, come in waves. Default: all are sampled at once.",
    )
    prompt_template: str | None = key(
        None, "Wording of the prompts, as in training. Default: gsr_config.json, else gsr."
    )
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
        if isinstance(self.stop_when_agreed, bool):
            self.stop_when_agreed = 1.0 if self.stop_when_agreed else None
        raise_if_any(self.errors())

    def errors(self) -> list[str]:
        """Everything that is wrong with the values, each with its fix."""
        messages = finite(self)
        if self.mode not in MODES:
            messages.append(f"mode={self.mode!r} is not known: use one of {', '.join(MODES)}")
        messages += at_least(self, 1, "num_candidates", "rounds", "max_completion_length", "max_refinement_length")
        messages += at_least(self, 1, "max_refinement_prompt_length", "candidates_per_set", "num_refinements")
        messages += check_agreed("stop_when_agreed", self.stop_when_agreed)
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
        trained["candidates_per_set"] = self.candidates_per_set or stored.get("num_candidates")
        set_here = {name: value for name, value in self._values_of(RefinementConfig).items() if value is not None}
        values = self._values_of(SolveSettings) | dataclasses.asdict(RefinementConfig(**stored | set_here))
        return SolveSettings(**values | trained)

    def _values_of(self, other: type) -> dict[str, object]:
        """The values here of another dataclass's fields."""
        names = [field.name for field in dataclasses.fields(other) if hasattr(self, field.name)]
        return {name: getattr(self, name) for name in names}


def check_agreed(name: str, share: float | None) -> list[str]:
    """A share of agreeing answers that may stop a vote."""
    if share is None or 0.5 < share <= 1:
        return []
    return [f"{name}={share}: a share above 0.5 and at most 1 is expected"]


@dataclass
class SolveConfig(EngineAccess, AnswerConfig):
    """`gsr-solve` and `gsr_rl.Solver`: the engine that answers."""

    engine: str = key(
        "auto",
        "vllm, transformers or endpoint. Default (auto): endpoint if endpoints is set, else vllm if it is installed, "
        "but transformers, which starts sooner, for one problem with at most 100 MB of local weights on a CPU.",
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
    max_num_candidates: int = key(16, "The most candidates, and refinements a round, that a request may ask for.")
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
        limits = dict.fromkeys(("num_candidates", "num_refinements"), "max_num_candidates") | {"rounds": "max_rounds"}
        for name, limit in limits.items():
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

"""Configuration of `gsr-solve` and `gsr-serve`, and their command lines. Imports neither torch nor TRL."""

import argparse
import dataclasses
import os
import re
import types
import typing
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import yaml

from gsr_rl.engines.config import EngineAccess
from gsr_rl.keys import at_least, check_address, check_key_variable, check_model, finite, positive, raise_if_any
from gsr_rl.refinement.settings import COMPLETION_LENGTHS, RefinementConfig, refinement_settings
from gsr_rl.serving.steps import MODES, SolveSettings


@dataclass
class AnswerConfig:
    """How a problem is answered: how candidates are shown (from the model's own file), and how is sampled."""

    model: str | None = field(default=None, metadata={"help": "Path or Hub name of the model."})
    num_candidates: int | None = field(
        default=None, metadata={"help": "K: candidates of a problem. Default: the model's gsr_config.json, else 4."}
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "Wording of the prompts: gsr or tiny. Default: gsr_config.json, else gsr."}
    )
    max_refinement_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Budget of a refinement prompt in tokens. Default: gsr_config.json, else 8192."},
    )
    unfinished_candidates: str | None = field(
        default=None,
        metadata={"help": "Candidates that ran into their limit: drop or cut. Default: gsr_config.json, else drop."},
    )
    mode: str = field(
        default="refine",
        metadata={"help": "refine, vote (the majority's candidate, no refinement) or direct (one plain sample)."},
    )
    rounds: int = field(
        default=1,
        metadata={"help": "Refinement rounds. Each but the last makes K refinements, which the next one reads."},
    )
    temperature: float = field(default=0.6, metadata={"help": "Sampling temperature of candidates; 0 is greedy."})
    top_p: float = field(default=0.95, metadata={"help": "Nucleus of candidates."})
    refinement_temperature: float | None = field(
        default=None, metadata={"help": "Sampling temperature of refinements. Default: temperature."}
    )
    refinement_top_p: float | None = field(default=None, metadata={"help": "Nucleus of refinements. Default: top_p."})
    max_completion_length: int | None = field(
        default=None,
        metadata={
            "help": "Limit of a candidate in tokens. Default: gsr_config.json (as in training), else a quarter of the "
            "model's window, at most 4096."
        },
    )
    max_refinement_length: int | None = field(
        default=None,
        metadata={
            "help": "Limit of a refinement in tokens. Default: max_completion_length if that is set, else "
            "gsr_config.json, else as for candidates."
        },
    )

    def __post_init__(self):
        raise_if_any(self.findings())

    def findings(self) -> list[str]:
        """Everything that is wrong with the values, each with its mend."""
        found = check_model(self, "model") + finite(self)
        if self.mode not in MODES:
            found.append(f"mode={self.mode!r} is not known: use one of {', '.join(MODES)}")
        found += at_least(self, 1, "num_candidates", "rounds", "max_completion_length", "max_refinement_length")
        found += at_least(self, 1, "max_refinement_prompt_length")
        found += at_least(self, 0, "temperature", "refinement_temperature")
        for name in ("top_p", "refinement_top_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                found.append(f"{name}={value}: a share above 0 and at most 1 is expected")
        return found

    def solve_settings(self) -> SolveSettings:
        """What is set here, over what the model's `gsr_config.json` holds, over the defaults.

        Raises:
            ValueError: A value of the file is wrong.
        """
        stored = refinement_settings(getattr(self, "endpoint_tokenizer", None) or self.model)
        lengths = {name.replace("max", "trained"): stored.pop(name, None) for name in COMPLETION_LENGTHS}
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(RefinementConfig)}
        refinement = RefinementConfig(**(stored | {name: value for name, value in own.items() if value is not None}))
        names = [one.name for one in dataclasses.fields(SolveSettings) if hasattr(self, one.name)]
        values = {name: getattr(self, name) for name in names} | dataclasses.asdict(refinement)
        return SolveSettings(**values, **lengths)


@dataclass
class SolveConfig(AnswerConfig, EngineAccess):
    """`gsr-solve` and `gsr_rl.Solver`: the engine that answers."""

    engine: str = field(
        default="auto",
        metadata={
            "help": "vllm, transformers or endpoint. Default (auto): endpoint if endpoints is set, vllm if it is "
            "installed, else transformers."
        },
    )
    request_retries: int = field(default=3, metadata={"help": "Further tries of a request to an endpoint."})
    enforce_eager: bool | None = field(
        default=None, metadata={"help": "vLLM without compilation: it starts sooner. Default: on a CPU."}
    )

    def findings(self) -> list[str]:
        found = super().findings()
        if self.endpoints or self.engine == "endpoint":  # an endpoint knows the model by a name of its own
            found = [message for message in found if not message.startswith("model=")]
        if self.engine not in ("auto", "vllm", "transformers", "endpoint"):
            found.append(f"engine={self.engine!r} is not known: use auto, vllm, transformers or endpoint")
        if self.engine == "endpoint" and not self.endpoints:
            found.append("endpoints is not set: engine=endpoint needs one, such as http://localhost:8000/v1")
        if self.endpoints and self.engine not in ("auto", "endpoint"):
            found.append(f"endpoints is set, but engine={self.engine}: leave one of the two out")
        for url in self.endpoints or []:
            found += check_address("endpoints", url)
        if self.endpoint_api not in ("chat", "completions"):
            found.append(f"endpoint_api={self.endpoint_api!r}: use chat or completions")
        found += check_key_variable("api_key_env", self.api_key_env)
        found += at_least(self, 1, "max_model_length", "max_num_seqs", "tensor_parallel_size")
        found += at_least(self, 0, "request_retries") + positive(self, "request_timeout")
        return found


@dataclass
class ServeConfig(AnswerConfig):
    """`gsr-serve`: the server behind it, the address in front, and its limits."""

    backend: str = field(
        default="http://127.0.0.1:8000/v1", metadata={"help": "Address of the vLLM server that samples."}
    )
    backend_model: str | None = field(
        default=None, metadata={"help": "The name by which it knows the model. Default: the only one that it serves."}
    )
    backend_api: str = field(
        default="completions",
        metadata={"help": "completions (token ids, exact; vLLM and SGLang) or chat (messages, any server)."},
    )
    backend_key_env: str | None = field(
        default=None, metadata={"help": "Name of the environment variable with the backend's key. Default: no key."}
    )
    backend_retries: int = field(
        default=2, metadata={"help": "Further tries of a request that the backend refused or dropped."}
    )
    backend_start_seconds: float = field(
        default=60.0, metadata={"help": "How long to wait for the backend's first answer at the start."}
    )
    max_model_length: int | None = field(
        default=None, metadata={"help": "The backend's window in tokens. Default: what it states."}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on. 0.0.0.0: all; needs a key."})
    port: int = field(default=8080, metadata={"help": "Port to listen on; 0 takes a free one."})
    served_model_name: str | None = field(
        default=None, metadata={"help": "Name in /v1/models. Default: the last part of `model`."}
    )
    api_key_env: str = field(
        default="GSR_API_KEY", metadata={"help": "Name of the environment variable with the clients' key."}
    )
    api_key_file: str | None = field(
        default=None, metadata={"help": "File with clients' keys, one a line, in place of the variable."}
    )
    without_key: bool = field(default=False, metadata={"help": "Allow an open server on another address than this "
                                                       "machine's own."})  # fmt: skip
    max_num_candidates: int = field(default=16, metadata={"help": "The most candidates that a request may ask for."})
    max_rounds: int = field(default=3, metadata={"help": "The most rounds that a request may ask for."})
    max_answers: int = field(default=8, metadata={"help": "The largest `n` that a request may ask for."})
    max_body_bytes: int = field(default=1_048_576, metadata={"help": "Largest body of a request."})
    body_seconds: float = field(default=30.0, metadata={"help": "How long a client may take to send its body."})
    header_seconds: float = field(
        default=10.0,
        metadata={"help": "How long a connection may take to send a request's header; then it is closed."},
    )
    max_connections: int = field(
        default=512,
        metadata={"help": "Connections at once. A request on one more gets 503; twice as many are closed."},
    )
    max_backend_requests: int = field(
        default=256, metadata={"help": "Completions asked of the backend at once; further ones wait for their turn."}
    )
    max_running: int = field(default=64, metadata={"help": "Requests worked on at once."})
    max_waiting: int = field(default=128, metadata={"help": "Requests that wait for a place; one more gets 429."})
    request_seconds: float = field(
        default=600.0, metadata={"help": "How long a request may take, waiting included. Its stages share it."}
    )
    keep_alive_seconds: float = field(
        default=10.0, metadata={"help": "A stream begins at the latest, and then says at least a comment, so often."}
    )
    forward_seed: bool = field(
        default=False,
        metadata={"help": "Hand a request's seed to the backend. vLLM's CPU engine dies of it, so it is left out."},
    )

    def findings(self) -> list[str]:
        found = super().findings()
        found += check_address("backend", self.backend)
        if self.backend_api not in ("chat", "completions"):
            found.append(f"backend_api={self.backend_api!r}: use chat or completions")
        found += check_key_variable("backend_key_env", self.backend_key_env)
        found += check_key_variable("api_key_env", self.api_key_env, must_be_set=False)
        if self.api_key_file and not Path(self.api_key_file).is_file():
            found.append(f"api_key_file={self.api_key_file}: there is no such file")
        if not 0 <= self.port <= 65535:
            found.append(f"port={self.port}: 0 to 65535 is expected")
        numbers = ("max_num_candidates", "max_rounds", "max_answers", "max_body_bytes", "max_running")
        numbers += ("max_connections", "max_backend_requests")
        found += at_least(self, 1, *numbers) + at_least(self, 0, "max_waiting", "backend_retries")
        seconds = ("header_seconds", "body_seconds", "request_seconds", "keep_alive_seconds", "backend_start_seconds")
        found += positive(self, *seconds)
        for name, limit in (("num_candidates", "max_num_candidates"), ("rounds", "max_rounds")):
            value = getattr(self, name)
            if value is not None and value > getattr(self, limit):
                found.append(f"{name}={value} is more than {limit}={getattr(self, limit)}: raise {limit}")
        if not self.without_key and not found and not self.keys() and not _loopback(self.host):
            found.append(
                f"host={self.host} without a key would let anyone in: export {self.api_key_env}, give api_key_file, "
                "or say without_key: true"
            )
        return found

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


# Command lines ----------------------------------------------------------------------------------------------


def add_keys(parser: argparse.ArgumentParser, config: type) -> None:
    """An option for each field of a configuration, with its help."""
    types_of = typing.get_type_hints(config)
    for one in dataclasses.fields(config):
        text, kind = one.metadata["help"], _kind(types_of[one.name])
        repeated = typing.get_origin(_plain(types_of[one.name])) is list
        if one.default is not None and "Default" not in text:
            text += f" Default: {one.default}."
        parser.add_argument(
            *([f"--{one.name}"] + ["--k"] * (one.name == "num_candidates")),
            dest=one.name,
            action="append" if repeated else "store",
            default=argparse.SUPPRESS,
            help=(text + " May be given several times." * repeated).replace("%", "%%"),
            metavar={_truth: "true|false", int: "N", float: "X", _mapping: "MAPPING"}.get(kind, "TEXT"),
            type=kind,
        )


def with_underscores(argv: list[str]) -> list[str]:
    """`--num-candidates` as `--num_candidates`; what stands after `--` is no option."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [
        re.sub(r"^--[a-z][a-z-]*", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in argv[:end]
    ]
    return options + argv[end:]


def _plain(annotation) -> object:
    """`X` of `X | None`; the first of several."""
    if isinstance(annotation, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _kind(annotation):
    """What turns a word of the command line into a value of this type."""
    plain = _plain(annotation)
    if typing.get_origin(plain) is list:
        return typing.get_args(plain)[0]
    if typing.get_origin(plain) is dict:
        return _mapping
    return _truth if plain is bool else plain


def _truth(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r}: true or false is expected")
    return word.lower() == "true"


def _mapping(word: str) -> dict:
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{word!r}: a mapping is expected, such as '{{reasoning_effort: low}}'")
    return value

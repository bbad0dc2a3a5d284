"""Keys of the engine that samples, and of how it samples, with their checks."""

import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from gsr_rl.engines.base import KINDS as ENGINES
from gsr_rl.keys import at_least, check_output, check_shares, check_window, finite, positive


@dataclass
class EngineAccess:
    """The engine of a program that samples: in this process, or endpoints that are asked."""

    engine: str = field(
        default="vllm",
        metadata={"help": "vllm (in process), transformers (slow, everywhere), or endpoint (OpenAI-compatible)."},
    )
    engine_dtype: str = field(default="auto", metadata={"help": "Number format: auto, float32, bfloat16, float16."})
    max_model_length: int | None = field(
        default=None, metadata={"help": "The engine's window in tokens, prompt and completion. Default: the model's."}
    )
    max_num_seqs: int | None = field(default=None, metadata={"help": "Sequences decoded at once. Default: engine's."})
    gpu_memory_utilization: float = field(default=0.9, metadata={"help": "Share of a GPU's memory for the engine."})
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that one copy of a model is cut over."})
    endpoints: list[str] | None = field(
        default=None, metadata={"help": "Addresses of OpenAI-compatible endpoints, such as http://localhost:8000/v1."}
    )
    endpoint_api: str = field(
        default="chat",
        metadata={"help": "chat (messages, any provider) or completions (token ids, exact; vLLM and SGLang)."},
    )
    endpoint_tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer that an endpoint's prompts are counted with. Default: the model's."}
    )
    endpoint_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further keys of a request's body, such as {reasoning_effort: low}."}
    )
    api_key_env: str | None = field(
        default=None, metadata={"help": "Name of the environment variable with the endpoints' key. Default: no key."}
    )
    request_timeout: float = field(default=1800.0, metadata={"help": "Seconds that one try of a request may take."})
    request_retries: int = field(
        default=10,
        metadata={"help": "Further tries of a request, with pauses growing from half a second to a minute."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of sampling and of all that is drawn beside it."})


@dataclass
class EngineConfig(EngineAccess):
    """The engine that distillation and evaluation sample with, and how they sample."""

    data_parallel_size: int | None = field(
        default=None,
        metadata={"help": "Copies of a model, each in its own process. Default: as many as the visible GPUs hold."},
    )
    max_requests_in_flight: int = field(default=256, metadata={"help": "Requests to endpoints at once."})
    requests_per_minute: float | None = field(default=None, metadata={"help": "Rate limit of requests to endpoints."})
    num_generations: int = field(default=8, metadata={"help": "Candidates sampled per problem."})
    num_candidate_sets: int = field(
        default=1, metadata={"help": "M: candidate sets per problem; they share no candidate while M*K <= candidates."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of candidates; 0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of candidates."})
    max_completion_length: int = field(default=4096, metadata={"help": "Limit of a candidate in tokens."})
    refinement_temperature: float = field(default=0.7, metadata={"help": "Sampling temperature of refinements."})
    refinement_top_p: float = field(default=1.0, metadata={"help": "Nucleus of refinements."})
    max_refinement_length: int | None = field(
        default=None, metadata={"help": "Limit of a refinement in tokens. Default: max_completion_length."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Check everything, print the resolved configuration and the amounts, load no weights."},
    )


def check_sampling(c) -> list[str]:
    """The keys of `EngineConfig`."""
    if wrong := finite(c):
        return wrong
    found = _check_engine(c)
    limits = ("max_completion_length", "max_refinement_length", "max_refinement_prompt_length")
    found += at_least(c, 1, "num_generations", "num_candidate_sets", *limits) + at_least(c, 0, "seed")
    for name in ("temperature", "refinement_temperature"):
        if getattr(c, name) < 0:
            found.append(f"{name}={getattr(c, name)} is negative: use 0 for greedy, or a positive value")
    found += check_shares(c, "top_p", "refinement_top_p", "gpu_memory_utilization")
    found += check_output(c)
    if not c.output_dir:
        found.append("output_dir is not set: give the folder that the results go to")
    if c.num_candidates > c.num_generations:
        found.append(
            f"num_candidates={c.num_candidates} is more than num_generations={c.num_generations}: a refinement can "
            f"only show candidates that were sampled, set num_generations to at least {c.num_candidates}"
        )
    if found:
        return found
    engines = {name: c.engine for name in ("model", "student_model", "teacher_model")}
    engines["teacher_model"] = getattr(c, "teacher_engine", None) or c.engine
    models = [getattr(c, name, None) for name, engine in engines.items() if engine != "endpoint"]
    for model in [model for model in models if model] or [None]:
        found += check_window(c, "max_model_length", model)
    return list(dict.fromkeys(found))


def _check_engine(c, role: str = "") -> list[str]:
    """The keys of the engine; `role` is a prefix of keys that the teacher has of its own."""
    found = []
    own = {name: getattr(c, role + name) for name in ("engine", "endpoints", "endpoint_api", "api_key_env")}
    engine, urls = own["engine"] or c.engine, own["endpoints"] or []
    urls = [urls] if isinstance(urls, str) else urls
    if own["engine"] and engine not in ENGINES:
        found.append(f"{role}engine={engine!r} is not known: use {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")
    if engine == "endpoint" and not (urls or c.endpoints):
        found.append(f"{role}endpoints is not set: engine=endpoint needs one, such as http://localhost:8000/v1")
    for url in urls:
        parts = urlsplit(str(url))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            found.append(f"{role}endpoints: {_shown(url)} is no address, http://HOST:PORT/v1 is expected")
        elif parts.username or parts.password or parts.query:
            found.append(f"{role}endpoints: {_shown(url)} holds a secret or a query: put the key into an environment "
                         f"variable and name that by {role}api_key_env")  # fmt: skip
    if own["endpoint_api"] not in (None, "chat", "completions"):
        found.append(f"{role}endpoint_api={own['endpoint_api']!r}: use chat or completions")
    variable = own["api_key_env"]
    if variable and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", str(variable)):
        found.append(f"{role}api_key_env must be the name of an environment variable, in capitals; the key itself is "
                     "not to be written there (value not shown)")  # fmt: skip
    elif variable and engine == "endpoint" and not os.environ.get(variable):
        found.append(f"{role}api_key_env={variable}: this environment variable is not set: export it, or leave the "
                     "key out for endpoints that need none")  # fmt: skip
    if role:
        return found
    found += at_least(c, 1, "max_requests_in_flight", "tensor_parallel_size") + at_least(c, 0, "request_retries")
    return found + positive(c, "request_timeout", "requests_per_minute", "data_parallel_size")


def _shown(url: object) -> str:
    """An address without what may be a secret."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.hostname}..." if parts.hostname else repr(str(url)[:20])

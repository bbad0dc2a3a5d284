"""Keys of the engine that samples, and of how it samples, with their checks."""

from dataclasses import dataclass
from typing import Any

from gsr_rl import keys
from gsr_rl.engines.base import KINDS
from gsr_rl.keys import key
from gsr_rl.refinement.settings import ChatTemplateConfig


@dataclass
class EngineAccess(ChatTemplateConfig):
    """The engine of a program that samples: in this process, or endpoints that are asked."""

    engine: str = key("vllm", "vllm (in process), transformers (slow, everywhere), or endpoint (OpenAI-compatible).")
    engine_dtype: str = key("auto", "Number format: auto, float32, bfloat16, float16.")
    max_model_length: int | None = key(None, "Context length in tokens, prompt and completion. Default: the model's.")
    max_num_seqs: int | None = key(None, "Sequences decoded at once. Default: engine's.")
    gpu_memory_utilization: float = key(0.9, "Share of a GPU's memory for the engine.")
    tensor_parallel_size: int = key(1, "GPUs that one copy of a model is cut over.")
    endpoints: list[str] | None = key(None, "OpenAI-compatible endpoints, such as http://localhost:8000/v1.")
    endpoint_api: str = key("chat", "chat (messages, any provider) or completions (token ids, exact; vLLM, SGLang).")
    endpoint_tokenizer: str | None = key(None, "Tokenizer that counts an endpoint's prompts. Default: the model's.")
    endpoint_options: dict[str, Any] | str | None = key(None, "Further keys of a request: {reasoning_effort: low}.")
    api_key_env: str | None = key(None, "Name of the environment variable with the endpoints' key. Default: no key.")
    request_timeout: float = key(1800.0, "Seconds that one try of a request may take.")
    request_retries: int = key(10, "Further tries of a request, with pauses growing from half a second to a minute.")
    seed: int = key(0, "Seed of sampling and of all that is drawn beside it.")


@dataclass
class EngineConfig(EngineAccess):
    """The engine that distillation and evaluation sample with, and how they sample."""

    data_parallel_size: int | None = key(None, "Copies of a model, a process each. Default: all that the GPUs hold.")
    max_requests_in_flight: int = key(256, "Requests to endpoints at once.")
    requests_per_minute: float | None = key(None, "Rate limit of requests to endpoints.")
    num_generations: int = key(8, "Candidates sampled per problem.")
    num_candidate_sets: int = key(1, "M: candidate sets per problem; they share no candidate while M*K <= candidates.")
    temperature: float = key(1.0, "Sampling temperature of candidates; 0 is greedy.")
    top_p: float = key(1.0, "Nucleus of candidates.")
    max_completion_length: int = key(4096, "Limit of a candidate in tokens.")
    refinement_temperature: float = key(0.7, "Sampling temperature of refinements.")
    refinement_top_p: float = key(1.0, "Nucleus of refinements.")
    max_refinement_length: int | None = key(None, "Limit of a refinement in tokens. Default: max_completion_length.")
    dry_run: bool = key(False, "Check everything, print the resolved configuration and the amounts, load no weights.")


def check_sampling(c) -> list[str]:
    """Messages about the keys of `EngineConfig`, of which the lengths are compared with the models' contexts."""
    if messages := keys.finite(c):
        return messages
    messages = check_engine(c)
    limits = ("max_completion_length", "max_refinement_length", "max_refinement_prompt_length")
    messages += keys.at_least(c, 1, "num_generations", "num_candidate_sets", *limits) + keys.at_least(c, 0, "seed")
    for name in ("temperature", "refinement_temperature"):
        if getattr(c, name) < 0:
            messages.append(f"{name}={getattr(c, name)} is negative: use 0 for greedy, or a positive value")
    messages += keys.check_shares(c, "top_p", "refinement_top_p", "gpu_memory_utilization")
    messages += keys.check_output(c)
    if not c.output_dir:
        messages.append("output_dir is not set: give the folder that the results go to")
    if c.num_candidates > c.num_generations:
        messages.append(
            f"num_candidates={c.num_candidates} is more than num_generations={c.num_generations}: a refinement can "
            f"only show candidates that were sampled, set num_generations to at least {c.num_candidates}"
        )
    if messages:
        return messages
    engines = {name: c.engine for name in ("model", "student_model", "teacher_model")}
    engines["teacher_model"] = getattr(c, "teacher_engine", None) or c.engine
    models = [getattr(c, name, None) for name, engine in engines.items() if engine != "endpoint"]
    for model in [model for model in models if model] or [None]:
        messages += keys.check_context(c, "max_model_length", model)
    return list(dict.fromkeys(messages))


def check_engine(c, role: str = "") -> list[str]:
    """Messages about the keys of the engine, or, with the `role` "teacher_", about those that the teacher may have."""
    kind, urls = getattr(c, f"{role}engine"), getattr(c, f"{role}endpoints") or []
    engine, messages = kind or c.engine, []
    if kind:
        messages += keys.one_of(c, **{f"{role}engine": KINDS})
    if engine == "endpoint" and not (urls or c.endpoints):
        messages.append(f"{role}endpoints is not set: engine=endpoint needs one, such as http://localhost:8000/v1")
    for url in [urls] if isinstance(urls, str) else urls:
        messages += keys.check_address(f"{role}endpoints", url)
    if getattr(c, f"{role}endpoint_api") not in (None, "chat", "completions"):
        messages.append(f"{role}endpoint_api={getattr(c, f'{role}endpoint_api')!r}: use chat or completions")
    variable = f"{role}api_key_env"
    messages += keys.check_key_variable(variable, getattr(c, variable) or None, must_be_set=engine == "endpoint")
    if role:
        return messages
    messages += keys.at_least(c, 1, "max_requests_in_flight", "tensor_parallel_size") + keys.at_least(
        c, 0, "request_retries"
    )
    return messages + keys.positive(c, "request_timeout", "requests_per_minute", "data_parallel_size")
